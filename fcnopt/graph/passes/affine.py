"""Nodes that compute scale * x + shift with one constant a channel: Mul, Div, Add, Sub and BatchNormalization.

x * c:  scale c      x / c:  scale 1/c      x + c:  shift c      x - c:  shift -c      c - x:  scale -1, shift c
BatchNormalization:  scale g / sqrt(var + eps),  shift b - mean * scale
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from fcnopt.graph.passes.linear import Linear, Vector
from fcnopt.graph.passes.view import GraphView, is_onnx

_ARITHMETIC = ("Mul", "Div", "Add", "Sub")


@dataclass(frozen=True)
class Affine:
    """`scale * x + shift` along the channel axis 1.

    Attributes:
        scale: One value a channel.
        shift: One value a channel.
    """

    scale: Vector
    shift: Vector


def arithmetic_input(node: gs.Node | None) -> int | None:
    """Which input of a Mul, Div, Add or Sub is the variable one, None unless the other is a constant."""
    if node is None or not is_onnx(node, *_ARITHMETIC):
        return None
    constant = [isinstance(tensor, gs.Constant) for tensor in node.inputs]
    if sum(constant) != 1 or (node.op == "Div" and constant[0]):
        return None
    return constant.index(False)


def arithmetic_affine(view: GraphView, node: gs.Node, rank: int, channels: int) -> Affine | str:
    """A node that `arithmetic_input` accepts as an affine map, or the reason why it is none.

    Args:
        view: The graph.
        node: The node.
        rank: Number of axes of its variable input.
        channels: Length of that input's axis 1.
    """
    index = arithmetic_input(node)
    constant = view.array(node.inputs[1 - index]) if index is not None else None
    if constant is None or constant.dtype not in (np.float32, np.float64):
        return "its constant is not float32 or float64"
    value = channel_vector(constant, rank, channels)
    if value is None:
        return f"its constant of shape {list(constant.shape)} is not one value or one a channel"
    if not np.isfinite(value).all() or (node.op == "Div" and not value.all()):
        return "its constant is not finite, or it divides by zero"
    one, zero = np.ones(channels), np.zeros(channels)
    if node.op in ("Mul", "Div"):
        return Affine(value if node.op == "Mul" else 1 / value, zero)
    if node.op == "Add":
        return Affine(one, value)
    return Affine(one, -value) if index == 0 else Affine(-one, value)


def batchnorm_affine(view: GraphView, node: gs.Node, channels: int) -> Affine | str:
    """A BatchNormalization at inference as an affine map, or the reason why it is none."""
    if node.attrs.get("training_mode", 0) or any(not t.is_empty() for t in node.outputs[1:]):
        return "it runs in training mode"
    arrays = [view.array(tensor) for tensor in node.inputs[1:5]]
    gamma, beta, mean, var = (None if a is None else a.astype(np.float64).reshape(-1) for a in arrays)
    if gamma is None or beta is None or mean is None or var is None:
        return "its statistics are not constants"
    if not all(array.size == channels for array in (gamma, beta, mean, var)):
        return f"it has {gamma.size} channels, the weights have {channels}"
    epsilon = float(node.attrs.get("epsilon", 1e-5))
    if not (var + epsilon > 0).all():
        return "a variance is not positive"
    scale = gamma / np.sqrt(var + epsilon)
    return Affine(scale, beta - mean * scale)


def folded(parts: Linear, affine: Affine, side: str) -> Linear:
    """Weights that do an affine map too: of their output if it is "after" them, of their input else.

    What overflows becomes infinite; see `Linear.overflow_refusal`.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        if side == "after":
            return parts.scaled_outputs(affine.scale, affine.shift)
        return parts.scaled_inputs(affine.scale, affine.shift)


def channel_vector(values: NDArray[Any], rank: int, channels: int, axis: int = 1) -> Vector | None:
    """A broadcast constant as one value a channel; None if it varies along another axis or adds axes."""
    if values.ndim > rank:
        return None
    shape = (1,) * (rank - values.ndim) + values.shape
    if shape[axis] not in (1, channels) or any(length != 1 for i, length in enumerate(shape) if i != axis):
        return None
    return np.broadcast_to(values.reshape(-1).astype(np.float64), (channels,)).copy()
