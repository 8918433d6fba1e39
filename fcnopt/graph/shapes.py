"""Types and shapes of a model's tensors, also for a dynamic model at a chosen frame size.

ONNX's shape inference stops where a crop's bounds are computed from the input's shape by arithmetic that it does not
propagate. `infer` alternates inference with evaluating what has become constant, until nothing is left to learn.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from fcnopt.graph.checks import without_weights

Size = tuple[int, int]
"""(height, width) in pixels."""
Dim = int | str | None
"""A known length, the name of one that varies, or nothing known."""

_SMALL_BYTES = 1 << 16  # evaluated while inferring: shapes and bounds, never activations


@dataclass(frozen=True)
class TensorType:
    """What is known of a tensor.

    Attributes:
        elem_type: An `onnx.TensorProto` data type.
        shape: One entry an axis, or None where even the rank is unknown.
    """

    elem_type: int
    shape: tuple[Dim, ...] | None

    @property
    def static(self) -> tuple[int, ...] | None:
        """The shape if every axis is known."""
        if self.shape is None or not all(isinstance(dim, int) for dim in self.shape):
            return None
        return tuple(int(dim) for dim in self.shape if isinstance(dim, int))


def graph_inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """The inputs that a caller has to feed: those that are not initializers."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in constants]


def value_type(value: onnx.ValueInfoProto) -> TensorType:
    """Type and shape as declared."""
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return TensorType(tensor.elem_type, None)
    return TensorType(tensor.elem_type, tuple(map(_dim, tensor.shape.dim)))


def is_dynamic(model: onnx.ModelProto) -> bool:
    """Whether an input has an axis of varying length."""
    return any(value_type(value).static is None for value in graph_inputs(model))


def input_shapes(model: onnx.ModelProto, size: Size, *, batch: int = 1) -> dict[str, tuple[int, ...]]:
    """Shapes to feed: declared lengths where there are any, else `batch` frames of `size`.

    A 4-D input is taken for frames: [N, H, W, C] where its last axis is known and its second is not, else
    [N, C, H, W]. Of other inputs with more than one axis the first, if it varies, is a batch too; what else varies
    gets length 1.
    """
    shapes = {}
    for value in graph_inputs(model):
        dims = value_type(value).shape or ()
        free: tuple[int, ...] = (batch if len(dims) > 1 else 1, *(1,) * (len(dims) - 1))
        if len(dims) == 4:
            channels_last = isinstance(dims[3], int) and not isinstance(dims[1], int)
            free = (batch, *size, 3) if channels_last else (batch, 3, *size)
        shapes[value.name] = tuple(dim if isinstance(dim, int) else free[axis] for axis, dim in enumerate(dims))
    return shapes


def tensor_types(model: onnx.ModelProto, size: Size | None = None) -> dict[str, TensorType]:
    """Types and shapes of all tensors that inference reaches, constants included.

    Args:
        model: With or without inferred shapes.
        size: Lengths of dynamic frame axes; None leaves them open.
    """
    light = infer(model, size)
    graph = light.graph
    types = {value.name: value_type(value) for value in (*graph.value_info, *graph.input, *graph.output)}
    for tensor in (*graph.initializer, *model.graph.initializer):
        types[tensor.name] = TensorType(tensor.data_type, tuple(tensor.dims))
    return types


def infer(model: onnx.ModelProto, size: Size | None = None) -> onnx.ModelProto:
    """A light copy (see `checks.without_weights`) with inferred types and shapes.

    With a `size`, nodes that compute constants then (shapes, bounds of crops) have become initializers in it.
    """
    light = without_weights(model)
    if size is None:
        return onnx.shape_inference.infer_shapes(light, data_prop=True)
    shapes = input_shapes(model, size)
    for value in light.graph.input:
        if value.name in shapes:
            value.type.tensor_type.ClearField("shape")
            for length in shapes[value.name]:
                value.type.tensor_type.shape.dim.add(dim_value=length)
    del light.graph.value_info[:]
    for value in light.graph.output:
        for dim in value.type.tensor_type.shape.dim:
            dim.Clear()
    while True:
        light = onnx.shape_inference.infer_shapes(light, data_prop=True)
        if not _fold_shapes(light):
            return light


def evaluate(node: onnx.NodeProto, values: Sequence[NDArray[Any] | None], opsets: Sequence[Any]) -> list[NDArray[Any]]:
    """What a node computes from constants, by ONNX's reference implementation.

    Args:
        node: Without subgraphs.
        values: One a node input, None for those left out.
        opsets: The model's `opset_import`.

    Returns:
        One array a node output.

    Raises:
        TypeError: An output is no tensor (SequenceConstruct); else what the reference implementation raises.
    """
    feeds = {name: value for name, value in zip(node.input, values, strict=True) if name and value is not None}
    anything = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.UNDEFINED, None) for name in feeds]
    outputs = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.UNDEFINED, None) for n in node.output if n]
    graph = onnx.helper.make_graph([node], "node", anything, outputs)
    model = onnx.helper.make_model(graph, opset_imports=list(opsets))
    results = ReferenceEvaluator(model).run(None, feeds)
    if any(isinstance(value, list | dict) or value is None for value in results):
        raise TypeError("its result is a sequence or an optional, not a tensor")
    return [np.asarray(value) for value in results]


def shape_range(start: int, end: int | None, rank: int) -> range:
    """The axes that a Shape node with these attributes gives."""
    return range(rank)[slice(start, end)]


def _dim(dim: onnx.TensorShapeProto.Dimension) -> Dim:
    if dim.HasField("dim_value"):
        return int(dim.dim_value)
    return dim.dim_param or None


def _fold_shapes(light: onnx.ModelProto) -> bool:
    """Turn nodes that compute small constants into initializers; whether there were any."""
    graph = light.graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    types = {value.name: value_type(value) for value in (*graph.value_info, *graph.input)}
    kept = []
    for node in graph.node:
        outputs = list(_constant_outputs(node, constants, types, light.opset_import))
        if not outputs:
            kept.append(node)
        for name, value in outputs:
            constants[name] = value
            graph.initializer.append(numpy_helper.from_array(value, name))
    folded = len(kept) < len(graph.node)
    if folded:
        del graph.node[:]
        graph.node.extend(kept)
    return folded


def _constant_outputs(
    node: onnx.NodeProto,
    constants: dict[str, NDArray[Any]],
    types: dict[str, TensorType],
    opsets: Sequence[Any],
) -> Iterator[tuple[str, NDArray[Any]]]:
    attributes = {attribute.name: attribute for attribute in node.attribute}
    if node.op_type == "Shape":
        static = types[node.input[0]].static if node.input[0] in types else None
        if static is not None:
            end = attributes["end"].i if "end" in attributes else None
            start = attributes["start"].i if "start" in attributes else 0
            axes = shape_range(start, end, len(static))
            yield node.output[0], np.array([static[axis] for axis in axes], np.int64)
        return
    wanted = [name for name in node.input if name]
    if not all(name in constants for name in wanted) or any(a.HasField("g") for a in node.attribute):
        return
    sizes = [types[name].static for name in node.output if name in types]
    if (not wanted and node.op_type != "Constant") or any(s is None or np.prod(s) > _SMALL_BYTES for s in sizes):
        return
    if node.domain not in ("", "ai.onnx") or node.op_type in ("DequantizeLinear", "QuantizeLinear"):
        return
    try:
        results = evaluate(node, [constants[name] if name else None for name in node.input], opsets)
    except Exception:  # noqa: BLE001  (what the reference implementation does not support stays unknown)
        return
    yield from zip([name for name in node.output if name], results, strict=True)
