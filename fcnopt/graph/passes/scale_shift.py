"""Mul, Div, Add and Sub by constants into the convolution, transposed convolution or Gemm before or after them.

Each is affine, one scale s and shift t a channel (see `affine`):

    after    s (W x + b) + t = (s W) x + (s b + t)
    before   W (s x + t) + b = (W s) x + (b + sum(W t))     a shift only where no zero padding meets W
    through  W (s x + m) + b = (W s) (x + m / s) + b        where the shift m has to stay, the scale passes it

The last is what normalization of frames needs: of (x * scale - mean) / std one Sub is left, as the convolution's
padding stands for the mean and not for zero.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from fcnopt.graph.passes.affine import Affine, arithmetic_affine, arithmetic_input, folded
from fcnopt.graph.passes.base import Pass
from fcnopt.graph.passes.linear import Linear, Vector, input_shift_refusal, is_linear, linear_of, linear_refusal
from fcnopt.graph.passes.view import GraphView, label


@dataclass(frozen=True)
class ScaleShiftMatch:
    """An arithmetic node and the node whose weights could take it.

    Attributes:
        node: Mul, Div, Add or Sub with one constant.
        linear: The node with weights.
        side: Where `node` is, seen from `linear`: after it, before it, or before it with `shift` between them.
        shift: The Add or Sub that a scale has to pass.
    """

    node: gs.Node
    linear: gs.Node
    side: Literal["after", "before", "through"]
    shift: gs.Node | None = None


class ScaleShiftPass(Pass[ScaleShiftMatch]):
    """Fold arithmetic by constants into weights."""

    name = "scale and shift into weights"

    def match(self, view: GraphView, node: gs.Node) -> Iterator[ScaleShiftMatch]:
        """Arithmetic by one constant beside a node with weights."""
        index = arithmetic_input(node)
        if index is None:
            return
        producer, user = view.producer(node.inputs[index]), view.only_user(node.outputs[0])
        if producer is not None and is_linear(producer):
            yield ScaleShiftMatch(node, producer, "after")
        if user is None:
            return
        if _reads(user, node):
            yield ScaleShiftMatch(node, user, "before")
        elif node.op in ("Mul", "Div") and user.op in ("Add", "Sub") and arithmetic_input(user) is not None:
            linear = view.only_user(user.outputs[0])
            if linear is not None and _reads(linear, user):
                yield ScaleShiftMatch(node, linear, "through", user)

    def check(self, view: GraphView, match: ScaleShiftMatch) -> str:
        """Whether the constants are one a channel, the weights unshared, and padding lets a shift pass."""
        node, linear = match.node, match.linear
        if match.side == "after" and view.only_user(linear.outputs[0]) is not node:
            return f"the result of {label(linear)} is read by others too"
        refusal = linear_refusal(view, linear)
        if refusal:
            return refusal
        parts = linear_of(view, linear)
        affine = _affine(view, node, parts, match.side)
        if isinstance(affine, str):
            return affine
        if match.side != "after" and _spreads(node):
            return f"it spreads one channel over the {parts.in_channels} of {label(linear)}"
        if match.side == "before" and affine.shift.any():
            refusal = input_shift_refusal(linear)
        if match.shift is not None:
            shift = _affine(view, match.shift, parts, match.side)
            refusal = shift if isinstance(shift, str) else _quotient_refusal(match.shift, affine.scale, parts.rank)
        refusal = refusal or folded(parts, affine, match.side).overflow_refusal()
        return refusal or view.bypass_refusal(node, arithmetic_input(node) or 0)

    def rewrite(self, view: GraphView, match: ScaleShiftMatch) -> str:
        """Write the weights, and the shift that a scale passes, and take the node out."""
        node, linear = match.node, match.linear
        parts = linear_of(view, linear)
        affine = _affine(view, node, parts, match.side)
        if isinstance(affine, str):
            raise ValueError("rewrite of a match that was not checked")
        done = f"{label(node)} into {label(linear)} {'before' if match.side == 'after' else 'after'} it"
        if match.shift is not None:
            done += f", past {label(match.shift)}"
            _divide_constant(view, match.shift, affine.scale, parts.rank)
        folded(parts, affine, match.side).write(view)
        view.bypass(node, arithmetic_input(node) or 0)
        return done


def _reads(user: gs.Node, node: gs.Node) -> bool:
    """Whether a node with weights takes what another writes as its input, not as weight or bias."""
    return is_linear(user) and user.inputs[0] is node.outputs[0]


def _spreads(node: gs.Node) -> bool:
    """Whether there are more constants than channels to put them to, as a mean a channel and a grey frame."""
    index = arithmetic_input(node) or 0
    shape, count = node.inputs[index].shape, node.inputs[1 - index].values.size
    return count > 1 and shape is not None and len(shape) > 1 and isinstance(shape[1], int) and shape[1] < count


def _affine(view: GraphView, node: gs.Node, parts: Linear, side: str) -> Affine | str:
    channels = parts.out_channels if side == "after" else parts.in_channels
    return arithmetic_affine(view, node, parts.rank, channels)


def _quotient_refusal(shift: gs.Node, scale: Vector, rank: int) -> str:
    """Why a scale cannot be taken off the input of a shift, "" if it can."""
    if not scale.all():
        return "a scale is zero"
    finite = np.isfinite(_quotient(shift, scale, rank)).all()
    return "" if finite else f"the constant of {label(shift)} would overflow"


def _quotient(shift: gs.Node, scale: Vector, rank: int) -> NDArray[Any]:
    """The constant m / s for an Add or Sub s x + m (c / s for c - s x) that has s taken off its input."""
    values = np.asarray(shift.inputs[1 - (arithmetic_input(shift) or 0)].values)
    with np.errstate(over="ignore"):
        quotient: NDArray[Any] = (values / scale.reshape(-1, *([1] * (rank - 2)))).astype(values.dtype)
    return quotient


def _divide_constant(view: GraphView, shift: gs.Node, scale: Vector, rank: int) -> None:
    """Make x + m / s of an Add or Sub s x + m that has s taken off its input (and c / s - x of c - s x)."""
    index = 1 - (arithmetic_input(shift) or 0)
    shift.inputs[index] = view.constant(shift.inputs[index].name, _quotient(shift, scale, rank))
