"""`fcnopt.run` over the clip into every kind of output, read back by other readers than fcnopt's own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import av
import cv2
import numpy as np
from faults.case import Fault

import fcnopt
from fcnopt.evaluate.memory import PeakMemory
from fcnopt.media.sinks.mcap import LABELS_TOPIC
from fcnopt.recording import RunOptions
from vehicle_steps.rows import Figures, Labels, NotRun, Row, Work, demand_equal, size_mb, tried

STEP = "run"


def steps(work: Work) -> list[Row]:
    """Rows of this step."""
    folder = work.place("recorded")
    outputs: tuple[tuple[str, str, Callable[[Path], list[Labels]]], ...] = (
        ("labels.mkv", "FFmpeg", from_video),
        ("labels", "OpenCV", from_pictures),
        ("labels.mcap", "mcap-ros2-support", from_mcap),
    )
    rows = [
        tried(
            STEP,
            f"fcnopt run to {'a folder of PNGs' if name == 'labels' else Path(name).suffix}",
            f"label maps as {reader} reads them, each equal to engine.run's",
            lambda name=name, read=read: _recorded(work, folder / name, read),
        )
        for name, reader, read in outputs
    ]
    rows.append(
        tried(
            STEP,
            "fcnopt run --rerun",
            "label maps as Rerun's reader gives them, and rerun rrd verify",
            lambda: _rerun(work, folder / "with-rerun.mkv"),
        )
    )
    return rows


def _recorded(work: Work, output: Path, read: Callable[[Path], list[Labels]], rerun: Path | None = None) -> Figures:
    with PeakMemory() as memory:
        done = fcnopt.run(
            work.clip, work.bundle, output, options=RunOptions(max_frames=len(work.pictures), rerun=rerun)
        )
    return {
        **demand_equal(read(rerun or output), work.labels),
        "fps end to end": round(done.fps, 1),
        "latency ms": {"p50": round(done.latency.p50_ms, 1), "p99": round(done.latency.p99_ms, 1)},
        "inference ms p50": round(done.inference.p50_ms, 1),
        "MB": size_mb(rerun or output),
        "MiB at most on top": round((memory.peak_mib or 0) - (memory.start_mib or 0)),
        "implausible": done.problems or 0,
    }


def _rerun(work: Work, output: Path) -> Figures:
    try:
        import rerun.chunk  # noqa: F401  (whether it is there)
    except ImportError as error:
        raise NotRun('rerun-sdk is not installed: pip install "fcnopt[rerun]"') from error
    recording = output.with_suffix(".rrd")
    figures = _recorded(work, output, from_rerun, recording)
    command = [sys.executable, "-m", "rerun_cli", "rrd", "verify", str(recording)]
    said = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    if "1 file verified without error" not in said.stdout + said.stderr:
        raise Fault(f"rerun rrd verify: {(said.stdout + said.stderr)[-300:]}")
    return figures


def from_video(path: Path) -> list[Labels]:
    """Label maps of a video of labels."""
    with av.open(str(path)) as container:
        return [np.asarray(frame.to_ndarray(), np.uint8) for frame in container.decode(video=0)]


def from_pictures(path: Path) -> list[Labels]:
    """Label maps of a folder."""
    files = sorted(path.glob("*.png"))
    return [np.asarray(cv2.imread(str(file), cv2.IMREAD_UNCHANGED), np.uint8) for file in files]


def from_mcap(path: Path) -> list[Labels]:
    """Label maps of a log."""
    return [labels for _, labels in timed_from_mcap(path)]


def timed_from_mcap(path: Path) -> list[tuple[int, Labels]]:
    """The same with their times, in nanoseconds."""
    try:
        from mcap.reader import make_reader
        from mcap_ros2.decoder import DecoderFactory
    except ImportError as error:
        raise NotRun("mcap-ros2-support is not installed") from error
    found = []
    with path.open("rb") as file:
        reader = make_reader(file, validate_crcs=True, decoder_factories=[DecoderFactory()])
        for _, _, record, message in reader.iter_decoded_messages(topics=[LABELS_TOPIC]):
            labels = np.frombuffer(message.data, np.uint8).reshape(message.height, message.width)
            stamp = message.header.stamp.sec * 10**9 + message.header.stamp.nanosec
            if record.log_time != stamp:
                raise Fault(f"log time {record.log_time} is not the header's, {stamp}")
            found.append((stamp, labels))
    return found


def from_rerun(path: Path) -> list[Labels]:
    """Label maps of a Rerun recording."""
    from rerun.chunk import RrdReader

    buffers: list[bytes] = []
    shapes: list[tuple[int, int]] = []
    for chunk in RrdReader(path).stream():
        if chunk.entity_path != "/camera/labels":
            continue
        batch = chunk.to_record_batch()
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            if name.endswith(":buffer"):
                buffers += [bytes(each[0]) for each in column.to_pylist()]
            elif name.endswith(":format"):
                shapes += [(each[0]["height"], each[0]["width"]) for each in column.to_pylist()]
    if not buffers or len(buffers) != len(shapes):
        raise Fault(f"{len(buffers)} label maps with {len(shapes)} sizes in {path.name}")
    return [np.frombuffer(data, np.uint8).reshape(shape) for data, shape in zip(buffers, shapes, strict=True)]
