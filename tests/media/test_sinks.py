"""Labels written and read back by other readers: videos, folders, MCAP files, Rerun recordings."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from fcnopt.choices import read_classes
from fcnopt.errors import MediaError, UsageError
from fcnopt.media.base import Frame
from fcnopt.media.clips import open_clip
from fcnopt.media.labels import read_label_map
from fcnopt.media.sinks import LabelSink, LabelSource, open_sink, opened
from fcnopt.media.sinks.mcap import CLASSES_RECORD, LABELS_TOPIC, OVERLAY_TOPIC
from fcnopt.media.sinks.video import CLASSES_TAG
from fcnopt.media.writer import write_video
from fcnopt.spec import ClassSpec
from tests.media.conftest import frames

Image = NDArray[np.uint8]

CLASSES = ClassSpec.named("camvid")
START_NS = 1_700_000_000_123_456_789
SOURCE = LabelSource(CLASSES, fps=10.0, start_ns=START_NS, frame_id="camera")
TIMES = (0.0, 0.1, 0.25, 0.3, 1.5)
PLACES = ("out.mkv", "out.mcap", "out")


def maps(count: int = 5, size: tuple[int, int] = (47, 63)) -> list[Image]:
    """Label maps of odd sizes with every value there is."""
    rng = np.random.default_rng(3)
    made = [rng.integers(0, 256, size, np.uint8) for _ in range(count)]
    made[0].ravel()[:256] = np.arange(256, dtype=np.uint8)
    return made


def shot(index: int, size: tuple[int, int] = (47, 63), time_s: float | None = None) -> Frame:
    image = np.ascontiguousarray(cv2.resize(frames(1)[0], (size[1], size[0])), np.uint8)
    return Frame(index, TIMES[index] if time_s is None else time_s, image)


def write(path: Path, labels: list[Image], source: LabelSource = SOURCE, *, overwrite: bool = False) -> Path:
    with open_sink(path, overwrite=overwrite).opened(source) as sink:
        for index, each in enumerate(labels):
            sink.write(shot(index, (each.shape[0], each.shape[1])), each)
    assert sink.frames == len(labels)
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    return path


def write_until(sink: LabelSink, pairs: list[tuple[Frame, Image]], error: type[BaseException] | None = None) -> None:
    """Write frames, then fail."""
    before = sink.path.exists()
    with sink.opened(SOURCE):
        for frame, labels in pairs:
            sink.write(frame, labels)
        assert sink.path.exists() == before
        if error is not None:
            raise error


def test_video_gives_back_the_labels_bit_for_bit(tmp_path: Path) -> None:
    labels = maps()
    path = write(tmp_path / "out.mkv", labels)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("ffv1", "gray")
        assert json.loads(container.metadata[CLASSES_TAG]) == json.loads(json.dumps(asdict(CLASSES)))
        found = list(container.decode(stream))
    assert [float(frame.pts * frame.time_base) for frame in found] == list(TIMES)
    assert all(frame.key_frame for frame in found)
    for frame, expected in zip(found, labels, strict=True):
        np.testing.assert_array_equal(frame.to_ndarray(), expected)


@pytest.mark.parametrize("reader", ["opencv", "fcnopt"])
def test_video_is_read_the_same_by_others(reader: str, tmp_path: Path) -> None:
    labels = maps()
    path = write(tmp_path / "out.mkv", labels)
    if reader == "opencv":
        capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
        found = [image for done, image in (capture.read() for _ in labels) if done]
        assert not capture.read()[0]
        capture.release()
    else:
        clip = open_clip(path)
        assert (len(clip), clip.size) == (5, (47, 63))
        found = [frame.image for frame in clip]
    for image, expected in zip(found, labels, strict=True):
        for channel in range(3):
            np.testing.assert_array_equal(image[..., channel], expected)


def test_video_refuses_times_that_do_not_grow_and_other_sizes(tmp_path: Path) -> None:
    path = tmp_path / "out.mkv"
    (labels,) = maps(1)
    with pytest.raises(MediaError, match=r"out\.mkv: frame 1 has the time 0 ms, the one before it 0 ms") as caught:
        write_until(open_sink(path), [(shot(0), labels), (shot(1, time_s=0.0004), labels)])
    assert "a folder or to .mcap" in caught.value.fix
    with pytest.raises(MediaError, match=r"frame 1 is 63x40, the video is 63x47"):
        write_until(open_sink(path), [(shot(0), labels), (shot(1), labels[:40])])
    assert not list(tmp_path.iterdir())


def test_pictures_without_times_get_ten_a_second(tmp_path: Path) -> None:
    path = tmp_path / "out.mkv"
    with open_sink(path).opened(LabelSource(CLASSES)) as sink:
        for index in range(3):
            sink.write(shot(index, time_s=0.0), maps(1)[0])
    with av.open(str(path)) as container:
        assert [frame.time for frame in container.decode(video=0)] == [0.0, 0.1, 0.2]


def test_folder_holds_png_times_and_classes_in_the_forms_that_other_commands_take(tmp_path: Path) -> None:
    labels = maps()
    path = write(tmp_path / "out", labels)
    names = ["000000.png", "000001.png", "000002.png", "000003.png", "000004.png", "classes.json", "timestamps.csv"]
    assert sorted(p.name for p in path.iterdir()) == names
    for name, expected in zip(names, labels, strict=False):
        np.testing.assert_array_equal(cv2.imread(str(path / name), cv2.IMREAD_UNCHANGED), expected)
        np.testing.assert_array_equal(read_label_map(path / name), expected)
    assert read_classes(path / "classes.json") == CLASSES
    rows = (path / "timestamps.csv").read_text().splitlines()
    assert rows[0] == "index,timestamp_s,time_ns"
    assert rows[3] == f"2,0.250000000,{START_NS + 250_000_000}"
    assert len(rows) == 6
    video = write_video(tmp_path / "v.mp4", [np.zeros((48, 64, 3), np.uint8)] * 5, 10.0)
    with pytest.raises(MediaError, match="expected the frame's size 64x48"):  # so it is matched with them
        list(open_clip(video, path))


def test_mcap_holds_labels_overlay_times_and_classes(tmp_path: Path) -> None:
    pytest.importorskip("mcap_ros2")
    from mcap.reader import make_reader
    from mcap_ros2.decoder import DecoderFactory

    labels = maps()
    path = write(tmp_path / "out.mcap", labels)
    with path.open("rb") as file:
        reader = make_reader(file, validate_crcs=True, decoder_factories=[DecoderFactory()])
        found = list(reader.iter_decoded_messages())
        (metadata,) = reader.iter_metadata()
        assert reader.get_header().profile == "ros2"
    assert metadata.name == CLASSES_RECORD
    assert {key: json.loads(value) for key, value in metadata.metadata.items()} == json.loads(
        json.dumps(asdict(CLASSES))
    )
    assert [(schema.name, channel.topic) for schema, channel, _, _ in found if schema is not None][:2] == [
        ("sensor_msgs/msg/Image", LABELS_TOPIC),
        ("sensor_msgs/msg/CompressedImage", OVERLAY_TOPIC),
    ]
    table = np.zeros((256, 3), np.uint8)
    table[: len(CLASSES)] = np.array(CLASSES.palette)[:, ::-1]
    for place, (_, channel, record, message) in enumerate(found):
        index = place // 2
        time_ns = START_NS + round(TIMES[index] * 1e9)
        assert (record.log_time, record.sequence, message.header.frame_id) == (time_ns, index, "camera")
        assert message.header.stamp.sec * 10**9 + message.header.stamp.nanosec == time_ns
        if channel.topic == LABELS_TOPIC:
            assert (message.encoding, message.height, message.width, message.step) == ("mono8", 47, 63, 63)
            np.testing.assert_array_equal(np.frombuffer(message.data, np.uint8).reshape(47, 63), labels[index])
            continue
        overlay = cv2.imdecode(np.frombuffer(message.data, np.uint8), cv2.IMREAD_COLOR).astype(float)
        expected = (table[labels[index]].astype(float) + shot(index).image) / 2
        # random labels change colour at every pixel, which JPEG halves; their mean colour is kept
        assert np.abs(overlay.mean(axis=(0, 1)) - expected.mean(axis=(0, 1))).max() < 3
    clip = open_clip(path, topic=LABELS_TOPIC)
    assert [frame.timestamp_s for frame in clip] == list(TIMES)
    np.testing.assert_array_equal([frame.image[..., 0] for frame in clip], labels)


def test_overlay_shows_the_palettes_colours(tmp_path: Path) -> None:
    pytest.importorskip("mcap")
    labels = np.repeat(np.arange(4, dtype=np.uint8), 16)[None].repeat(48, axis=0)
    frame = Frame(0, 0.0, np.full((48, 64, 3), 100, np.uint8))
    path = tmp_path / "out.mcap"
    with open_sink(path).opened(SOURCE) as sink:
        sink.write(frame, labels)
    (shown,) = open_clip(path, topic=OVERLAY_TOPIC)
    for label in range(4):
        expected = (np.array(CLASSES.palette[label][::-1]) + 100) / 2
        assert np.abs(shown.image[24, 16 * label + 8] - expected).max() <= 6  # within an even block, quality 85


@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_interrupted_nothing_remains(name: str, error: type[BaseException], tmp_path: Path) -> None:
    sink = open_sink(tmp_path / "new" / name)
    with pytest.raises(error):
        write_until(sink, [(shot(0), maps(1)[0])], error)
    assert not list((tmp_path / "new").iterdir())


@pytest.mark.parametrize("name", PLACES)
def test_what_is_there_is_replaced_only_when_asked_and_only_by_a_whole_one(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / name, maps(2))
    before = {p: p.read_bytes() for p in (path.iterdir() if path.is_dir() else [path])}
    with pytest.raises(MediaError, match="is there already") as caught:
        open_sink(path)
    assert "--overwrite" in caught.value.fix
    with pytest.raises(KeyboardInterrupt):
        write_until(open_sink(path, overwrite=True), [(shot(0), maps(1)[0])], KeyboardInterrupt)
    assert {p: p.read_bytes() for p in (path.iterdir() if path.is_dir() else [path])} == before
    write(path, maps(1), overwrite=True)
    after = {p: p.read_bytes() for p in (path.iterdir() if path.is_dir() else [path])}
    assert after != before
    assert not path.is_dir() or len(list(path.glob("*.png"))) == 1


def test_labels_that_a_killed_run_had_moved_aside_are_brought_back_and_kept(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    path = write(tmp_path / "labels", maps(2))
    path.rename(tmp_path / f".labels.{dead.pid}-0123abcd.old")
    with pytest.raises(MediaError, match="is there already"):
        write(path, maps(1))
    assert [p.name for p in tmp_path.iterdir()] == ["labels"]
    assert len(list(path.glob("*.png"))) == 2


@pytest.mark.parametrize("name", PLACES)
def test_no_frames_and_places_that_cannot_be_written_are_errors(name: str, tmp_path: Path) -> None:
    with pytest.raises(MediaError, match=f"{name}: no frames to write"), open_sink(tmp_path / name).opened(SOURCE):
        pass
    (tmp_path / "file").touch()
    sink = open_sink(tmp_path / "file" / name)
    with (
        pytest.raises(MediaError, match=rf"{name}: cannot be written: (Not a directory|File exists)"),
        sink.opened(SOURCE),
    ):
        pytest.fail("it was opened")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_full_disk_is_an_error_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    sink = open_sink(tmp_path / "out")
    with pytest.raises(MediaError, match="out: cannot be written: No space left on device"), sink.opened(SOURCE):
        sink.write(shot(0), maps(1)[0])
    assert not list(tmp_path.iterdir())


def test_of_several_places_none_is_taken_where_one_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = (tmp_path / "1" / "a", tmp_path / "2" / "b.mkv")
    for place in places:
        place.parent.mkdir()
        write(place, maps(2))
    kept = {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()}
    sinks = [open_sink(place, overwrite=True) for place in places]

    def full() -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sinks[1], "_close", full)
    with pytest.raises(MediaError, match=r"b\.mkv: cannot be written: No space"), opened(sinks, SOURCE):
        _ = [sink.write(shot(0), maps(1)[0]) for sink in sinks]
    assert {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()} == kept


def test_folder_that_is_not_of_labels_is_never_replaced(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    open_sink(home)  # empty: nothing to lose
    (home / "thesis.tex").touch()
    with pytest.raises(MediaError, match="home: is no folder of labels, and is not replaced"):
        open_sink(home, overwrite=True)
    (home / "out.mkv").mkdir()
    with pytest.raises(MediaError, match=r"out\.mkv: is a folder, expected a file"):
        open_sink(home / "out.mkv", overwrite=True)


def test_lossy_formats_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"out\.mp4: labels are not written as \.mp4") as caught:
        open_sink(tmp_path / "out.mp4")
    assert ".mkv" in caught.value.fix


# --- Rerun


@pytest.mark.parametrize("start_ns", [0, START_NS])
def test_rerun_file_is_whole_and_holds_frames_labels_classes_and_timings(start_ns: int, tmp_path: Path) -> None:
    pytest.importorskip("rerun")
    from rerun.chunk import RrdReader

    from fcnopt.media.rerun import RerunLog

    labels = maps()
    path = tmp_path / "out.rrd"
    with RerunLog(path).opened(LabelSource(CLASSES, 10.0, start_ns)) as log:
        for index, each in enumerate(labels):
            log.write(shot(index), each)
            log.timings({"inference": 1.5 * index})
    assert [p.name for p in tmp_path.iterdir()] == ["out.rrd"]
    rows: dict[str, list[object]] = {}
    times: dict[str, list[object]] = {}
    for chunk in RrdReader(path).stream():
        batch = chunk.to_record_batch()
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            if name in ("frame", "time") and chunk.entity_path == "/camera/labels":
                times.setdefault(name, []).extend(column.cast("int64").to_pylist())
            elif name not in ("log_time", "time", "frame"):
                rows.setdefault(f"{chunk.entity_path}:{name}", []).extend(column.to_pylist())
    (buffers,) = (value for key, value in rows.items() if key.startswith("/camera/labels:") and "buffer" in key)
    for found, expected in zip(buffers, labels, strict=True):
        np.testing.assert_array_equal(np.array(found[0], np.uint8).reshape(47, 63), expected)  # type: ignore[index]
    (blobs,) = (value for key, value in rows.items() if key.startswith("/camera/image:") and "blob" in key)
    for index, blob in enumerate(blobs):
        image = cv2.imdecode(np.array(blob[0], np.uint8), cv2.IMREAD_COLOR)  # type: ignore[index]
        assert np.abs(image.astype(int) - shot(index).image).mean() < 6
    assert times == {"frame": list(range(5)), "time": [start_ns + round(time * 1e9) for time in TIMES]}
    (scalars,) = (value for key, value in rows.items() if key.startswith("/timings/inference_ms:") and "scalars" in key)
    assert scalars == [[0.0], [1.5], [3.0], [4.5], [6.0]]
    text = json.dumps(rows, default=str)
    assert all(name in text for name in CLASSES.names)


def test_rerun_file_is_verified_by_its_own_tool(tmp_path: Path) -> None:
    pytest.importorskip("rerun")
    import sys

    from fcnopt.media.rerun import RerunLog

    path = tmp_path / "out.rrd"
    with RerunLog(path).opened(SOURCE) as log:
        log.write(shot(0), maps(1)[0])
    command = [sys.executable, "-m", "rerun_cli", "rrd", "verify", str(path)]
    verified = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert "1 file verified without error" in verified.stdout + verified.stderr


def test_rerun_file_is_refused_as_other_outputs_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rerun")
    from fcnopt.media.rerun import RerunLog

    with pytest.raises(UsageError, match=r"must be \.rrd"):
        RerunLog(tmp_path / "out.txt")
    (tmp_path / "there.rrd").touch()
    with pytest.raises(MediaError, match=r"there\.rrd: is there already"):
        RerunLog(tmp_path / "there.rrd")
    log = RerunLog(tmp_path / "there.rrd" / "out.rrd")
    with pytest.raises(MediaError, match=r"out\.rrd: cannot be written"), log.opened(SOURCE):
        pytest.fail("it was opened")
    whole = RerunLog._close
    monkeypatch.setattr(RerunLog, "_close", lambda log: (_cut_when_it_ends(log, monkeypatch), whole(log))[1])
    with pytest.raises(MediaError, match=r"cut\.rrd: cannot be written"):  # as on a disk that fills up
        write_until(RerunLog(tmp_path / "cut.rrd"), [(shot(0), maps(1)[0])])
    assert [p.name for p in tmp_path.iterdir()] == ["there.rrd"]


def _cut_when_it_ends(log: object, monkeypatch: pytest.MonkeyPatch) -> None:
    reader: Callable[[str], object] = log._reader  # type: ignore[attr-defined]

    def cut(path: str) -> object:
        whole = Path(path).read_bytes()
        Path(path).write_bytes(whole[: len(whole) // 2])
        return reader(path)

    monkeypatch.setattr(log, "_reader", cut)


def test_time_of_a_frame_is_kept_to_the_nanosecond() -> None:
    frame = Frame(7, (123_456_789_012 - 5) / 1e9, np.zeros((1, 1, 3), np.uint8))
    assert SOURCE.time_ns(frame) == START_NS + 123_456_789_007
