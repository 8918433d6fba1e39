from __future__ import annotations

import os
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from fcnopt.errors import MediaError
from fcnopt.evaluate.bench import BenchOptions, bench
from fcnopt.leftovers import part_of
from fcnopt.media.clips import Frame
from fcnopt.report.overlay import OverlayWriter
from tests.evaluate.fakes import CLASSES, FakeClip, FakeRunner, wrong_corner

OPTIONS = BenchOptions(warmup_frames=0, bootstrap_samples=0)


def decoded(path: Path) -> tuple[av.VideoStream, list[NDArray[np.uint8]]]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return stream, [frame.to_ndarray(format="bgr24") for frame in container.decode(stream)]


def test_a_bench_writes_a_video_that_browsers_play(tmp_path: Path) -> None:
    path = tmp_path / "overlay.mp4"
    clip = FakeClip(frames=9, size=(120, 160))
    with OverlayWriter(path, CLASSES, fps=clip.fps) as overlay:
        bench(clip, [FakeRunner("int8", wrong_corner)], FakeRunner(), OPTIONS, observers=[overlay])
        assert not path.exists()
    stream, frames = decoded(path)
    assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
    assert stream.average_rate == 15
    assert len(frames) == overlay.frames == 9
    assert frames[0].shape[1] == 2 * 160
    assert frames[0].shape[0] > 120
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    assert [p.name for p in tmp_path.iterdir()] == ["overlay.mp4"]


def test_the_panels_show_blend_and_difference(tmp_path: Path) -> None:
    path = tmp_path / "overlay.mp4"
    image = np.full((64, 64, 3), 100, np.uint8)
    reference = np.full((64, 64), 3, np.uint8)
    labels = reference.copy()
    labels[16:48, 16:48] = 1
    with OverlayWriter(path, CLASSES) as overlay:
        overlay.on_frame(Frame(0, 0.0, image), reference, {"int8": labels})
    _, (picture,) = decoded(path)
    blend = (np.array(CLASSES.palette)[[3, 1], ::-1] + 100) / 2  # BGR
    np.testing.assert_allclose(picture[8, 8], blend[0], atol=12)
    np.testing.assert_allclose(picture[32, 32], blend[1], atol=12)
    same, different = picture[8, 64 + 8].astype(int), picture[32, 64 + 32].astype(int)
    assert np.ptp(same) < 12
    assert different[2] > 200 > different[:2].max()


@pytest.mark.parametrize("size", [(33, 47), (34, 47), (33, 48)])
def test_odd_sizes_are_padded_to_even_ones(tmp_path: Path, size: tuple[int, int]) -> None:
    path = tmp_path / "odd.mp4"
    with OverlayWriter(path, CLASSES, show_difference=False) as overlay:
        for index in range(3):
            frame = Frame(index, 0.0, np.zeros((*size, 3), np.uint8))
            overlay.on_frame(frame, np.zeros(size, np.uint8), {})
    _, frames = decoded(path)
    assert len(frames) == 3
    assert frames[0].shape[1] == size[1] + size[1] % 2
    assert frames[0].shape[0] % 2 == 0


def test_the_named_engine_is_shown(tmp_path: Path) -> None:
    shown = {}
    for engine in ("a", "b"):
        path = tmp_path / f"{engine}.mp4"
        with OverlayWriter(path, CLASSES, engine=engine, show_difference=False, alpha=1.0) as overlay:
            maps = {"a": np.full((32, 32), 1, np.uint8), "b": np.full((32, 32), 3, np.uint8)}
            overlay.on_frame(Frame(0, 0.0, np.zeros((32, 32, 3), np.uint8)), maps["a"], maps)
        shown[engine] = decoded(path)[1][0][16, 16]
    np.testing.assert_allclose(shown["a"], CLASSES.palette[1][::-1], atol=15)
    np.testing.assert_allclose(shown["b"], CLASSES.palette[3][::-1], atol=15)


def test_very_wide_frames_are_scaled_down(tmp_path: Path) -> None:
    path = tmp_path / "wide.mp4"
    with OverlayWriter(path, CLASSES) as overlay:
        overlay.on_frame(
            Frame(0, 0.0, np.zeros((100, 4000, 3), np.uint8)),
            np.zeros((100, 4000), np.uint8),
            {"a": np.zeros((100, 4000), np.uint8)},
        )
    assert decoded(path)[1][0].shape[1] == 3840


def test_an_unknown_engine_is_named(tmp_path: Path) -> None:
    engines = [FakeRunner("a"), FakeRunner("b")]
    message = "no engine is called 'c', there is a, b"
    with pytest.raises(MediaError, match=message), OverlayWriter(tmp_path / "o.mp4", CLASSES, engine="c") as overlay:
        bench(FakeClip(), engines, FakeRunner(), OPTIONS, observers=[overlay])
    assert list(tmp_path.iterdir()) == []


def test_a_failed_bench_leaves_nothing(tmp_path: Path) -> None:
    def fail(labels: NDArray[np.uint8], call: int) -> NDArray[np.uint8]:
        if call == 10:
            raise MediaError("broken", fix="mend it")
        return labels

    path = tmp_path / "overlay.mp4"
    path.write_bytes(b"of an earlier run")
    clip, options = FakeClip(frames=12), BenchOptions(warmup_frames=0, round_frames=4, bootstrap_samples=0)
    with pytest.raises(MediaError, match="int8, frame 10: broken"), OverlayWriter(path, CLASSES) as overlay:
        bench(clip, [FakeRunner("int8", fail)], FakeRunner(), options, observers=[overlay])
    assert overlay.frames == 8
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"of an earlier run"]


def test_what_a_killed_bench_left_is_removed_by_the_next(tmp_path: Path) -> None:
    left = part_of(tmp_path / "overlay.mp4", ".part.mp4")
    dead = left.with_name(left.name.replace(str(os.getpid()), "999999999"))
    dead.touch()
    with OverlayWriter(tmp_path / "overlay.mp4", CLASSES) as overlay:
        bench(FakeClip(), [FakeRunner("a")], FakeRunner(), OPTIONS, observers=[overlay])
    assert [path.name for path in tmp_path.iterdir()] == ["overlay.mp4"]


def test_a_missing_folder_is_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "nowhere" / "o.mp4"
    with pytest.raises(MediaError, match=r"nowhere/o\.mp4: the overlay video cannot be written: No such file"):
        OverlayWriter(path, CLASSES).__enter__()


def test_another_container_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match=r"o\.avi: an overlay video must be \.mp4"):
        OverlayWriter(tmp_path / "o.avi", CLASSES).__enter__()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_clear_error() -> None:
    """/dev/full takes no byte; the writer's own file is on it here."""
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    overlay = OverlayWriter(Path("/tmp/overlay-full.mp4"), CLASSES)  # noqa: S108  (never created)
    overlay._container = av.open("/dev/full", "w", format="mp4")
    overlay._temporary = Path("/dev/does-not-exist/overlay")
    frame, labels = Frame(0, 0.0, np.zeros((64, 64, 3), np.uint8)), np.zeros((64, 64), np.uint8)
    overlay.on_frame(frame, labels, {})
    with pytest.raises(MediaError, match="the overlay video cannot be written: No space left on device"):
        overlay.__exit__(None, None, None)
    assert not Path("/tmp/overlay-full.mp4").exists()  # noqa: S108
