"""What is taken for a calibration frame in the folders that users give: never label maps, never broken pictures."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from fcnopt.errors import CalibrationError
from fcnopt.quantize import sources
from fcnopt.quantize.frames import CalibrationFrames
from fcnopt.spec import ClassSpec, FrameSpec, ModelSpec
from tests.media.conftest import png_bytes
from tests.quantize.nets import SIZE, write_images

CLASSES = ClassSpec.named("camvid")  # 11 of them
GREY, PALETTE = 0, 3


def write_maps(rng: np.random.Generator, folder: Path, count: int, *, kind: int = GREY, unlabelled: int = 255) -> Path:
    """Label maps of 11 classes with some pixels unlabelled."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        labels = rng.integers(0, 11, SIZE).astype(np.uint8)
        labels[:2] = unlabelled
        (folder / f"{index:03d}.png").write_bytes(png_bytes(labels, kind, bytes(range(256)) * 3))
    return folder


def collect(*paths: Path, limit: int = 64) -> CalibrationFrames:
    return CalibrationFrames.collect(paths, ModelSpec(FrameSpec(*SIZE), CLASSES), limit=limit)


def images_of(frames: CalibrationFrames) -> np.ndarray:
    return np.concatenate(list(frames))


def pictures(folder: Path, *indices: int) -> np.ndarray:
    return np.stack([cv2.imread(str(folder / f"{index:03d}.png")) for index in indices])


def test_a_label_set_gives_its_frames_alone_and_says_so(rng: np.random.Generator, tmp_path: Path) -> None:
    train = write_images(rng, tmp_path / "set" / "train", 4)
    maps = write_maps(rng, tmp_path / "set" / "trainannot", 4)
    frames = collect(tmp_path / "set")
    assert (frames.count, frames.available) == (4, 4)
    np.testing.assert_array_equal(images_of(frames), pictures(train, 0, 1, 2, 3))
    assert frames.notes == (f"calibration: left out the label maps in {maps}",)


@pytest.mark.parametrize("kind", [GREY, PALETTE])
def test_an_unknown_layout_is_told_by_what_is_in_the_files(rng: np.random.Generator, tmp_path: Path, kind: int) -> None:
    write_images(rng, tmp_path / "JPEGImages", 3)
    maps = write_maps(rng, tmp_path / "SegmentationClass", 9, kind=kind)
    frames = collect(tmp_path, limit=6)
    assert (frames.count, frames.available) == (3, 3)
    np.testing.assert_array_equal(images_of(frames), pictures(tmp_path / "JPEGImages", 0, 1, 2))
    assert frames.notes == (f"calibration: left out the label maps in {maps}",)


def test_label_maps_alone_are_refused_and_their_frames_named(
    rng: np.random.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = write_images(rng, tmp_path / "train", 2)
    maps = write_maps(rng, tmp_path / "trainannot", 2)
    for given in (maps, maps / "001.png"):
        with pytest.raises(CalibrationError, match=r"trainannot.* holds label maps, not frames") as caught:
            collect(given)
        assert caught.value.fix == f"give the camera's pictures: {train}"
    monkeypatch.chdir(maps)
    with pytest.raises(CalibrationError, match=r"calibration: \. holds label maps"):
        collect(Path())


def test_label_maps_of_an_unknown_layout_are_refused(rng: np.random.Generator, tmp_path: Path) -> None:
    maps = write_maps(rng, tmp_path / "masks", 3, unlabelled=11)
    for given in (maps, maps / "001.png"):
        with pytest.raises(CalibrationError, match=r"masks.* holds label maps, not frames") as caught:
            collect(given)
        assert "the folder that these label maps belong to" in caught.value.fix


def test_label_maps_among_frames_are_passed_over(rng: np.random.Generator, tmp_path: Path) -> None:
    write_images(rng, tmp_path, 6)
    labels = rng.integers(0, 11, SIZE).astype(np.uint8)
    for index in range(6):
        cv2.imwrite(str(tmp_path / f"{index:03d}_mask.png"), labels)
    frames = collect(tmp_path)
    np.testing.assert_array_equal(images_of(frames), pictures(tmp_path, *range(6)))
    assert (frames.count, frames.available) == (6, 6)
    (note,) = frames.notes
    assert note.startswith("calibration: left out label maps among the frames (6): 000_mask.png, 001_mask.png")
    assert note.endswith(", ...")
    some = collect(tmp_path, limit=2)
    assert len(images_of(some)) == 2
    assert all(any((frame == one).all() for one in images_of(frames)) for frame in images_of(some))


def test_pictures_of_a_grey_camera_are_frames(rng: np.random.Generator, tmp_path: Path) -> None:
    for index in range(5):
        cv2.imwrite(str(tmp_path / f"{index:03d}.png"), rng.integers(0, 200, SIZE).astype(np.uint8))
    frames = collect(tmp_path)
    assert (frames.count, frames.notes) == (5, ())
    np.testing.assert_array_equal(images_of(frames), pictures(tmp_path, *range(5)))


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n cut"])
def test_a_picture_that_cannot_be_decoded_is_replaced_by_the_next(
    rng: np.random.Generator, tmp_path: Path, content: bytes
) -> None:
    write_images(rng, tmp_path, 10)
    (tmp_path / "005.png").write_bytes(content)
    frames = collect(tmp_path, limit=4)  # 0, 2, 5, 7
    np.testing.assert_array_equal(images_of(frames), pictures(tmp_path, 0, 2, 6, 7))
    assert (frames.count, frames.available) == (4, 9)
    (note,) = frames.notes
    assert note.startswith(f"calibration: left out pictures that cannot be decoded (1): {tmp_path / '005.png'}: ")


def test_the_first_picture_may_be_the_broken_one(rng: np.random.Generator, tmp_path: Path) -> None:
    write_images(rng, tmp_path, 3)
    (tmp_path / "000.png").write_bytes(b"")
    frames = collect(tmp_path)
    np.testing.assert_array_equal(images_of(frames), pictures(tmp_path, 1, 2))
    assert frames.count == frames.available == len(list(frames)) == 2


def test_broken_pictures_alone_are_an_error_that_names_one(tmp_path: Path) -> None:
    for index in range(3):
        (tmp_path / f"{index}.jpg").write_bytes(b"no picture")
    with pytest.raises(CalibrationError, match=r"no picture in .* can be decoded \(3 tried\): .*0\.jpg: not a pict"):
        collect(tmp_path)


def test_only_drawn_pictures_are_decoded(
    rng: np.random.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(rng, tmp_path, 40)
    read: list[str] = []
    decode = sources.read_image
    monkeypatch.setattr(sources, "read_image", lambda path: (read.append(path.name), decode(path))[1])
    assert collect(tmp_path, limit=4).count == 4
    assert read == ["000.png", "010.png", "020.png", "030.png"]


def test_frames_and_videos_come_in_natural_order_from_any_depth(
    rng: np.random.Generator, tmp_path: Path, street: Path
) -> None:
    write_images(rng, tmp_path / "drive2", 1)
    write_images(rng, tmp_path / "drive10" / "left", 2)
    write_images(rng, tmp_path / ".hidden", 5)
    shutil.copy(street / "clip.mp4", tmp_path / "drive1.mp4")
    frames = collect(tmp_path)
    assert (frames.count, frames.available) == (9, 9)
    expected = np.concatenate([pictures(tmp_path / "drive2", 0), pictures(tmp_path / "drive10" / "left", 0, 1)])
    np.testing.assert_array_equal(images_of(frames)[6:], expected)


def test_camvid_s_label_maps_are_refused(shared: Path) -> None:
    camvid = shared / "data" / "camvid"
    with pytest.raises(CalibrationError, match="trainannot holds label maps") as caught:
        collect(camvid / "trainannot")
    assert caught.value.fix.endswith("camvid/train")
    assert collect(camvid / "train", limit=3).available == 367
