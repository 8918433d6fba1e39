"""What runtimes make of a quantized graph that would change what it computes."""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray

from fcnopt.graph.checks import tensors_of

# Seen with ONNX Runtime 1.31: they take E4M3 for an integer. The first merges Q/DQ and the layer between into an
# operator that FP8 does not have; the second drops the ReLU before a QuantizeLinear, as if 0 were the least number;
# the third quantizes biases to int32.
_UNSAFE_FP8 = ("QDQSelectorActionTransformer", "ReluQuantRewrite", "WeightBiasQuantization")


NARROW = 64
"""The largest int8 weight with which two products with uint8 still fit into 16 bits: 2 * 64 * 255 < 2^15."""


def has_wide_weights(model: onnx.ModelProto) -> bool:
    """Whether a CPU that adds pairs of int8 products in 16 bits could saturate in this graph, by its weights."""
    kinds = (tensor for tensor in tensors_of(model) if tensor.data_type == onnx.TensorProto.INT8)
    return any(is_wide(onnx.numpy_helper.to_array(tensor)) for tensor in kinds)


def is_wide(values: NDArray[np.int8]) -> bool:
    """Whether they are weights, not zero points, and one of them is beyond `NARROW`."""
    return values.ndim > 1 and bool(values.max(initial=0) > NARROW or values.min(initial=0) < -NARROW)


def unsafe_optimizers(model: onnx.ModelProto) -> tuple[str, ...]:
    """The optimizers to leave out for this graph, by ONNX Runtime's names.

    Those that break FP8; and `WeightBiasQuantization`, which quantizes the bias of a convolution between Q/DQ with
    the product of input and weight scale. Where these are float16, as TensorRT's INT8 files have them, so is the
    product, and a bias loses up to a percent of the labels (seen with 1.31 on an FCN-8s: 98.7 % equal labels with it,
    99.6 % without).

    Args:
        model: Its weights are not looked at.
    """
    types = {tensor.name: tensor.data_type for tensor in tensors_of(model)}
    if onnx.TensorProto.FLOAT8E4M3FN in types.values():  # every quantization to it has such a zero point
        return _UNSAFE_FP8
    scales = (node.input[1] for node in model.graph.node if node.op_type == "DequantizeLinear")
    return ("WeightBiasQuantization",) if any(types.get(s) == onnx.TensorProto.FLOAT16 for s in scales) else ()
