from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fcnopt.errors import UsageError
from fcnopt.media import open_clip
from fcnopt.media.labels import check_label_map, read_label_map
from fcnopt.media.synth import DEMO_SEED, SceneOptions, SynthClip
from fcnopt.spec import ClassSpec

CLASSES = ClassSpec.named("synth")
ROAD, MARKING, PAVEMENT, BUILDING, TREE, SKY, CAR, PEDESTRIAN, SIGN = range(9)


@pytest.fixture(scope="module")
def demo() -> SynthClip:
    return SynthClip()


def test_class_numbers_are_those_of_the_spec() -> None:
    assert CLASSES.names == ("road", "marking", "pavement", "building", "tree", "sky", "car", "pedestrian", "sign")


def test_clip_says_what_it_gives(demo: SynthClip) -> None:
    assert (len(demo), demo.size, demo.fps, demo.labelled, demo.name) == (
        90,
        (192, 320),
        15.0,
        True,
        f"synth-{DEMO_SEED}",
    )
    frame = demo.frame(4)
    assert frame.labels is not None
    assert (frame.image.shape, frame.image.dtype) == ((192, 320, 3), np.uint8)
    assert (frame.labels.shape, frame.labels.dtype) == ((192, 320), np.uint8)
    assert frame.timestamp_s == pytest.approx(4 / 15)


def test_same_seed_gives_the_same_frames_in_any_order(demo: SynthClip) -> None:
    again = SynthClip(SceneOptions(seed=DEMO_SEED))
    for index in (33, 2):
        a, b = demo.frame(index), again.frame(index)
        np.testing.assert_array_equal(a.image, b.image)
        np.testing.assert_array_equal(a.labels, b.labels)
        np.testing.assert_array_equal(demo.depth(index), again.depth(index))
    assert (demo.frame(2).image != SynthClip(SceneOptions(seed=DEMO_SEED + 1)).frame(2).image).mean() > 0.5


def test_every_class_is_in_the_demo_clip_and_no_other_value(demo: SynthClip) -> None:
    pixels, frames_with = np.zeros(len(CLASSES), np.int64), np.zeros(len(CLASSES), np.int64)
    for index in range(0, len(demo), 6):
        labels = demo.frame(index).labels
        assert labels is not None
        check_label_map(labels, demo.size, CLASSES)
        counts = np.bincount(labels.ravel(), minlength=len(CLASSES))
        pixels += counts
        frames_with += counts > 0
    share = pixels / pixels.sum()
    assert (share > 0.004).all(), dict(zip(CLASSES.names, share.round(4), strict=True))
    assert (frames_with >= 12).all(), frames_with


@pytest.mark.parametrize("seed", [DEMO_SEED, 8, 1003])
def test_depth_agrees_with_labels(seed: int) -> None:
    clip = SynthClip(SceneOptions(seed=seed))
    for index in (0, 45):
        labels, depth = clip.frame(index).labels, clip.depth(index)
        assert labels is not None
        assert depth.dtype == np.float32
        np.testing.assert_array_equal(np.isinf(depth), labels == SKY)
        solid = depth[labels != SKY]
        assert solid.min() > 0.3
        assert solid.max() < 410
        # the ground is a plane: its 1/depth grows evenly from row to row, whatever is painted on it
        ground = np.isin(labels, (ROAD, MARKING, PAVEMENT))
        below = ground[1:-1] & ground[:-2] & ground[2:]
        below[:115] = False  # farther away, float32 rounds
        inverse = 1 / depth.astype(np.float64)
        bend = inverse[:-2] - 2 * inverse[1:-1] + inverse[2:]
        assert below.sum() > 5000
        assert np.abs(bend[below]).max() < 1e-5


def test_things_stand_in_front_of_the_ground_they_hide(demo: SynthClip) -> None:
    labels, depth = demo.frame(0).labels, demo.depth(0)
    assert labels is not None
    things = np.isin(labels, (CAR, PEDESTRIAN, SIGN))
    rows, cols = np.nonzero(things & (np.arange(192)[:, None] > 110))
    assert rows.size > 500
    # ground pixels of the same row tell how far the ground would be there
    for row in np.unique(rows):
        ground = np.isin(labels[row], (ROAD, MARKING, PAVEMENT))
        if ground.sum() > 20:
            assert np.median(depth[row, cols[rows == row]]) < np.median(depth[row, ground]) * 1.1


def test_camera_moves_and_the_light_changes(demo: SynthClip) -> None:
    first, last = demo.frame(0), demo.frame(89)
    assert first.labels is not None
    assert (first.labels != last.labels).mean() > 0.1
    brightness = [demo.frame(index).image.mean() for index in range(0, 90, 15)]
    assert max(brightness) - min(brightness) > 8
    quiet = SynthClip(SceneOptions(seed=DEMO_SEED, noise=0.0, blur=False)).frame(0)
    np.testing.assert_array_equal(quiet.labels, first.labels)
    grain = first.image.astype(int)[150:] - quiet.image[150:]
    assert 0.5 < grain.std() < 25


def test_colour_alone_does_not_tell_the_classes(demo: SynthClip) -> None:
    frame = demo.frame(0)
    assert frame.labels is not None
    values = frame.image.reshape(-1, 3).astype(float)
    means = np.stack([values[frame.labels.ravel() == c].mean(0) for c in np.unique(frame.labels)])
    nearest = np.unique(frame.labels)[np.linalg.norm(values[:, None] - means, axis=2).argmin(1)]
    assert (nearest == frame.labels.ravel()).mean() < 0.7


@pytest.mark.parametrize("size", [(96, 160), (64, 64), (135, 241)])
def test_other_sizes_show_the_same_street(size: tuple[int, int]) -> None:
    clip = SynthClip(SceneOptions(seed=DEMO_SEED, frames=2, height=size[0], width=size[1]))
    frame = clip.frame(1)
    assert frame.labels is not None
    assert frame.image.shape == (*size, 3)
    assert frame.labels.shape == clip.depth(1).shape == size
    assert {ROAD, BUILDING, SKY} <= set(np.unique(frame.labels).tolist())


def test_written_clip_reads_back(tmp_path: Path) -> None:
    clip = SynthClip(SceneOptions(seed=DEMO_SEED, frames=6, height=96, width=160))
    video = clip.write_video(tmp_path / "clip.mp4")
    labels = clip.write_labels(tmp_path / "labels")
    read = open_clip(video, labels)
    assert (len(read), read.size, read.fps) == (6, (96, 160), 15.0)
    for frame, rendered in zip(read, clip, strict=True):
        np.testing.assert_array_equal(frame.labels, rendered.labels)
        assert np.abs(frame.image.astype(int) - rendered.image).mean() < 5
    np.testing.assert_array_equal(read_label_map(labels / "000003.png"), clip.frame(3).labels)
    pictures = open_clip(clip.write_images(tmp_path / "images"), labels)
    for frame, rendered in zip(pictures, clip, strict=True):
        np.testing.assert_array_equal(frame.image, rendered.image)


@pytest.mark.parametrize("wrong", [{"frames": 0}, {"height": 8}, {"seed": -1}, {"fps": 0.0}, {"noise": -1.0}])
def test_options_out_of_range_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="synthetic scene"):
        SceneOptions(**wrong)  # type: ignore[arg-type]


def test_frame_out_of_range_is_refused(demo: SynthClip) -> None:
    with pytest.raises(UsageError, match="no frame 90"):
        demo.frame(90)
