"""A histogram of magnitudes whose range grows with the data, for streaming calibration.

Bin `k` of a side counts the values with `k * width <= |x| < (k + 1) * width`. When a larger value arrives the range
doubles and neighbouring bins are added in pairs: the counts stay exact, and memory stays what it was. Exact zeros are
counted apart: they survive every quantization, and after a ReLU they are more than half of all values.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

# Smaller magnitudes count as zeros: bins of such a width have no float32 reciprocal.
TINY = 1e-30
BINS = 2048  # a side; TensorRT's own calibrator uses as many (Migacz, 8-bit Inference with TensorRT, GTC 2017)

Counts = NDArray[np.int64]
Values = NDArray[np.float64]


class Histogram:
    """Counts of the values seen so far.

    Attributes:
        counts: [2, BINS], the negative side first, each side by magnitude; zeros left out.
        zeros: How many values were exactly zero, or came before the first value above `TINY`.
        limit: Upper end of the last bin, 0.0 before the first value above `TINY`.
    """

    def __init__(self) -> None:
        self.counts: Counts = np.zeros((2, BINS), np.int64)
        self.zeros = 0
        self.limit = 0.0

    @property
    def total(self) -> int:
        """How many values were counted."""
        return self.zeros + int(self.counts.sum())

    @property
    def width(self) -> float:
        """Width of a bin."""
        return self.limit / BINS

    @property
    def magnitudes(self) -> Counts:
        """Counts of |x|, [BINS]."""
        return np.asarray(self.counts.sum(axis=0))

    def update(self, values: NDArray[np.float32], reach: float) -> None:
        """Count more values.

        Args:
            values: Of any shape, finite.
            reach: A bound on their magnitudes; may exceed it where `values` is a sample of a larger tensor.
        """
        self._grow(reach)
        flat = values.reshape(-1)
        used = flat[flat != 0] if self.limit else flat[:0]
        self.zeros += flat.size - used.size
        if not used.size:
            return
        place = (np.abs(used) * np.float32(BINS / self.limit)).astype(np.int32)
        np.minimum(place, BINS - 1, out=place)
        place += (used > 0) * np.int32(BINS)
        self.counts += np.bincount(place, minlength=2 * BINS).reshape(2, BINS)

    def points(self, per_bin: int) -> tuple[Values, Values]:
        """The distribution as weighted points, `per_bin` evenly inside each occupied bin.

        Returns:
            Values and weights, both [n]; the weights add up to the number of values that are not zero.
        """
        side, bins = np.nonzero(self.counts)
        inside = (np.arange(per_bin) + 0.5) / per_bin
        magnitude = (bins[:, None] + inside) * self.width
        weights = np.repeat(self.counts[side, bins] / per_bin, per_bin)
        return (np.where(side == 0, -1.0, 1.0)[:, None] * magnitude).reshape(-1), weights

    def _grow(self, reach: float) -> None:
        if reach <= max(self.limit, TINY):
            return
        if self.limit == 0.0:
            self.limit = float(reach)
            return
        doublings = math.ceil(math.log2(reach / self.limit))
        for _ in range(doublings):
            merged = self.counts.reshape(2, BINS // 2, 2).sum(axis=2)
            self.counts = np.concatenate([merged, np.zeros_like(merged)], axis=1)
            self.limit *= 2
