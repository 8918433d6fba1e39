"""Ranges of a network's tensors over calibration frames, in one streaming pass.

The tensors become extra outputs of the graph, which ONNX Runtime runs on the CPU frame by frame. Of every tensor are
kept: exact minimum and maximum, sums for its signal power and for the noise that rounding to half precision adds,
and, where it will be quantized, a histogram. Nothing grows with the number of frames.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from fcnopt.errors import CalibrationError
from fcnopt.quantize.histogram import Histogram
from fcnopt.quantize.methods import Interval, Levels, Rule, intervals
from fcnopt.quantize.methods import Method as Method
from fcnopt.quantize.sessions import Session
from fcnopt.quantize.settle import Settled, Settling, Watched

if TYPE_CHECKING:
    import onnx

HalfType = Literal["fp16", "bf16"]
HALF_TYPES: tuple[HalfType, ...] = ("fp16", "bf16")

# A histogram sees at most this many values of a tensor and frame. Over 16 frames of the 41 M parameter FCN-8s at
# 360x480 (47 M quantized values a frame, two busy cores), all values cost 600 ms a frame and this sample 190 ms, next
# to 690 ms for the network. Thresholds then move by 0.5 % (percentile), 0.1 % (entropy) and 1 % (mse) in the median of
# the tensors, by 23 % at most; labels are measured afterwards either way. Minimum and maximum see every value.
HISTOGRAM_SAMPLE = 1 << 18
_LINE = 16  # values in a cache line
_NOISE_SAMPLE = 1 << 14  # rounding noise is an average: a few thousand values give it to a fraction of a decibel
CLEAN_DB = 300.0  # stands for "no noise at all", as JSON has no infinity


@dataclass(frozen=True)
class TensorRange:
    """What calibration found out about one tensor.

    Attributes:
        minimum: Smallest value, exact.
        maximum: Largest value, exact.
        rms: Root of the mean square.
        noise_db: Signal to rounding noise after a round trip through a half type, in decibels.
        intervals: The interval every method keeps, for 127 and for 255 levels; empty for tensors that are not
            quantized.
    """

    minimum: float
    maximum: float
    rms: float
    noise_db: Mapping[HalfType, float]
    intervals: Mapping[Rule, Mapping[Levels, Interval]] = field(default_factory=dict)

    @property
    def reach(self) -> float:
        """Largest magnitude."""
        return max(abs(self.minimum), abs(self.maximum))


@dataclass(frozen=True)
class Ranges:
    """The ranges of a network.

    Attributes:
        tensors: By tensor name.
        frames: How many frames they come from.
        factors: What the channels of tensors were divided by before these ranges were taken, by tensor; see
            `equalize`.
        settled: Whether the frames were enough; None where no tensor is quantized.
    """

    tensors: Mapping[str, TensorRange]
    frames: int
    factors: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    settled: Settled | None = None


class Observer:
    """Running statistics of one tensor.

    Args:
        histogram: Whether to keep a histogram too.

    Attributes:
        histogram: None where none is kept.
    """

    def __init__(self, *, histogram: bool) -> None:
        self.histogram = Histogram() if histogram else None
        self._minimum = math.inf
        self._maximum = -math.inf
        self._count = 0
        self._power = 0.0
        self._noise = dict.fromkeys(HALF_TYPES, 0.0)
        self._seen = 0

    def update(self, values: NDArray[np.float32]) -> None:
        """Take in the tensor's values in one more frame; a tensor without any is passed over.

        Raises:
            CalibrationError: A value is NaN or infinite.
        """
        if not values.size:
            return
        low, high = float(values.min()), float(values.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise CalibrationError(
                f"values are not finite (minimum {low}, maximum {high})",
                fix="check the weights and the normalization: the FP32 network itself overflows on this frame",
            )
        self._minimum, self._maximum = min(self._minimum, low), max(self._maximum, high)
        if self.histogram is not None:
            self.histogram.update(sample(values, HISTOGRAM_SAMPLE, self._seen), max(-low, high))
        self._add_noise(sample(values, _NOISE_SAMPLE, self._seen))
        self._seen += 1

    @property
    def reach(self) -> float:
        """Largest magnitude so far."""
        return max(-self._minimum, self._maximum)

    def result(self) -> TensorRange:
        """The range so far."""
        if not self._seen:
            return TensorRange(0.0, 0.0, 0.0, dict.fromkeys(HALF_TYPES, CLEAN_DB))
        found = intervals(self.histogram, self._minimum, self._maximum) if self.histogram is not None else {}
        rms = math.sqrt(self._power / self._count)
        noise = {kind: decibels(self._power, noise) for kind, noise in self._noise.items()}
        return TensorRange(self._minimum, self._maximum, rms, noise, found)

    def _add_noise(self, values: NDArray[np.float32]) -> None:
        exact = values.astype(np.float64)
        self._count += values.size
        self._power += float(exact @ exact)
        for kind in HALF_TYPES:
            error = round_to(values, kind).astype(np.float64) - exact
            self._noise[kind] += float(error @ error)


def observe(
    model: onnx.ModelProto,
    frames: Iterable[NDArray[np.uint8]],
    *,
    tensors: Sequence[str],
    quantized: Sequence[str],
    progress: Callable[[int], None] | None = None,
) -> Ranges:
    """Run a network on calibration frames and collect the ranges of its tensors.

    Args:
        model: FP32, its first input the frames.
        frames: uint8 [1, H, W, 3] each.
        tensors: Names of float32 tensors to observe.
        quantized: Those of them that get a histogram and intervals.
        progress: Called with the number of frames done.

    Raises:
        CalibrationError: There are no frames, or a tensor is not finite on one of them.
    """
    wanted = set(quantized)
    observers = {name: Observer(histogram=name in wanted) for name in tensors}
    settling = Settling()
    count = 0

    def watched() -> Watched:
        return {n: (seen.histogram, seen.reach) for n, seen in observers.items() if seen.histogram is not None}

    with Session(model, tuple(observers)) as session:
        for frame in frames:
            for name, values in session.stream(frame):
                _update(observers[name], values, name, count)
            count += 1
            if settling.due(count):
                settling.update(count, watched())
            if progress is not None:
                progress(count)
    if not count:
        raise CalibrationError(
            "calibration: no frames were given", fix="put images or videos into calib/, or use --calibration PATH"
        )
    return Ranges(
        {name: observer.result() for name, observer in observers.items()},
        count,
        settled=settling.report(count, watched()) if wanted else None,
    )


def sample(values: NDArray[np.float32], limit: int, turn: int) -> NDArray[np.float32]:
    """At most about `limit` values, evenly spread, the same every time.

    Args:
        values: Of any shape.
        limit: Most values wanted.
        turn: Number of the frame: every frame starts one line later, so that all places are seen in time.

    Returns:
        [n], a copy where it is not all of them.
    """
    flat = values.reshape(-1)
    if flat.size <= limit:
        return flat
    # Whole cache lines: a value here and there would load as many lines as values.
    lines = flat[: flat.size // _LINE * _LINE].reshape(-1, _LINE)
    stride = -(-lines.shape[0] // max(1, limit // _LINE))
    # A stride that shares a factor with the width would walk down columns of the image.
    while math.gcd(stride, values.shape[-1]) != 1:
        stride += 1
    return lines[turn % stride :: stride].reshape(-1)


def round_to(values: NDArray[np.float32], kind: HalfType) -> NDArray[np.float32]:
    """The nearest values of a half type, ties to even, as float32; beyond fp16's range infinite."""
    if kind == "fp16":
        with np.errstate(over="ignore"):
            return values.astype(np.float16).astype(np.float32)
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return (rounded & np.uint32(0xFFFF0000)).view(np.float32)


def decibels(signal: float, noise: float) -> float:
    """Ratio of two powers in decibels: `CLEAN_DB` without noise, its negative where noise is infinite."""
    if noise == 0.0:
        return CLEAN_DB
    if signal == 0.0 or not math.isfinite(noise):
        return -CLEAN_DB
    return 10 * math.log10(signal / noise)


def _update(observer: Observer, values: NDArray[np.float32], name: str, frame: int) -> None:
    try:
        observer.update(values)
    except CalibrationError as error:
        raise CalibrationError(f"calibration frame {frame}, tensor {name!r}: {error.message}", fix=error.fix) from error
