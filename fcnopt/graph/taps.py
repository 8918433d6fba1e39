"""Tensors inside a graph made visible: the logits above all, and what else is decided upon."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import onnx

from fcnopt.errors import GraphError
from fcnopt.graph.shapes import TensorType, graph_inputs, tensor_types

LOGITS = "logits"
_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE)
_SHAPE_ONLY = ("Shape", "Size")  # read how long a tensor is, not what is in it
_QUANTIZERS = ("QuantizeLinear", "DynamicQuantizeLinear")  # a float follows, which is looked at itself


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


def decisive(model: onnx.ModelProto) -> dict[str, str]:
    """The float tensors that become labels, indices, integers or truth values on the way to an output.

    Integers hide an error until it is as large as the distance between two classes; what they are decided by does
    not. It is what ArgMax, TopK, comparisons and Casts from float to integer read.

    Args:
        model: Any graph; subgraphs are not looked into.

    Returns:
        Tensor names by what they are, which a rewrite that renames tensors does not change: `LOGITS` for what the
        one ArgMax reads, else the operator and its number, counted from the outputs up. What does not depend on the
        inputs' values is left out.
    """
    types, fed = tensor_types(model), _fed(model)
    outputs = [value.name for value in model.graph.output]
    writers = {name: node for node in model.graph.node for name in node.output if name}
    found: dict[tuple[str, int], str] = {}
    counts: Counter[str] = Counter()
    seen, stack = set[str](), outputs[::-1]
    while stack:
        name = stack.pop()
        node = writers.get(name)
        if node is None or name in seen or node.op_type in _SHAPE_ONLY:
            continue
        seen.add(name)
        stack.extend(reversed(node.input))
        if _is_float(types.get(name)) or (node.op_type in _QUANTIZERS and name not in outputs):
            continue
        for source in dict.fromkeys(node.input):
            if source in fed and _is_float(types.get(source)):
                counts[node.op_type] += 1
                found[node.op_type, counts[node.op_type]] = source
    only = counts["ArgMax"] == 1
    return {LOGITS if only and op == "ArgMax" else f"input of {op} {n}": name for (op, n), name in found.items()}


def _fed(model: onnx.ModelProto) -> set[str]:
    """The tensors that depend on the values of the graph's inputs."""
    fed = {value.name for value in graph_inputs(model)}
    for node in model.graph.node:
        if node.op_type not in _SHAPE_ONLY and not fed.isdisjoint(node.input):
            fed.update(filter(None, node.output))
    return fed


def _is_float(kind: TensorType | None) -> bool:
    return kind is not None and kind.elem_type in _FLOATS


def _is_scores(kind: TensorType | None) -> bool:
    return kind is not None and _is_float(kind) and kind.shape is not None and len(kind.shape) == 4
