"""Tensors inside a graph made visible: the logits above all."""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from fcnopt.errors import GraphError
from fcnopt.graph.shapes import TensorType, tensor_types

_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE)


def logits_name(model: onnx.ModelProto) -> str:
    """The tensor of class scores: what the one ArgMax reads, else the one float output with four axes.

    Raises:
        GraphError: There is no such tensor, or more than one.
    """
    read: set[str] = {node.input[0] for node in model.graph.node if node.op_type == "ArgMax"}
    if not read:
        types = tensor_types(model)
        read = {value.name for value in model.graph.output if _is_scores(types.get(value.name))}
    if len(read) != 1:
        found = ", ".join(sorted(read)) or "none"
        raise GraphError(
            f"graph {model.graph.name!r}: expected one tensor of class scores [N, C, H, W], found {found}",
            fix="give a segmentation network with one ArgMax, or with one float output of four axes",
        )
    return read.pop()


def expose(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """A copy whose outputs are followed by these tensors, with their types.

    Args:
        model: Unchanged.
        names: Tensors of the graph; those that are outputs already stay where they are.

    Raises:
        GraphError: The graph has no tensor of that name, or its type cannot be inferred.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    present = {value.name for value in model.graph.output}
    wanted = [name for name in dict.fromkeys(names) if name not in present]
    types = tensor_types(model) if wanted else {}
    for name in wanted:
        kind = types.get(name)
        if kind is None or not kind.elem_type:
            raise GraphError(
                f"graph {model.graph.name!r}: no tensor {name!r} of known type",
                fix="name a tensor that a node of the graph writes",
            )
        copy.graph.output.append(onnx.helper.make_tensor_value_info(name, kind.elem_type, kind.shape))
    return copy


def _is_scores(kind: TensorType | None) -> bool:
    return kind is not None and kind.elem_type in _FLOATS and kind.shape is not None and len(kind.shape) == 4
