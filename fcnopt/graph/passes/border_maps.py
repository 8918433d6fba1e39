"""What tensors hold outside of the boxes that move with the frame, found by running the graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from fcnopt.graph.compare import observe, random_feeds
from fcnopt.graph.io import export_graph
from fcnopt.graph.passes.border_plan import Tensor
from fcnopt.graph.passes.proof import TOLERANCE, BrokenPassError
from fcnopt.graph.passes.view import GraphView

_IR = 8  # of a file that is run here and never written


def constant_maps(view: GraphView, joins: Sequence[Tensor], name: str) -> dict[int, NDArray[Any]]:
    """The whole of each tensor for some frame; only what lies outside of its computed box may be used.

    Args:
        view: The graph before it is rewritten; what the tensors depend on is run, and nothing else.
        joins: Of the plan.
        name: Of the pass that asks.

    Returns:
        Arrays [N, C, H, W] by `id` of the tensor.

    Raises:
        BrokenPassError: Outside of its box a tensor differs between two frames: it is no constant.
        GraphError: The graph does not run.
    """
    if not joins:
        return {}
    model = _upstream(view, [join.tensor for join in joins])
    one, two = (seen.outputs for seen in observe(model, list(random_feeds(model, samples=2))))
    for join in joins:
        _hold(join, one, two, name)
    return {id(join.tensor): one[join.tensor.name] for join in joins}


def _hold(join: Tensor, one: Mapping[str, NDArray[Any]], two: Mapping[str, NDArray[Any]], name: str) -> None:
    key = join.tensor.name
    (top, bottom), (left, right) = join.computed
    kind = np.result_type(one[key], np.float32)  # uint8 would wrap
    apart = np.abs(np.subtract(one[key], two[key], dtype=kind))
    apart[:, :, top:bottom, left:right] = 0
    rows, columns = join.joined or join.computed
    if not apart[:, :, slice(*rows), slice(*columns)].max() <= TOLERANCE * np.abs(one[key]).max():
        raise BrokenPassError(
            name,
            f"{key!r} differs between frames outside of rows {top} to {bottom}, columns {left} to {right}",
        )


def _upstream(view: GraphView, tensors: Sequence[gs.Tensor]) -> onnx.ModelProto:
    """The part of the graph that these tensors depend on, as a model that gives them out."""
    nodes: set[int] = set()
    stack = [node for tensor in tensors for node in tensor.inputs]
    while stack:
        node = stack.pop()
        if id(node) not in nodes:
            nodes.add(id(node))
            stack.extend(producer for tensor in node.inputs for producer in tensor.inputs)
    kept = [node for node in view.graph.nodes if id(node) in nodes]
    read = {id(tensor) for node in kept for tensor in node.inputs}
    inputs = [tensor for tensor in view.graph.inputs if id(tensor) in read]
    part = gs.Graph(kept, inputs, list(tensors), opset=view.opset, import_domains=view.graph.import_domains)
    return export_graph(part, like=onnx.ModelProto(ir_version=_IR))
