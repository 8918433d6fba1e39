"""`fcnopt run`: an engine over a clip, its labels written."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

import fcnopt
import fcnopt.backends.base
import fcnopt.bundle
from fcnopt import recording
from fcnopt.builder import build
from fcnopt.bundle import load
from fcnopt.cli import main
from fcnopt.errors import BundleError, MediaError, UsageError
from fcnopt.media.base import Clip, Frame
from fcnopt.media.clips import open_clip
from fcnopt.quantize.frames import CalibrationFrames
from fcnopt.recording import RunOptions, run
from fcnopt.settings import BuildSettings

Image = NDArray[np.uint8]


@pytest.fixture(scope="module")
def bundle(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("engines")
    return build(tiny_model, precision="fp32", target="onnxruntime", settings=BuildSettings(folder=folder))


@pytest.fixture(scope="module")
def truth(bundle: Path, street: Path) -> list[Image]:
    """Labels of the clip's frames, one `Engine.run` a frame."""
    with load(bundle) as engine:
        labels = [engine.run(frame.image[None]).labels[0] for frame in open_clip(street / "clip.mp4")]
    assert len({each.tobytes() for each in labels}) > 1, "frames with the same labels would prove little"
    return labels


@pytest.fixture
def camera_log(street: Path, tmp_path: Path) -> Path:
    """The clip's frames as a robot log, then a black one, twice."""
    pytest.importorskip("mcap_ros2")
    from tests.media.logfiles import bgr, write_mcap

    images = [frame.image for frame in open_clip(street / "clip.mp4")]
    images += [np.zeros_like(images[0])] * 2
    sent = [bgr(i, image) for i, image in enumerate(images)]
    return write_mcap(tmp_path / "drive.mcap", {"/left": sent, "/right": sent[:1]})


def read_back(path: Path) -> list[Image]:
    if path.suffix == ".mkv":
        with av.open(str(path)) as container:
            return [np.asarray(frame.to_ndarray(), np.uint8) for frame in container.decode(video=0)]
    if path.suffix == ".mcap":
        return [frame.image[..., 0] for frame in open_clip(path, topic="/fcnopt/labels")]
    return [np.asarray(cv2.imread(str(file), cv2.IMREAD_UNCHANGED), np.uint8) for file in sorted(path.glob("*.png"))]


@pytest.mark.parametrize("name", ["out.mkv", "out.mcap", "out"])
@pytest.mark.parametrize("mode", ["latency", "throughput"])
def test_labels_written_are_the_engines(
    name: str, mode: fcnopt.backends.base.Mode, bundle: Path, street: Path, truth: list[Image], tmp_path: Path
) -> None:
    result = run(street / "clip.mp4", bundle, tmp_path / name, options=RunOptions(mode=mode))
    for found, expected in zip(read_back(tmp_path / name), truth, strict=True):
        np.testing.assert_array_equal(found, expected)
    assert (result.frames, result.late, result.problems) == (6, None, {})
    assert result.latency.frames == result.inference.frames == 6
    assert 0 < result.inference.p50_ms <= result.latency.p50_ms
    assert result.fps == pytest.approx(6 / result.seconds)
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_what_a_frame_waits_in_line_is_no_latency_and_makes_nothing_late() -> None:
    from fcnopt.backends.base import FrameStatus, Outputs
    from fcnopt.recording import _Tally

    tally = _Tally(deadline_ms=100.0)
    for waited_ms in (250.0, 150.0):
        out = Outputs(np.zeros((1, 2, 2), np.uint8), inference_ms=40.0, latency_ms=300.0, waited_ms=waited_ms)
        tally.add(replace(out, status=(FrameStatus(problems=("black",)),)))
    assert (tally.latencies_ms, tally.inferences_ms, tally.late) == ([50.0, 150.0], [40.0, 40.0], 1)
    assert tally.problems == {"black": 2}


def test_labels_have_the_frames_own_size(bundle: Path, tmp_path: Path) -> None:
    from fcnopt.media.writer import write_image

    write_image(tmp_path / "in" / "a.png", np.full((50, 71, 3), 90, np.uint8))
    write_image(tmp_path / "in" / "b.png", np.full((33, 40, 3), 90, np.uint8))
    run(tmp_path / "in", bundle, tmp_path / "out")
    assert [image.shape for image in read_back(tmp_path / "out")] == [(50, 71), (33, 40)]


def test_robot_log_keeps_its_times_and_what_is_implausible_is_counted(
    camera_log: Path, bundle: Path, tmp_path: Path
) -> None:
    from tests.media.logfiles import START_NS, STEP_NS

    with pytest.raises(MediaError, match="2 topics with images: /left"):
        run(camera_log, bundle, tmp_path / "out.mcap")
    options = RunOptions(topic="/left", max_latency_ms=1e-6)
    result = run(camera_log, bundle, tmp_path / "out.mcap", options=options)
    clip = open_clip(tmp_path / "out.mcap", topic="/fcnopt/overlay")
    assert (clip.start_ns, clip.frame_id) == (START_NS, "camera")  # type: ignore[attr-defined]  # of a log's clip
    assert [round(frame.timestamp_s * 1e9) for frame in clip] == [i * STEP_NS for i in range(8)]
    assert (result.frames, result.late) == (8, 8)
    assert result.problems["black"] == 2
    assert f"late: 8, implausible: {', '.join(f'{n} {p}' for p, n in result.problems.items())}" in result.describe()


def test_only_the_first_frames_are_run_when_asked(
    bundle: Path, street: Path, truth: list[Image], tmp_path: Path
) -> None:
    told: list[float] = []
    result = run(
        street / "clip.mp4",
        bundle,
        tmp_path / "out",
        options=RunOptions(max_frames=2),
        progress=lambda step, done: told.append(done) if step == "run" else None,
    )
    assert result.frames == 2
    np.testing.assert_array_equal(read_back(tmp_path / "out"), truth[:2])
    assert told == [0.5, 1.0]
    with pytest.raises(UsageError, match="max_frames is 0"):
        RunOptions(max_frames=0)


def test_loaded_engine_is_used_and_stays_open(bundle: Path, street: Path, truth: list[Image], tmp_path: Path) -> None:
    with load(bundle) as engine:
        for name in ("a.mkv", "b.mkv"):
            run(street / "clip.mp4", engine, tmp_path / name)
        assert engine.run(np.zeros((1, 64, 96, 3), np.uint8)).labels.shape == (1, 64, 96)
    assert (tmp_path / "a.mkv").read_bytes()[-2000:] == (tmp_path / "b.mkv").read_bytes()[-2000:]
    np.testing.assert_array_equal(read_back(tmp_path / "b.mkv"), truth)


class Endless(Clip):
    """A clip that counts its frames; `broken` is damaged at one."""

    name, size, fps, labelled = "endless", (64, 96), 10.0, False

    def __init__(self, length: int, broken: int = -1) -> None:
        self.length, self.broken, self.drawn = length, broken, 0

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Frame]:
        for index in range(self.length):
            if index == self.broken:
                raise MediaError("endless: the data is corrupt there", fix="copy it again")
            self.drawn += 1
            yield Frame(index, index / 10, np.full((64, 96, 3), index % 250, np.uint8))


def test_few_frames_are_in_memory(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = Endless(60)
    monkeypatch.setattr(recording, "open_clip", lambda *_, **__: clip)
    ahead: list[int] = []
    run("x", bundle, tmp_path / "out.mkv", progress=lambda _, done: ahead.append(clip.drawn - round(done * 60)))
    assert len(ahead) == 60
    assert max(ahead) <= 8  # two wait, one is drawn, and two batches and their results are on their way


@pytest.mark.parametrize("name", ["out.mkv", "out.mcap", "out"])
def test_damaged_clip_leaves_nothing_and_ends_its_threads(
    name: str, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording, "open_clip", lambda *_, **__: Endless(9, broken=5))
    with pytest.raises(MediaError, match="the data is corrupt there"):
        run("x", bundle, tmp_path / name)
    assert not list(tmp_path.iterdir())
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("fcnopt-stream")]


def test_interrupt_leaves_nothing(bundle: Path, street: Path, tmp_path: Path) -> None:
    def interrupted(_: str, fraction: float) -> None:
        if fraction > 0.5:
            raise KeyboardInterrupt

    (tmp_path / "out.mkv").write_bytes(b"before")
    with pytest.raises(KeyboardInterrupt):
        run(street / "clip.mp4", bundle, tmp_path / "out.mkv", options=RunOptions(overwrite=True), progress=interrupted)
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("out.mkv", b"before")]


def test_clip_itself_is_never_overwritten(bundle: Path, camera_log: Path) -> None:
    before = camera_log.read_bytes()
    with pytest.raises(UsageError, match=r"drive\.mcap: is the clip itself"):
        run(camera_log, bundle, camera_log, options=RunOptions(topic="/left", overwrite=True))
    assert camera_log.read_bytes() == before


def test_a_file_of_a_bag_and_the_folder_of_a_picture_are_not_overwritten_either(bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("rosbags")
    from tests.media.logfiles import raw, write_bag

    image = np.zeros((64, 96, 3), np.uint8)
    bag = write_bag(tmp_path / "bag", [raw(i, image.reshape(64, -1), "bgr8", (64, 96)) for i in range(2)], "mcap")
    (log,) = bag.glob("*.mcap")
    before, labels = log.read_bytes(), run(bag, bundle, tmp_path / "labels").output
    cv2.imwrite(str(labels / "000009.png"), image)
    for clip, output in ((bag, log), (labels / "000009.png", labels)):
        with pytest.raises(UsageError, match="is the clip itself, or a part of it, or holds it"):
            run(clip, bundle, output, options=RunOptions(overwrite=True))
    assert log.read_bytes() == before
    assert (labels / "000009.png").exists()


def test_outputs_are_checked_before_the_engine_is_loaded(street: Path, tmp_path: Path) -> None:
    (tmp_path / "out.mkv").touch()
    nowhere = tmp_path / "no-engine"
    with pytest.raises(MediaError, match=r"out\.mkv: is there already"):
        run(street / "clip.mp4", nowhere, tmp_path / "out.mkv")
    with pytest.raises(UsageError, match=r"must be \.rrd"):
        run(street / "clip.mp4", nowhere, tmp_path / "a.mkv", options=RunOptions(rerun=tmp_path / "a.txt"))
    with pytest.raises(BundleError, match="no-engine does not exist"):
        run(street / "clip.mp4", nowhere, tmp_path / "a.mkv")


def test_rerun_file_is_written_beside_the_labels(bundle: Path, street: Path, tmp_path: Path) -> None:
    pytest.importorskip("rerun")
    from rerun.chunk import RrdReader

    options = RunOptions(rerun=tmp_path / "out.rrd", max_frames=3)
    result = run(street / "clip.mp4", bundle, tmp_path / "out", options=options)
    assert result.rerun == tmp_path / "out.rrd"
    rows: dict[str, int] = {}
    for chunk in RrdReader(tmp_path / "out.rrd").stream():
        rows[chunk.entity_path] = rows.get(chunk.entity_path, 0) + chunk.num_rows
    for entity in ("/camera/image", "/camera/labels", "/timings/latency_ms", "/timings/inference_ms"):
        assert rows[entity] == 3


# --- the command


def test_command_writes_and_tells(bundle: Path, camera_log: Path, tmp_path: Path) -> None:
    out = tmp_path / "labels.mkv"
    arguments = ["run", str(camera_log), "-o", str(out), "--engine", str(bundle), "--topic", "/left"]
    done = CliRunner().invoke(main, [*arguments, "--max-frames", "3"])
    assert done.exit_code == 0, done.output
    lines = done.output.strip().splitlines()
    assert lines[0].startswith("3 frames, ")
    assert lines[0].endswith(" fps end to end")
    assert lines[1].startswith("latency p50 ")
    assert lines[2:] == ["implausible: 0", f"wrote {out}"]
    assert len(read_back(out)) == 3
    again = CliRunner().invoke(main, arguments)
    assert again.exit_code == 1
    assert "labels.mkv: is there already" in again.output
    assert CliRunner().invoke(main, [*arguments, "--overwrite"]).exit_code == 0
    assert len(read_back(out)) == 8


def test_command_refuses_what_it_cannot_do(bundle: Path, street: Path, camera_log: Path, tmp_path: Path) -> None:
    clip, engine = str(street / "clip.mp4"), ["--engine", str(bundle)]
    wrong = CliRunner().invoke(main, ["run", clip, "-o", str(tmp_path / "a.mp4"), *engine])
    assert (wrong.exit_code, "labels are not written as .mp4" in wrong.output) == (2, True)
    assert CliRunner().invoke(main, ["run", clip, *engine]).exit_code == 2
    several = CliRunner().invoke(main, ["run", str(camera_log), "-o", str(tmp_path / "a"), *engine])
    assert several.exit_code == 1
    assert "name one: --topic /left" in several.output
    assert not (tmp_path / "a").exists()


def test_command_requires_a_trusted_signature_where_keys_are_given(bundle: Path, street: Path, tmp_path: Path) -> None:
    serialization = pytest.importorskip("cryptography.hazmat.primitives.serialization")
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = tmp_path / "key.pem"
    form = (serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    key.write_bytes(Ed25519PrivateKey.generate().public_key().public_bytes(*form))
    arguments = ["run", str(street / "clip.mp4"), "-o", str(tmp_path / "a"), "--engine", str(bundle)]
    refused = CliRunner().invoke(main, [*arguments, "--trusted-key", str(key)])
    assert refused.exit_code == 1
    assert "sign" in refused.output
    assert not (tmp_path / "a").exists()


def test_help_loads_no_reader_or_writer() -> None:
    code = (
        "import sys; from fcnopt.cli import main\n"
        "try: main(['run', '--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'av', 'cv2', 'numpy', 'mcap', 'rosbags', 'rerun'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Run an engine over CLIP" in done.stdout
    assert done.stdout.strip().endswith("[]")


# --- the same logs in the other commands


def test_logs_are_calibrated_on_as_pictures_are(camera_log: Path, bundle: Path, tmp_path: Path) -> None:
    from fcnopt.media.writer import write_image

    for frame in open_clip(camera_log, topic="/left"):
        write_image(tmp_path / "pictures" / f"{frame.index}.png", frame.image)
    spec = fcnopt.bundle.Bundle.read(bundle).manifest.spec
    (tmp_path / "calib").mkdir()
    camera_log.rename(tmp_path / "calib" / camera_log.name)
    found = CalibrationFrames.collect([tmp_path / "calib"], spec, topic="/left")
    assert (found.count, found.hash) == (8, CalibrationFrames.collect([tmp_path / "pictures"], spec).hash)
    with pytest.raises(MediaError, match="2 topics with images"):
        CalibrationFrames.collect([tmp_path / "calib"], spec)


def test_settings_hand_the_topic_on(camera_log: Path, street: Path) -> None:
    settings = BuildSettings.parse(topic="/left", validation=camera_log, max_miou_drop=1.0)
    assert settings.topic == "/left"
    assert settings.validation is not None
    assert settings.validation.topic == "/left"
    video = BuildSettings.parse(topic="/left", validation=street / "clip.mp4", max_miou_drop=1.0)
    assert video.validation is not None
    assert video.validation.topic is None


def test_logs_are_benched(camera_log: Path, bundle: Path, tiny_model: Path) -> None:
    with pytest.raises(MediaError, match="2 topics with images"):
        fcnopt.bench(camera_log, engines=bundle, reference=tiny_model)
    result = fcnopt.bench(camera_log, engines=bundle, topic="/left", max_frames=3, reference=tiny_model)
    assert result.frames == 3
