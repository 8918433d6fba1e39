"""Optimizers of ONNX Runtime that would change what a graph computes."""

from __future__ import annotations

import onnx

from fcnopt.graph.checks import tensors_of

# Seen with ONNX Runtime 1.31: they take E4M3 for an integer. The first merges Q/DQ and the layer between into an
# operator that FP8 does not have; the second drops the ReLU before a QuantizeLinear, as if 0 were the least number;
# the third quantizes biases to int32.
_UNSAFE_FP8 = ("QDQSelectorActionTransformer", "ReluQuantRewrite", "WeightBiasQuantization")


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
