"""The 8-bit float E4M3: four bits of exponent, three of mantissa, no infinities (ONNX: float8e4m3fn).

OCP "8-bit Floating Point Specification (OFP8)", 2023; Micikevicius et al., "FP8 Formats for Deep Learning", 2022.
Largest number 448, smallest normal one 2 ** -6, smallest 2 ** -9. Its steps are relative: a value between 2 ** -6 and
448 keeps three bits behind its first one wherever it lies, an error of 1/16 of it at most.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import ArrayLike, NDArray

LARGEST = 448
E4M3: Any = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(onnx.TensorProto.FLOAT8E4M3FN))
"""Its NumPy type."""


def to_fp8(values: ArrayLike) -> NDArray[Any]:
    """The nearest E4M3 numbers, ties to even; what lies beyond 448 becomes 448, as QuantizeLinear saturates."""
    found: NDArray[Any] = np.clip(np.asarray(values, np.float32), -LARGEST, LARGEST).astype(E4M3)
    return found


def round_fp8(values: ArrayLike) -> NDArray[np.float32]:
    """The values of `to_fp8` as float32."""
    return to_fp8(values).astype(np.float32)
