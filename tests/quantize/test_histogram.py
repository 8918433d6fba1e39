from __future__ import annotations

import numpy as np
import pytest

from fcnopt.quantize.histogram import BINS, Histogram


def filled(*parts: np.ndarray) -> Histogram:
    histogram = Histogram()
    for part in parts:
        histogram.update(part.astype(np.float32), float(np.abs(part).max(initial=0)))
    return histogram


def test_counts_every_value_on_its_side(rng: np.random.Generator) -> None:
    values = np.concatenate([rng.normal(size=5000), np.zeros(300)])
    histogram = filled(values)
    assert histogram.zeros == 300
    assert histogram.total == 5300
    assert histogram.counts[0].sum() == (values < 0).sum() > 0
    assert histogram.counts[1].sum() == (values > 0).sum() > 0


def test_growing_keeps_the_counts_that_one_pass_over_all_data_gives(rng: np.random.Generator) -> None:
    small, large = rng.uniform(-1, 1, 4000), rng.uniform(-7.5, 7.5, 4000)
    small[0] = 1.0  # fixes the first range
    grown = filled(small, large)
    assert grown.limit == 8.0
    edges = np.linspace(0, 8.0, BINS + 1)
    everything = np.concatenate([small, large]).astype(np.float32)
    expected = np.histogram(np.abs(everything), edges)[0]
    expected[[255, 256]] += [1, -1]  # 1.0 itself, the end of the first range, was counted to that range's last bin
    np.testing.assert_array_equal(grown.magnitudes, expected)


def test_black_first_frame_does_not_fix_the_range() -> None:
    histogram = filled(np.zeros(10), np.full(10, 1e-3), np.full(10, 5.0))
    assert histogram.zeros == 10
    assert histogram.limit >= 5.0
    assert histogram.limit < 10.0 + 1e-3
    assert histogram.magnitudes.sum() == 20


@pytest.mark.parametrize("per_bin", [1, 8])
def test_points_carry_the_weight_and_the_sign_of_the_values(rng: np.random.Generator, per_bin: int) -> None:
    values = rng.normal(1.0, 1.0, 20000)
    points, weights = filled(values).points(per_bin)
    assert weights.sum() == pytest.approx(20000)
    assert points @ weights / 20000 == pytest.approx(values.mean(), abs=2e-3)
    assert (points < 0).any()
    assert (points > 0).any()


@pytest.mark.parametrize("reach", [1e-45, 1e-40, 1e-37, 6e-36])
def test_magnitudes_without_a_float32_reciprocal_count_as_zeros(reach: float) -> None:
    values = np.linspace(-reach, reach, 100)
    histogram = filled(values)
    assert (histogram.zeros, histogram.limit, histogram.counts.sum()) == (100, 0.0, 0)
    histogram.update(np.full(10, 2.0, np.float32), 2.0)
    assert (histogram.zeros, histogram.limit) == (100, 2.0)
    assert histogram.counts[1, BINS - 1] == 10
    histogram.update(values.astype(np.float32), reach)  # now there are bins, and these belong to the first ones
    assert histogram.total == 210
    assert histogram.counts[:, 0].sum() > 0
