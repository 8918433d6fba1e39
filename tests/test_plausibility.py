"""Black, over-exposed, frozen and wrongly sized frames are named, and real ones are not."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from fcnopt.errors import UsageError
from fcnopt.media.clips import open_clip
from fcnopt.media.files import IMAGE_SUFFIXES, files_in
from fcnopt.plausibility import Plausibility, Problems, Watch

Image = NDArray[np.uint8]


def look(image: Image, **options: Any) -> Problems:
    return Watch(Plausibility(**options)).look(image)


def noisy(level: float, deviation: float, rng: np.random.Generator, size: tuple[int, int] = (720, 1280)) -> Image:
    return np.clip(rng.normal(level, deviation, (*size, 3)), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def camvid(shared: Path) -> list[Image]:
    """Every tenth frame of CamVid's drives by day and at dusk, and the first ones of a motorway clip."""
    folder = shared / "data" / "camvid"
    files = [path for part in ("train", "val") for path in files_in(folder / part, IMAGE_SUFFIXES)[::10]]
    road = open_clip(shared / "data" / "clips" / "solidWhiteRight.mp4").images()
    drives = [np.asarray(cv2.imread(str(path)), np.uint8) for path in files]
    return [*drives, *(frame.image for frame in itertools.islice(road, 12))]


def test_no_real_frame_is_flagged(camvid: list[Image]) -> None:
    assert len(camvid) > 55
    watch = Watch()
    for image in camvid:
        assert set(watch.look(image)) <= {"wrong-size"}  # the motorway is another camera's


def test_a_night_of_the_same_streets_is_dark_and_not_black(camvid: list[Image], rng: np.random.Generator) -> None:
    for image in camvid[:-12:12]:
        for brightness in (0.2, 0.1, 0.05, 0.03):
            night = np.clip(image * brightness + rng.normal(2, 2, image.shape), 0, 255).astype(np.uint8)
            assert look(night) == (), f"brightness {brightness}, at most {night.max()}"


def test_darkness_that_shows_nothing_is_black(camvid: list[Image], rng: np.random.Generator) -> None:
    for level, deviation in ((0, 0), (0, 3), (5, 3), (16, 0), (16, 4)):
        assert look(noisy(level, deviation, rng)) == ("black",), f"{level} +- {deviation}"
    assert look((camvid[0] * 0.004).astype(np.uint8)) == ("black",), "one level of difference is no picture"


def test_a_street_lamp_in_the_dark_is_not_black(rng: np.random.Generator) -> None:
    night = noisy(4, 2, rng)
    night[200:220, 700:720] = 250
    assert look(night) == ()


@pytest.mark.parametrize("size", [(720, 1280), (360, 480), (64, 96), (24, 32), (1, 1), (5, 3000)])
def test_every_size_of_frame_can_be_looked_at(size: tuple[int, int]) -> None:
    assert look(np.zeros((*size, 3), np.uint8)) == ("black",)
    assert look(np.full((*size, 3), 255, np.uint8)) == ("overexposed",)
    assert look(np.full((*size, 3), 128, np.uint8)) == ()


def test_white_out_is_overexposed_and_a_white_sky_or_a_bright_colour_is_not(camvid: list[Image]) -> None:
    image = camvid[0].copy()
    height = image.shape[0]
    image[: height // 2] = 255
    assert look(image) == ()
    image[: height * 9 // 10] = 252
    assert look(image) == ("overexposed",)
    yellow = np.full((90, 160, 3), (40, 255, 255), np.uint8)
    assert look(yellow) == ()
    assert look(np.clip(camvid[0] * 40.0, 0, 255).astype(np.uint8)) == ("overexposed",), "the shutter stays open"


def test_frozen_is_said_from_so_many_equal_frames_in_a_row_on(rng: np.random.Generator) -> None:
    one, two = noisy(100, 30, rng, (90, 160)), noisy(100, 30, rng, (90, 160))
    watch = Watch(Plausibility(frozen_frames=3))
    shown = [one, one, one, two, two, two, two, two, one]
    assert [watch.look(image) for image in shown] == [(), (), (), (), (), (), ("frozen",), ("frozen",), ()]


def test_a_camera_that_fills_the_same_memory_again_is_not_frozen(rng: np.random.Generator) -> None:
    memory, watch = np.empty((90, 160, 3), np.uint8), Watch(Plausibility(frozen_frames=1))
    for _ in range(4):
        memory[:] = noisy(100, 30, rng, (90, 160))
        assert watch.look(memory) == ()
    assert watch.look(memory) == ("frozen",)


def test_frames_repeated_to_keep_a_recording_s_rate_are_not_frozen(rng: np.random.Generator) -> None:
    watch = Watch()
    for _ in range(6):
        image = noisy(100, 30, rng, (90, 160))
        assert [watch.look(image) for _ in range(5)] == [()] * 5


def encoded(images: list[Image], folder: Path, quality: int) -> list[Image]:
    """The images after H.264 at 30 frames a second."""
    path = folder / f"{quality}-{len(images)}.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"crf": str(quality), "preset": "veryfast"})
        stream.height, stream.width, stream.pix_fmt = *images[0].shape[:2], "yuv420p"
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="bgr24")))
        container.mux(stream.encode())
    return [frame.image for frame in open_clip(path).images()]


def test_of_a_car_that_stands_neither_raw_frames_nor_good_h264_are_frozen_and_those_of_a_dead_sensor_are(
    camvid: list[Image], tmp_path: Path, rng: np.random.Generator
) -> None:
    street = cv2.resize(camvid[0], (320, 240), interpolation=cv2.INTER_AREA)
    standing = [np.clip(street + rng.normal(0, 3, street.shape), 0, 255).astype(np.uint8) for _ in range(40)]
    for images, options in (
        (standing, Plausibility(frozen_frames=1)),
        (encoded(standing, tmp_path, 18), Plausibility(frozen_frames=1)),
        (encoded(standing, tmp_path, 23), Plausibility()),
    ):
        assert Watch(options).look_at_all(images) == ((),) * 40
    dead = [standing[0]] * 60
    assert Watch().look_at_all(dead) == ((),) * 10 + (("frozen",),) * 50
    assert Watch().look_at_all(encoded(dead, tmp_path, 23))[-20:] == (("frozen",),) * 20


def test_the_first_frame_s_size_is_expected_unless_one_is_named(rng: np.random.Generator) -> None:
    small, large = noisy(100, 30, rng, (90, 160)), noisy(100, 30, rng, (180, 320))
    watch = Watch()
    assert [watch.look(image) for image in (large, small, large, small)] == [(), ("wrong-size",), (), ("wrong-size",)]
    assert look(large, size=(90, 160)) == ("wrong-size",)
    assert look(small, size=(90, 160)) == ()


def test_several_problems_of_one_frame_are_all_named() -> None:
    watch = Watch(Plausibility(size=(90, 160), frozen_frames=1))
    black = np.zeros((45, 80, 3), np.uint8)
    assert watch.look_at_all([black, black]) == (("black", "wrong-size"), ("black", "frozen", "wrong-size"))


def test_frames_that_may_not_be_written_to_or_have_gaps_are_taken(rng: np.random.Generator) -> None:
    wide = noisy(100, 30, rng, (90, 320))
    wide.flags.writeable = False
    assert look(wide[:, ::2]) == ()
    assert look(wide[::-1, ::-1, ::-1]) == ()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"black_level": 256}, "black_level is 256"),
        ({"bright_level": -1}, "bright_level is -1"),
        ({"black_share": 0.0}, "black_share is 0.0"),
        ({"bright_share": 1.5}, "bright_share is 1.5"),
        ({"black_contrast": float("nan")}, "black_contrast is nan"),
        ({"frozen_frames": 0}, "frozen_frames is 0"),
        ({"stride": 0}, "stride is 0"),
        ({"size": (0, 90)}, r"size is \(0, 90\)"),
    ],
)
def test_impossible_limits_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        Plausibility(**options)
