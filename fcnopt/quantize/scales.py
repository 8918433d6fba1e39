"""Scales that float16 holds, and the layers for which there is none.

Form `tensorrt` stores scales as float16, whose normal numbers run from 6.1e-5 to 65504. A tensor that needs a larger
scale would get an infinite one, and its levels would be no numbers; a tensor far below would vanish in its first
level. Layers that read such a tensor, or whose weight is such a tensor, stay float.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import ArrayLike, NDArray

from fcnopt.errors import CalibrationError
from fcnopt.quantize.methods import Quantized
from fcnopt.quantize.ranges import Ranges

Unfit = Callable[[str, gs.Node], str | None]
"""Why a layer that would read a quantized tensor, given by name, must stay float; None if it need not."""

SMALLEST = float(np.finfo(np.float16).smallest_normal)
LARGEST = float(np.finfo(np.float16).max)
# Weights may go below: many small channels are usual, and rounding such a scale up costs a channel next to nothing
# (6 % of its resolution at 16 times the smallest float16).
_SMALLEST_OF_WEIGHTS = 16 * float(np.finfo(np.float16).smallest_subnormal)
# In scales, what a tensor's largest magnitude may be. E4M3 rounds as finely at 1 as at 448, so a scale larger than
# needed does not hurt it; at the upper end its ranges have room for twice what calibration saw.
_SPANS: Mapping[Quantized, tuple[float, float]] = {"int8": (127, 127), "fp8": (1, 224)}
# Below 127 or 255 of these a scale is no normal float32: kernels may take it for zero, so such a tensor counts as dead.
DEAD = 255 * float(np.finfo(np.float32).smallest_normal)


def half_at_least(scale: ArrayLike) -> NDArray[np.float32]:
    """The smallest float16 values that are not below `scale`: rounded down, a scale would clip the largest value.

    Args:
        scale: Positive, of any shape.

    Raises:
        CalibrationError: There is no such value.
    """
    wanted = np.asarray(scale, np.float64)
    with np.errstate(over="ignore", under="ignore"):
        nearest = wanted.astype(np.float16)
        above = np.nextafter(nearest, np.float16(np.inf))
    found = np.where(nearest < wanted, above, nearest).astype(np.float32)
    if not np.isfinite(found).all():
        raise CalibrationError(
            f"a tensor needs the scale {float(wanted.max()):.6g}, and float16 ends at {LARGEST:g}",
            fix="build with --precision fp16, which keeps such tensors FP32",
        )
    return found


def unfit_for_half(ranges: Ranges, precision: Quantized = "int8") -> Unfit:
    """The layers that no float16 scale serves.

    Args:
        ranges: Of the graph that is to be quantized.
        precision: To which.
    """
    span = _SPANS[precision]

    def reason(tensor: str, layer: gs.Node) -> str | None:
        found = ranges.tensors.get(tensor)
        verdict = _verdict(found.reach, SMALLEST, span) if found is not None else None
        if verdict is not None:
            return f"its input {tensor!r} {verdict}"
        # The largest channel decides: a channel far below the others, dead or not, is next to nothing in the sum.
        weight = layer.inputs[1]
        verdict = _verdict(float(np.abs(weight.values).max(initial=0.0)), _SMALLEST_OF_WEIGHTS, span)
        return None if verdict is None else f"its weight {weight.name!r} {verdict}"

    return reason


def _verdict(reach: float, smallest: float, span: tuple[float, float]) -> str | None:
    least, most = span[0] * smallest, span[1] * LARGEST
    if reach == 0 or least <= reach <= most:  # all zeros need no scale at all
        return None
    return f"reaches {reach:.6g}: float16 scales serve {least:.3g} to {most:.3g}"
