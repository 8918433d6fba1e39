"""The user's frames, on disk as the network takes them: most to learn from, some held out to judge by.

Neighbouring frames of a drive are alike; what is held out is therefore whole stretches, spread over all frames.
"""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fcnopt.errors import MediaError
from fcnopt.media.base import Clip
from fcnopt.media.clips import fit_frame
from fcnopt.spec import ClassSpec, ModelSpec, Normalization

_FEWEST = 16
_STRETCHES = 8
_IGNORED = 255


@dataclass(frozen=True, eq=False)
class Frames:
    """Frames and, where known, label maps, all of one size.

    Attributes:
        images: uint8 [F, H, W, 3], BGR.
        labels: uint8 [F, H, W]; None where there are none.
        train: Places of those to learn from.
        held: Places of those to judge by.
        sha256: Over all frames and label maps, in order.
        held_sha256: Over the frames held out, as `FrameHasher`.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.uint8] | None
    train: NDArray[np.int64]
    held: NDArray[np.int64]
    sha256: str
    held_sha256: str


def read_frames(clip: Clip, spec: ModelSpec, *, limit: int, holdout: float) -> Frames:
    """Read a clip.

    Args:
        clip: With label maps or without.
        spec: With the size of the frames; BGR, stretched.
        limit: Most frames, evenly spaced over the clip.
        holdout: Share of them that is held out.

    Raises:
        MediaError: There are too few frames, or one cannot be read; a label map has another size than its frame.
    """
    count = min(limit, len(clip))
    if count < _FEWEST:
        raise MediaError(
            f"{clip.name}: {count} frames, slimming needs {_FEWEST} or more, and hundreds to be any good",
            fix="give more frames of the camera",
        )
    height, width = spec.frame.height or clip.size[0], spec.frame.width or clip.size[1]
    images = _on_disk((count, height, width, 3))
    labels = _on_disk((count, height, width)) if clip.labelled else None
    wanted = np.linspace(0, len(clip) - 1, count).round().astype(np.int64)
    digest = hashlib.sha256()
    place = 0
    for index, frame in enumerate(clip):
        if place == count or index != wanted[place]:
            continue
        images[place] = fit_frame(frame.image, spec.frame)
        digest.update(images[place].data)
        if labels is not None:
            truth = np.full(frame.image.shape[:2], _IGNORED, np.uint8) if frame.labels is None else frame.labels
            labels[place] = cv2.resize(truth, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
            digest.update(labels[place].data)
        place += 1
    if place < count:
        raise MediaError(f"{clip.name}: ended after {place} of {count} frames", fix="copy the clip again, whole")
    train, held = split(count, holdout)
    held_digest = hashlib.sha256()
    for at in held:
        held_digest.update(images[at].data)
    return Frames(images, labels, train, held, digest.hexdigest(), held_digest.hexdigest())


def split(count: int, holdout: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Places to learn from, and places held out: equal stretches from the ends of equal parts, at least four frames."""
    parts = np.array_split(np.arange(count), min(_STRETCHES, max(4, count // 16)))
    held = np.concatenate([part[len(part) - max(1, round(holdout * len(part))) :] for part in parts])
    return np.setdiff1d(np.arange(count), held), held


def normalized(images: NDArray[np.uint8], norm: Normalization) -> Tensor:
    """BGR frames [N, H, W, 3] as the network's pixels float [N, 3, H, W], channels last in memory."""
    pixels = torch.from_numpy(np.ascontiguousarray(images if norm.color == "BGR" else images[..., ::-1]))
    mean, std = (torch.tensor(values) for values in (norm.mean, norm.std))
    return ((pixels.float() * norm.scale - mean) / std).permute(0, 3, 1, 2)


def known_labels(labels: NDArray[np.uint8], classes: ClassSpec) -> Tensor:
    """Label maps as int64, everything that is no class as -1."""
    truth = torch.from_numpy(labels.astype(np.int64))
    ignored = truth >= len(classes)
    if classes.ignore_index is not None:
        ignored |= truth == classes.ignore_index
    return truth.masked_fill(ignored, -1)


def _on_disk(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """An array in a file without a name, gone when the array is.

    Raises:
        MediaError: There is no room for it.
    """
    try:
        with tempfile.TemporaryFile(prefix="fcnopt-frames-") as file:
            # A disk that is full only when the array is written to would end the process by a signal
            os.posix_fallocate(file.fileno(), 0, math.prod(shape))
            return np.memmap(file, np.uint8, "r+", shape=shape)
    except OSError as error:
        raise MediaError(
            f"slimming: {math.prod(shape):,} bytes of frames cannot be kept in "
            f"{tempfile.tempdir or 'any temporary folder'}: {error.strerror}",
            fix="free space there, or set TMPDIR to a folder on another disk",
        ) from error
