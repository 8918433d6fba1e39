from __future__ import annotations

import numpy as np
import pytest

from fcnopt.quantize.histogram import Histogram
from fcnopt.quantize.methods import METHODS, entropy_threshold, interval, intervals, percentile_threshold, squared_error


def histogram_of(values: np.ndarray) -> Histogram:
    histogram = Histogram()
    histogram.update(values.astype(np.float32), float(np.abs(values).max()))
    return histogram


def relu_like(rng: np.random.Generator, count: int = 60000) -> np.ndarray:
    """A long tail, as activations have, and half of it zero."""
    return np.maximum(rng.laplace(0, 1.0, count), 0) ** 1.3


def brute_force_entropy(counts: np.ndarray, steps: int) -> int:
    """Migacz's pseudo code, word by word: the number of bins kept."""
    best, kept = np.inf, len(counts)
    for size in range(steps, len(counts) + 1):
        inside = counts[:size].astype(float)
        reference = inside.copy()
        reference[-1] += counts[size:].sum()
        quantized = np.zeros(size)
        level = np.arange(size) * steps // size
        for step in range(steps):
            members = (level == step) & (reference > 0)
            if members.any():
                quantized[members] = inside[level == step].sum() / members.sum()
        if ((reference > 0) & (quantized == 0)).any() or quantized.sum() == 0:
            continue
        p, q = reference / reference.sum(), quantized / quantized.sum()
        divergence = float(np.sum(p[p > 0] * np.log(p[p > 0] / q[p > 0])))
        if divergence < best - 1e-12:
            best, kept = divergence, size
    return kept


@pytest.mark.parametrize("steps", [8, 16, 32])
@pytest.mark.parametrize("seed", range(4))
def test_entropy_is_the_published_algorithm(steps: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    counts = np.histogram(np.abs(rng.laplace(size=3000)), bins=200)[0]
    assert (counts == 0).any()  # empty bins are part of it
    assert entropy_threshold(counts, 0.5, steps) == brute_force_entropy(counts, steps) * 0.5


DISTRIBUTIONS = {
    "uniform": lambda rng: rng.uniform(0, 1, 20000),
    "half normal": lambda rng: np.abs(rng.normal(size=20000)),
    "exponential": lambda rng: rng.exponential(size=20000),
    "log-normal": lambda rng: rng.lognormal(0, 1.5, 20000),
    "two humps": lambda rng: np.abs(np.r_[rng.normal(1, 0.1, 15000), rng.normal(6, 0.3, 300)]),
    "outliers": lambda rng: np.r_[np.abs(rng.normal(size=20000)), 40.0, 41.0],
    "few bins": lambda rng: np.r_[rng.uniform(0, 0.3199, 20000), 1.0],  # 128 of 400: nothing to merge
    "spikes": lambda rng: rng.choice([0.1, 0.5, 3.0, 3.1, 9.0], 20000, p=[0.5, 0.3, 0.1, 0.09, 0.01]),
}


@pytest.mark.parametrize("steps", [128, 256])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_entropy_is_the_published_algorithm_on_every_kind_of_data(
    rng: np.random.Generator, distribution: str, steps: int
) -> None:
    counts = np.histogram(DISTRIBUTIONS[distribution](rng), bins=400)[0]
    expected = brute_force_entropy(counts, steps)
    assert entropy_threshold(counts, 0.25, steps) == expected * 0.25
    if distribution in ("exponential", "log-normal"):
        assert steps < expected < 400  # there was something to find
    if (distribution, steps) == ("few bins", 128):
        assert expected == steps


def test_entropy_clips_a_lonely_outlier() -> None:
    values = np.concatenate([np.random.default_rng(0).uniform(0, 1, 100000), [10.0]])
    assert entropy_threshold(histogram_of(values).magnitudes, 10 / 2048, 128) < 1.1


def test_entropy_keeps_data_that_fits_the_levels() -> None:
    counts = np.zeros(2048, np.int64)
    counts[:100] = 7
    assert entropy_threshold(counts, 1.0, 128) == 100.0


@pytest.mark.parametrize("levels", [127, 255])
@pytest.mark.parametrize("two_sided", [False, True])
def test_mse_is_as_good_as_a_search_over_the_values(rng: np.random.Generator, levels: int, two_sided: bool) -> None:
    values = np.clip(rng.laplace(0, 1, 400_000), -2 if two_sided else 0, 4)
    values[7] = 12.0
    low, high = min(values.min(), 0.0), values.max()
    found = interval(histogram_of(values), float(low), float(high), "mse", levels)
    ones = np.ones_like(values)
    whole = (-max(-low, high), max(-low, high)) if levels == 127 else (low, high)
    candidates = [(whole[0] * f, whole[1] * f) for f in np.linspace(0.05, 1, 60)]
    best = min(squared_error(values, ones, kept, levels) for kept in candidates)
    assert squared_error(values, ones, found, levels) <= best * 1.01
    if levels == 127:
        assert squared_error(values, ones, whole, levels) > best * 1.5  # there was something to find


def test_squared_error_is_that_of_the_quantized_values() -> None:
    values = np.array([-1.0, 0.1, 0.26, 3.0])
    # int8 over [-1.27, 1.27]: step 0.01, so only the last is clipped, to 1.27.
    assert squared_error(values, np.ones(4), (-1.27, 1.27), 127) == pytest.approx(1.73**2 / 4)
    # uint8 over [0, 2.55]: step 0.01, the first clipped to 0, the last to 2.55.
    assert squared_error(values, np.ones(4), (0.0, 2.55), 255) == pytest.approx((1.0 + 0.45**2) / 4)


def test_percentile_agrees_with_numpy_to_a_bin(rng: np.random.Generator) -> None:
    values = relu_like(rng)
    histogram = histogram_of(values)
    for percent in (90.0, 99.0, 99.9):
        expected = np.percentile(np.abs(values), percent)
        assert percentile_threshold(histogram, percent) == pytest.approx(expected, abs=2 * histogram.width)


def test_percentile_of_mostly_zeros_is_above_zero() -> None:
    values = np.zeros(1000)
    values[0] = 1.0
    assert 0 < percentile_threshold(histogram_of(values), 50.0) <= 1.0


def test_every_interval_holds_zero_and_stays_inside_the_data(rng: np.random.Generator) -> None:
    for values in (relu_like(rng), -relu_like(rng), rng.normal(0.5, 2, 20000)):
        low, high = float(values.min()), float(values.max())
        found = intervals(histogram_of(values), low, high)
        assert set(found) == set(METHODS)
        for by_levels in found.values():
            (left, right), (bottom, top) = by_levels[127], by_levels[255]
            assert left == -right < 0
            assert right <= max(-low, high) * (1 + 1e-9)
            assert min(low, 0) * (1 + 1e-9) <= bottom <= 0 <= top <= max(high, 0) * (1 + 1e-9)
            assert bottom < top


def test_minmax_clips_nothing(rng: np.random.Generator) -> None:
    values = rng.normal(1, 1, 1000)
    low, high = float(values.min()), float(values.max())
    assert interval(histogram_of(values), low, high, "minmax", 255) == (low, high)
    assert interval(histogram_of(values), low, high, "minmax", 127) == (-high, high)


def test_dead_tensor_has_an_empty_interval() -> None:
    histogram = Histogram()
    histogram.update(np.zeros(10, np.float32), 0.0)
    for by_levels in intervals(histogram, 0.0, 0.0).values():
        assert len(by_levels) > 1
        assert set(by_levels.values()) == {(0.0, 0.0)}
