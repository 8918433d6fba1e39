from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fcnopt.errors import MediaError
from fcnopt.media import list_clips, open_clip
from fcnopt.media.synth import SceneOptions, SynthClip
from fcnopt.media.writer import write_image, write_video
from tests.media.conftest import frames


def test_folder_is_read_in_natural_order(pictures: Path) -> None:
    clip = open_clip(pictures)
    assert (len(clip), clip.size, clip.fps, clip.labelled, clip.name) == (12, (48, 64), 0.0, False, "pictures")
    for frame, expected in zip(clip, frames(12), strict=True):
        np.testing.assert_array_equal(frame.image, expected)
    assert [frame.index for frame in clip] == list(range(12))  # a second time, from the start


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".webp", ".PNG"])
def test_single_picture_is_a_clip_of_one_frame(tmp_path: Path, suffix: str) -> None:
    image = np.full((40, 56, 3), (30, 90, 200), np.uint8)
    path = write_image(tmp_path / f"one{suffix}", image)
    (frame,) = open_clip(path)
    assert frame.image.shape == (40, 56, 3)
    assert np.abs(frame.image.astype(int) - image).max() <= 6


def test_pictures_may_differ_in_size(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", np.zeros((40, 56, 3), np.uint8))
    write_image(tmp_path / "b.png", np.zeros((44, 60, 3), np.uint8))
    clip = open_clip(tmp_path)
    assert clip.size == (40, 56)
    assert [frame.image.shape for frame in clip] == [(40, 56, 3), (44, 60, 3)]


def test_labels_are_matched_to_pictures_by_stem(pictures: Path, tmp_path: Path) -> None:
    for index in reversed(range(12)):
        write_image(tmp_path / "maps" / f"frame{index}.png", np.full((48, 64), index, np.uint8))
    write_image(tmp_path / "maps" / "another.png", np.zeros((1, 1), np.uint8))
    clip = open_clip(pictures, tmp_path / "maps")
    assert clip.labelled
    for frame in clip:
        assert frame.labels is not None
        assert (frame.labels == frame.index).all()


def test_labels_are_matched_to_video_frames_by_order(video: Path, tmp_path: Path) -> None:
    for index in range(20):
        write_image(tmp_path / "maps" / f"{index}.png", np.full((48, 64), index, np.uint8))
    found = [frame.labels[0, 0] for frame in open_clip(video, tmp_path / "maps") if frame.labels is not None]
    assert found == list(range(20))


def test_one_picture_takes_one_label_file(tmp_path: Path) -> None:
    path = write_image(tmp_path / "a.jpg", np.zeros((8, 9, 3), np.uint8))
    labels = write_image(tmp_path / "other.png", np.full((8, 9), 3, np.uint8))
    (frame,) = open_clip(path, labels)
    assert frame.labels is not None
    assert (frame.labels == 3).all()


def test_picture_without_label_map_is_an_error(pictures: Path, tmp_path: Path) -> None:
    write_image(tmp_path / "maps" / "frame0.png", np.zeros((48, 64), np.uint8))
    with pytest.raises(MediaError, match=r"frame1\.png: no label map of this name in .*maps") as caught:
        open_clip(pictures, tmp_path / "maps")
    assert "add frame1.png" in caught.value.fix


def test_wrong_number_of_label_maps_for_a_video_is_an_error(video: Path, tmp_path: Path) -> None:
    write_image(tmp_path / "maps" / "0.png", np.zeros((48, 64), np.uint8))
    with pytest.raises(MediaError, match=r"drive\.mp4: 20 frames, but 1 label maps"):
        open_clip(video, tmp_path / "maps")


@pytest.mark.parametrize("kind", ["pictures", "video"])
def test_label_map_of_another_size_is_an_error(kind: str, pictures: Path, video: Path, tmp_path: Path) -> None:
    for index in range(12 if kind == "pictures" else 20):
        write_image(tmp_path / "maps" / f"frame{index}.png", np.zeros((48, 64 if index < 2 else 32), np.uint8))
    clip = iter(open_clip(pictures if kind == "pictures" else video, tmp_path / "maps"))
    next(clip)
    next(clip)
    with pytest.raises(MediaError, match=r"frame2\.png: expected the frame's size 64x48 .*found 32x48"):
        next(clip)


@pytest.mark.parametrize("missing", ["nowhere.mp4", "nowhere", "nowhere.png"])
def test_missing_path_is_an_error(tmp_path: Path, missing: str) -> None:
    with pytest.raises(MediaError, match=f"{missing}: no such file or folder"):
        open_clip(tmp_path / missing)


def test_missing_label_folder_is_an_error(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="no such folder of label maps"):
        open_clip(pictures, tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(MediaError, match=r"no label maps in it \(\*\.png\)"):
        open_clip(pictures, tmp_path / "empty")


def test_folder_without_pictures_is_an_error_that_names_its_videos(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="no pictures in this folder"):
        open_clip(tmp_path)
    write_video(tmp_path / "v.mp4", frames(3), 10.0)
    with pytest.raises(MediaError) as caught:
        open_clip(tmp_path)
    assert "v.mp4" in caught.value.fix


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_truncated_picture_is_an_error(tmp_path: Path, suffix: str, rng: np.random.Generator) -> None:
    path = write_image(tmp_path / f"noise{suffix}", rng.integers(0, 256, (64, 64, 3), np.uint8))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(MediaError, match=rf"noise{suffix}: the file is cut off after {len(whole) // 2} bytes"):
        open_clip(path)


@pytest.mark.parametrize(("content", "said"), [(b"", "the file is empty"), (b"not a picture", "can be decoded")])
def test_unreadable_picture_in_a_folder_is_an_error_when_it_is_reached(
    pictures: Path, content: bytes, said: str
) -> None:
    (pictures / "frame7.png").write_bytes(content)
    read = []
    with pytest.raises(MediaError, match=rf"frame7\.png: .*{said}"):
        read += [frame.index for frame in open_clip(pictures)]
    clip = iter(open_clip(pictures))
    assert [next(clip).index for _ in range(7)] == list(range(7))


def test_list_clips_finds_pictures_videos_and_inner_folders(tmp_path: Path) -> None:
    calib = tmp_path / "calib"
    write_image(calib / "a.jpg", np.zeros((8, 8, 3), np.uint8))
    write_image(calib / "b.png", np.zeros((8, 8, 3), np.uint8))
    write_video(calib / "v.mp4", frames(3), 10.0)
    write_image(calib / "city" / "deep" / "c.png", np.zeros((8, 8, 3), np.uint8))
    write_image(calib / "city" / "deepannot" / "c.png", np.zeros((8, 8), np.uint8))  # label maps, not frames
    write_image(calib / ".hidden" / "d.png", np.zeros((8, 8, 3), np.uint8))
    (calib / "README.md").write_text("not a frame")
    assert [(clip.name, len(clip)) for clip in list_clips(calib)] == [("calib", 2), ("v", 3), ("deep", 1)]
    assert [clip.name for clip in list_clips(calib / "v.mp4")] == ["v"]
    (tmp_path / "empty").mkdir()
    assert list_clips(tmp_path / "empty") == []


@pytest.mark.shared
def test_camvid_folder_and_its_video_hold_the_same_frames(shared: Path) -> None:
    from fcnopt.media.labels import find_labels

    labels = find_labels(shared / "data" / "camvid" / "val")
    assert labels is not None
    folder = open_clip(shared / "data" / "camvid" / "val", labels)
    video = open_clip(shared / "data" / "clips" / "camvid_0016E5.mp4", labels)
    assert (len(folder), len(video)) == (101, 101)
    assert folder.size == video.size == (360, 480)
    assert video.fps == 15
    for index, (a, b) in enumerate(zip(folder, video, strict=True)):
        np.testing.assert_array_equal(a.labels, b.labels)
        assert np.abs(a.image.astype(int) - b.image).mean() < 6
        assert b.timestamp_s == pytest.approx(index / 15, abs=1e-3)
        if index == 30:
            break


@pytest.mark.shared
def test_motorway_clip_has_all_its_frames(shared: Path) -> None:
    clip = open_clip(shared / "data" / "clips" / "solidWhiteRight.mp4")
    assert (len(clip), clip.size, clip.fps) == (221, (540, 960), 25)
    assert sum(1 for _ in clip) == 221


def test_images_leave_label_maps_unread(tmp_path: Path) -> None:
    clip = SynthClip(SceneOptions(frames=2, height=48, width=64))
    clip.write_images(tmp_path / "images")
    clip.write_labels(tmp_path / "labels")
    labelled = open_clip(tmp_path / "images", tmp_path / "labels")
    assert [frame.labels is not None for frame in labelled] == [True, True]
    for file in (tmp_path / "labels").iterdir():
        file.write_bytes(b"not read")
    assert [frame.labels for frame in labelled.images()] == [None, None]
    with pytest.raises(MediaError):
        list(labelled)
