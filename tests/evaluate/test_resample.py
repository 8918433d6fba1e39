from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from fcnopt.evaluate.confusion import bootstrap_drop
from fcnopt.evaluate.resample import block_length, effective_blocks, expanded_tail, resampled, spread, student_t


def video_like(rng: np.random.Generator, frames: int, correlation: float) -> tuple[Any, Any, float]:
    """Frames of reference and engine whose lost pixels follow an AR(1) process, and the drop in the long run."""
    noise = rng.standard_normal(frames)
    for i in range(1, frames):
        noise[i] = correlation * noise[i - 1] + math.sqrt(1 - correlation**2) * noise[i]
    lost = np.clip(np.round(500 + 100 * noise), 0, None).astype(np.int64)
    reference = np.full((frames, 3, 2), 5000, np.int64)
    engine = reference.copy()
    engine[:, 0, 0] -= lost  # pixels of class 0 that the engine calls class 1
    engine[:, 2, 0] -= lost
    engine[:, 2, 1] += lost
    return reference, engine, 100 - 50 * (4500 / 5000 + 5000 / 5500)


def coverage(block: int | None, correlation: float = 0.9, clips: int = 150) -> float:
    rng, inside = np.random.default_rng(7), 0
    for _ in range(clips):
        reference, engine, drop = video_like(rng, 300, correlation)
        low, high = bootstrap_drop(reference, engine, samples=200, block_frames=block).miou
        inside += low <= drop <= high
    return inside / clips


def test_the_interval_covers_the_drop_where_neighbours_are_alike() -> None:
    """AR(1) with 0.9: in single frames the 95 % interval holds the true drop in a third of the clips."""
    assert coverage(1) < 0.5
    assert coverage(block_length(300, fps=30.0)) > 0.8
    assert coverage(block_length(300, fps=30.0), correlation=0.0) > 0.85


@pytest.mark.parametrize(
    ("frames", "fps", "block"),
    [
        (300, 30.0, 30),  # a second
        (300, 14.985, 15),
        (1000, 5.0, 10),  # at least the cube root
        (1000, 0.0, 10),  # a folder of pictures
        (233, 0.0, 7),
        (60, 30.0, 15),  # at least four blocks
        (8, 30.0, 2),
        (7, 30.0, 1),
        (2, 0.0, 1),
        (1, 30.0, 1),
    ],
)
def test_a_block_is_a_second_within_bounds(frames: int, fps: float, block: int) -> None:
    assert block_length(frames, fps) == block


@pytest.mark.parametrize("block", [1, 7, 10])
def test_a_sample_has_as_many_frames_as_the_clip_and_favours_none(rng: np.random.Generator, block: int) -> None:
    weights = np.concatenate(list(resampled(40, block, 4000, rng)))
    assert weights.shape == (4000, 40)
    assert set(weights.sum(axis=1)) == {40.0}
    np.testing.assert_allclose(weights.mean(axis=0), 1.0, atol=0.25)  # without the circle the ends get 1 / block


def test_a_block_is_drawn_together(rng: np.random.Generator) -> None:
    (weights,) = resampled(40, 10, 1, rng)
    doubled = np.concatenate([weights[0], weights[0]])
    borders = np.count_nonzero(np.diff(doubled[:41]))
    assert 0 < borders <= 8  # four blocks have at most eight ends


@pytest.mark.parametrize(("freedom", "quantile"), [(3, 3.1824), (5, 2.5706), (9, 2.2622), (30, 2.0423), (1000, 1.9623)])
def test_students_quantile_is_that_of_the_tables(freedom: int, quantile: float) -> None:
    assert student_t(0.975, freedom) == pytest.approx(quantile, rel=0.01)


def test_few_blocks_widen_the_interval_and_many_do_not() -> None:
    assert expanded_tail(0.95, 10**6) == pytest.approx(0.025, rel=1e-4)
    assert expanded_tail(0.95, 10) == pytest.approx(0.00856, rel=0.01)  # Phi(-sqrt(10 / 9) * 2.2622)
    assert expanded_tail(0.95, 4) < 0.001
    assert expanded_tail(0.95, 1) == pytest.approx(0.0, abs=1e-12)
    assert spread(0.95, 10) == pytest.approx(math.sqrt(10 / 9) * 2.2622, rel=0.001)
    assert spread(0.95, 10**6) == pytest.approx(1.96, rel=0.001)
    assert spread(0.95, 1.2) == spread(0.95, 2)


def test_blocks_of_one_size_count_full_and_others_less() -> None:
    pixels = np.array([[5, 0, 90, 7], [5, 0, 0, 0], [5, 8, 10, 0], [5, 8, 0, 0]])
    np.testing.assert_allclose(effective_blocks(pixels, 1), [4, 2, 100**2 / (90**2 + 10**2), 1])
    np.testing.assert_allclose(effective_blocks(pixels, 2), [2, 1, 100**2 / (90**2 + 10**2), 1])
    np.testing.assert_array_equal(effective_blocks(np.zeros((3, 1), np.int64), 2), [0])


def class_coverage(shown: int, unevenness: float, clips: int = 150) -> float:
    """How often the interval of a class in `shown` of 15 blocks holds its drop; each block loses another share."""
    rng, inside, block = np.random.default_rng(11), 0, 4
    for clip in range(clips):
        blocks = np.where(rng.permutation(15) < shown, 20_000 * np.exp(unevenness * rng.standard_normal(15)), 0)
        pixels = np.repeat(blocks, block)
        lost = pixels * np.repeat(rng.normal(0.01, 0.01, 15), block)
        reference = np.full((60, 3, 2), 100_000, np.int64)
        reference[:, :, 1] = np.stack([0.9 * pixels, pixels, pixels], axis=1)
        engine = reference.copy()
        engine[:, 0, 1] -= lost.astype(np.int64)
        low, high = bootstrap_drop(reference, engine, samples=300, seed=clip, block_frames=block).iou[1] or (0.0, 0.0)
        inside += low <= 100 * (0.90 / 1.10 - 0.89 / 1.11) <= high
    return inside / clips


def test_the_interval_of_a_class_is_that_of_the_few_blocks_which_show_it() -> None:
    """By the clip's 15 blocks it would hold the drop in three of four clips."""
    assert class_coverage(4, unevenness=0.0) > 0.87
    assert class_coverage(6, unevenness=1.0) > 0.92
