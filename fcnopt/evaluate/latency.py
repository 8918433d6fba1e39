"""How long frames take: percentiles, extremes and a histogram of one engine's latencies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fcnopt.errors import UsageError

_BINS = 32
# A quarter percent of the median: narrower bins would only show the timer.
_NARROWEST = 0.0025


@dataclass(frozen=True)
class Histogram:
    """Frames by latency.

    Attributes:
        edges_ms: Borders of the bins, one more than there are bins; the last bin includes its upper border.
        counts: Frames in each bin.
    """

    edges_ms: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True)
class LatencySummary:
    """Latencies of one engine, in milliseconds.

    Percentiles are NumPy's default ("linear"): with the n samples in order, percentile q lies at place
    `q / 100 * (n - 1)`, interpolated between the two samples around it. With few frames p99 is close to `max_ms`.

    Attributes:
        frames: How many samples there are.
        mean_ms: Arithmetic mean.
        p50_ms: Median.
        p90_ms: 90th percentile.
        p99_ms: 99th percentile.
        max_ms: The slowest frame.
        histogram: All samples in equal bins from the fastest to the slowest frame.
    """

    frames: int
    mean_ms: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    max_ms: float
    histogram: Histogram

    @classmethod
    def of(cls, samples_ms: Sequence[float] | NDArray[np.float64]) -> LatencySummary:
        """Summarize samples.

        Raises:
            UsageError: There are none, or one is negative or not finite.
        """
        samples = np.asarray(samples_ms, np.float64)
        if not samples.size or not np.isfinite(samples).all() or samples.min() < 0:
            raise UsageError(
                f"latency: expected at least one time in ms, none negative or infinite, found {samples.size} times",
                fix="measure at least one frame",
            )
        p50, p90, p99 = (float(p) for p in np.percentile(samples, [50, 90, 99]))
        return cls(samples.size, float(samples.mean()), p50, p90, p99, float(samples.max()), _histogram(samples))


def _histogram(samples: NDArray[np.float64]) -> Histogram:
    low, high = float(samples.min()), float(samples.max())
    narrowest = max(_NARROWEST * float(np.median(samples)), 1e-6)
    bins = int(np.clip((high - low) / narrowest, 1, _BINS))
    if high - low < narrowest:
        low, high = max(0.0, low - narrowest / 2), high + narrowest / 2
    counts, edges = np.histogram(samples, bins=bins, range=(low, high))
    return Histogram(tuple(float(e) for e in edges), tuple(int(c) for c in counts))
