"""What a graph holds and costs: nodes, parameters, multiply-accumulates, bytes."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

import onnx

from fcnopt.graph.checks import tensors_of
from fcnopt.graph.shapes import Size, TensorType, infer, is_dynamic, tensor_types

_INDICES = (onnx.TensorProto.INT64, onnx.TensorProto.INT32, onnx.TensorProto.BOOL)
_WEIGHT_INPUT = {"Conv": 1, "ConvTranspose": 1, "ConvInteger": 1, "QLinearConv": 3}


@dataclass(frozen=True)
class GraphStats:
    """Size and cost of a graph.

    Attributes:
        nodes: Nodes that compute something: constants are not counted.
        parameters: Elements of all constants but shapes, axes and bounds.
        parameter_bytes: Bytes of all constants.
        macs: Multiply-accumulates of convolutions and matrix products for one frame; None where a shape is unknown.
        activation_bytes: Bytes of all tensors that the nodes write; None where a shape is unknown.
        ops: How many nodes of each operator.
    """

    nodes: int
    parameters: int
    parameter_bytes: int
    macs: int | None
    activation_bytes: int | None
    ops: dict[str, int]


def stats_of(model: onnx.ModelProto, size: Size | None = None) -> GraphStats:
    """Measure a model.

    Args:
        model: With its weights in memory.
        size: (height, width) for dynamic frame axes; None leaves them open, and what depends on them unknown.

    Returns:
        The statistics, with a batch of 1 where the batch is dynamic.
    """
    light = _inferred(model, size)
    types = _types(model, light)
    macs = [_macs(node, types) for node in light.graph.node]
    written = [_bytes(types.get(name)) for node in light.graph.node for name in node.output if name and _computes(node)]
    ops = Counter(node.op_type for node in model.graph.node if _computes(node))
    parameters = [math.prod(t.dims) for t in tensors_of(model) if t.data_type not in _INDICES]
    return GraphStats(
        nodes=ops.total(),
        parameters=sum(parameters),
        parameter_bytes=sum(_tensor_bytes(TensorType(t.data_type, tuple(t.dims))) or 0 for t in tensors_of(model)),
        macs=_a_frame(_total(macs), model),
        activation_bytes=_total(written),
        ops=dict(sorted(ops.items())),
    )


def macs_by_node(model: onnx.ModelProto, size: Size | None = None) -> dict[str, int]:
    """Multiply-accumulates of each convolution and matrix product for one run: a frame, or the batch of the graph.

    Args:
        model: With its weights in memory.
        size: (height, width) for dynamic frame axes.

    Returns:
        By the node's name (by its first output's where it has none); nodes of unknown shape are left out.
    """
    light = _inferred(model, size)
    types = _types(model, light)
    counts = ((node.name or node.output[0], _macs(node, types)) for node in light.graph.node)
    return {name: count for name, count in counts if count}


def _a_frame(count: int | None, model: onnx.ModelProto) -> int | None:
    """What a graph that takes several uint8 frames [N, H, W, 3] at a time does for one."""
    tensor = model.graph.input[0].type.tensor_type if model.graph.input else None
    if count is None or tensor is None or tensor.elem_type != onnx.TensorProto.UINT8 or len(tensor.shape.dim) != 4:
        return count
    return count // max(1, int(tensor.shape.dim[0].dim_value))


def _inferred(model: onnx.ModelProto, size: Size | None) -> onnx.ModelProto:
    """Shapes as far as they are known; those of a static model wholly, so that any size stands for its own."""
    return infer(model, size if size is not None or is_dynamic(model) else (1, 1))


def _types(model: onnx.ModelProto, light: onnx.ModelProto) -> dict[str, TensorType]:
    types = tensor_types(light)
    types.update((t.name, TensorType(t.data_type, tuple(t.dims))) for t in model.graph.initializer)
    return types


def _computes(node: onnx.NodeProto) -> bool:
    return node.op_type != "Constant"


def _macs(node: onnx.NodeProto, types: dict[str, TensorType]) -> int | None:
    """Multiply-accumulates of one node, 0 for an operator that has none.

    A convolution does out_channels * positions * (in/group * kH * kW); a transposed one, whose weights are
    (in, out/group, kH, kW), does in_channels * positions * (out/group * kH * kW).
    """

    def shape(name: str) -> tuple[int, ...] | None:
        return types[name].static if name in types else None

    if node.op_type in _WEIGHT_INPUT:
        weight = shape(node.input[_WEIGHT_INPUT[node.op_type]])
        positions = shape(node.input[0] if node.op_type == "ConvTranspose" else node.output[0])
        return None if weight is None or positions is None else math.prod(positions) * math.prod(weight[1:])
    if node.op_type in ("MatMul", "Gemm"):
        left, result = shape(node.input[0]), shape(node.output[0])
        if left is None or result is None:
            return None
        transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
        return math.prod(result) * (left[0] if transposed else left[-1])
    return 0


def _bytes(kind: TensorType | None) -> int | None:
    return _tensor_bytes(kind) if kind is not None else None


def _tensor_bytes(kind: TensorType) -> int | None:
    if kind.static is None or not kind.elem_type:
        return None
    if kind.elem_type == onnx.TensorProto.STRING:
        return 0
    return math.prod(kind.static) * int(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).itemsize)


def _total(counts: list[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None
