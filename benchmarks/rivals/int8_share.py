"""How much of a network computes in INT8, read from the quantized file: one rule for every quantizer.

ONNX: a Conv, ConvTranspose, Gemm or MatMul counts if its data and its weight both come from a DequantizeLinear of 8-bit
integers, straight or through MaxPool and Transpose, which commute with it.

OpenVINO IR (NNCF): the same with what stands there in their place: the data comes from a FakeQuantize, the weight from
one or from an 8-bit constant through Convert, Subtract, Multiply and Reshape.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import onnx

from fcnopt.graph import io
from fcnopt.graph.stats import macs_by_node

_COMMUTE = frozenset({"MaxPool", "Transpose"})
_BYTES = frozenset({onnx.TensorProto.INT8, onnx.TensorProto.UINT8})
_IR_WEIGHTED = frozenset({"Convolution", "GroupConvolution", "ConvolutionBackpropData", "MatMul"})
_IR_COMMUTE = frozenset({"MaxPool", "Transpose", "Reshape"})
_IR_UNPACK = frozenset({"Convert", "Subtract", "Multiply", "Reshape", "Transpose"})
_IR_BYTES = frozenset({"i8", "u8"})


def int8_share(path: Path) -> float:
    """Share (0 to 1) of the multiply-accumulates that compute in INT8, by the file alone."""
    if path.suffix == ".xml":
        return share_of_ir(path)
    model = io.load(path)
    macs = macs_by_node(model)
    quantized = int8_nodes(model)
    return sum(count for name, count in macs.items() if name in quantized) / max(1, sum(macs.values()))


def int8_nodes(model: onnx.ModelProto) -> set[str]:
    """Names of the nodes (of their first outputs where they have none) that compute in INT8."""
    graph = model.graph
    makers = {name: node for node in graph.node for name in node.output}
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    return {
        node.name or node.output[0]
        for node in graph.node
        if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul")
        and all(_from_bytes(name, makers, types) for name in node.input[:2])
    }


def _from_bytes(name: str, makers: dict[str, onnx.NodeProto], types: dict[str, int]) -> bool:
    node = makers.get(name)
    while node is not None and node.op_type in _COMMUTE:
        node = makers.get(node.input[0])
    if node is None or node.op_type != "DequantizeLinear":
        return False
    source = makers.get(node.input[0])
    if source is None:
        return types.get(node.input[0]) in _BYTES
    return source.op_type == "QuantizeLinear" and _quantized_type(source, types) in _BYTES


def _quantized_type(node: onnx.NodeProto, types: dict[str, int]) -> int | None:
    """The element type that a QuantizeLinear gives: its zero point's, else its attribute's, else uint8."""
    if len(node.input) > 2 and node.input[2]:
        return types.get(node.input[2])
    stated = next((attribute.i for attribute in node.attribute if attribute.name == "output_dtype"), 0)
    return stated or int(onnx.TensorProto.UINT8)


def share_of_ir(path: Path) -> float:
    """The share in an OpenVINO IR."""
    import openvino

    total = quantized = 0
    for op in openvino.Core().read_model(path).get_ordered_ops():
        if op.get_type_name() not in _IR_WEIGHTED:
            continue
        count = _ir_macs(op)
        total += count
        if _ir_data(op.input_value(0)) and _ir_weight(op.input_value(1)):
            quantized += count
    return quantized / max(1, total)


def _ir_macs(op: Any) -> int:
    """Multiply-accumulates: positions * weights a position, the weight without its axis of positions' channels.

    Weights are (out, in, kH, kW), of a transposed convolution (in, out, kH, kW), of a grouped one with the groups in
    front; the positions (with the channels of the first axis) are the output's, of a transposed one the input's.
    """
    kind = op.get_type_name()
    weight = list(op.input_value(1).get_shape())
    if kind == "MatMul":
        return int(math.prod(op.output(0).get_shape()) * op.input_value(0).get_shape()[-1])
    positions = op.input_value(0) if kind == "ConvolutionBackpropData" else op.output(0)
    kept = weight[2:] if kind == "GroupConvolution" else weight[1:]
    return int(math.prod(positions.get_shape()) * math.prod(kept))


def _ir_data(value: Any) -> bool:
    node = value.get_node()
    while node.get_type_name() in _IR_COMMUTE:
        node = node.input_value(0).get_node()
    return bool(node.get_type_name() == "FakeQuantize")


def _ir_weight(value: Any) -> bool:
    node = value.get_node()
    while node.get_type_name() in _IR_UNPACK:
        node = node.input_value(0).get_node()
    kind = node.get_type_name()
    return bool(kind == "FakeQuantize" or (kind == "Constant" and node.get_element_type().get_type_name() in _IR_BYTES))
