"""Which tensors of two networks are the same: by name, at the layers' results, and never by position.

A layer is a weighted operation with what a runtime computes in the same kernel (see `fusion_groups`); its result is
what the next layer reads. Names are what rewrites keep: fcnopt's passes and Q/DQ nodes leave a layer's result its
name. A name that stands for the result of a whole layer in one network and for something inside a layer in the other
(a convolution before and after its BatchNormalization was folded) is not the same tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx
import onnx_graphsurgeon as gs

from fcnopt.errors import GraphError, UsageError
from fcnopt.graph import io
from fcnopt.graph.passes import FusionGroup, fusion_groups
from fcnopt.graph.shapes import Size, TensorType, tensor_types
from fcnopt.graph.taps import logits_name

_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE)


@dataclass(frozen=True)
class Layer:
    """A layer whose result both networks have.

    Attributes:
        name: Of its weighted node in A, or of the logits' writer.
        op: That node's operator.
        a: Its result in A.
        b: The same tensor in B.
        axis: Of the result's channels.
        inputs: Results of other layers that it is computed from, through anything that is no result of both
            networks; empty where it reads the frames alone.
    """

    name: str
    op: str
    a: str
    b: str
    axis: int
    inputs: tuple[str, ...]


@dataclass(frozen=True)
class Unmatched:
    """A layer whose result cannot be compared.

    Attributes:
        name: Of its weighted node.
        reason: Why.
    """

    name: str
    reason: str


@dataclass(frozen=True)
class Pairing:
    """What two networks have in common.

    Attributes:
        layers: In A's order.
        only_a: Layers of A with no counterpart.
        only_b: Layers of B whose result A does not know.
        logits: The logits' name in A, None where one of the networks does not have one tensor of class scores.
    """

    layers: tuple[Layer, ...]
    only_a: tuple[Unmatched, ...]
    only_b: tuple[Unmatched, ...]
    logits: str | None


@dataclass(frozen=True)
class _Network:
    graph: gs.Graph
    groups: tuple[FusionGroup, ...]
    types: Mapping[str, TensorType]
    inside: frozenset[str]
    logits: str | None

    @classmethod
    def of(cls, model: onnx.ModelProto, size: Size) -> _Network:
        graph = io.import_graph(model)
        groups = fusion_groups(graph)
        inside = frozenset(name for group in groups for name in group.inside)
        return cls(graph, groups, tensor_types(model, size), inside, _logits(model))


def pair(a: onnx.ModelProto, b: onnx.ModelProto, size: Size) -> Pairing:
    """Find the tensors to compare.

    Args:
        a: The reference.
        b: The network that is to answer the same.
        size: Of the frames, (height, width); shapes that are open are judged at it.

    Raises:
        UsageError: The two have no layer's result in common.
    """
    one, two = _Network.of(a, size), _Network.of(b, size)
    logits = one.logits if one.logits is not None and two.logits is not None else None
    matched: dict[str, str] = {}  # A's name to B's
    only_a = []
    for group in one.groups:
        other = two.logits if group.output == logits and two.logits is not None else group.output
        reason = _apart(group.output, other, one, two)
        if reason is None:
            matched[group.output] = other
        else:
            only_a.append(Unmatched(_name(group.nodes[0]), reason))
    if logits is not None and two.logits is not None and _apart(logits, two.logits, one, two) is None:
        matched[logits] = two.logits
    if not matched:
        raise UsageError(
            f"A and B have no layer's result in common: {_some(one)} in A, {_some(two)} in B",
            fix="compare two precisions of one model, as `fcnopt build` makes them; tensors are matched by name",
        )
    only_b = [
        Unmatched(_name(group.nodes[0]), f"A has no tensor {group.output!r}")
        for group in two.groups
        if group.output not in one.types and group.output != two.logits
    ]
    return Pairing(_layers(one, matched), tuple(only_a), tuple(only_b), logits if logits in matched else None)


def _apart(name: str, other: str, one: _Network, two: _Network) -> str | None:
    """Why two tensors are not the same, or None."""
    mine, its = one.types.get(name), two.types.get(other)
    if its is None:
        return f"B has no tensor {other!r}"
    if other in two.inside:
        return f"B computes {other!r} together with what follows it"
    if mine is None or mine.elem_type not in _FLOATS or its.elem_type not in _FLOATS:
        return f"{name!r} is no float in both"
    if mine.static is not None and its.static is not None and mine.static != its.static:
        return f"{name!r} is {list(mine.static)} in A and {list(its.static)} in B"
    return None


def _layers(network: _Network, matched: Mapping[str, str]) -> tuple[Layer, ...]:
    starts = {group.output: group.nodes[0] for group in network.groups}
    found = []
    for node in network.graph.nodes:
        for tensor in node.outputs:
            if tensor.name in matched:
                start = starts.get(tensor.name, node)
                axis = -1 if start.op == "MatMul" else 1
                inputs = _inputs(tensor, matched)
                found.append(Layer(_name(start), start.op, tensor.name, matched[tensor.name], axis, inputs))
    return tuple(found)


def _inputs(tensor: gs.Tensor, matched: Mapping[str, str]) -> tuple[str, ...]:
    """The nearest matched tensors above a tensor."""
    found: dict[str, None] = {}
    seen: set[int] = set()
    pending = [value for node in tensor.inputs for value in node.inputs]
    while pending:
        value = pending.pop(0)
        if id(value) in seen:
            continue
        seen.add(id(value))
        if value.name in matched:
            found[value.name] = None
        else:
            pending.extend(above for node in value.inputs for above in node.inputs)
    return tuple(found)


def _logits(model: onnx.ModelProto) -> str | None:
    try:
        return logits_name(model)
    except GraphError:
        return None


def _name(node: gs.Node) -> str:
    return str(node.name or node.outputs[0].name)


def _some(network: _Network) -> str:
    names = [group.output for group in network.groups]
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "") if names else "no weighted layer"
