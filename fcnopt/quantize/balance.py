"""Factors for cross-layer equalization that make the noise of quantization least.

A factor s[c] divides channel c of a tensor and multiplies the weights that read it (`equalize`). With one scale for the
tensor and one an output channel for the weights, the noise in the result of the layers that read it is about

    A = sum_c active[c] * (step * s[c])^2 * |W[:, c]|^2,     step = max_c(reach[c] / s[c]) / 127
    B = sum_o step[o]^2 * taps * sum_c power[c] / s[c]^2,    step[o] = max_c(s[c] * |W[o, c]|) / 127

from rounding activations (only those that are not zero are rounded) and from rounding weights, both up to 1 / 12. What
is minimized, over the logarithms of the factors, is A + B / 10: rounding weights so that their errors cancel
(`rounding`) takes most of B away. Maxima are softened, so that the objective has a gradient everywhere.

The trade-off is that of SmoothQuant (Xiao et al., ICML 2023), solved for each tensor instead of set by one exponent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fcnopt.errors import BackendError
from fcnopt.quantize.frames import CalibrationFrames
from fcnopt.quantize.sessions import Session

if TYPE_CHECKING:
    import onnx

Vector = NDArray[np.float64]

_WEIGHT_NOISE = 0.1
_SHARPNESS = 8.0  # of soft maxima: ln(512) / 8, a factor of 2.2, is the most that one exceeds the maximum of 512 values
_STEPS = 200
_TOP = 1e-4  # of a channel's values in a frame lie beyond its reach: they may be clipped
# A channel that is nearly dead on calibration frames may wake up on others: no factor goes beyond this.
LARGEST = 32.0
# What is below these shares of the largest channel counts as this much.
_LEAST_REACH, _LEAST_POWER, _LEAST_ACTIVE = 1e-3, 1e-6, 1e-4


@dataclass(frozen=True)
class Channels:
    """What calibration frames say of a tensor's channels.

    Attributes:
        reach: Magnitude that all but one in ten thousand values of a frame stay within, largest over frames,
            [channels].
        power: Mean square, [channels].
        active: Share of values that are not zero, [channels].
    """

    reach: Vector
    power: Vector
    active: Vector


def observe_channels(
    model: onnx.ModelProto, tensors: Sequence[str], frames: CalibrationFrames, progress: Callable[[float], None]
) -> dict[str, Channels]:
    """Measure the channels of tensors.

    Args:
        model: FP32.
        tensors: Names of float32 tensors with the channels on axis 1; those of less than two axes are passed over.
        frames: Calibration frames.
        progress: Called with the fraction done.
    """
    sums: dict[str, NDArray[np.float64]] = {}  # [3, channels]: reach, then sums over frames of power and active
    with Session(model, tuple(tensors)) as session:
        for count, frame in enumerate(frames, start=1):
            for name, values in session.stream(frame):
                if values.ndim < 2:
                    continue
                found = _of_frame(np.abs(np.moveaxis(values, 1, 0).reshape(values.shape[1], -1)))
                if name in sums:
                    found = np.stack([np.maximum(sums[name][0], found[0]), *(sums[name][1:] + found[1:])])
                sums[name] = found
            progress(count / frames.count)
    return {name: Channels(s[0], s[1] / frames.count, s[2] / frames.count) for name, s in sums.items()}


def _of_frame(magnitudes: NDArray[np.float32]) -> NDArray[np.float64]:
    """Reach, power and active share of every channel, [3, channels], from [channels, places]."""
    places = magnitudes.shape[1]
    last = places - max(1, int(places * _TOP))
    reach = np.partition(magnitudes, last, axis=1)[:, last]
    power = np.einsum("cp,cp->c", magnitudes, magnitudes, dtype=np.float64) / places
    return np.stack([reach.astype(np.float64), power, np.count_nonzero(magnitudes, axis=1) / places])


def balanced(channels: Channels, readers: Sequence[tuple[slice, NDArray[np.float32]]]) -> NDArray[np.float32]:
    """The factors of a tensor's channels, [channels], positive, with geometric mean 1.

    Args:
        channels: Of the tensor.
        readers: Of each group of each quantized layer that reads it: its channels, and its weight as
            (out, channels, taps).
    """
    minimize = _minimizer()
    reach = np.maximum(channels.reach, channels.reach.max() * _LEAST_REACH)
    # The frame and tensor to blame for values that are not finite are named by `ranges.observe`.
    finite = np.isfinite(reach).all() and np.isfinite(channels.power).all()
    if not finite or not reach.max() > 0 or not readers:
        return np.ones(len(reach), np.float32)
    noise = _Noise(
        np.log(np.maximum(reach, np.finfo(np.float32).tiny)),
        np.maximum(channels.power, channels.power.max() * _LEAST_POWER),
        np.maximum(channels.active, _LEAST_ACTIVE),
        readers,
    )
    start = noise.log_reach / 2
    found = minimize(noise, start - start.mean(), jac=True, method="L-BFGS-B", options={"maxiter": _STEPS}).x
    factors = np.exp(np.clip(found - found.mean(), -np.log(LARGEST), np.log(LARGEST)))
    return np.asarray(factors / np.exp(np.log(factors).mean()), np.float32)


def _minimizer() -> Callable[..., Any]:
    try:
        from scipy.optimize import minimize
    except ImportError as error:
        raise BackendError(
            "calibration needs SciPy, which is not installed", fix="pip install 'fcnopt[cpu]'"
        ) from error
    found: Callable[..., Any] = minimize
    return found


class _Noise:
    """log(A + B / 10) and its gradient, as functions of the factors' logarithms; see the module."""

    def __init__(
        self, log_reach: Vector, power: Vector, active: Vector, readers: Sequence[tuple[slice, NDArray[np.float32]]]
    ) -> None:
        self.log_reach = log_reach
        self._power = power
        self._gain = np.zeros(len(log_reach))  # active * |W[:, c]|^2
        self._readers: list[tuple[slice, NDArray[np.float64], int]] = []
        for place, weight in readers:
            self._gain[place] += active[place] * np.einsum("ock,ock->c", weight, weight, dtype=np.float64)
            largest = np.maximum(np.abs(weight).max(axis=2).astype(np.float64), np.finfo(np.float32).tiny)
            self._readers.append((place, np.log(largest), weight.shape[2]))

    def __call__(self, logs: Vector) -> tuple[float, Vector]:
        step, slope = _soft_maximum((self.log_reach - logs)[None])
        each = self._gain * np.exp(2 * (logs + step))
        total = float(each.sum())
        gradient = 2 * each - 2 * total * slope[0]
        for place, log_weight, taps in self._readers:
            steps, slopes = _soft_maximum(log_weight + logs[place])
            squares = np.exp(2 * steps)
            parts = taps * self._power[place] * np.exp(-2 * logs[place])
            summed = float(squares.sum())
            total += _WEIGHT_NOISE * summed * float(parts.sum())
            gradient[place] += (
                2 * _WEIGHT_NOISE * ((squares[:, None] * slopes).sum(axis=0) * parts.sum() - summed * parts)
            )
        return float(np.log(total)), gradient / total


def _soft_maximum(values: NDArray[np.float64]) -> tuple[Vector, NDArray[np.float64]]:
    """The soft maximum of each row, [rows], and its derivatives, [rows, columns]."""
    top = values.max(axis=1, keepdims=True)
    weights = np.exp(_SHARPNESS * (values - top))
    total = weights.sum(axis=1, keepdims=True)
    return top[:, 0] + np.log(total[:, 0]) / _SHARPNESS, weights / total
