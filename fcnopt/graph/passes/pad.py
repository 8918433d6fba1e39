"""Pad into the convolution or pooling after it.

conv      a Pad by zeros on spatial axes is padding of the convolution: pads add up.
max pool  pads itself by minus infinity. A Pad by that is its padding; a Pad by zero is too where the input has
          nothing below zero (it comes from a ReLU) and each window still meets a real element (pads < kernel, no
          dilation, which lets a window step over them).
avg pool  a Pad by zero is its padding if it counts padding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from fcnopt.graph.passes.activation import bounds_of
from fcnopt.graph.passes.base import Pass
from fcnopt.graph.passes.view import GraphView, is_onnx, label


@dataclass(frozen=True)
class PadMatch:
    """A Pad and its one reader.

    Attributes:
        pad: The Pad.
        user: A Conv, MaxPool or AveragePool.
    """

    pad: gs.Node
    user: gs.Node


class PadPass(Pass[PadMatch]):
    """Let convolutions and poolings do their own padding."""

    name = "padding into convolutions and poolings"

    def match(self, view: GraphView, node: gs.Node) -> Iterator[PadMatch]:
        """A Pad whose one reader is a convolution or a pooling."""
        if not is_onnx(node, "Pad"):
            return
        user = view.only_user(node.outputs[0])
        if user is not None and is_onnx(user, "Conv", "MaxPool", "AveragePool") and user.inputs[0] is node.outputs[0]:
            yield PadMatch(node, user)

    def check(self, view: GraphView, match: PadMatch) -> str:
        """Whether the amounts are constant, spatial, not negative, and the value is what the reader pads with."""
        pad, user = match.pad, match.user
        if pad.attrs.get("mode", "constant") != "constant":
            return f"it pads by {pad.attrs['mode']}, not by a constant"
        amounts, value = _amounts(view, pad), _value(view, pad)
        if amounts is None or value is None:
            return "how much or what it pads is not a constant, or its rank is not known"
        begins, ends = amounts
        if any(begins[:2]) or any(ends[:2]):
            return "it pads batch or channels"
        if min((*begins, *ends)) < 0:
            return "it crops"
        if user.attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
            return f"{label(user)} derives its padding from its output's shape"
        if len(user.outputs) > 1:
            return f"{label(user)} tells places in what it pads"
        return _value_refusal(view, match, value)

    def rewrite(self, view: GraphView, match: PadMatch) -> str:
        """Add the amounts to the reader's pads and take the Pad out."""
        pad, user = match.pad, match.user
        done = f"{label(pad)} into {label(user)}"
        amounts = _amounts(view, pad)
        if amounts is None:
            raise ValueError("rewrite of a match that was not checked")
        user.attrs["pads"] = _sum(user, amounts)
        user.attrs.pop("auto_pad", None)
        if user.op == "AveragePool":
            user.attrs["count_include_pad"] = 1
        view.bypass(pad)
        return done


Amounts = tuple[list[int], list[int]]


def _amounts(view: GraphView, pad: gs.Node) -> Amounts | None:
    """(begins, ends), one entry an axis, from an attribute (opset 2) or inputs (11; with axes from 18)."""
    shape = pad.inputs[0].shape
    values = view.array(pad.inputs[1]) if len(pad.inputs) > 1 else np.asarray(pad.attrs.get("pads", ()))
    if values is None:
        return None
    half = values.size // 2
    axes = list(range(half))
    if len(pad.inputs) > 3 and not pad.inputs[3].is_empty():
        given = view.array(pad.inputs[3])
        if given is None or shape is None:
            return None
        axes = [int(axis) % len(shape) for axis in given.reshape(-1)]
    rank = len(shape) if shape is not None else half
    begins, ends = [0] * rank, [0] * rank
    for place, axis in enumerate(axes):
        begins[axis], ends[axis] = int(values[place]), int(values[half + place])
    return begins, ends


def _value(view: GraphView, pad: gs.Node) -> float | None:
    if len(pad.inputs) < 2:
        return float(pad.attrs.get("value", 0.0))
    if len(pad.inputs) < 3 or pad.inputs[2].is_empty():
        return 0.0
    value = view.array(pad.inputs[2])
    return None if value is None else float(value.reshape(-1)[0])


def _sum(user: gs.Node, amounts: Amounts) -> list[int]:
    begins, ends = amounts
    added = [*begins[2:], *ends[2:]]
    return [have + more for have, more in zip(user.attrs.get("pads") or [0] * len(added), added, strict=True)]


def _value_refusal(view: GraphView, match: PadMatch, value: float) -> str:
    """Why what the Pad writes is not what its reader pads with, "" if it is."""
    pad, user = match.pad, match.user
    if user.op == "Conv":
        return "" if value == 0 else f"it pads by {value:g}, a convolution by 0"
    if user.attrs.get("ceil_mode", 0):
        return f"{label(user)} rounds its output's shape up"
    amounts = _amounts(view, pad)
    kernel = list(user.attrs["kernel_shape"])
    total = _sum(user, amounts) if amounts is not None else []
    if any(amount >= length for amount, length in zip(total, kernel * 2, strict=True)):
        return f"padding of {total} is not below the kernel {kernel} of {label(user)}"
    if user.op == "MaxPool":
        lowest = bounds_of(view, view.producer(pad.inputs[0]))
        if value == -np.inf or value <= float(np.finfo(np.float32).min):
            return ""
        if value != 0 or lowest is None or lowest[0] < 0:
            return f"it pads by {value:g}, MaxPool by -inf"
        dilated = any(step != 1 for step in user.attrs.get("dilations", ()))
        return f"a window of {label(user)}, which is dilated, may meet nothing but padding" if dilated else ""
    if any(user.attrs.get("pads", ())) and not user.attrs.get("count_include_pad", 0):
        return f"{label(user)} does not count its own padding"
    return "" if value == 0 else f"it pads by {value:g}, AveragePool by 0"
