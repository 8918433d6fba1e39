"""What a training step sees: crops at several scales, mirrored or not, in another light, with the original's answer."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from fcnopt.slimming.frames import Frames, known_labels, normalized
from fcnopt.slimming.options import RecoveryOptions
from fcnopt.slimming.teacher import Teacher
from fcnopt.spec import ModelSpec

_SCALES = (0.8, 1.3)
_STRIDE = 32


@dataclass(frozen=True)
class Sample:
    """A batch.

    Attributes:
        pixels: Normalized, float [N, 3, h, w].
        logits: The original's, float [N, classes, h, w].
        labels: int64 [N, h, w], -1 where unknown; None without label maps.
    """

    pixels: Tensor
    logits: Tensor
    labels: Tensor | None


def draw(frames: Frames, teacher: Teacher, spec: ModelSpec, options: RecoveryOptions, step: int) -> Sample:
    """The batch of a step: it hangs on seed and step alone, and every frame comes once before any comes again."""
    count = len(frames.train)
    rng = np.random.default_rng((options.seed, 1, step))
    images, logits, labels = [], [], []
    for at in range(step * options.batch, (step + 1) * options.batch):
        order = np.random.default_rng((options.seed, 0, at // count)).permutation(count)
        place = int(frames.train[order[at % count]])
        window = _window(frames, options, rng)
        images.append(_lit(_cut(frames.images[place], window, cv2.INTER_LINEAR), rng))
        logits.append(_cut_logits(teacher.logits(place), window))
        if frames.labels is not None:
            labels.append(_cut(frames.labels[place], window, cv2.INTER_NEAREST))
    truth = known_labels(np.stack(labels), spec.classes) if labels else None
    return Sample(normalized(np.stack(images), spec.frame.normalization), torch.cat(logits), truth)


@dataclass(frozen=True)
class _Window:
    """A part of a frame, and the size that it is brought to; whether it is mirrored."""

    top: int
    left: int
    height: int
    width: int
    size: tuple[int, int]
    mirrored: bool


def crop_size(height: int, width: int, options: RecoveryOptions) -> tuple[int, int]:
    """(height, width) of a crop."""
    if options.crop is not None:
        return min(options.crop[0], height), min(options.crop[1], width)
    wanted = (round(0.7 * side / _STRIDE) * _STRIDE for side in (height, width))
    rows, columns = (max(_STRIDE, side) for side in wanted)
    return min(rows, height), min(columns, width)


def _window(frames: Frames, options: RecoveryOptions, rng: np.random.Generator) -> _Window:
    height, width = frames.images.shape[1:3]
    size = crop_size(height, width, options)
    scale = float(np.exp(rng.uniform(*np.log(_SCALES))))
    scale = max(scale, size[0] / height, size[1] / width)
    rows, columns = (max(1, round(side / scale)) for side in size)
    top, left = (int(rng.integers(0, whole - part + 1)) for whole, part in ((height, rows), (width, columns)))
    return _Window(top, left, rows, columns, size, bool(rng.random() < 0.5))


def _cut(image: NDArray[np.uint8], window: _Window, method: int) -> NDArray[np.uint8]:
    part = image[window.top : window.top + window.height, window.left : window.left + window.width]
    part = part[:, ::-1] if window.mirrored else part
    return np.asarray(cv2.resize(np.ascontiguousarray(part), window.size[::-1], interpolation=method), np.uint8)


def _cut_logits(logits: Tensor, window: _Window) -> Tensor:
    part = logits[:, :, window.top : window.top + window.height, window.left : window.left + window.width]
    part = part.flip(3) if window.mirrored else part
    return F.interpolate(part, window.size, mode="bilinear", align_corners=False)


def _lit(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Other exposure, colour and contrast, the same for all pixels."""
    gain = rng.uniform(0.8, 1.25) * rng.uniform(0.95, 1.05, 3)
    curve = 255 * np.clip(np.arange(256)[:, None] / 255 * gain, 0, 1) ** rng.uniform(0.85, 1.18)
    return np.asarray(cv2.LUT(image, curve.round().astype(np.uint8)[:, None, :]), np.uint8)
