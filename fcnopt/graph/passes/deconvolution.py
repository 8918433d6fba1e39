"""How much of a transposed convolution's output a crop leaves, as its padding.

Along one axis, with n inputs, stride s and K = (k - 1) * dilation + 1, the full output has the elements

    full = s * (n - 1) + K + output_padding,      input i reaches [i * s, i * s + K)

and [pad_begin, full - pad_end) of them are written. Cropping c at the start makes pad_begin + c of it. Padding stays
below K: of a larger one, whole inputs are not needed, floor((pad - K) / s) + 1 of them, each worth s of padding.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_graphsurgeon as gs

from fcnopt.graph.passes.slices import OPEN_END, Crop
from fcnopt.graph.passes.view import label


@dataclass(frozen=True)
class Fit:
    """The attributes that do a crop's work; one entry a spatial axis.

    Attributes:
        pads: All begins, then all ends, as ONNX has them.
        output_padding: What is left of it.
        skip_begin: Inputs at the start that are not needed.
        skip_end: Inputs at the end that are not needed.
    """

    pads: tuple[int, ...]
    output_padding: tuple[int, ...]
    skip_begin: tuple[int, ...]
    skip_end: tuple[int, ...]


def fit_crop(node: gs.Node, crop: Crop) -> Fit | str:
    """The attributes of a ConvTranspose that writes only what a crop keeps, or why there are none.

    Args:
        node: With a constant weight (in, out/group, taps...).
        crop: Of the node's output.
    """
    attrs, kernel = node.attrs, node.inputs[1].shape[2:]
    count, shape = len(kernel), crop.node.inputs[0].shape
    if attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID") or attrs.get("output_shape"):
        return f"{label(node)} derives its padding from its output's shape"
    if min(crop.axes) < 2:
        return "it cuts batch or channels"
    ranges = crop.ranges(shape)
    if ranges is None:
        return "its bounds depend on the input's size"
    strides, dilations = (list(attrs.get(key) or [1] * count) for key in ("strides", "dilations"))
    pads, extra = (list(attrs.get(key) or [0] * size) for key, size in (("pads", 2 * count), ("output_padding", count)))
    skips = ([0] * count, [0] * count)
    for axis, (start, end) in ranges.items():
        length = shape[axis] if shape is not None else None
        cut = max(0, length - end) if isinstance(length, int) else 0
        if not isinstance(length, int) and end < OPEN_END:
            return "how much it cuts off the end depends on the input's size"
        if start >= end:
            return "it keeps nothing"
        spatial = axis - 2
        reach, stride = (kernel[spatial] - 1) * dilations[spatial] + 1, strides[spatial]
        spared = min(extra[spatial], cut)
        extra[spatial] -= spared
        for side, more in ((0, start), (1, cut - spared)):
            place = spatial + side * count
            pads[place] += more
            skips[side][spatial] = skip = (pads[place] - reach) // stride + 1 if pads[place] >= reach else 0
            pads[place] -= skip * stride
        if min(pads) < 0 or (skips[1][spatial] and extra[spatial]):
            return f"what it keeps of {label(node)} begins or ends between its taps"
    return Fit(tuple(pads), tuple(extra), tuple(skips[0]), tuple(skips[1]))
