"""ONNX Runtime's quantizer, in two forms; it runs in fcnopt's own environment."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static

OrtForm = Literal["stock", "tensorrt"]
# What TensorRT can parse: symmetric int8 with zero point 0, per output channel, bias left in float. The operators are
# those that TensorRT runs in int8 here.
_TENSORRT: dict[str, Any] = {
    "activation_type": QuantType.QInt8,
    "weight_type": QuantType.QInt8,
    "per_channel": True,
    "op_types_to_quantize": ["Conv", "MaxPool"],
    "extra_options": {"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False},
}
_STOCK: dict[str, Any] = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}


class _Reader(CalibrationDataReader):
    """Hands out frames one at a time."""

    def __init__(self, name: str, frames: NDArray[np.uint8]) -> None:
        self._feeds: Iterator[dict[str, NDArray[np.uint8]]] = ({name: frame[None]} for frame in frames)

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        return next(self._feeds, None)


def quantize(model: Path, input_name: str, frames: NDArray[np.uint8], output: Path, form: OrtForm) -> float:
    """Quantize by the minima and maxima of the frames.

    Args:
        model: FP32 ONNX file.
        input_name: Of its one input.
        frames: As the model takes them, uint8 [N, H, W, 3].
        output: ONNX file to write, with QuantizeLinear and DequantizeLinear.
        form: "stock" is ONNX Runtime's first choice for x86 CPUs, asymmetric uint8 activations and int8 weights, else
            its defaults: one scale a weight, every operator that it can quantize. "tensorrt" is held to what TensorRT
            can parse.

    Returns:
        Seconds.
    """
    start = time.perf_counter()
    quantize_static(
        str(model),
        str(output),
        _Reader(input_name, frames),
        quant_format=QuantFormat.QDQ,
        calibrate_method=CalibrationMethod.MinMax,
        **(_TENSORRT if form == "tensorrt" else _STOCK),
    )
    return time.perf_counter() - start
