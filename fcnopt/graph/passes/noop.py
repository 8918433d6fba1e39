"""Nodes that give back what they get: f(x) = x.

    Identity; Dropout at inference; Cast to the type it has; Transpose by the identity; Reshape, Expand and Slice to
    the shape it has; Pad by nothing; Concat, Sum, Max and Min of one tensor; x + 0, x - 0, x * 1, x / 1

and one pair that is one node or none: Transpose(Transpose(x, p), q) = Transpose(x, p[q]).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs
from onnx.helper import np_dtype_to_tensor_dtype

from fcnopt.graph.passes.affine import arithmetic_input
from fcnopt.graph.passes.base import Pass
from fcnopt.graph.passes.slices import crop_of
from fcnopt.graph.passes.view import GraphView, is_onnx, label


@dataclass(frozen=True)
class NoopMatch:
    """A node that does nothing.

    Attributes:
        node: The node.
        index: The input that it gives back.
        pair: For a Transpose: the one before it, into which it goes.
    """

    node: gs.Node
    index: int = 0
    pair: gs.Node | None = None


class NoopPass(Pass[NoopMatch]):
    """Take out what changes nothing."""

    name = "no-ops"

    def match(self, view: GraphView, node: gs.Node) -> Iterator[NoopMatch]:
        """A node of the operators above that leaves its input as it is."""
        test = _TESTS.get(node.op)
        if test is not None and is_onnx(node, node.op):
            if node.inputs and test(view, node):
                yield NoopMatch(node, arithmetic_input(node) or 0)
            elif node.op == "Transpose":
                before = view.producer(node.inputs[0])
                if before is not None and is_onnx(before, "Transpose"):
                    yield NoopMatch(node, pair=before)

    def check(self, view: GraphView, match: NoopMatch) -> str:
        """Whether the node can go without an output losing its name."""
        if match.pair is not None:
            return "" if _perm(match.pair) and _perm(match.node) else "the order of a Transpose is not known"
        if len(match.node.outputs) > 1 and any(t.outputs or view.is_output(t) for t in match.node.outputs[1:]):
            return "its mask is read"
        return view.bypass_refusal(match.node, match.index)

    def rewrite(self, view: GraphView, match: NoopMatch) -> str:
        """Bypass the node, or read past the first of two Transposes."""
        done = f"removed {label(match.node)}"
        if match.pair is not None:
            first, second = _perm(match.pair), _perm(match.node)
            match.node.inputs[0] = match.pair.inputs[0]
            match.node.attrs["perm"] = [first[axis] for axis in second]
            return f"merged {label(match.pair)} and {label(match.node)}"
        view.bypass(match.node, match.index)
        return done


def _always(view: GraphView, node: gs.Node) -> bool:  # noqa: ARG001  (one of the tests below)
    return True


def _one_input(view: GraphView, node: gs.Node) -> bool:  # noqa: ARG001
    return len(node.inputs) == 1


def _dropout(view: GraphView, node: gs.Node) -> bool:
    """At inference: always before opset 12; from then on unless training_mode is given and not false."""
    if len(node.inputs) < 3 or node.inputs[2].is_empty():
        return True
    training = view.array(node.inputs[2])
    return training is not None and not training.any()


def _cast(view: GraphView, node: gs.Node) -> bool:  # noqa: ARG001
    dtype = node.inputs[0].dtype
    if dtype is None:
        return False
    have = dtype if isinstance(dtype, int) else np_dtype_to_tensor_dtype(np.dtype(dtype))
    return bool(have == node.attrs["to"])


def _transpose(view: GraphView, node: gs.Node) -> bool:  # noqa: ARG001
    perm = _perm(node)
    return bool(perm) and perm == sorted(perm)


def _same_shape(view: GraphView, node: gs.Node) -> bool:
    """A reshape to the shape it has: by static shapes, or by a target of zeros, which mean 'as it is'."""
    source, result = node.inputs[0].shape, node.outputs[0].shape
    if source is not None and result is not None and list(source) == list(result) and all(_known(source)):
        return True
    target = view.array(node.inputs[1]) if len(node.inputs) > 1 else None
    if node.op != "Reshape" or target is None or source is None or node.attrs.get("allowzero", 0):
        return False
    kept = sum(int(value) == 0 for value in target)
    return len(target) == len(source) and kept >= len(source) - 1 and all(int(v) in (0, -1) for v in target)


def _slice(view: GraphView, node: gs.Node) -> bool:
    crop = crop_of(view, node)
    return crop is not None and crop.keeps_everything(node.inputs[0].shape)


def _pad(view: GraphView, node: gs.Node) -> bool:
    pads = node.attrs.get("pads") if len(node.inputs) < 2 else view.array(node.inputs[1])
    return pads is not None and not np.any(pads)


def _neutral(view: GraphView, node: gs.Node) -> bool:
    """Arithmetic by a neutral constant that does not broadcast the variable to a larger shape."""
    index = arithmetic_input(node)
    if index is None or (node.op == "Sub" and index == 1):
        return False
    constant, source = view.array(node.inputs[1 - index]), node.inputs[index].shape
    if constant is None or not (constant == (1 if node.op in ("Mul", "Div") else 0)).all():
        return False
    if constant.size == 1 and source is not None:
        return bool(constant.ndim <= len(source))
    return source is not None and all(_known(source)) and np.broadcast_shapes(constant.shape, source) == tuple(source)


def _known(shape: list[int | str | None]) -> list[bool]:
    return [isinstance(length, int) for length in shape]


def _perm(node: gs.Node) -> list[int]:
    """The order of a Transpose; reversed where it gives none, empty where the rank is not known either."""
    shape = node.inputs[0].shape
    return list(node.attrs["perm"]) if "perm" in node.attrs else list(reversed(range(len(shape or ()))))


_TESTS: Mapping[str, Callable[[GraphView, gs.Node], bool]] = {
    "Identity": _always,
    "Dropout": _dropout,
    "Cast": _cast,
    "Transpose": _transpose,
    "Reshape": _same_shape,
    "Expand": _same_shape,
    "Flatten": _same_shape,
    "Slice": _slice,
    "Pad": _pad,
    **dict.fromkeys(("Concat", "Sum", "Max", "Min"), _one_input),
    **dict.fromkeys(("Add", "Sub", "Mul", "Div"), _neutral),
}
