"""Convolutions, transposed convolutions and Gemm as one thing: a kernel, a bias, and per-channel algebra on both.

The kernel is seen with the axes (group, in/group, out/group, taps...), whichever way ONNX lays it out:

    Conv           (out, in/group, kH, kW)
    ConvTranspose  (in, out/group, kH, kW)     the output channel is on axis 1, and it starts again in each group
    Gemm           (in, out), or (out, in) with transB

For y = W x + b and a vector over channels:

    s * y     = (s W) x + s b            s over output channels
    y + t     = W x + (b + t)
    W (s * x) = (W s) x                  s over input channels
    W (x + t) = W x + (b + sum(W t))     only if every tap of W meets x and none meets zero padding
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from fcnopt.graph.passes.view import GraphView, is_onnx, label

Vector = NDArray[np.float64]
LINEAR_OPS = ("Conv", "ConvTranspose", "Gemm")


@dataclass(frozen=True)
class Linear:
    """A node with constant weights that nothing else uses, ready to be rewritten.

    Attributes:
        node: The node.
        kernel: Axes (group, in/group, out/group, taps...).
        bias: One value an output channel.
    """

    node: gs.Node
    kernel: NDArray[Any]
    bias: Vector

    @property
    def rank(self) -> int:
        """Number of axes of the node's input."""
        return self.kernel.ndim - 1

    @property
    def in_channels(self) -> int:
        """Channels of the input."""
        return int(self.kernel.shape[0] * self.kernel.shape[1])

    @property
    def out_channels(self) -> int:
        """Channels of the output."""
        return int(self.kernel.shape[0] * self.kernel.shape[2])

    def scaled_outputs(self, scale: Vector, shift: Vector) -> Linear:
        """The node that computes scale * y + shift."""
        kernel = self.kernel * self._spread(scale, 2)
        return Linear(self.node, kernel, self.bias * scale + shift)

    def scaled_inputs(self, scale: Vector, shift: Vector) -> Linear:
        """The node that computes y of scale * x + shift."""
        moved = self.kernel.astype(np.float64) * self._spread(shift, 1, np.float64) if shift.any() else None
        bias = self.bias
        if moved is not None:
            alpha = float(self.node.attrs.get("alpha", 1.0)) if self.node.op == "Gemm" else 1.0
            bias = bias + alpha * moved.sum(axis=(1, *range(3, moved.ndim))).reshape(-1)
        return Linear(self.node, self.kernel * self._spread(scale, 1), bias)

    def overflow_refusal(self) -> str:
        """Why these weights cannot be written, "" if all of them are finite in the type of the kernel."""
        with np.errstate(over="ignore"):
            finite = np.isfinite(self.kernel).all() and np.isfinite(self.bias.astype(self.kernel.dtype)).all()
        return "" if finite else f"the weights of {label(self.node)} would overflow {self.kernel.dtype.name}"

    def permuted_inputs(self, permutation: NDArray[np.int64]) -> Linear:
        """The node that computes y of x[:, permutation]; for one group only.

        Channel i of the permuted input is channel p[i] of x, so that the kernel's column i belongs at p[i].
        """
        return Linear(self.node, self.kernel[:, np.argsort(permutation)], self.bias)

    def write(self, view: GraphView) -> None:
        """Give the node this kernel and bias; unshared constants keep their names."""
        node, dtype = self.node, self.kernel.dtype
        node.inputs[1] = gs.Constant(node.inputs[1].name, np.asarray(_to_layout(node, self.kernel), order="C"))
        old = _bias(node)
        if old is None and not self.bias.any():
            return
        values = self.bias.astype(dtype)
        if old is not None and len(old.outputs) == 1:
            bias = gs.Constant(old.name, values)
        else:
            bias = view.constant(f"{node.inputs[1].name.removesuffix('.weight')}.bias", values)
        if len(node.inputs) > 2:
            node.inputs[2] = bias
        else:
            node.inputs.append(bias)
        if node.op == "Gemm":
            node.attrs["beta"] = 1.0

    def _spread(self, vector: Vector, axis: int, dtype: Any = None) -> NDArray[Any]:
        """A vector over channels with the axes of the kernel; `axis` 1 for input, 2 for output channels."""
        shape = [1] * self.kernel.ndim
        shape[0], shape[axis] = self.kernel.shape[0], self.kernel.shape[axis]
        return vector.reshape(shape).astype(dtype or self.kernel.dtype)


def is_linear(node: gs.Node | None) -> bool:
    """Whether a node is a convolution, a transposed convolution or a Gemm."""
    return node is not None and is_onnx(node, *LINEAR_OPS)


def linear_refusal(view: GraphView, node: gs.Node) -> str:
    """Why the weights of a node may not be rewritten, "" if they may."""
    weight, bias = node.inputs[1], _bias(node)
    if not isinstance(weight, gs.Constant):
        return f"the weight of {label(node)} is not a constant"
    if len(weight.outputs) > 1 or view.is_output(weight):
        others = ", ".join(label(user) for user in weight.outputs if user is not node) or "the graph's output"
        return f"weight {weight.name!r} of {label(node)} is shared with {others}"
    if weight.dtype not in (np.float32, np.float64):
        return f"the weights of {label(node)} are {np.dtype(weight.dtype).name}: folding would round them again"
    if bias is not None and not isinstance(bias, gs.Constant):
        return f"the bias of {label(node)} is not a constant"
    if node.op == "Gemm":
        if node.attrs.get("transA", 0):
            return f"{label(node)} transposes its input"
        outputs = weight.shape[0 if node.attrs.get("transB", 0) else 1]
        shape = bias.values.shape if bias is not None else ()
        if math.prod(shape) not in (1, outputs) or any(length != 1 for length in shape[:-1]):
            return f"the bias of {label(node)} varies along the batch"
    return ""


def linear_of(view: GraphView, node: gs.Node) -> Linear:
    """A node that `linear_refusal` found nothing against."""
    values = view.array(node.inputs[1])
    if values is None:
        raise ValueError(f"{label(node)} has no constant weight")
    kernel = _from_layout(node, values)
    channels = kernel.shape[0] * kernel.shape[2]
    bias = view.array(_bias(node))
    beta = float(node.attrs.get("beta", 1.0)) if node.op == "Gemm" else 1.0
    flat = np.zeros(1) if bias is None else bias.astype(np.float64).reshape(-1) * beta
    return Linear(node, kernel, np.broadcast_to(flat, (channels,)))


def input_shift_refusal(node: gs.Node) -> str:
    """Why a shift of the input cannot become a bias, "" if it can."""
    if node.op == "Gemm":
        return ""
    if node.op == "ConvTranspose":
        return f"a shift reaches the outputs of {label(node)} through a varying number of taps"
    if node.attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID") or any(node.attrs.get("pads", ())):
        return f"a shift does not pass the zero padding of {label(node)}"
    return ""


def _bias(node: gs.Node) -> gs.Tensor | None:
    return node.inputs[2] if len(node.inputs) > 2 and not node.inputs[2].is_empty() else None


def _groups(node: gs.Node) -> int:
    return int(node.attrs.get("group", 1)) if node.op != "Gemm" else 1


def _from_layout(node: gs.Node, values: NDArray[Any]) -> NDArray[Any]:
    if node.op == "Gemm":
        return values.T[None] if node.attrs.get("transB", 0) else values[None]
    split = values.reshape(_groups(node), -1, *values.shape[1:])
    kernel: NDArray[Any] = split if node.op == "ConvTranspose" else split.swapaxes(1, 2)
    return kernel


def _to_layout(node: gs.Node, kernel: NDArray[Any]) -> NDArray[Any]:
    if node.op == "Gemm":
        matrix: NDArray[Any] = kernel[0]
        return matrix.T if node.attrs.get("transB", 0) else matrix
    split = kernel if node.op == "ConvTranspose" else kernel.swapaxes(1, 2)
    layout: NDArray[Any] = split.reshape(-1, *split.shape[2:])
    return layout
