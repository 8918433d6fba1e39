"""Which part of its input a spatially local operator reads, and which part of its output an input reaches.

Along one axis, a window of extent K = (k - 1) * dilation + 1, stride s and padding p in front computes element o from
the input's elements [o s - p, o s - p + K). So

    the output's [a, b) reads                    [a s - p, (b - 1) s - p + K)
    the input's [a, b) is read by outputs in     [ceil((a + p - K + 1) / s), floor((b - 1 + p) / s) + 1)

and what lies outside of the input is padding. An operator on single elements is a window of extent 1, a crop at c one
of padding -c. Quantization to uint8 with one scale is such an operator, and a weight that is stored in INT8 is as
constant as the numbers it is made from. Symmetric INT8 is not followed: OpenVINO joins it with wrong values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import onnx_graphsurgeon as gs

from fcnopt.graph.passes.affine import arithmetic_input, channel_vector
from fcnopt.graph.passes.slices import crop_of
from fcnopt.graph.passes.view import GraphView, is_onnx

Interval: TypeAlias = tuple[int, int]
"""First element, and the one after the last."""
Box: TypeAlias = tuple[Interval, Interval]
"""Rows and columns."""

SPATIAL = (2, 3)
"""The axes of rows and columns in [N, C, H, W]."""
POOLS = ("MaxPool", "AveragePool")
_UNARY = (
    "Relu", "Clip", "LeakyRelu", "Elu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Softplus", "Abs", "Neg", "Sqrt",
    "Exp",
)  # fmt: skip
_UINT8_POOLS = 12  # the opset since which MaxPool takes uint8
_MANY = ("Add", "Sub", "Mul", "Div", "Sum", "Max", "Min")


@dataclass(frozen=True)
class Window:
    """What one element of the output reads along one axis.

    Attributes:
        extent: From the first element read to the last, both included.
        stride: From one window to the next.
        before: Padding in front; negative where the front is cut off.
    """

    extent: int = 1
    stride: int = 1
    before: int = 0

    def read_by(self, outputs: Interval) -> Interval:
        """What these outputs read; padding counts from -1 down and from the input's length up."""
        first, end = outputs
        start = first * self.stride - self.before
        return start, start + (end - 1 - first) * self.stride + self.extent

    def reached_from(self, inputs: Interval, length: int) -> Interval:
        """Which of `length` outputs read one of these inputs, or lie between two that do."""
        first, end = inputs
        low = -((self.extent - 1 - first - self.before) // self.stride)
        high = (end - 1 + self.before) // self.stride + 1
        return min(max(low, 0), length), max(min(high, length), 0)


@dataclass(frozen=True)
class Local:
    """A node each output element of which depends on a window of its inputs.

    Attributes:
        node: The node.
        inputs: Which of its inputs hold pixels; each is read by the same windows.
        windows: Of rows and of columns.
    """

    node: gs.Node
    inputs: tuple[int, ...]
    windows: tuple[Window, Window]

    def read_by(self, box: Box) -> Box:
        """What a part of the output reads, padding included."""
        rows, columns = self.windows
        return rows.read_by(box[0]), columns.read_by(box[1])

    def reached_from(self, box: Box, whole: Box) -> Box:
        """The part of the whole output that a part of the inputs reaches."""
        rows, columns = self.windows
        return rows.reached_from(box[0], whole[0][1]), columns.reached_from(box[1], whole[1][1])


def size_of(tensor: gs.Tensor) -> Box | None:
    """All of a tensor [N, C, H, W] of known shape; None for others."""
    shape = tensor.shape
    if shape is None or len(shape) != 4 or not all(isinstance(length, int) for length in shape):
        return None
    return (0, shape[2]), (0, shape[3])


def clipped(box: Box, to: Box) -> Box:
    """What two boxes have in common; empty, or worse, where that is nothing."""
    (a, b), (c, d) = box
    (e, f), (g, h) = to
    return (max(a, e), min(b, f)), (max(c, g), min(d, h))


def hull(one: Box, two: Box) -> Box:
    """The smallest box that holds both."""
    (a, b), (c, d) = one
    (e, f), (g, h) = two
    return (min(a, e), max(b, f)), (min(c, g), max(d, h))


def is_empty(box: Box) -> bool:
    """Whether nothing is inside."""
    return any(first >= end for first, end in box)


def area(box: Box) -> int:
    """How many elements are inside."""
    (a, b), (c, d) = box
    return (b - a) * (d - c)


def local_of(view: GraphView, node: gs.Node) -> Local | None:
    """A node as windows on its inputs; None where it is not local, or its shape is not known."""
    if len(node.outputs) != 1 or size_of(node.outputs[0]) is None or not node.inputs:
        return None
    if is_onnx(node, "Conv", *POOLS):
        return _sliding(node)
    if is_onnx(node, "Slice"):
        return _cut(view, node)
    inputs = _elementwise(view, node)
    return Local(node, inputs, (Window(), Window())) if inputs else None


def _elementwise(view: GraphView, node: gs.Node) -> tuple[int, ...]:
    """The inputs that an operator on single elements reads pixels from; none where it is no such operator."""
    if is_onnx(node, *_UNARY, "BatchNormalization"):
        return (0,) if all(isinstance(t, gs.Constant) or t.is_empty() for t in node.inputs[1:]) else ()
    if is_onnx(node, "QuantizeLinear", "DequantizeLinear"):
        return (0,) if _has_one_grid(view, node) else ()
    index = arithmetic_input(node)
    if index is not None:
        constant = view.array(node.inputs[1 - index])
        size = constant.size if constant is not None else 0
        whole = size_of(node.inputs[index]) == size_of(node.outputs[0])
        return (index,) if whole and constant is not None and channel_vector(constant, 4, size) is not None else ()
    joins = is_onnx(node, "Concat") and node.attrs["axis"] in (1, -3)
    same = all(size_of(t) == size_of(node.outputs[0]) and not isinstance(t, gs.Constant) for t in node.inputs)
    return tuple(range(len(node.inputs))) if same and (joins or is_onnx(node, *_MANY)) else ()


def _has_one_grid(view: GraphView, node: gs.Node) -> bool:
    """Whether a quantization of pixels is to or from uint8, with one scale and zero point for all of them."""
    if len(node.inputs) != 3 or isinstance(node.inputs[0], gs.Constant) or view.opset < _UINT8_POOLS:
        return False
    scale, zero = (view.array(tensor) for tensor in node.inputs[1:])
    return scale is not None and zero is not None and scale.size == zero.size == 1 and zero.dtype == np.uint8


def _is_constant(tensor: gs.Tensor) -> bool:
    """Whether a tensor is a constant, or dequantized from constants alone."""
    made = tensor.inputs[0] if tensor.inputs else None
    if made is None or not is_onnx(made, "DequantizeLinear"):
        return isinstance(tensor, gs.Constant)
    return all(isinstance(value, gs.Constant) for value in made.inputs)


def _sliding(node: gs.Node) -> Local | None:
    """A convolution or pooling whose padding is told by numbers and stays what it is in a part of the picture."""
    attrs, size, out = node.attrs, size_of(node.inputs[0]), size_of(node.outputs[0])
    if size is None or out is None or attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return None
    if node.op == "Conv" and not all(map(_is_constant, node.inputs[1:])):
        return None
    kernel = node.inputs[1].shape[2:] if node.op == "Conv" else attrs["kernel_shape"]
    strides, dilations = attrs.get("strides") or (1, 1), attrs.get("dilations") or (1, 1)
    pads = None if attrs.get("auto_pad") == "VALID" else attrs.get("pads")
    before = pads or (0, 0, 0, 0)
    rows, columns = (Window((kernel[i] - 1) * dilations[i] + 1, strides[i], before[i]) for i in (0, 1))
    made = Local(node, (0,), (rows, columns))
    if node.op != "Conv" and _steps_over(made, size, out):
        return None
    # what rounding up adds is not counted by the average, padding is: as a part's padding it would be
    counts = node.op == "AveragePool" and attrs.get("count_include_pad", 0) and attrs.get("ceil_mode", 0)
    return None if counts else made


def _steps_over(pool: Local, size: Box, out: Box) -> bool:
    """Whether a window of a pooling holds nothing but padding."""
    windows = zip(pool.windows, size, out, strict=True)
    return any(w.before >= w.extent or w.read_by((o[1] - 1, o[1]))[0] >= s[1] for w, s, o in windows)


def _cut(view: GraphView, node: gs.Node) -> Local | None:
    crop = crop_of(view, node)
    ranges = crop.ranges(node.inputs[0].shape) if crop is not None else None
    if ranges is None or size_of(node.inputs[0]) is None or 0 in ranges:
        return None
    rows, columns = (Window(before=-ranges[axis][0]) if axis in ranges else Window() for axis in SPATIAL)
    return Local(node, (0,), (rows, columns))
