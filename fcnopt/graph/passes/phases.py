"""Labels decided before the last upsampling is put together.

A transposed convolution of stride s and kernel k writes, along one axis with n inputs and before its padding is cut,

    full[s q + r] = sum_j x[q - j] w[s j + r],     0 <= r < s,  0 <= j < T = ceil(k / s),  0 <= q < n + T - 1

which is, for each phase r, a plain convolution of T taps. So it equals one Conv with s * s times the channels on the
small grid, then DepthToSpace, then a crop (Shi et al., "Is the deconvolution layer the same as a convolutional
layer?", 2016). ArgMax compares the channels of one place and moves nothing:

    ArgMax(crop(DepthToSpace(z)))  =  crop(DepthToSpace(ArgMax(z by phase)))

so the logits are never laid out at full size, and what is interleaved and cropped is one byte a pixel.

Paid on CPUs: OpenVINO computes the last step of an FCN-8s, deconvolution by 8 and ArgMax, in a sixth of the time.
TensorRT knows no uint8 inside a graph, so it is not offered to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from fcnopt.graph.passes.base import Pass
from fcnopt.graph.passes.view import GraphView, is_onnx, label

_OPEN_END = np.iinfo(np.int64).max
_UINT8_DEPTH_TO_SPACE = 13  # the opset since which DepthToSpace and Slice take uint8 in every runtime used here


@dataclass(frozen=True)
class PhasesMatch:
    """The last step of a segmentation network.

    Attributes:
        deconv: The transposed convolution that writes the logits.
        argmax: Reads them.
        cast: Makes uint8 labels of its indices.
    """

    deconv: gs.Node
    argmax: gs.Node
    cast: gs.Node


class PhasesPass(Pass[PhasesMatch]):
    """Compute the last transposed convolution by phases, and take the ArgMax before they are interleaved."""

    name = "labels before the last upsampling"
    moves_logits = True  # by phase

    def match(self, view: GraphView, node: gs.Node) -> Iterator[PhasesMatch]:
        """ConvTranspose, ArgMax and a Cast to uint8, which is an output."""
        if not is_onnx(node, "ArgMax"):
            return
        deconv, cast = view.producer(node.inputs[0]), view.only_user(node.outputs[0])
        if deconv is None or not is_onnx(deconv, "ConvTranspose"):
            return
        if cast is None or not is_onnx(cast, "Cast"):
            return
        if view.is_output(cast.outputs[0]) and cast.attrs["to"] in (onnx.TensorProto.UINT8, np.uint8):
            yield PhasesMatch(deconv, node, cast)

    def check(self, view: GraphView, match: PhasesMatch) -> str:
        """Whether nothing else reads the logits, and stride, kernel and padding are those of a plain upsampling."""
        node, shape = match.deconv, match.deconv.inputs[0].shape
        weight = view.array(node.inputs[1])
        if view.only_user(node.outputs[0]) is None:
            return "the logits are read by others too"
        if match.argmax.attrs.get("axis", 0) not in (1, -3) or shape is None or len(shape) != 4:
            return f"{label(match.argmax)} does not compare channels of a picture"
        if weight is None or weight.dtype != np.float32:
            return "its weight is not a float32 constant"
        if len(node.inputs) > 2 and view.array(node.inputs[2]) is None:
            return "its bias is computed"
        if view.opset < _UINT8_DEPTH_TO_SPACE:
            return f"opset {view.opset} is too old"
        return _geometry_refusal(node)

    def rewrite(self, view: GraphView, match: PhasesMatch) -> str:
        """Conv by phases, ArgMax over classes, then interleave and crop the labels."""
        node, argmax, logits, labels = match.deconv, match.argmax, match.deconv.outputs[0], match.cast.outputs[0]
        done = f"{label(argmax)} before the interleaving of {label(node)}"
        weight = view.array(node.inputs[1])
        if weight is None:
            raise ValueError("rewrite of a match that was not checked")
        stride, classes = node.attrs["strides"][0], weight.shape[1] * int(node.attrs.get("group", 1))
        phases = _by_phases(weight, int(node.attrs.get("group", 1)), stride)
        taps = phases.shape[2]
        inputs = [node.inputs[0], view.constant(f"{node.inputs[1].name}_phases", phases)]
        if len(node.inputs) > 2:
            bias = np.asarray(view.array(node.inputs[2]), np.float32)
            inputs.append(view.constant(f"{node.inputs[2].name}_phases", np.repeat(bias, stride * stride)))
        attrs = {"kernel_shape": [taps, taps], "pads": [taps - 1] * 4, "group": int(node.attrs.get("group", 1))}
        begins, ends = _crop(node)
        keepdims = bool(argmax.attrs.get("keepdims", 1))
        kept = {key: value for key, value in argmax.attrs.items() if key == "select_last_index"}
        for one in (node, argmax, match.cast):
            view.drop(one)
        logits.shape = None
        chain = _Chain(view, inputs)
        chain.add("Conv", node.name or "upsampling", attrs, np.float32)
        # the phases beside the rows, so that ArgMax sees four axes: [N, classes, stride^2 * rows, columns]
        chain.add("Reshape", "by_class", {}, np.float32, np.array([0, classes, -1, 0]), output=logits)
        chain.add("ArgMax", "class_of_phase", {"axis": 1, "keepdims": 1, **kept}, np.int64)
        chain.add("Cast", "phase_labels", {"to": onnx.TensorProto.UINT8}, np.uint8)
        chain.add("Reshape", "by_phase", {}, np.uint8, np.array([0, stride * stride, -1, 0]))
        chain.add("DepthToSpace", "interleaved", {"blocksize": stride, "mode": "DCR"}, np.uint8)
        if not keepdims:
            chain.add("Squeeze", "label_rows", {}, np.uint8, np.array([1]))
        axes = np.array([2, 3] if keepdims else [1, 2])
        chain.add("Slice", "cropped", {}, np.uint8, np.array(begins), np.array(ends), axes, output=labels)
        return done


class _Chain:
    """Nodes put one behind the other."""

    def __init__(self, view: GraphView, inputs: list[gs.Tensor]) -> None:
        self._view = view
        self._inputs = inputs

    def add(
        self, op: str, name: str, attrs: dict[str, Any], kind: Any, *constants: NDArray[Any], output: Any = None
    ) -> None:
        """Append a node that reads what the last one wrote, and constants."""
        inputs = [*self._inputs, *(self._view.constant(f"{name}_{i}", array) for i, array in enumerate(constants))]
        result = output if output is not None else gs.Variable(self._view.free_name(f"{name}_result"), kind)
        self._view.add(gs.Node(op, name, attrs, inputs, [result]))
        self._inputs = [result]


def _by_phases(weight: NDArray[np.float32], groups: int, stride: int) -> NDArray[np.float32]:
    """The weight of the convolution, (classes * stride^2, in/group, T, T), from (in, classes/group, k, k)."""
    size, out, kernel, _ = weight.shape
    taps = -(-kernel // stride)
    more = taps * stride - kernel
    whole = np.pad(weight, ((0, 0), (0, 0), (0, more), (0, more)))
    parts = whole.reshape(groups, size // groups, out, taps, stride, taps, stride)[:, :, :, ::-1, :, ::-1]
    ordered = parts.transpose(0, 2, 4, 6, 1, 3, 5)  # group, class, phase row, phase column, in, tap row, tap column
    return np.ascontiguousarray(ordered.reshape(groups * out * stride * stride, size // groups, taps, taps))


def _geometry_refusal(node: gs.Node) -> str:
    attrs, kernel = node.attrs, node.inputs[1].shape[2:]
    strides = list(attrs.get("strides") or [1, 1])
    if strides[0] != strides[1] or strides[0] == 1 or kernel[0] != kernel[1]:
        return f"strides {strides} and kernel {list(kernel)} are not those of an upsampling"
    if any(step != 1 for step in attrs.get("dilations") or ()):
        return "it is dilated"
    if attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID") or attrs.get("output_shape"):
        return "it derives its padding from its output's shape"
    begins, ends = _crop(node)
    if min(begins) < 0 or any(end > 0 and end != _OPEN_END for end in ends):
        return "it writes more than its inputs reach"
    return ""


def _crop(node: gs.Node) -> tuple[list[int], list[int]]:
    """Begins and ends, from the end, of what a transposed convolution keeps of all phases, rows then columns.

    All phases are s (n + T - 1) = s (n - 1) + s T elements; kept are [pad_begin, s (n - 1) + k + output_padding -
    pad_end), which is s T - k - output_padding + pad_end before the end. Positive ends are out of reach.
    """
    kernel, stride = node.inputs[1].shape[2], node.attrs["strides"][0]
    pads = list(node.attrs.get("pads") or [0] * 4)
    extra = list(node.attrs.get("output_padding") or [0, 0])
    whole = -(-kernel // stride) * stride
    spare = [whole - kernel - extra[axis] + pads[2 + axis] for axis in (0, 1)]
    return pads[:2], [-amount if amount else _OPEN_END for amount in spare]
