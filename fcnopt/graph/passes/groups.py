"""Convolutions with what a runtime computes in the same kernel: what quantization must not come between.

A group is Conv (or ConvTranspose, Gemm) - BatchNormalization - Add - ReLU or Clip, each but the first optional, in
this order, each the one reader of the one before. In the Add the other input is a residual that comes from elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_graphsurgeon as gs

from fcnopt.graph.passes.affine import arithmetic_input
from fcnopt.graph.passes.linear import is_linear
from fcnopt.graph.passes.view import GraphView, is_onnx

_FOLLOWERS = (("BatchNormalization",), ("Add",), ("Relu", "Clip"))


@dataclass(frozen=True)
class FusionGroup:
    """Nodes that run as one kernel.

    Attributes:
        nodes: The nodes, the weighted one first.
        inside: Tensors between them: nothing may read or change these.
        residual: What the Add reads besides, None where there is none (or a constant, a second bias).
    """

    nodes: tuple[gs.Node, ...]
    inside: tuple[str, ...]
    residual: str | None = None

    @property
    def input(self) -> str:
        """The tensor that the weighted node reads."""
        return str(self.nodes[0].inputs[0].name)

    @property
    def output(self) -> str:
        """The tensor that the group writes."""
        return str(self.nodes[-1].outputs[0].name)


def fusion_groups(graph: gs.Graph) -> tuple[FusionGroup, ...]:
    """All groups of a graph, in its order; a node is in one group only.

    An Add of two convolutions' results belongs to the later one, as the other has to be finished by then.
    """
    view = GraphView(graph)
    place = {id(node): index for index, node in enumerate(graph.nodes)}
    groups = [_group(view, node, place) for node in graph.nodes if is_linear(node)]
    return tuple(groups)


def _group(view: GraphView, start: gs.Node, place: dict[int, int]) -> FusionGroup:
    nodes, residual = [start], None
    for ops in _FOLLOWERS:
        follower = view.only_user(nodes[-1].outputs[0])
        if follower is None or not is_onnx(follower, *ops):
            continue
        if follower.op == "Add" and arithmetic_input(follower) is None:
            other = next((t for t in follower.inputs if t is not nodes[-1].outputs[0]), None)
            if other is None or _belongs_to_other(view, other, start, place):
                break
            residual = str(other.name)
        nodes.append(follower)
    return FusionGroup(tuple(nodes), tuple(str(node.outputs[0].name) for node in nodes[:-1]), residual)


def _writer_of_sum(view: GraphView, tensor: gs.Tensor) -> gs.Node | None:
    """The weighted node that writes a tensor, directly or through its own normalization."""
    node = view.producer(tensor)
    if node is not None and is_onnx(node, "BatchNormalization"):
        data = node.inputs[0]
        node = view.producer(data) if view.only_user(data) is node else None
    return node if is_linear(node) else None


def _belongs_to_other(view: GraphView, other: gs.Tensor, start: gs.Node, place: dict[int, int]) -> bool:
    """Whether the Add's other input is written by a later convolution (with its normalization), which then takes it."""
    writer = _writer_of_sum(view, other) if view.only_user(other) is not None else None
    return writer is not None and place[id(writer)] > place[id(start)]
