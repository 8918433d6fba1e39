"""Four ways to choose the clipping interval of a tensor from its distribution.

An interval [low, high] becomes a grid of evenly spaced levels; what lies outside is clipped to its ends. A wide
interval rounds coarsely, a narrow one clips much.

- `minmax`: all values, nothing is clipped.
- `percentile`: all but the largest 0.001 % of the magnitudes.
- `entropy`: the threshold whose quantized distribution diverges least from the real one, by Kullback and Leibler:
  TensorRT's algorithm (S. Migacz, "8-bit Inference with TensorRT", GTC 2017, slides 22 to 27).
- `mse`: the interval with the least squared error (Sung, Shin, Hwang, "Resiliency of deep neural networks under
  quantization", 2015; OMSE in Choukroun et al., "Low-bit quantization of neural networks for efficient inference",
  2019), searched on the histogram.

`levels` is the number of steps on the side of zero that is used: 127 for symmetric int8, 255 for uint8 over an
interval that starts at zero. Two-sided data on uint8 has 255 steps over both sides together.

448 stands for float8 E4M3, whose largest number that is. Its steps grow with the value, so a wide interval rounds no
coarser than a narrow one and there is nothing to win by clipping; what is left of the methods is:

- `minmax`: twice all values. A factor of two moves every value by one binade, which changes no bit of its rounding
  (but below a 57000th of the largest, where the type ends), and leaves room for frames not seen.
- `percentile`: for outliers so large that the rest would fall below that end.
- `mse`: as above, over intervals of half to twice the full one: it shifts where the binades begin.
- `entropy` is not offered: the algorithm merges bins into levels of equal width, and E4M3 has none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from fcnopt.errors import CalibrationError
from fcnopt.quantize.fp8 import round_fp8
from fcnopt.quantize.histogram import Counts, Histogram

Rule = Literal["minmax", "percentile", "entropy", "mse"]
Method = Literal["auto", "minmax", "percentile", "entropy", "mse"]
"""A rule, or the best one by measurement."""
Levels = Literal[127, 255, 448]
Quantized = Literal["int8", "fp8"]
"""The precisions that need ranges."""
Interval = tuple[float, float]

METHODS: tuple[Rule, ...] = get_args(Rule)
LEVELS: tuple[Levels, ...] = get_args(Levels)
RULES: Mapping[Levels, tuple[Rule, ...]] = {127: METHODS, 255: METHODS, 448: ("minmax", "percentile", "mse")}
"""The methods that a grid has."""

PERCENTILE = 99.999
# The search covers intervals down to 1/32 of the full one: narrower ones clip nearly everything.
_SHRINKS = np.geomspace(1 / 32, 1.0, 161)
# Rounding to E4M3 repeats itself with every factor of two, so one octave without clipping and one with it say all.
_FP8_SHRINKS = np.geomspace(1 / 2, 2.0, 33)
_FP8_HEADROOM = 2.0
# Points inside a bin, so that rounding finer than a bin is still seen: at 255 levels over the whole range a step is
# 8 bins, at 1/32 of it a quarter of one.
_POINTS_PER_BIN = 8


def methods_of(precision: Quantized) -> tuple[Rule, ...]:
    """The calibration methods that a precision has."""
    return RULES[448 if precision == "fp8" else 127]


def check_method(method: Rule, precision: Quantized) -> None:
    """Refuse a calibration method that a precision does not have.

    Raises:
        CalibrationError: It is one.
    """
    if method not in methods_of(precision):
        raise CalibrationError(
            f"{precision} has no ranges by {method}: its steps are not even",
            fix=f"use --method auto, or one of {', '.join(methods_of(precision))}",
        )


def intervals(histogram: Histogram, minimum: float, maximum: float) -> Mapping[Rule, Mapping[Levels, Interval]]:
    """The interval of every method, for every grid that has it.

    Args:
        histogram: The distribution, or that of a sample.
        minimum: Exact.
        maximum: Exact.

    Returns:
        By method and levels: for 127 and 448 symmetric about zero, for 255 the part of the data's range that is kept,
        zero always inside.
    """
    return {
        method: {
            levels: interval(histogram, minimum, maximum, method, levels)
            for levels in LEVELS
            if method in RULES[levels]
        }
        for method in METHODS
    }


def interval(histogram: Histogram, minimum: float, maximum: float, method: Rule, levels: Levels) -> Interval:
    """The interval that one method chooses; see `intervals`.

    Raises:
        ValueError: The grid has no such method; see `RULES`.
    """
    if method not in RULES[levels]:
        raise ValueError(f"there is no {method} for {levels} levels")
    low, high = min(minimum, 0.0), max(maximum, 0.0)
    reach = max(-low, high)
    whole = (low, high) if levels == 255 else (-reach, reach)
    if method == "minmax" or histogram.limit == 0.0:
        headroom = _FP8_HEADROOM if levels == 448 else 1.0
        return whole[0] * headroom, whole[1] * headroom
    if method == "mse":
        return _least_squares(histogram, whole, levels)
    if method == "entropy":
        two_sided = low < 0 < high
        steps = 128 if levels == 127 or two_sided else 256
        threshold = entropy_threshold(histogram.magnitudes, histogram.width, steps)
    else:
        threshold = percentile_threshold(histogram, PERCENTILE)
    return max(whole[0], -threshold), min(whole[1], threshold)


def percentile_threshold(histogram: Histogram, percent: float) -> float:
    """The magnitude that `percent` of all values (zeros among them) do not exceed, linear inside a bin."""
    wanted = percent / 100 * histogram.total - histogram.zeros
    if wanted <= 0:
        return histogram.width
    reached = np.cumsum(histogram.magnitudes)
    place = int(np.searchsorted(reached, wanted))
    before = reached[place - 1] if place else 0
    return float((place + (wanted - before) / histogram.magnitudes[place]) * histogram.width)


def entropy_threshold(counts: Counts, width: float, steps: int) -> float:
    """The threshold of least Kullback-Leibler divergence.

    For every candidate of `i` bins, P is the first `i` bins with all that lies beyond added to the last of them,
    and Q the same bins without it, averaged over `steps` levels of equal width, bins that are empty in P staying so.
    The divergence sum(P log(P / Q)) splits into sums over bins and over levels, which running sums give directly,
    without building P and Q.

    Args:
        counts: Of magnitudes, [bins], zeros left out: they are exact at every threshold and would drown the rest.
        width: Of a bin.
        steps: Levels of the quantized distribution: 128 for int8, 256 for one-sided uint8.

    Returns:
        The threshold, at most `bins * width`.
    """
    used = int(np.flatnonzero(counts)[-1]) + 1 if counts.any() else 0
    if used <= steps:
        return used * width
    amount = _running(counts)
    filled = _running(counts > 0)
    plain = _running(counts * np.log(np.maximum(counts, 1)))
    best, kept = np.inf, used
    for size in range(steps, used + 1):
        divergence = _divergence(counts, amount, filled, plain, size, steps)
        if divergence < best:
            best, kept = divergence, size
    return kept * width


def _running(values: NDArray[np.generic]) -> NDArray[np.float64]:
    return np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])


def _divergence(
    counts: Counts,
    amount: NDArray[np.float64],
    filled: NDArray[np.float64],
    plain: NDArray[np.float64],
    size: int,
    steps: int,
) -> float:
    last = float(counts[size - 1])
    outside = amount[-1] - amount[size]
    inside = amount[size]
    edges = -(-np.arange(steps + 1) * size // steps)  # bin j belongs to level floor(j * steps / size)
    level = np.diff(amount[edges])
    bins = np.diff(filled[edges])
    bins[-1] += outside > 0 and last == 0
    if inside == 0 or (outside > 0 and level[-1] == 0):
        return np.inf  # P has weight where Q has none
    log_mean = np.log(level, out=np.zeros(steps), where=level > 0) - np.log(bins, out=np.zeros(steps), where=bins > 0)
    entropy = plain[size]
    crossed = float(level @ log_mean)
    if outside > 0:
        entropy += (last + outside) * np.log(last + outside) - last * np.log(max(last, 1.0))
        crossed += outside * log_mean[-1]
    total = amount[-1]
    return float((entropy - crossed) / total - np.log(total / inside))


def _least_squares(histogram: Histogram, whole: Interval, levels: Levels) -> Interval:
    values, weights = histogram.points(_POINTS_PER_BIN)
    low, high = whole
    shrinks = _FP8_SHRINKS if levels == 448 else _SHRINKS
    errors = [squared_error(values, weights, (low * shrink, high * shrink), levels) for shrink in shrinks]
    shrink = float(shrinks[int(np.argmin(errors))])
    return low * shrink, high * shrink


def squared_error(values: NDArray[np.float64], weights: NDArray[np.float64], kept: Interval, levels: Levels) -> float:
    """Mean squared error of clipping to `kept` and rounding to symmetric int8 (127 levels), uint8 or E4M3 (448)."""
    low, high = kept
    step = (high - low) / 255 if levels == 255 else high / levels
    if step == 0:
        return float(weights @ values**2 / weights.sum())
    if levels == 448:
        rounded = round_fp8(values / step) * step
    else:
        bottom = float(np.round(low / step)) if levels == 255 else -128.0
        rounded = np.clip(np.round(values / step), bottom, bottom + 255) * step
    return float(weights @ (values - rounded) ** 2 / weights.sum())
