"""What a convolution multiplies its weight with, at sampled places: its input as a matrix."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray


def patches(node: gs.Node, values: NDArray[np.float32], count: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Rows x such that `x @ weight[o].ravel() + bias[o]` is the node's result at one place.

    Args:
        node: A Conv of two spatial axes and one group, or a Gemm that reads rows.
        values: Its data input: [N, C, H, W], or [rows, columns] for a Gemm.
        count: Most rows; places are drawn without repetition.
        rng: For the places.

    Returns:
        [rows, C * kH * kW], the axes in the weight's order (in, kH, kW).
    """
    if node.op == "Gemm":
        return values[_drawn(len(values), count, rng)]
    kernel = node.inputs[1].shape[2:]
    strides, dilations = node.attrs.get("strides", [1, 1]), node.attrs.get("dilations", [1, 1])
    top, left, bottom, right = padding(node, values.shape[2:])
    padded = np.pad(values, ((0, 0), (0, 0), (top, bottom), (left, right)))
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    windows = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=(2, 3))
    # (N, C, H', W', kH, kW): every window's dilated taps, at the places that the strides reach
    windows = windows[:, :, :: strides[0], :: strides[1], :: dilations[0], :: dilations[1]]
    batch, _, height, width = windows.shape[:4]
    image, row, column = np.unravel_index(_drawn(batch * height * width, count, rng), (batch, height, width))
    taken = windows[image, :, row, column]  # (rows, C, kH, kW)
    return np.ascontiguousarray(taken).reshape(len(taken), -1)


def padding(node: gs.Node, size: tuple[int, ...]) -> tuple[int, int, int, int]:
    """Rows and columns of zeros that a Conv adds: (top, left, bottom, right).

    Args:
        node: A Conv of two spatial axes.
        size: (H, W) of its input, which `auto_pad` refers to.
    """
    mode = node.attrs.get("auto_pad", "NOTSET")
    if mode == "NOTSET":
        top, left, bottom, right = node.attrs.get("pads", [0, 0, 0, 0])
        return top, left, bottom, right
    if mode == "VALID":
        return 0, 0, 0, 0
    kernel = node.inputs[1].shape[2:]
    strides, dilations = node.attrs.get("strides", [1, 1]), node.attrs.get("dilations", [1, 1])
    total = [
        max(0, (-(-length // s) - 1) * s + (k - 1) * d + 1 - length)
        for length, k, s, d in zip(size, kernel, strides, dilations, strict=True)
    ]
    small, large = [t // 2 for t in total], [t - t // 2 for t in total]
    first, last = (small, large) if mode == "SAME_UPPER" else (large, small)
    return first[0], first[1], last[0], last[1]


def _drawn(available: int, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    return np.arange(available) if available <= count else rng.choice(available, count, replace=False)
