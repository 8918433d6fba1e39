from __future__ import annotations

import gc
import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcnopt.errors import CalibrationError, MediaError
from fcnopt.quantize.frames import CalibrationFrames, Cover, _halving
from tests.quantize.nets import SIZE, spec, write_images


def test_frames_are_fitted_evenly_spaced_and_read_again_and_again(rng: np.random.Generator, tmp_path: Path) -> None:
    folder = write_images(rng, tmp_path / "a", 10)
    frames = CalibrationFrames.collect([folder], spec(), limit=4)
    assert (frames.count, frames.available, len(frames), frames.shape) == (4, 10, 4, (*SIZE, 3))
    expected = [cv2.imread(str(folder / f"{index:03d}.png")) for index in (0, 2, 5, 7)]
    for _ in range(2):
        got = list(frames)
        assert [frame.shape for frame in got] == [(1, *SIZE, 3)] * 4
        np.testing.assert_array_equal(np.concatenate(got), np.stack(expected))
    assert frames.describe() == f"4 of 10 frames, {SIZE[1]}x{SIZE[0]}, from {folder}"


def test_sources_are_joined_in_order(rng: np.random.Generator, tmp_path: Path) -> None:
    first, second = write_images(rng, tmp_path / "a", 3), write_images(rng, tmp_path / "b", 2)
    frames = CalibrationFrames.collect([first, second / "001.png"], spec())
    assert (frames.count, frames.available) == (4, 4)
    np.testing.assert_array_equal(list(frames)[3][0], cv2.imread(str(second / "001.png")))


def test_frames_of_another_size_are_resized(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "big.png"), np.full((100, 90, 3), 77, np.uint8))
    (frame,) = CalibrationFrames.collect([tmp_path], spec())
    assert frame.shape == (1, *SIZE, 3)
    assert (frame == 77).all()


def test_video_frames_are_those_of_the_video(tmp_path: Path) -> None:
    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (SIZE[1], SIZE[0]))
    assert writer.isOpened()
    for level in range(0, 200, 20):
        writer.write(np.full((*SIZE, 3), level, np.uint8))
    writer.release()
    frames = CalibrationFrames.collect([path], spec(), limit=5)
    assert frames.available == 10
    levels = [float(frame.mean()) for frame in frames]
    assert levels == pytest.approx([0, 40, 80, 120, 160], abs=6)


def test_hash_is_of_the_fitted_bytes(rng: np.random.Generator, tmp_path: Path) -> None:
    folder = write_images(rng, tmp_path / "a", 4)
    whole = CalibrationFrames.collect([folder], spec())
    assert whole.hash == CalibrationFrames.collect([folder], spec()).hash
    assert whole.hash != CalibrationFrames.collect([folder], spec(), limit=3).hash
    assert whole.hash != CalibrationFrames.collect([folder], spec().with_size(16, 32)).hash
    (tmp_path / "a").rename(tmp_path / "moved")
    assert whole.hash == CalibrationFrames.collect([tmp_path / "moved"], spec()).hash


def test_subset_is_evenly_spaced(rng: np.random.Generator, tmp_path: Path) -> None:
    frames = CalibrationFrames.collect([write_images(rng, tmp_path, 9)], spec())
    everything, some = list(frames), frames.subset(3)
    assert some.count == 3
    np.testing.assert_array_equal(np.concatenate(list(some)), np.concatenate([everything[i] for i in (0, 3, 6)]))
    assert frames.subset(50).count == 9


@given(st.integers(1, 130))
def test_every_beginning_of_the_spread_order_covers_the_whole(count: int) -> None:
    order = _halving(count)
    assert sorted(order) == list(range(count))
    for size in range(1, count + 1):
        begun = np.sort(order[:size])
        gap = max(begun[0] + 1, *np.diff(begun), count - begun[-1])
        # the power of two below `size` halves the clip that often, and a power of two may be twice the count
        assert gap <= 4 * count / size


def test_spread_changes_the_order_and_nothing_else(rng: np.random.Generator, tmp_path: Path) -> None:
    frames = CalibrationFrames.collect([write_images(rng, tmp_path, 6)], spec())
    everything, spread = list(frames), list(frames.spread())
    np.testing.assert_array_equal(np.concatenate(spread), np.concatenate([everything[i] for i in (0, 4, 2, 1, 5, 3)]))
    assert frames.spread().hash == frames.hash
    np.testing.assert_array_equal(np.concatenate(list(frames.spread().spread())), np.concatenate(spread))
    some = frames.subset(3)
    np.testing.assert_array_equal(
        np.concatenate(list(some.spread())), np.concatenate([everything[i] for i in (0, 4, 2)])
    )


def test_taken_frames_keep_the_clip_s_order_and_spread_by_importance(rng: np.random.Generator, tmp_path: Path) -> None:
    folder = write_images(rng, tmp_path / "a", 8)
    frames = CalibrationFrames.collect([folder], spec())
    everything, taken = list(frames), frames.take([5, 0, 7, 2], Cover(8, 1.5, 3.0))
    assert (taken.count, taken.available, taken.shape) == (4, 8, frames.shape)
    np.testing.assert_array_equal(np.concatenate(list(taken)), np.concatenate([everything[i] for i in (0, 2, 5, 7)]))
    np.testing.assert_array_equal(
        np.concatenate(list(taken.spread())), np.concatenate([everything[i] for i in (5, 0, 7, 2)])
    )
    alone = [folder / f"{index:03d}.png" for index in (0, 2, 5, 7)]
    assert taken.hash == CalibrationFrames.collect(alone, spec()).hash
    assert taken.describe() == (
        f"4 of 8 frames, {SIZE[1]}x{SIZE[0]}, from {folder}, picked from 8 to cover them: "
        "the farthest is 1.5 from a picked one, with even spacing 3"
    )
    some = frames.subset(4).take([2], Cover(4, 0, 0))
    np.testing.assert_array_equal(next(iter(some)), everything[4])


def test_memory_is_one_frame_not_all(tmp_path: Path) -> None:
    size = (240, 320)
    rng = np.random.default_rng(0)
    for index in range(40):
        cv2.imwrite(str(tmp_path / f"{index}.png"), rng.integers(0, 255, (*size, 3)).astype(np.uint8))
    tracemalloc.start()
    frames = CalibrationFrames.collect([tmp_path], spec().with_size(*size))
    for _frame in frames:
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    one = size[0] * size[1] * 3
    assert frames.count == 40
    assert peak < 12 * one


def test_spool_is_freed_with_the_last_view_of_it(rng: np.random.Generator, tmp_path: Path) -> None:
    frames = CalibrationFrames.collect([write_images(rng, tmp_path, 3)], spec())
    some = frames.subset(2)
    del frames
    gc.collect()
    assert len(list(some)) == 2


def test_dynamic_size_takes_the_frames_own(rng: np.random.Generator, tmp_path: Path) -> None:
    frames = CalibrationFrames.collect([write_images(rng, tmp_path, 2)], spec().with_size(None, None))
    assert frames.shape == (*SIZE, 3)


def test_dynamic_size_with_frames_that_differ_names_the_odd_one(rng: np.random.Generator, tmp_path: Path) -> None:
    write_images(rng, tmp_path, 2)
    cv2.imwrite(str(tmp_path / "900.png"), np.zeros((10, 20, 3), np.uint8))
    with pytest.raises(CalibrationError, match=r"900\.png is 20x10, the frames before it are 32x24") as error:
        CalibrationFrames.collect([tmp_path], spec().with_size(None, None))
    assert "one size" in error.value.fix


def test_no_frames_says_how_to_give_some(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=f"no frames found in {tmp_path}") as error:
        CalibrationFrames.collect([tmp_path], spec())
    assert "calib/" in error.value.fix
    assert "--calibration PATH" in error.value.fix
    with pytest.raises(CalibrationError, match="no frames found in nothing"):
        CalibrationFrames.collect([], spec())


def test_missing_source_is_named(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match=r"missing\.mp4"):
        CalibrationFrames.collect([tmp_path / "missing.mp4"], spec())


def test_asking_for_no_frames_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="0 frames were asked for"):
        CalibrationFrames.collect([tmp_path], spec(), limit=0)


def test_full_disk_is_one_clear_error(
    rng: np.random.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_images(rng, tmp_path, 2)
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full on this system")
    monkeypatch.setattr("tempfile.TemporaryFile", lambda **_: full.open("wb", buffering=0))
    with pytest.raises(CalibrationError, match="No space left on device"):
        CalibrationFrames.collect([folder], spec())
