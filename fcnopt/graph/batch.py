"""Graphs for another number of frames at a time: the first axis of inputs and outputs, and what follows from it."""

from __future__ import annotations

import onnx
from onnx import numpy_helper

from fcnopt.errors import GraphError, UsageError
from fcnopt.graph.prepost import infer_shapes


def with_batch(model: onnx.ModelProto, count: int) -> onnx.ModelProto:
    """`model` for `count` frames at a time; itself where it is that already.

    An FCN treats every frame alike, so that only declared shapes change, and constants that are joined to what frames
    make. A graph that has the number of frames in another constant, as the shape of a Reshape can, is refused.

    Args:
        model: With one frame at a time, or an open first axis.
        count: Frames at a time, 1 or more.

    Raises:
        UsageError: `count` is below 1, or the graph is made for another number of frames.
    """
    if count < 1:
        raise UsageError(f"batch is {count}", fix="give 1 or more frames at a time")
    weights = {tensor.name for tensor in model.graph.initializer}
    if all(_first(value) == count for value in _ends(model, weights)):
        return model
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    for value in _ends(changed, weights):
        if _first(value) not in (0, 1):
            raise UsageError(
                f"{value.name}: the graph is made for {_first(value)} frames at a time, {count} are wanted",
                fix="export the model with one frame at a time, or with --dynamic",
            )
        value.type.tensor_type.shape.dim[0].dim_value = count
    _repeat_joined(changed, count)
    try:
        infer_shapes(changed)
        _check_resizes(changed, count)
    except GraphError as error:
        raise UsageError(
            f"the graph cannot take {count} frames at a time: {error.message}",
            fix="leave the batch at 1, or export the model with --dynamic",
        ) from error
    return changed


def _check_resizes(model: onnx.ModelProto, count: int) -> None:
    """Refuse a Resize whose sizes are of another number of frames: shapes fit where an Add broadcasts its result.

    Args:
        model: With inferred shapes.
        count: Frames at a time.

    Raises:
        GraphError: There is one.
    """
    values = {value.name: value for value in (*model.graph.value_info, *model.graph.input, *model.graph.output)}
    for node in model.graph.node:
        if node.op_type == "Resize" and node.input[0] in values and node.output[0] in values:
            taken, given = _first(values[node.input[0]]), _first(values[node.output[0]])
            if taken == count and given not in (0, count):
                raise GraphError(
                    f"Resize {node.name or node.output[0]!r} gives {given} of {count}", fix="resize by scales"
                )


def _repeat_joined(model: onnx.ModelProto, count: int) -> None:
    """Repeat the constants that a Concat joins to a frame, such as the constant channel of `passes.frame_input`."""
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    joined = {
        name
        for node in model.graph.node
        if node.op_type == "Concat" and onnx.helper.get_node_attr_value(node, "axis") != 0
        for name in node.input
        if name in tensors and tensors[name].dims[:1] == [1]
    }
    for name in joined:
        values = numpy_helper.to_array(tensors[name])
        tensors[name].CopyFrom(numpy_helper.from_array(values.repeat(count, axis=0), name))


def _ends(model: onnx.ModelProto, weights: set[str]) -> list[onnx.ValueInfoProto]:
    """The graph's inputs, but for weights that older exporters list there, and its outputs."""
    return [*(value for value in model.graph.input if value.name not in weights), *model.graph.output]


def _first(value: onnx.ValueInfoProto) -> int:
    """Length of the first axis, 0 where it is open."""
    return int(value.type.tensor_type.shape.dim[0].dim_value)
