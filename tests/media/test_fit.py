from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from fcnopt.errors import MediaError, UsageError
from fcnopt.media import fit_frame, restore_labels
from fcnopt.spec import NORMALIZATIONS, FrameSpec, Resize


def blocks(height: int, width: int) -> NDArray[np.uint8]:
    """Labels in six large blocks."""
    labels = np.zeros((height, width), np.uint8)
    for row in range(2):
        for col in range(3):
            labels[row * height // 2 : (row + 1) * height // 2, col * width // 3 : (col + 1) * width // 3] = (
                3 * row + col
            )
    return labels


@pytest.mark.parametrize(
    "spec", [FrameSpec(), FrameSpec(48, 64), FrameSpec(48, None), FrameSpec(48, 64, resize="none")]
)
def test_frame_that_fits_is_not_copied(spec: FrameSpec) -> None:
    image = np.zeros((48, 64, 3), np.uint8)
    assert fit_frame(image, spec) is image
    labels = np.zeros((48, 64), np.uint8)
    assert restore_labels(labels, (48, 64), spec) is labels


def test_colour_order_follows_the_spec() -> None:
    image = np.full((4, 4, 3), (1, 2, 3), np.uint8)
    assert fit_frame(image, FrameSpec(color="RGB"))[0, 0].tolist() == [3, 2, 1]
    assert image[0, 0].tolist() == [1, 2, 3]


def test_shrinking_averages_and_growing_interpolates() -> None:
    checkers = np.indices((40, 40)).sum(0) % 2 * 255
    image = np.repeat(checkers[..., None], 3, 2).astype(np.uint8)
    small = fit_frame(image, FrameSpec(10, 10))
    assert np.abs(small.astype(int) - 128).max() <= 1
    ramp = np.repeat(np.array([[0, 100]], np.uint8)[..., None], 3, 2)
    assert 20 < fit_frame(ramp, FrameSpec(1, 8))[0, 3, 0] < 50


@pytest.mark.parametrize("size", [(90, 160), (270, 480), (160, 90), (37, 61)])
@pytest.mark.parametrize("resize", ["stretch", "letterbox"])
@pytest.mark.parametrize("target", [(192, 320), (128, 128)])
def test_labels_come_back_to_where_they_were(size: tuple[int, int], resize: Resize, target: tuple[int, int]) -> None:
    labels, spec = blocks(*size), FrameSpec(*target, resize=resize)
    # the labels travel as a picture of grey blocks, so that resizing treats them as it treats frames
    fitted = fit_frame(np.repeat(labels[..., None] * 40, 3, 2).astype(np.uint8), spec)
    assert fitted.shape == (*target, 3)
    restored = restore_labels(np.rint(fitted[..., 0] / 40).astype(np.uint8), size, spec)
    assert restored.shape == size
    assert (restored == labels).mean() > 0.93  # the edges of blocks may move by a pixel
    for row in (0.25, 0.75):
        for col in (1 / 6, 0.5, 5 / 6):
            place = int(row * size[0]), int(col * size[1])
            assert restored[place] == labels[place]


def test_restoring_by_whole_factors_is_exact(rng: np.random.Generator) -> None:
    small = rng.integers(0, 9, (12, 20), np.uint8)
    large = np.kron(small, np.ones((3, 3), np.uint8))
    np.testing.assert_array_equal(restore_labels(small, (36, 60), FrameSpec(12, 20)), large)
    np.testing.assert_array_equal(restore_labels(large, (12, 20), FrameSpec(36, 60)), small)


@pytest.mark.parametrize(("name", "bgr"), [("imagenet", (104, 116, 124)), ("caffe", (104, 117, 123))])
def test_letterbox_pads_with_the_mean_colour_and_keeps_the_aspect(name: str, bgr: tuple[int, int, int]) -> None:
    spec = FrameSpec(100, 100, resize="letterbox", normalization=NORMALIZATIONS[name])
    fitted = fit_frame(np.full((50, 100, 3), 7, np.uint8), spec)
    assert (fitted[25:75] == 7).all()
    for pad in (fitted[:25], fitted[75:]):
        assert (pad == bgr).all()
    swapped = fit_frame(np.full((50, 100, 3), 7, np.uint8), FrameSpec(100, 100, "RGB", "letterbox", spec.normalization))
    assert (swapped[0] == bgr[::-1]).all()


def test_other_size_is_refused_where_the_spec_says_none() -> None:
    spec = FrameSpec(48, 64, resize="none")
    with pytest.raises(MediaError, match=r"frame: expected 64x48 .* found 32x24 ") as caught:
        fit_frame(np.zeros((24, 32, 3), np.uint8), spec)
    assert "--resize stretch" in caught.value.fix
    with pytest.raises(MediaError, match="not to resize"):
        restore_labels(np.zeros((48, 64), np.uint8), (24, 32), spec)


def test_labels_of_another_size_than_the_models_are_refused() -> None:
    with pytest.raises(MediaError, match=r"labels: expected 64x48 .*found \[24, 32\]"):
        restore_labels(np.zeros((24, 32), np.uint8), (96, 128), FrameSpec(48, 64))


@pytest.mark.parametrize(
    ("image", "found"),
    [
        (np.zeros((4, 4), np.uint8), r"uint8 \[4, 4\]"),
        (np.zeros((4, 4, 4), np.uint8), r"uint8 \[4, 4, 4\]"),
        (np.zeros((4, 4, 3), np.float32), r"float32 \[4, 4, 3\]"),
        (np.zeros((0, 4, 3), np.uint8), r"uint8 \[0, 4, 3\]"),
        (None, "NoneType"),
        ([[[0, 0, 0]]], "list"),
    ],
)
def test_what_is_no_frame_is_refused(image: NDArray[np.uint8], found: str) -> None:
    with pytest.raises(UsageError, match=rf"frame: expected uint8 \[H, W, 3\], found {found}"):
        fit_frame(image, FrameSpec(48, 64))
