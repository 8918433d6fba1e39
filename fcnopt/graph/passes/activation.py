"""Clip and ReLU, one after another, as one.

Both limit to a range [a, b] (ReLU: [0, inf]), and limiting is monotonic: after [a, b], the range [c, d] limits to
[clip(a, c, d), clip(b, c, d)]. The one that is left is written as a Relu where its range is [0, inf].
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from fcnopt.graph.passes.base import Pass
from fcnopt.graph.passes.view import GraphView, is_onnx, label

Range = tuple[float, float]
_FLOAT_MAX = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class ActivationMatch:
    """A limiting node, and the one before it if it limits too.

    Attributes:
        node: A Relu or Clip.
        before: The Relu or Clip that it reads.
    """

    node: gs.Node
    before: gs.Node | None


class ActivationPass(Pass[ActivationMatch]):
    """Limit once."""

    name = "Clip and ReLU merging"

    def match(self, view: GraphView, node: gs.Node) -> Iterator[ActivationMatch]:
        """A Relu or Clip after another, and a Clip that is a Relu or does nothing."""
        if not is_onnx(node, "Relu", "Clip"):
            return
        before = view.producer(node.inputs[0])
        if before is not None and is_onnx(before, "Relu", "Clip"):
            yield ActivationMatch(node, before)
        if node.op == "Clip" and bounds_of(view, node) in ((0.0, math.inf), (-math.inf, math.inf)):
            yield ActivationMatch(node, None)

    def check(self, view: GraphView, match: ActivationMatch) -> str:
        """Whether the ranges are constant and not empty, and nothing else reads between the two."""
        own = bounds_of(view, match.node)
        if own is None:
            return "its range is not constant, or its minimum is above its maximum"
        if match.node.inputs[0].dtype not in (np.float32, np.float64):
            return "it does not limit float32 or float64"
        if match.before is None:
            return view.bypass_refusal(match.node) if own[0] != 0 else ""
        if bounds_of(view, match.before) is None:
            return f"the range of {label(match.before)} is not constant, or its minimum is above its maximum"
        if view.only_user(match.before.outputs[0]) is not match.node:
            return f"the result of {label(match.before)} is read by others too"
        return ""

    def rewrite(self, view: GraphView, match: ActivationMatch) -> str:
        """Give the second node the range of both, and take the first out."""
        node, before = match.node, match.before
        own = bounds_of(view, node)
        first = bounds_of(view, before) if before is not None else own
        if own is None or first is None:
            raise ValueError("rewrite of a match that was not checked")
        if before is None:
            if own[0] != 0:
                done = f"removed {label(node)}, which has no bounds"
                view.bypass(node)
                return done
            done = f"made {label(node)} a Relu"
        else:
            done = f"merged {label(before)} and {label(node)}"
            node.inputs[0] = before.inputs[0]
        low, high = (min(max(bound, own[0]), own[1]) for bound in first)
        _write(view, node, low, high)
        return done


def bounds_of(view: GraphView, node: gs.Node | None) -> Range | None:
    """The range that a Relu or Clip limits to; None for other nodes, a computed range, and an empty one.

    Before opset 11 the bounds of Clip are attributes, whose defaults are the largest floats; they count as infinite.
    """
    if node is None or not is_onnx(node, "Relu", "Clip"):
        return None
    if node.op == "Relu":
        return 0.0, math.inf
    found = []
    for index, (key, default) in enumerate((("min", -math.inf), ("max", math.inf)), start=1):
        value = float(node.attrs.get(key, default))
        if len(node.inputs) > index and not node.inputs[index].is_empty():
            given = view.array(node.inputs[index])
            if given is None:
                return None
            value = float(given.reshape(-1)[0])
        found.append(math.copysign(math.inf, value) if abs(value) >= _FLOAT_MAX else value)
    return (found[0], found[1]) if found[0] <= found[1] else None


def _write(view: GraphView, node: gs.Node, low: float, high: float) -> None:
    """Make a node limit to [low, high], in the form of the graph's opset."""
    data, result = node.inputs[0], node.outputs[0]
    node.attrs.clear()
    node.inputs.clear()
    node.inputs.append(data)
    if (low, high) == (0.0, math.inf):
        node.op = "Relu"
        return
    node.op = "Clip"
    if view.opset < 11:
        bounds = (("min", low), ("max", high))
        node.attrs.update({key: value for key, value in bounds if math.isfinite(value)})
        return
    for key, value in (("min", low), ("max", high)):
        finite = math.isfinite(value)
        node.inputs.append(
            view.constant(f"{result.name}.{key}", np.array(value, data.dtype)) if finite else gs.Variable.empty()
        )
    if node.inputs[-1].is_empty():
        del node.inputs[-1]
