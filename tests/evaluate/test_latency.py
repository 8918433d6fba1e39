from __future__ import annotations

import numpy as np
import pytest

from fcnopt.errors import UsageError
from fcnopt.evaluate.latency import LatencySummary


def test_percentiles_interpolate_between_samples() -> None:
    summary = LatencySummary.of([40.0, 10.0, 20.0, 30.0, 50.0])
    assert (summary.frames, summary.mean_ms, summary.p50_ms, summary.max_ms) == (5, 30.0, 30.0, 50.0)
    assert summary.p90_ms == pytest.approx(46.0)  # place 0.9 * 4 = 3.6: 40 + 0.6 * 10
    assert summary.p99_ms == pytest.approx(49.6)


def test_the_histogram_holds_every_sample(rng: np.random.Generator) -> None:
    samples = rng.gamma(20.0, 2.0, 500)
    histogram = LatencySummary.of(samples).histogram
    assert sum(histogram.counts) == 500
    assert len(histogram.edges_ms) == len(histogram.counts) + 1 == 33
    assert histogram.edges_ms[0] == samples.min()
    assert histogram.edges_ms[-1] == samples.max()
    assert list(histogram.edges_ms) == sorted(histogram.edges_ms)


@pytest.mark.parametrize("samples", [[5.0], [5.0, 5.0, 5.0], [0.0], [5.0, 5.001]])
def test_a_single_value_has_a_histogram_too(samples: list[float]) -> None:
    summary = LatencySummary.of(samples)
    assert sum(summary.histogram.counts) == len(samples)
    low, high = summary.histogram.edges_ms[0], summary.histogram.edges_ms[-1]
    assert low <= samples[0] <= high
    assert low < high


@pytest.mark.parametrize("samples", [[], [1.0, float("nan")], [-1.0]])
def test_no_or_impossible_samples_are_refused(samples: list[float]) -> None:
    with pytest.raises(UsageError, match="latency: expected at least one time"):
        LatencySummary.of(samples)
