from __future__ import annotations

import importlib
import math
import os
import warnings
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fcnopt.errors import BackendError, MediaError, UsageError
from fcnopt.evaluate.confusion import ConfusionMatrix, bootstrap_drop
from fcnopt.evaluate.resample import effective_blocks, expanded_tail, spread
from fcnopt.spec import ClassSpec

CAMVID = ClassSpec.named("camvid")
FOUR = ClassSpec(("a", "b", "c", "d"), ((0, 0, 0),) * 4)


def maps(
    rng: np.random.Generator, frames: int = 5, classes: int = 11, wrong: float = 0.2
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    truth = rng.integers(0, classes, (frames, 30, 40), dtype=np.uint8)
    labels = np.where(rng.random(truth.shape) < wrong, rng.integers(0, classes, truth.shape), truth).astype(np.uint8)
    return labels, truth


def sklearn_metrics() -> Any:
    """The independent witness of every figure: skipped without it at a desk, but never on CI."""
    if os.environ.get("CI"):
        return importlib.import_module("sklearn.metrics")
    return pytest.importorskip("sklearn.metrics")


def test_agrees_with_scikit_learn_to_1e_9(rng: np.random.Generator) -> None:
    metrics = sklearn_metrics()
    labels, truth = maps(rng)
    truth[rng.random(truth.shape) < 0.1] = 11  # CamVid's ignored pixels
    truth[truth == 7] = 3  # a class that only the labels have
    matrix = ConfusionMatrix(CAMVID)
    matrix.add(labels, truth)

    counted = truth != 11
    right, said = truth[counted], labels[counted]
    present = np.unique(right)
    assert 7 not in present
    assert (said == 7).any()
    per_class = metrics.jaccard_score(right, said, labels=np.arange(11), average=None, zero_division=0)
    np.testing.assert_allclose(matrix.iou, per_class, rtol=0, atol=1e-9)
    assert matrix.miou == pytest.approx(100 * per_class[present].mean(), rel=0, abs=1e-9)
    assert matrix.pixel_accuracy == pytest.approx(100 * metrics.accuracy_score(right, said), rel=0, abs=1e-9)
    np.testing.assert_array_equal(matrix.counts, metrics.confusion_matrix(right, said, labels=np.arange(11)))


def test_a_batch_counts_as_its_frames_do(rng: np.random.Generator) -> None:
    labels, truth = maps(rng)
    batch, single = ConfusionMatrix(CAMVID), ConfusionMatrix(CAMVID)
    batch.add(labels, truth)
    for one, right in zip(labels, truth, strict=True):
        single.add(one, right)
    np.testing.assert_array_equal(batch.counts, single.counts)
    np.testing.assert_array_equal(batch.frames, single.frames)
    assert batch.frames.shape == (5, 3, 11)
    np.testing.assert_array_equal(batch.frames[:, 0].sum(axis=0), np.diagonal(batch.counts))


def test_a_class_in_neither_is_nan_and_not_in_the_mean() -> None:
    matrix = ConfusionMatrix(FOUR)
    matrix.add(np.array([[0, 0, 1, 1]], np.uint8), np.array([[0, 0, 1, 0]], np.uint8))
    assert matrix.iou[0] == pytest.approx(2 / 3)
    assert matrix.iou[1] == pytest.approx(1 / 2)
    assert np.isnan(matrix.iou[2:]).all()
    assert matrix.miou == pytest.approx(100 * (2 / 3 + 1 / 2) / 2)


def test_no_counted_pixel_is_nan_without_a_warning() -> None:
    matrix = ConfusionMatrix(FOUR)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        matrix.add(np.zeros((2, 2), np.uint8), np.full((2, 2), 255, np.uint8))
        assert np.isnan(matrix.miou)
        assert np.isnan(matrix.pixel_accuracy)


def test_an_unknown_truth_value_is_named() -> None:
    matrix = ConfusionMatrix(CAMVID)
    truth = np.array([[0, 11, 12, 200]], np.uint8)
    with pytest.raises(MediaError, match=r"values 12, 200, expected 0\.\.10 for the 11 classes \(or 11 for ignored"):
        matrix.add(np.zeros((1, 4), np.uint8), truth)
    assert not matrix.counts.any()


def test_unknown_truth_values_can_be_left_out() -> None:
    matrix = ConfusionMatrix(CAMVID, unknown="ignore")
    matrix.add(np.zeros((1, 4), np.uint8), np.array([[0, 11, 12, 200]], np.uint8))
    assert matrix.counts.sum() == matrix.counts[0, 0] == 1


def test_a_label_that_is_no_class_is_named() -> None:
    with pytest.raises(BackendError, match=r"labels have the values 4, expected 0\.\.3"):
        ConfusionMatrix(FOUR).add(np.full((2, 2), 4, np.uint8), np.zeros((2, 2), np.uint8))


@pytest.mark.parametrize(
    ("labels", "truth"),
    [
        (np.zeros((2, 2), np.uint8), np.zeros((2, 3), np.uint8)),
        (np.zeros((2, 2), np.int64), np.zeros((2, 2), np.uint8)),
        (np.zeros(4, np.uint8), np.zeros(4, np.uint8)),
    ],
)
def test_maps_that_do_not_fit_are_refused(labels: NDArray[np.uint8], truth: NDArray[np.uint8]) -> None:
    with pytest.raises(UsageError, match="labels and truth must be uint8"):
        ConfusionMatrix(FOUR).add(labels, truth)


def matrices(rng: np.random.Generator, wrong: float) -> tuple[ConfusionMatrix, ConfusionMatrix]:
    labels, truth = maps(rng, frames=40, classes=4, wrong=0.1)
    worse = np.where(rng.random(truth.shape) < wrong, (labels + 1) % 4, labels).astype(np.uint8)
    reference, engine = ConfusionMatrix(FOUR), ConfusionMatrix(FOUR)
    reference.add(labels, truth)
    engine.add(worse, truth)
    return reference, engine


def test_the_interval_is_around_the_drop_and_repeats(rng: np.random.Generator) -> None:
    reference, engine = matrices(rng, 0.05)
    drop = reference.miou - engine.miou
    low, high = bootstrap_drop(reference.frames, engine.frames).miou
    assert 0 < low < drop < high
    assert high - low < drop
    assert (low, high) == bootstrap_drop(reference.frames, engine.frames).miou
    assert (low, high) != bootstrap_drop(reference.frames, engine.frames, seed=1).miou


@pytest.mark.parametrize("block", [1, 7, 40])
def test_equal_engines_have_an_interval_of_zero(rng: np.random.Generator, block: int) -> None:
    reference, _ = matrices(rng, 0.05)
    assert bootstrap_drop(reference.frames, reference.frames, block_frames=block).miou == (0.0, 0.0)


@pytest.mark.parametrize("block", [1, 7, 10])
def test_the_vectorised_bootstrap_is_that_of_a_loop(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    reference, engine = matrices(rng, 0.05)
    monkeypatch.setattr("fcnopt.evaluate.resample._WEIGHTS", 40 * 7)  # several chunks, the last one short
    got = bootstrap_drop(reference.frames, engine.frames, samples=50, seed=3, block_frames=block)
    draw, blocks = np.random.default_rng(3), math.ceil(40 / block)
    starts = np.concatenate([draw.integers(0, 40, (min(7, 50 - at), blocks)) for at in range(0, 50, 7)])
    drops = []
    for begins in starts:
        chosen = [(begin + step) % 40 for begin in begins.tolist() for step in range(block)][:40]
        sums = [m.frames[chosen].sum(axis=0) for m in (reference, engine)]
        iou = [s[0] / (s[1] + s[2] - s[0]) for s in sums]
        drops.append([100 * (iou[0] - iou[1]).mean(), *(100 * (iou[0] - iou[1]))])
    own = effective_blocks(reference.frames[:, 1], block)
    iou = 100 * (reference.iou - engine.iou)
    for column, drop, count, interval in zip(
        np.transpose(drops), [reference.miou - engine.miou, *iou], [blocks, *own], [got.miou, *got.iou], strict=True
    ):
        tail = 100 * expanded_tail(0.95, count)
        low, high = np.percentile(column, [tail, 100 - tail])
        reach = spread(0.95, count) * column.std()
        assert interval == pytest.approx((min(low, drop - reach), max(high, drop + reach)), abs=1e-9)


def test_a_block_as_long_as_the_clip_only_turns_it(rng: np.random.Generator) -> None:
    """Every frame is drawn exactly once, wherever the only block starts."""
    reference, engine = matrices(rng, 0.05)
    drop = reference.miou - engine.miou
    interval = bootstrap_drop(reference.frames, engine.frames, block_frames=40).miou
    assert interval == pytest.approx((drop, drop), abs=1e-9)


def test_blocks_follow_the_cube_root_unless_told(rng: np.random.Generator) -> None:
    reference, engine = matrices(rng, 0.05)
    untold = bootstrap_drop(reference.frames, engine.frames)
    assert untold == bootstrap_drop(reference.frames, engine.frames, block_frames=4)
    assert untold != bootstrap_drop(reference.frames, engine.frames, block_frames=1)


@pytest.mark.parametrize("block", [0, 3])
def test_a_block_fits_the_frames(block: int) -> None:
    frames = np.ones((2, 3, 4), np.int64)
    with pytest.raises(UsageError, match=rf"bootstrap: blocks of {block} frames, expected 1\.\.2"):
        bootstrap_drop(frames, frames, block_frames=block)


def test_an_interval_from_four_blocks_reaches_beyond_them() -> None:
    """Their resampled means do not, and a mean of four is beyond them all in one case of eight."""
    reference = np.full((4, 3, 1), 20_000)
    engine = reference.copy()
    engine[:, 0, 0] -= [100, 200, 300, 400]
    low, high = bootstrap_drop(reference, engine, samples=4000, block_frames=1).iou[0] or (0.0, 0.0)
    single = [100 * (1 - (20_000 - lost) / (20_000 + lost)) for lost in (100, 400)]
    assert low < single[0] < single[1] < high


def test_a_class_in_few_frames_has_an_interval_and_an_absent_one_has_none() -> None:
    reference, engine = ConfusionMatrix(FOUR), ConfusionMatrix(FOUR)
    for index in range(20):
        truth = np.zeros((4, 4), np.uint8)
        truth[0] = 2 if index == 0 else 1
        reference.add(truth, truth)
        engine.add(np.where(truth == 2, 0, truth).astype(np.uint8), truth)
    interval = bootstrap_drop(reference.frames, engine.frames, samples=200)
    assert interval.iou[3] is None
    assert interval.iou[1] == (0.0, 0.0)
    assert interval.iou[2] == (100.0, 100.0)
    assert interval.miou[0] < reference.miou - engine.miou < interval.miou[1]


@pytest.mark.parametrize("frames", [np.zeros((0, 3, 4), np.int64), np.zeros((2, 3, 5), np.int64)])
def test_a_bootstrap_needs_matching_frames(frames: NDArray[np.int64]) -> None:
    with pytest.raises(UsageError, match="bootstrap: expected two arrays"):
        bootstrap_drop(np.zeros((len(frames), 3, 4), np.int64), frames)


def test_a_bootstrap_needs_samples() -> None:
    with pytest.raises(UsageError, match="samples 0"):
        bootstrap_drop(np.ones((2, 3, 4), np.int64), np.ones((2, 3, 4), np.int64), samples=0)
