"""Crops (Slice): merged, pushed up to where they save work, and taken into transposed convolutions.

merged    crop(crop(x)) is one crop: bounds of different axes stand side by side, those of one axis add up.
pushed    crop(f(x)) = f(crop(x)) for f that works on each element (with one constant a channel) and for a 1x1
          convolution of stride 1 without padding. Done only if it ends above a 1x1 convolution, which then has
          less to do, or at a crop or transposed convolution that takes it in: never to stand between a
          convolution and its ReLU.
taken in  A transposed convolution writes y[r] for r in [pad_begin, full - pad_end): a crop of c elements at the
          start and d at the end is pad_begin + c and pad_end + d. Input rows all of whose kK taps then fall into
          the padding (row i covers [i * stride, i * stride + K)) are not read at all: the crop goes on upwards.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import onnx_graphsurgeon as gs

from fcnopt.graph.passes.affine import arithmetic_input, channel_vector
from fcnopt.graph.passes.base import Pass
from fcnopt.graph.passes.deconvolution import Fit, fit_crop
from fcnopt.graph.passes.slices import Bounds, Crop, crop_of, joined, write_crop
from fcnopt.graph.passes.view import GraphView, is_onnx, label

_UNARY = (
    "Relu", "Clip", "LeakyRelu", "Elu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Softplus", "Abs", "Neg", "Sqrt",
    "Exp", "Log", "Cast", "BatchNormalization",
)  # fmt: skip


@dataclass(frozen=True)
class CropMatch:
    """A crop and where it could go.

    Attributes:
        crop: The Slice.
        kind: Merge it into the crop above, take it into the transposed convolution above, or push it up.
        above: The node that merges it or takes it in.
        passed: For a push, the nodes that it passes, from below.
    """

    crop: Crop
    kind: Literal["merge", "take in", "push"]
    above: gs.Node | None = None
    passed: tuple[gs.Node, ...] = field(default=())


class CropPass(Pass[CropMatch]):
    """Let crops cost nothing, and save what they cut off."""

    name = "crops merged and pushed up"

    def match(self, view: GraphView, node: gs.Node) -> Iterator[CropMatch]:
        """A Slice below another, below a transposed convolution, or below nodes that it can pass."""
        crop = crop_of(view, node)
        if crop is None:
            return
        passed, above = _climb(view, crop)
        if not passed and above is not None:
            yield CropMatch(crop, "merge" if above.op == "Slice" else "take in", above)
        elif above is not None and not _end_refusal(view, crop, above):
            yield CropMatch(crop, "push", above, passed)
        else:
            worth = [i for i, step in enumerate(passed) if step.op == "Conv"]
            if worth:
                yield CropMatch(crop, "push", None, passed[: worth[-1] + 1])

    def check(self, view: GraphView, match: CropMatch) -> str:
        """Whether the crop above can take this one in; what a push may pass was found by `match`."""
        if match.kind == "push" or match.above is None:
            return ""
        return _end_refusal(view, match.crop, match.above)

    def rewrite(self, view: GraphView, match: CropMatch) -> str:
        """Merge, take in, or push."""
        crop, above = match.crop, match.above
        if match.kind == "push":
            _push(view, crop, match.passed)
            return f"pushed {label(crop.node)} above {', '.join(map(label, match.passed))}"
        if above is None:
            raise ValueError("rewrite of a match that was not checked")
        if above.op == "Slice":
            done = f"merged {label(crop.node)} and {label(above)}"
            _merge(view, crop, above)
            return done
        done = f"took {label(crop.node)} into the padding of {label(above)}"
        fit = _fit(crop, above)
        if isinstance(fit, str):
            raise ValueError("rewrite of a match that was not checked")
        _take_in(view, crop, above, fit)
        return done


def _climb(view: GraphView, crop: Crop) -> tuple[tuple[gs.Node, ...], gs.Node | None]:
    """The nodes above a crop that it can pass, from below, and the Slice or ConvTranspose above these."""
    passed: list[gs.Node] = []
    tensor, below = crop.node.inputs[0], crop.node
    while True:
        node = view.producer(tensor)
        if node is None or view.only_user(tensor) is not below:
            return tuple(passed), None
        if is_onnx(node, "Slice", "ConvTranspose"):
            return tuple(passed), node
        index = _passable(view, node, crop)
        if index is None:
            return tuple(passed), None
        passed.append(node)
        tensor, below = node.inputs[index], node


def _passable(view: GraphView, node: gs.Node, crop: Crop) -> int | None:
    """The input at which a crop can be done instead of at the output, None if it cannot."""
    if is_onnx(node, "BatchNormalization") and any(not t.is_empty() for t in node.outputs[1:]):
        return None
    if is_onnx(node, "Cast") and _decides(node):
        return None
    if is_onnx(node, *_UNARY):
        return 0 if node.op != "BatchNormalization" or min(crop.axes) > 1 else None
    index = arithmetic_input(node)
    shape = node.inputs[index].shape if index is not None else None
    if index is not None and shape is not None:
        constant = view.array(node.inputs[1 - index])
        uniform = constant is not None and channel_vector(constant, len(shape), constant.size) is not None
        return index if uniform and (min(crop.axes) > 1 or (constant is not None and constant.size == 1)) else None
    return 0 if is_onnx(node, "Conv") and _is_pointwise(node) and min(crop.axes) > 1 else None


def _decides(cast: gs.Node) -> bool:
    """Whether a Cast makes integers of floats: what it reads is looked at whole when the rewrite is proved."""
    return np.dtype(cast.outputs[0].dtype).kind in "iub" and np.dtype(cast.inputs[0].dtype).kind not in "iub"


def _is_pointwise(node: gs.Node) -> bool:
    """Whether a convolution has one tap, stride 1 and no padding."""
    weight, attrs = node.inputs[1], node.attrs
    kernel = attrs.get("kernel_shape") or (weight.shape[2:] if weight.shape else [])
    padded = any(attrs.get("pads", ())) or attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID")
    return bool(kernel) and set(kernel) == {1} and set(attrs.get("strides", [1])) == {1} and not padded


def _end_refusal(view: GraphView, crop: Crop, above: gs.Node) -> str:
    """Why the Slice or ConvTranspose above cannot take a crop in, "" if it can."""
    if above.op == "Slice":
        return _merge_refusal(view, crop, above)
    fit = _fit(crop, above)
    return fit if isinstance(fit, str) else ""


def _fit(crop: Crop, node: gs.Node) -> Fit | str:
    if not isinstance(node.inputs[1], gs.Constant):
        return f"the weight of {label(node)} is not a constant"
    return fit_crop(node, crop)


def _merge_refusal(view: GraphView, crop: Crop, above: gs.Node) -> str:
    first = crop_of(view, above)
    if first is None:
        return f"the axes of {label(above)} are not constants"
    if set(first.axes) & set(crop.axes):
        if first.ranges(above.inputs[0].shape) is None or crop.ranges(crop.node.inputs[0].shape) is None:
            return f"it cuts an axis that {label(above)} cuts too, and their bounds do not simply add up"
        return ""
    dtypes = {b.dtype for c in (first, crop) for b in (c.starts, c.ends) if not isinstance(b, np.ndarray)}
    if None in dtypes or len(dtypes) > 1:
        return f"its bounds and those of {label(above)} are computed in different types"
    return ""


def _merge(view: GraphView, crop: Crop, above: gs.Node) -> None:
    """Let a crop do what the crop above it does too."""
    first, node = crop_of(view, above), crop.node
    if first is None:
        raise ValueError("merge of a crop that was not checked")
    axes: tuple[int, ...] = (*first.axes, *crop.axes)
    steps: tuple[int, ...] = (*first.steps, *crop.steps)
    bounds: list[Bounds]
    one, two = first.ranges(above.inputs[0].shape), crop.ranges(node.inputs[0].shape)
    if set(first.axes) & set(crop.axes) and one is not None and two is not None:
        both = dict(one)
        for axis, (start, end) in two.items():
            begin, stop = one.get(axis, (0, 2**63 - 1))
            both[axis] = (begin + start, min(stop, begin + end))
        axes, steps = tuple(both), (1,) * len(both)
        bounds = [np.array([pair[side] for pair in both.values()], np.int64) for side in (0, 1)]
    else:
        name = node.outputs[0].name
        bounds = [
            joined(view, f"{name}.{what}", getattr(first, what), getattr(crop, what)) for what in ("starts", "ends")
        ]
    node.inputs[0] = above.inputs[0]
    write_crop(view, node, axes, bounds, steps)


def _take_in(view: GraphView, crop: Crop, node: gs.Node, fit: Fit) -> None:
    """Turn a crop into padding of the transposed convolution above it, and into a crop of its input if that is long."""
    node.attrs["pads"], node.attrs["output_padding"] = list(fit.pads), list(fit.output_padding)
    if not any(fit.output_padding):
        del node.attrs["output_padding"]
    node.attrs.pop("auto_pad", None)
    if any(fit.skip_begin) or any(fit.skip_end):
        data = node.inputs[0]
        part = view.variable(f"{data.name}.crop", data)
        above = gs.Node("Slice", view.free_name(f"{crop.node.name or part.name}.input"), {}, [data], [part])
        ends = np.array([-skip if skip else 2**63 - 1 for skip in fit.skip_end], np.int64)
        axes = [axis + 2 for axis in range(len(ends))]
        write_crop(view, above, axes, (np.array(fit.skip_begin, np.int64), ends), [1] * len(axes))
        view.add(above)
        node.inputs[0] = part
    node.outputs[0].shape = None
    view.bypass(crop.node)


def _push(view: GraphView, crop: Crop, passed: tuple[gs.Node, ...]) -> None:
    """Move a crop above these nodes; the lowest of them then writes what the crop wrote."""
    lowest, highest = passed[0], passed[-1]
    result, index = crop.node.outputs[0], arithmetic_input(highest) or 0
    data = highest.inputs[index]
    part = view.variable(f"{data.name}.crop", data)
    crop.node.outputs.clear()
    crop.node.outputs.append(part)
    crop.node.inputs[0] = data
    highest.inputs[index] = part
    for node in passed:
        node.outputs[0].shape = None
    lowest.outputs[0] = result
