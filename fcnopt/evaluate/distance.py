"""How far two versions of a tensor are apart, summed up frame by frame; memory does not grow with frames.

    SQNR = 10 log10( sum a^2 / sum (a - b / f)^2 )   in dB, over all elements of all frames

`f` is 1 unless `b` was rescaled: graph rewrites move constant factors, one a channel, from a layer's weights to those
of the next, which changes the tensor between them and nothing else. Such factors are found by least squares,
f = sum(a b) / sum(a^2) a channel, and taken out. They are told from quantization errors, which shrink or stretch
channels too, by size and by what they explain: see `Scaling.factors`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Channels = NDArray[np.float64]

_CHUNK = 1 << 20  # elements looked at at a time: in float64 a whole tensor would be large
# A tensor is rescaled if factors divide its noise by this much (the second where more than that share of the signal is
# noise even then), and are this far from 1 (median of |log f|). INT8 bends channels as well: on an FCN-8s by
# 0.02 at most, for 1.2 times the noise; equalization by 0.05 at least, for 4 times.
_CLEAR, _CLEAR_IN_NOISE, _NOISY = 2.5, 16.0, 0.01
_LEAST_BEND = 0.045
_AS_GOOD = 2.0  # one factor for all channels may leave this much more noise than one each
_ROUNDING = 1e-10  # of the signal: noise below it is rounding, of float32 or of the sums here


@dataclass(frozen=True)
class Distance:
    """How far b is from a.

    Attributes:
        sqnr_db: Signal to quantization noise; infinite where nothing differs, minus infinite where `b` holds numbers
            that are not finite.
        max_abs: Largest |a - b| of finite elements, in a's units.
        cosine: Of the angle between the two, over all frames; 1 where both are zero.
        non_finite: How many elements are finite in one of them only.
        factors: Smallest and largest factor that was taken out of b; None where it is not scaled.
    """

    sqnr_db: float
    max_abs: float
    cosine: float
    non_finite: int = 0
    factors: tuple[float, float] | None = None

    @property
    def noise(self) -> float:
        """Noise as a share of the signal: 0 is exact; the inverse of the SQNR."""
        return math.pow(10.0, -self.sqnr_db / 10.0)

    def to_dict(self) -> dict[str, Any]:
        """As JSON: what is not finite is null, and `state` says which it was."""
        states = {math.inf: "exact", -math.inf: "broken"}
        return {
            "sqnr_db": self.sqnr_db if math.isfinite(self.sqnr_db) else None,
            "state": states.get(self.sqnr_db, "noisy"),
            "max_abs": self.max_abs,
            "cosine": self.cosine,
            "non_finite": self.non_finite,
            "factors": None if self.factors is None else list(self.factors),
        }


class Scaling:
    """Finds the factors by which a tensor's channels were rescaled.

    Args:
        axis: Of the channels.
    """

    def __init__(self, axis: int = 1) -> None:
        self._axis = axis
        self._sums: Channels | None = None  # rows: sum a^2, sum a b, sum b^2

    def add(self, a: Array, b: Array) -> None:
        """Look at one frame's tensors, of one shape."""
        found = np.concatenate([
            np.stack([np.einsum("ncp,ncp->c", one, two) for one, two in ((x, x), (x, y), (y, y))], axis=0)
            for _, x, y in _chunks(a, b, self._axis)
        ], axis=1)  # fmt: skip
        self._sums = found if self._sums is None else self._sums + found

    def factors(self) -> Channels | None:
        """One factor a channel [C], or None where the tensor is not rescaled.

        It is rescaled where factors leave two fifths of the noise or less (a sixteenth, where that is above a hundredth
        of the signal), and are further from 1 than INT8 bends channels; weights of 4 bits may bend them as far. One
        factor serves all channels where it does nearly as well: the nearest power of two, as float16 rewrites use,
        else the median. Else every channel has its own; silent ones, of which nothing is known, the median.
        """
        if self._sums is None or not np.isfinite(self._sums).all():
            return None
        live = self._sums[1] > 0
        if not live.any():
            return None
        sums = self._sums[:, live]
        factors = sums[1] / sums[0]
        signal = float(sums[0].sum())
        left = max(_noise(sums, factors), _ROUNDING * signal)
        clear = _CLEAR_IN_NOISE if left > _NOISY * signal else _CLEAR
        if np.median(np.abs(np.log(factors))) < _LEAST_BEND or _noise(sums, np.ones_like(factors)) < clear * left:
            return None
        middle = float(np.median(factors))
        for common in (2.0 ** round(math.log2(middle)), middle):
            if _noise(sums, np.full_like(factors, common)) <= _AS_GOOD * left:
                return np.full(len(live), common)
        found = np.full(len(live), middle)
        found[live] = factors
        return found


class Meter:
    """Measures the distance of one tensor.

    Args:
        axis: Of the channels.
        factors: Of the channels [C], from `Scaling`; None for none.
    """

    def __init__(self, axis: int = 1, factors: Channels | None = None) -> None:
        self._axis = axis
        self._factors = factors
        self._signal = self._noise = self._product = self._energy = 0.0
        self._largest = 0.0
        self._non_finite = 0

    def add(self, a: Array, b: Array) -> None:
        """Measure one frame's tensors, of one shape."""
        for where, x, y in _chunks(a, b, self._axis):
            if self._factors is not None:
                y /= self._factors[where][None, :, None]
            with np.errstate(invalid="ignore"):
                apart = x - y
            if not np.isfinite(apart).all():
                both = np.isfinite(x) & np.isfinite(y)
                self._non_finite += int(np.count_nonzero(np.isfinite(x) != np.isfinite(y)))
                x, y, apart = x[both], y[both], apart[both]
            self._signal += float(np.vdot(x, x))
            self._noise += float(np.vdot(apart, apart))
            self._product += float(np.vdot(x, y))
            self._energy += float(np.vdot(y, y))
            self._largest = max(self._largest, float(np.abs(apart).max(initial=0.0)))

    def result(self) -> Distance:
        """The distance over everything measured."""
        both = math.sqrt(self._signal) * math.sqrt(self._energy)
        cosine = self._product / both if both else float(self._signal == self._energy)
        scaled = None if self._factors is None else (float(self._factors.min()), float(self._factors.max()))
        return Distance(self._sqnr(), self._largest, min(cosine, 1.0), self._non_finite, scaled)

    def _sqnr(self) -> float:
        if self._non_finite or (self._noise and not self._signal):
            return -math.inf
        if not self._noise:
            return math.inf
        return 10.0 * (math.log10(self._signal) - math.log10(self._noise))


def _noise(sums: Channels, factors: Channels) -> float:
    """Sum of (a - b / f)^2 from the channels' sums of a^2, a b and b^2."""
    aa, ab, bb = sums
    return float((aa - 2 * ab / factors + bb / factors**2).sum())


def _chunks(a: Array, b: Array, axis: int) -> Iterator[tuple[slice, Channels, Channels]]:
    """Both tensors in float64 as [N, channels, rest], few channels at a time, and which channels."""
    one, two = (np.moveaxis(value, axis, 1) if value.ndim > 1 else value.reshape(1, -1) for value in (a, b))
    batch, channels = one.shape[:2]
    step = max(1, _CHUNK // max(1, one[:, :1].size))
    for start in range(0, channels, step):
        where = slice(start, min(start + step, channels))
        shape = (batch, where.stop - start, -1)
        yield where, one[:, where].astype(np.float64).reshape(shape), two[:, where].astype(np.float64).reshape(shape)
