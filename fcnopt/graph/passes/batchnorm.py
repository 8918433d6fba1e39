"""BatchNormalization into the Conv, ConvTranspose or Gemm before or after it.

At inference a BatchNormalization is affine, one scale s and shift t a channel (see `affine`):

    after   BN(W x + b) = (s W) x + (s b + t)
    before  W BN(x) + b = (W s) x + (b + sum(W t))     if no zero padding meets W, or t is zero

Groups and the two weight layouts are `linear`'s matter. A node whose result something else reads too is left: that
reader wants the value from before the normalization.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import onnx_graphsurgeon as gs

from fcnopt.graph.passes.affine import Affine, batchnorm_affine, folded
from fcnopt.graph.passes.base import Pass
from fcnopt.graph.passes.linear import input_shift_refusal, is_linear, linear_of, linear_refusal
from fcnopt.graph.passes.view import GraphView, is_onnx, label


@dataclass(frozen=True)
class BatchNormMatch:
    """A normalization and its neighbour.

    Attributes:
        norm: The BatchNormalization.
        linear: The node to fold it into, None where neither neighbour has weights.
        side: Where the normalization is, seen from that node.
    """

    norm: gs.Node
    linear: gs.Node | None
    side: Literal["after", "before"]


class BatchNormPass(Pass[BatchNormMatch]):
    """Fold normalizations into weights."""

    name = "batch normalization into weights"

    def match(self, view: GraphView, node: gs.Node) -> Iterator[BatchNormMatch]:
        """A BatchNormalization, with the node before it and with the one after it."""
        if not is_onnx(node, "BatchNormalization"):
            return
        producer, user = view.producer(node.inputs[0]), view.only_user(node.outputs[0])
        if is_linear(producer):
            yield BatchNormMatch(node, producer, "after")
        if is_linear(user) and user is not None and user.inputs[0] is node.outputs[0]:
            yield BatchNormMatch(node, user, "before")
        elif not is_linear(producer):
            yield BatchNormMatch(node, None, "after")

    def check(self, view: GraphView, match: BatchNormMatch) -> str:
        """Whether both nodes are constant and unshared, nothing reads between them, and padding lets a shift pass."""
        norm, linear = match.norm, match.linear
        if linear is None:
            return "no convolution or Gemm feeds it, and none is its one reader"
        if match.side == "after" and view.only_user(linear.outputs[0]) is not norm:
            return f"the result of {label(linear)} is read by others too"
        refusal = linear_refusal(view, linear)
        if refusal:
            return refusal
        affine = self._affine(view, match)
        if isinstance(affine, str):
            return affine
        if match.side == "before" and affine.shift.any():
            refusal = input_shift_refusal(linear)
        refusal = refusal or folded(linear_of(view, linear), affine, match.side).overflow_refusal()
        return refusal or view.bypass_refusal(norm)

    def rewrite(self, view: GraphView, match: BatchNormMatch) -> str:
        """Write the folded kernel and bias, and take the normalization out."""
        affine, linear = self._affine(view, match), match.linear
        if isinstance(affine, str) or linear is None:
            raise ValueError("rewrite of a match that was not checked")
        done = f"{label(match.norm)} into {label(linear)} {'before' if match.side == 'after' else 'after'} it"
        folded(linear_of(view, linear), affine, match.side).write(view)
        view.bypass(match.norm)
        return done

    @staticmethod
    def _affine(view: GraphView, match: BatchNormMatch) -> Affine | str:
        if match.linear is None:
            return "there is no node to fold it into"
        parts = linear_of(view, match.linear)
        return batchnorm_affine(view, match.norm, parts.out_channels if match.side == "after" else parts.in_channels)
