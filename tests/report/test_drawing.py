from __future__ import annotations

import numpy as np
import pytest

from fcnopt.report.drawing import blend, colorize, difference, legend
from fcnopt.spec import ClassSpec
from tests.evaluate.fakes import CLASSES


def test_colours_are_the_palettes_in_bgr_and_black_outside() -> None:
    picture = colorize(np.array([[0, 1, 2, 3, 255]], np.uint8), CLASSES)
    np.testing.assert_array_equal(picture[0, :4], np.array(CLASSES.palette)[:, ::-1])
    assert not picture[0, 4].any()
    assert picture.dtype == np.uint8


@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0])
def test_a_blend_is_between_image_and_colours(alpha: float, rng: np.random.Generator) -> None:
    image = rng.integers(0, 256, (8, 8, 3), np.uint8)
    labels = rng.integers(0, 4, (8, 8), np.uint8)
    expected = alpha * colorize(labels, CLASSES).astype(float) + (1 - alpha) * image
    np.testing.assert_allclose(blend(image, labels, CLASSES, alpha=alpha), expected, atol=0.51)


def test_a_difference_marks_what_differs_and_only_that(rng: np.random.Generator) -> None:
    image = rng.integers(0, 256, (8, 8, 3), np.uint8)
    reference = np.zeros((8, 8), np.uint8)
    labels = reference.copy()
    labels[2:4, 5] = 1
    picture = difference(image, labels, reference)
    grey = (picture == picture[:, :, :1]).all(axis=2)
    np.testing.assert_array_equal(~grey, labels != reference)
    assert image.flags.writeable


def test_a_legend_names_every_class_and_wraps() -> None:
    camvid = ClassSpec.named("camvid")
    wide, narrow = legend(camvid, 1200), legend(camvid, 300)
    assert wide.shape[1] == 1200
    assert narrow.shape[1] == 300
    assert narrow.shape[0] >= 3 * (wide.shape[0] - 4)
    for strip in (wide, narrow):
        colours = {tuple(c) for c in strip.reshape(-1, 3).tolist()}
        assert {c[::-1] for c in camvid.palette} <= colours


def test_a_legend_narrower_than_a_name_is_drawn_all_the_same() -> None:
    assert legend(CLASSES, 20).shape[1] == 20
