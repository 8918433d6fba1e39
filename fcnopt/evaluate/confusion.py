"""Confusion matrices, IoU, and how sure a difference in mIoU is.

With `n[t, p]` pixels of truth `t` labelled `p`, summed over the clip, the IoU of class `c` is
`n[c, c] / (sum_p n[c, p] + sum_t n[t, c] - n[c, c])`: intersection over union. mIoU is its mean over the classes
that are present in the truth. All of it needs only three numbers a class and frame: intersection, truth, predicted.
These are kept per frame, so that a bootstrap over frames is one matrix product; `resample` says
which frames are drawn.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fcnopt.errors import BackendError, MediaError, UsageError
from fcnopt.evaluate.resample import block_length, effective_blocks, expanded_tail, resampled, spread
from fcnopt.spec import ClassSpec

Unknown = Literal["error", "ignore"]

_VALUES = 256  # of a uint8 label


class ConfusionMatrix:
    """Counts pixels by truth and label, frame by frame.

    Attributes:
        classes: What the labels mean; `ignore_index` in the truth is left out.
        counts: int64 [C, C], truth by label, summed over all frames.
    """

    def __init__(self, classes: ClassSpec, *, unknown: Unknown = "error") -> None:
        """Start with no pixels.

        Args:
            classes: What the labels mean.
            unknown: What to do with a value in the truth that is neither a class nor `ignore_index`: raise, or
                leave its pixels out.
        """
        self.classes = classes
        self.counts: NDArray[np.int64] = np.zeros((len(classes), len(classes)), np.int64)
        self._unknown = unknown
        self._frames: list[NDArray[np.int64]] = []

    def add(self, labels: NDArray[np.uint8], truth: NDArray[np.uint8]) -> None:
        """Count a frame, or a batch of them.

        Args:
            labels: What the engine says, uint8 [H, W] or [N, H, W].
            truth: What is right, of the same shape.

        Raises:
            UsageError: The arrays are not uint8 label maps of one shape.
            MediaError: The truth has a value that is neither a class nor `ignore_index`.
            BackendError: The engine gives a label that is not a class.
        """
        for one_labels, one_truth in _frames_of(labels, truth):
            counts = self._count(one_labels, one_truth)
            self.counts += counts
            self._frames.append(np.stack([np.diagonal(counts), counts.sum(axis=1), counts.sum(axis=0)]))

    def _count(self, labels: NDArray[np.uint8], truth: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Counts [C, C] of one frame. One bincount over all 256 x 256 pairs also shows every unknown value."""
        codes = truth.astype(np.uint16)
        codes <<= 8
        codes |= labels
        pairs = np.bincount(codes.ravel(), minlength=_VALUES * _VALUES).reshape(_VALUES, _VALUES)
        classes = len(self.classes)
        if self.classes.ignore_index is not None:
            pairs[self.classes.ignore_index] = 0
        if pairs[:, classes:].any():
            raise _unknown_label(pairs, self.classes)
        if self._unknown == "error" and pairs[classes:].any():
            raise _unknown_truth(pairs, self.classes)
        return pairs[:classes, :classes].astype(np.int64)

    @property
    def frames(self) -> NDArray[np.int64]:
        """int64 [F, 3, C]: pixels of the intersection, of the truth and of the prediction, per frame and class."""
        return np.stack(self._frames) if self._frames else np.zeros((0, 3, len(self.classes)), np.int64)

    @property
    def iou(self) -> NDArray[np.float64]:
        """IoU a class, 0..1; nan for a class that is neither in the truth nor in the labels."""
        return _iou(self._totals())

    @property
    def present(self) -> NDArray[np.bool_]:
        """Which classes are in the truth."""
        return np.asarray(self.counts.sum(axis=1) > 0)

    @property
    def miou(self) -> float:
        """Mean IoU over the classes present in the truth, in points 0..100; nan without any pixel."""
        return float(_miou(self._totals()))

    @property
    def pixel_accuracy(self) -> float:
        """Share of the counted pixels that are labelled right, in points 0..100; nan without any pixel."""
        total = int(self.counts.sum())
        return 100.0 * float(np.trace(self.counts)) / total if total else float("nan")

    def _totals(self) -> NDArray[np.float64]:
        diagonal, truth, labels = np.diagonal(self.counts), self.counts.sum(axis=1), self.counts.sum(axis=0)
        return np.stack([diagonal, truth, labels]).astype(np.float64)


@dataclass(frozen=True)
class DropInterval:
    """A bootstrap interval of the IoU an engine loses, in points (reference minus engine).

    Attributes:
        miou: (low, high) of the mIoU drop.
        iou: (low, high) a class; None for a class that is never in truth or labels.
    """

    miou: tuple[float, float]
    iou: tuple[tuple[float, float] | None, ...]


def drop_between(
    reference_frames: NDArray[np.int64], engine_frames: NDArray[np.int64]
) -> tuple[float, NDArray[np.float64]]:
    """The drop over all frames, in points: of the mIoU, and [C] of each class (nan where a class is in neither).

    Args:
        reference_frames: `ConfusionMatrix.frames` of the reference, [F, 3, C].
        engine_frames: The same of the engine, for the same frames and truth.
    """
    reference, engine = (frames.sum(axis=0).astype(np.float64) for frames in (reference_frames, engine_frames))
    return float(_miou(reference) - _miou(engine)), 100.0 * (_iou(reference) - _iou(engine))


def bootstrap_drop(
    reference_frames: NDArray[np.int64],
    engine_frames: NDArray[np.int64],
    *,
    samples: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
    block_frames: int | None = None,
) -> DropInterval:
    """Interval of the drop, over clips resampled from these frames in blocks; see `resample`.

    Paired: a sample takes the same frames for reference and engine, so that only what the engine changed varies.
    The interval tells of clips like this one: that of a short stretch of video is narrower than over many drives, and
    where frames stay alike for longer than a block it is still too narrow.

    Args:
        reference_frames: `ConfusionMatrix.frames` of the reference, [F, 3, C].
        engine_frames: The same of the engine, for the same frames and truth.
        samples: Resampled clips.
        seed: Of the random choice; the same seed gives the same interval.
        confidence: How likely the interval should hold the drop; few blocks are allowed for.
        block_frames: Consecutive frames drawn together; None for `block_length` of a clip of unknown rate.

    Raises:
        UsageError: The arrays differ in shape, hold no frame, or an option is out of range.
    """
    _check_bootstrap(reference_frames, engine_frames, samples, confidence)
    frames, _, classes = reference_frames.shape
    block = _checked_block(block_frames, frames)
    both = np.stack([reference_frames, engine_frames], axis=1).reshape(frames, -1).astype(np.float64)
    drops = np.empty((samples, classes + 1))
    at = 0
    for weights in resampled(frames, block, samples, np.random.default_rng(seed)):
        # (samples, frames) @ (frames, 2 * 3 * classes)
        totals = (weights @ both).reshape(-1, 2, 3, classes)
        rows = slice(at, at + len(weights))
        drops[rows, 0] = _miou(totals[:, 0]) - _miou(totals[:, 1])
        drops[rows, 1:] = 100.0 * (_iou(totals[:, 0]) - _iou(totals[:, 1]))
        at += len(weights)
    miou, iou = drop_between(reference_frames, engine_frames)
    blocks = [float(math.ceil(frames / block)), *effective_blocks(reference_frames[:, 1], block)]
    intervals = [
        _interval(column, drop, count, confidence)
        for column, drop, count in zip(drops.T, [miou, *iou], blocks, strict=True)
    ]
    return DropInterval(intervals[0] or (float("nan"), float("nan")), tuple(intervals[1:]))


def _iou(totals: NDArray[np.float64]) -> NDArray[np.float64]:
    """IoU [..., C] from totals [..., 3, C]; nan where the union is empty."""
    intersection, truth, labels = totals[..., 0, :], totals[..., 1, :], totals[..., 2, :]
    union = truth + labels - intersection
    iou = np.full(union.shape, np.nan)
    np.divide(intersection, union, out=iou, where=union > 0)
    return iou


def _miou(totals: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean IoU [...] in points from totals [..., 3, C], over the classes in the truth; nan where there are none."""
    present = totals[..., 1, :] > 0
    count = present.sum(axis=-1)
    total = np.where(present, _iou(totals), 0.0).sum(axis=-1)
    miou = np.full(np.shape(count), np.nan)
    np.divide(100.0 * total, count, out=miou, where=count > 0)
    return miou


def _interval(
    samples: NDArray[np.float64], drop: float, blocks: float, confidence: float
) -> tuple[float, float] | None:
    """The expanded percentile interval, or the one by their standard deviation where that reaches further.

    Args:
        samples: Drops of resampled clips; nan in those without the class.
        drop: Of the clip itself.
        blocks: That the samples were drawn from.
        confidence: How likely the interval should hold the drop.

    Returns:
        None where all samples are nan.
    """
    known = samples[~np.isnan(samples)]
    if not known.size:
        return None
    tail = 100.0 * expanded_tail(confidence, blocks)
    low, high = np.percentile(known, [tail, 100.0 - tail])
    reach = spread(confidence, blocks) * float(known.std())
    return min(float(low), drop - reach), max(float(high), drop + reach)


def _frames_of(
    labels: NDArray[np.uint8], truth: NDArray[np.uint8]
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    fits = labels.shape == truth.shape and labels.ndim in (2, 3) and labels.dtype == truth.dtype == np.uint8
    if not fits:
        raise UsageError(
            f"labels and truth must be uint8 [H, W] or [N, H, W] of one shape, found {labels.dtype} "
            f"{list(labels.shape)} and {truth.dtype} {list(truth.shape)}",
            fix="resize the labels to the truth's size (nearest neighbour) before they are counted",
        )
    shape = (-1, *labels.shape[-2:])
    return zip(labels.reshape(shape), truth.reshape(shape), strict=True)


def _unknown_truth(pairs: NDArray[np.int64], classes: ClassSpec) -> MediaError:
    values = [v for v in np.flatnonzero(pairs.any(axis=1)).tolist() if v >= len(classes)]
    ignored = "none" if classes.ignore_index is None else str(classes.ignore_index)
    return MediaError(
        f"label map has the values {_listed(values)}, expected 0..{len(classes) - 1} for the {len(classes)} classes "
        f"(or {ignored} for ignored pixels)",
        fix="use label maps of the model's classes, or name the value to leave out as ignore_index of the classes",
    )


def _unknown_label(pairs: NDArray[np.int64], classes: ClassSpec) -> BackendError:
    values = [v for v in np.flatnonzero(pairs.any(axis=0)).tolist() if v >= len(classes)]
    return BackendError(
        f"labels have the values {_listed(values)}, expected 0..{len(classes) - 1} for the {len(classes)} classes",
        fix="compare engines with the same classes as the label maps",
    )


def _listed(values: list[int], most: int = 8) -> str:
    return ", ".join(map(str, values[:most])) + (", ..." if len(values) > most else "")


def _check_bootstrap(
    reference_frames: NDArray[np.int64], engine_frames: NDArray[np.int64], samples: int, confidence: float
) -> None:
    shape = reference_frames.shape
    if shape != engine_frames.shape or len(shape) != 3 or shape[1] != 3 or not shape[0]:
        raise UsageError(
            f"bootstrap: expected two arrays [frames, 3, classes] of one shape with at least one frame, found "
            f"{list(shape)} and {list(engine_frames.shape)}",
            fix="hand in ConfusionMatrix.frames of two engines that saw the same frames",
        )
    if samples < 1 or not 0.0 < confidence < 1.0:
        raise UsageError(
            f"bootstrap: samples {samples} or confidence {confidence} is out of range",
            fix="give at least one sample and a confidence between 0 and 1",
        )


def _checked_block(block: int | None, frames: int) -> int:
    if block is None:
        return block_length(frames)
    if not 1 <= block <= frames:
        raise UsageError(
            f"bootstrap: blocks of {block} frames, expected 1..{frames}",
            fix="leave the block out, or give block_length of frames and rate",
        )
    return block
