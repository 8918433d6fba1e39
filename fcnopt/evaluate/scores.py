"""Accuracy of one engine, frame by frame: against the truth, against the reference, and against its own last frame."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fcnopt.errors import MediaError
from fcnopt.evaluate.confusion import ConfusionMatrix, Unknown, bootstrap_drop
from fcnopt.evaluate.result import Accuracy, Drop
from fcnopt.spec import ClassSpec

Labels = NDArray[np.uint8]


class Scorer:
    """Collects what one engine's labels are worth.

    Attributes:
        truth: Confusion with the truth.
        reference: Confusion with the reference's labels, no pixel left out.
    """

    def __init__(self, classes: ClassSpec, *, unknown: Unknown = "error") -> None:
        """Start with no frames; `unknown` as in `ConfusionMatrix`."""
        self.truth = ConfusionMatrix(classes, unknown=unknown)
        self.reference = ConfusionMatrix(replace(classes, ignore_index=None))
        self._equal = self._pixels = 0
        self._changed = self._compared = 0
        self._before: Labels | None = None

    def add(self, labels: Labels, reference: Labels, truth: Labels | None) -> None:
        """Count a frame; `truth` is None for a frame without a label map.

        Raises:
            MediaError: The truth has unknown values.
            BackendError: The labels do.
        """
        if truth is not None:
            self.truth.add(labels, truth)
        self.reference.add(labels, reference)
        self._equal += int(np.count_nonzero(labels == reference))
        self._pixels += labels.size
        if self._before is not None and self._before.shape == labels.shape:
            self._changed += int(np.count_nonzero(labels != self._before))
            self._compared += labels.size
        self._before = labels

    @property
    def equal_labels(self) -> float:
        """Share of all pixels whose label is the reference's, 0..100."""
        return 100.0 * self._equal / self._pixels

    @property
    def flicker(self) -> float | None:
        """Share of pixels whose label changes from one frame to the next, 0..100; None before the second frame."""
        return 100.0 * self._changed / self._compared if self._compared else None

    def drop_from(self, reference: Scorer, samples: int, block_frames: int | None = None) -> Drop:
        """What this engine loses against the reference's scorer, by the truth.

        Args:
            reference: Scorer of the reference, for the same frames.
            samples: Resampled clips for the interval; 0 for none.
            block_frames: See `bootstrap_drop`.
        """
        ours, theirs = self.truth, reference.truth
        differences = 100.0 * (theirs.iou - ours.iou)
        present = theirs.present
        frames = theirs.frames
        iou = tuple(float(d) if p else None for d, p in zip(differences, present, strict=True))
        if samples < 1 or len(frames) < 2:
            return Drop(theirs.miou - ours.miou, None, iou, (None,) * len(iou))
        interval = bootstrap_drop(frames, ours.frames, samples=samples, block_frames=block_frames)
        classes = tuple(i if p else None for i, p in zip(interval.iou, present, strict=True))
        return Drop(theirs.miou - ours.miou, interval.miou, iou, classes)


def accuracy(matrix: ConfusionMatrix) -> Accuracy:
    """A matrix's figures, in points.

    Raises:
        MediaError: It counted no pixel.
    """
    if not matrix.counts.any():
        raise MediaError(
            "the label maps have no pixel of any class, only ignored ones",
            fix="use label maps of the model's classes",
        )
    iou = tuple(None if np.isnan(value) else 100.0 * float(value) for value in matrix.iou)
    return Accuracy(matrix.miou, iou, matrix.pixel_accuracy)
