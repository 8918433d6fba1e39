"""A permutation of channels (BGR to RGB) into the weights of the convolution that it reaches.

With p the order in which Gather, GatherND, or a Slice with step -1, takes the channels of x:

    W x[p] + b = W[argsort p] x + b        W indexed along its input channels

What stands between them and works on each channel commutes with p if its constants are put in the same order:
f(x[p], c) = f(x, c[argsort p])[p]. A Transpose moves the axis that is followed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from fcnopt.graph.passes.affine import arithmetic_input, channel_vector
from fcnopt.graph.passes.base import Pass
from fcnopt.graph.passes.linear import is_linear, linear_of, linear_refusal
from fcnopt.graph.passes.slices import crop_of
from fcnopt.graph.passes.view import GraphView, is_onnx, label


@dataclass(frozen=True)
class PermutationMatch:
    """A permutation of channels and what is below it.

    Attributes:
        node: The Gather or Slice.
        order: The channel of the input that each channel of the output is.
        between: The nodes between it and the weights, each with the axis of its input that the channels are on.
        end: The node that ends the chain, None where the graph or another reader does.
        axis: Of the input of `end` that the channels are on.
    """

    node: gs.Node
    order: NDArray[np.int64]
    between: tuple[tuple[gs.Node, int], ...]
    end: gs.Node | None
    axis: int


class PermutationPass(Pass[PermutationMatch]):
    """Let the weights be in the order of the frames' channels."""

    name = "channel permutation into weights"

    def match(self, view: GraphView, node: gs.Node) -> Iterator[PermutationMatch]:
        """A Gather by a permutation, or a Slice that reverses; followed down to the first node it cannot pass."""
        found = _permutation(view, node)
        if found is None:
            return
        order, axis = found
        between: list[tuple[gs.Node, int]] = []
        tensor = node.outputs[0]
        while True:
            user = view.only_user(tensor)
            after = _axis_after(view, user, tensor, axis) if user is not None else None
            if user is None or after is None:
                yield PermutationMatch(node, order, tuple(between), user, axis)
                return
            between.append((user, axis))
            tensor, axis = user.outputs[0], after

    def check(self, view: GraphView, match: PermutationMatch) -> str:
        """Whether the chain ends at a node with one group whose weights may be rewritten."""
        end = match.end
        if end is None:
            return "it is read by more than one node, or by the caller"
        above = match.between[-1][0] if match.between else match.node
        if not is_linear(end) or end.inputs[0] is not above.outputs[0] or match.axis != 1:
            return f"it does not pass {label(end)}"
        refusal = linear_refusal(view, end)
        if not refusal:
            parts = linear_of(view, end)
            if parts.kernel.shape[0] != 1:
                refusal = f"{label(end)} has {parts.kernel.shape[0]} groups"
            elif parts.in_channels != len(match.order):
                refusal = f"it orders {len(match.order)} channels, {label(end)} has {parts.in_channels}"
        return refusal or view.bypass_refusal(match.node)

    def rewrite(self, view: GraphView, match: PermutationMatch) -> str:
        """Put constants and kernel in the other order and take the permutation out."""
        if match.end is None:
            raise ValueError("rewrite of a match that was not checked")
        done = f"{label(match.node)} into {label(match.end)}"
        back = np.argsort(match.order)
        for node, axis in match.between:
            _reorder_constant(view, node, axis, back)
        linear_of(view, match.end).permuted_inputs(match.order).write(view)
        view.bypass(match.node)
        return done


def _permutation(view: GraphView, node: gs.Node) -> tuple[NDArray[np.int64], int] | None:
    """(order, axis) of a Gather by a permutation of all of an axis, or of a Slice that reverses one.

    GatherND with one index a row is a Gather on axis 0: PyTorch writes x[:, [2, 1, 0]] so, between two Transposes.
    """
    shape = node.inputs[0].shape if node.inputs else None
    if shape is None:
        return None
    if is_onnx(node, "Gather", "GatherND"):
        axis = int(node.attrs.get("axis", 0)) % len(shape)
        order, length = view.array(node.inputs[1]), shape[axis]
        if node.op == "GatherND" and order is not None:
            order = (
                order[:, 0] if order.ndim == 2 and order.shape[1] == 1 and not node.attrs.get("batch_dims") else None
            )
        if order is None or order.ndim != 1 or not isinstance(length, int):
            return None
        order = np.where(order < 0, order + length, order).astype(np.int64)
        return (order, axis) if np.array_equal(np.sort(order), np.arange(length)) else None
    crop = crop_of(view, node)
    if crop is None or crop.steps != (-1,) or not crop.constant:
        return None
    axis, length = crop.axes[0], shape[crop.axes[0]]
    if not isinstance(length, int):
        return None
    order = np.arange(length)[int(crop.starts[0]) : _stop(int(crop.ends[0]), length) : -1]
    return (order, axis) if len(order) == length else None


def _stop(end: int, length: int) -> int | None:
    """ONNX clamps an end before the first element; in Python that is no end."""
    return None if end < -length else end


def _axis_after(view: GraphView, node: gs.Node, tensor: gs.Tensor, axis: int) -> int | None:
    """The axis that the channels are on after a node that each of them passes by itself, None for other nodes."""
    if is_onnx(node, "Cast", "Relu", "Clip", "Identity") and node.inputs[0] is tensor:
        return axis
    if is_onnx(node, "Transpose"):
        perm = list(node.attrs.get("perm", ()))
        return perm.index(axis) if axis in perm else None
    index, shape = arithmetic_input(node), tensor.shape
    if index is None or node.inputs[index] is not tensor or shape is None or not isinstance(shape[axis], int):
        return None
    constant = view.array(node.inputs[1 - index])
    return (
        axis if constant is not None and channel_vector(constant, len(shape), shape[axis], axis) is not None else None
    )


def _reorder_constant(view: GraphView, node: gs.Node, axis: int, back: NDArray[np.int64]) -> None:
    """Put the constant of an arithmetic node in the order that its channels then have."""
    index = arithmetic_input(node)
    if index is None:
        return
    old = node.inputs[1 - index]
    values, shape = np.asarray(old.values), node.inputs[index].shape
    place = axis - (len(shape) - values.ndim)
    if place >= 0 and values.shape[place] > 1:
        node.inputs[1 - index] = view.constant(old.name, np.take(values, back, axis=place))
