"""Frames brought to the size a model takes, and labels brought back to the frame's own size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from fcnopt.errors import MediaError, UsageError
from fcnopt.spec import FrameSpec

_Value = TypeVar("_Value", np.uint8, np.float32)


@dataclass(frozen=True)
class _Box:
    """Where the picture lies inside the model's frame, in pixels; the rest is padding."""

    top: int
    left: int
    height: int
    width: int


def fit_frame(image: NDArray[np.uint8], spec: FrameSpec) -> NDArray[np.uint8]:
    """A frame as the model takes it: its size by `spec.resize`, its channels in the order `spec.color`.

    Args:
        image: uint8 [H, W, 3], BGR.
        spec: Of the model; a height or width of None takes the image's own.

    Returns:
        uint8 [spec.height, spec.width, 3]; `image` itself where nothing is to be done.

    Raises:
        UsageError: `image` is not uint8 [H, W, 3].
        MediaError: The size differs and `spec.resize` is `none`.
    """
    _check_frame(image)
    size = (image.shape[0], image.shape[1])
    target, box = _placement(size, spec)
    if target != size:
        fitted = _scaled(image, box)
        if (box.height, box.width) != target:
            fitted = _padded(fitted, target, box, spec)
        image = fitted
    return image if spec.color == "BGR" else _swapped(image)


def _check_frame(image: object) -> None:
    """Refuse what is no frame: a camera's driver may hand out anything."""
    if not isinstance(image, np.ndarray):
        found = type(image).__name__
    elif image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        found = f"{image.dtype} {list(image.shape)}"
    else:
        return
    raise UsageError(
        f"frame: expected uint8 [H, W, 3], found {found}", fix="hand in 8-bit colour frames, channels last"
    )


def restore_labels(labels: NDArray[_Value], size: tuple[int, int], spec: FrameSpec) -> NDArray[_Value]:
    """A model's labels at the frame's own size: the inverse of `fit_frame`, by nearest neighbour.

    Args:
        labels: uint8 [spec.height, spec.width]; or float32, the confidence in them: each pixel keeps its label's.
        size: (height, width) of the frame before `fit_frame`.
        spec: Of the model.

    Returns:
        [*size], of the same type; `labels` itself where the sizes agree.

    Raises:
        MediaError: `labels` does not have the size of a frame that `fit_frame` made from `size`.
    """
    target, box = _placement(size, spec)
    if labels.shape != target:
        raise MediaError(
            f"labels: expected {_text(target)} for a frame of {_text(size)}, found {list(labels.shape)}",
            fix="give the labels of one frame, and the spec of the model that made them",
        )
    if target == size:
        return labels
    inside = labels[box.top : box.top + box.height, box.left : box.left + box.width]
    picked = cv2.resize(inside, (size[1], size[0]), interpolation=cv2.INTER_NEAREST_EXACT)
    return np.asarray(picked, labels.dtype)


def _placement(size: tuple[int, int], spec: FrameSpec) -> tuple[tuple[int, int], _Box]:
    """The model's frame size for a frame of `size`, and where the picture lies in it."""
    target = (spec.height or size[0], spec.width or size[1])
    if spec.resize == "none" and target != size:
        raise MediaError(
            f"frame: expected {_text(target)}, found {_text(size)}, and the model's spec says not to resize",
            fix=f"give frames of {_text(target)}, or export the model with --resize stretch or letterbox",
        )
    if spec.resize != "letterbox":
        return target, _Box(0, 0, *target)
    scale = min(target[0] / size[0], target[1] / size[1])
    height, width = (min(t, max(1, round(s * scale))) for s, t in zip(size, target, strict=True))
    return target, _Box((target[0] - height) // 2, (target[1] - width) // 2, height, width)


def _scaled(image: NDArray[np.uint8], box: _Box) -> NDArray[np.uint8]:
    if image.shape[:2] == (box.height, box.width):
        return image
    shrinks = box.height * box.width < image.shape[0] * image.shape[1]
    # area averages all pixels: no aliasing; it does not interpolate, so growing is linear
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, (box.width, box.height), interpolation=method), np.uint8)


def _padded(image: NDArray[np.uint8], target: tuple[int, int], box: _Box, spec: FrameSpec) -> NDArray[np.uint8]:
    """The picture in the middle of a frame of the mean colour, which is zero after normalization."""
    norm = spec.normalization
    mean = np.array(norm.mean) / norm.scale
    padded = np.empty((*target, 3), np.uint8)
    padded[:] = np.clip(np.rint(mean if norm.color == "BGR" else mean[::-1]), 0, 255)
    padded[box.top : box.top + box.height, box.left : box.left + box.width] = image
    return padded


def _swapped(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)


def _text(size: tuple[int, int]) -> str:
    return f"{size[1]}x{size[0]} (width x height)"
