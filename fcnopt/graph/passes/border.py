"""Constant borders are not computed.

The original FCNs pad the frame by 100 in their first convolution, so that a network that shrinks by 32 without padding
still covers the whole frame (Long, Shelhamer, Darrell, "Fully convolutional networks for semantic segmentation",
2015). Most of what they compute that way is the same for every frame. With windows of extent K, stride s and padding p,
the part [a, b) of an input reaches the outputs

    [ceil((a + p - K + 1) / s), floor((b - 1 + p) / s) + 1)

and no others: those read nothing but what is constant itself. So along the network each tensor y has a box that moves
with the frame, and outside of it a map c that biases, activations and zero padding alone make. c is found by running
the network once. Then, with B the box that is needed next and M the one that moves,

    y[B]  =  join(c[B outside M], y[M])        y[M] from inputs of read_by(M), padded where that leaves the tensor

Joined is at the outputs of poolings, which are small, and where a reader needs a whole tensor (fc6). Between two joins
convolutions read just what the next pooling needs, and what of their padding lies outside of that is gone: the first
one keeps 13 of 100. Poolings see the same windows as before.

In an INT8 graph for a CPU what is joined is uint8: constants on that grid are exact, a join copies bytes, and every
layer stays INT8 (see `border_write`).

Saved on torchfcn's FCN8s at 360x480: 30 % of the multiply-accumulates (139.4 to 97.2 G) and, with OpenVINO on one core,
of the time: 1315 to 920 ms in FP32. A third in INT8 and in BF16, measured with an fc6 of 64 channels (271 to 183 ms and
515 to 339 ms; with ONNX Runtime 285 to 189 ms in INT8).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from fcnopt.graph.passes.base import Pass
from fcnopt.graph.passes.border_maps import constant_maps
from fcnopt.graph.passes.border_plan import Plan, Planner
from fcnopt.graph.passes.border_write import pool_integers, write_plan
from fcnopt.graph.passes.view import GraphView, is_onnx, label
from fcnopt.graph.passes.windows import POOLS, local_of

_MIN_SAVED = 0.03
_MIN_OPSET = 4  # of Concat with any axis


@dataclass(frozen=True)
class BorderMatch:
    """A graph with borders that are the same for every frame.

    Attributes:
        node: The first node that makes such a border.
        now: The graph as it is.
        best: What could be computed instead.
    """

    node: gs.Node
    now: Plan
    best: Plan

    @property
    def saved(self) -> float:
        """The share of the network's multiply-accumulates that is won, what joining takes deducted."""
        return 1 - self.best.cost / self.now.cost if self.now.cost else 0.0


class BorderPass(Pass[BorderMatch]):
    """Put constants in place of what is computed from padding alone."""

    name = "constant borders not computed"

    def match(self, view: GraphView, node: gs.Node) -> Iterator[BorderMatch]:
        """The first convolution or pooling whose padding is wider than its window; one match stands for the graph."""
        if not _makes_border(node) or next(filter(_makes_border, view.graph.nodes)) is not node:
            return
        planner = Planner(view)
        now, best = planner.whole(), planner.best()
        if best.cost < now.cost or local_of(view, node) is None:
            yield BorderMatch(node, now, best)

    def check(self, view: GraphView, match: BorderMatch) -> str:
        """Whether the size is fixed, the rewrite pays, and ONNX Runtime is there to find the constants."""
        if local_of(view, match.node) is None:
            return "the frames' size is not fixed, or its weight is computed"
        if match.saved < _MIN_SAVED:
            return f"leaving constant borders out would save {match.saved:.1%}, less than {_MIN_SAVED:.0%}"
        if view.opset < _MIN_OPSET:
            return f"opset {view.opset} is too old"
        if importlib.util.find_spec("onnxruntime") is None:
            return "ONNX Runtime, which finds the constants, is not installed"
        return ""

    def rewrite(self, view: GraphView, match: BorderMatch) -> str:
        """Compute what moves with the frame, and join the constants on."""
        plan, now = match.best, match.now
        names = ", ".join(tensor.tensor.name for tensor in plan.joins[::-1])
        if pool_integers(view, plan):
            plan = Planner(view).best()
        around = f"constants around {names}" if names else "no borders"
        write_plan(view, plan, constant_maps(view, plan.joins, self.name))
        return f"{around}: {plan.macs / 1e9:.4g} of {now.macs / 1e9:.4g} GMACs are left, from {label(match.node)} on"


def _makes_border(node: gs.Node) -> bool:
    """Whether a window lies in the padding wholly."""
    if not is_onnx(node, "Conv", *POOLS):
        return False
    attrs = node.attrs
    kernel = attrs.get("kernel_shape") or (node.inputs[1].shape or ())[2:]
    dilations = attrs.get("dilations") or [1] * len(kernel)
    extents = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    return any(pad >= extent for pad, extent in zip(attrs.get("pads") or (), extents * 2, strict=False))
