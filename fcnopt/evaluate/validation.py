"""Many candidates held against one reference on the same frames: what a search for a budget asks again and again.

The reference runs once; its labels are kept on disk, and the accuracy of every candidate is counted against them and
against the truth, by the code that `fcnopt bench` uses.
"""

from __future__ import annotations

import datetime
import errno
import hashlib
import os
import tempfile
import weakref
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fcnopt.backends.base import Runner
from fcnopt.errors import MediaError
from fcnopt.evaluate.budget import Budget, Verdict, judge
from fcnopt.evaluate.observe import FrameHasher
from fcnopt.evaluate.resample import block_length
from fcnopt.evaluate.result import Truth
from fcnopt.evaluate.scores import Scorer
from fcnopt.media.clips import Clip, Frame, fit_frame, restore_labels
from fcnopt.spec import ModelSpec

_FIX = "give other frames of the camera to --validation, or leave these out of --calibration"


@dataclass(frozen=True)
class Measured:
    """What a candidate is worth.

    Attributes:
        verdict: Its drop, and whether the budget is kept.
        equal_labels: Share of all pixels whose label is the reference's, 0..100.
        counts: `ConfusionMatrix.frames`, [F, 3, C], from which the verdict follows.
        date: Of the measurement, ISO 8601.
    """

    verdict: Verdict
    equal_labels: float
    counts: NDArray[np.int64] = field(repr=False)
    date: str


class Validation:
    """A clip, the reference's labels on it, and the budget. Its temporary file goes when nobody refers to it any more.

    Attributes:
        truth: What drops are measured against: the clip's label maps, or the reference's labels where it has none.
        frames: How many there are.
        sha256: Of the frames, as `CalibrationFrames.hash`.
    """

    def __init__(
        self,
        clip: Clip,
        spec: ModelSpec,
        reference: Runner,
        budget: Budget | None,
        *,
        calibration: Set[str] = frozenset(),
        progress: Callable[[float], None] | None = None,
    ) -> None:
        """Run the reference.

        Args:
            clip: Frames, with label maps or without.
            spec: Of the model.
            reference: The FP32 network.
            budget: What candidates must keep; None measures only.
            calibration: SHA-256 of every calibration frame, as the model takes it: they must not be among these.
            progress: Called with the fraction done.

        Raises:
            MediaError: The clip has no frames, or label maps that do not fit, or shares frames with the calibration;
                the temporary folder is full.
        """
        self.truth: Truth = "labels" if clip.labelled else "reference"
        self.frames = 0
        self._clip, self._spec, self._budget = clip, spec, budget
        try:
            # Unbuffered, so that a full disk is found out by the write and not when the file is closed.
            self._kept = tempfile.TemporaryFile(prefix="fcnopt-labels-", buffering=0)  # noqa: SIM115  (outlives this)
        except OSError as error:
            raise self._no_room(error) from error
        weakref.finalize(self, self._kept.close)
        self._base = Scorer(spec.classes)
        hasher = FrameHasher(spec.frame)
        seen = 0
        for frame, fitted in self._fitted():
            labels = restore_labels(reference.run(fitted).labels[0], frame.image.shape[:2], spec.frame)
            self._keep(labels)
            self._add(self._base, frame, labels, labels)
            hasher.add(frame.image)
            seen += hashlib.sha256(fitted.data).hexdigest() in calibration
            self.frames += 1
            if progress is not None:
                progress(self.frames / len(clip))
        if not self.frames:
            raise MediaError(f"{clip.name}: the clip has no frames", fix="give a clip with at least one frame")
        if seen:
            raise MediaError(
                f"{clip.name}: {seen} of {self.frames} validation frames were calibrated on, which would flatter the "
                "accuracy",
                fix=_FIX,
            )
        self.sha256 = hasher.sha256

    def measure(self, candidate: Runner, progress: Callable[[float], None] | None = None) -> Measured:
        """Run a candidate on all frames.

        Raises:
            MediaError: The clip changed since the reference ran.
            BackendError: The candidate fails.
        """
        scorer = Scorer(self._spec.classes)
        self._kept.seek(0)
        for count, (frame, fitted) in enumerate(self._fitted(), start=1):
            size = frame.image.shape[:2]
            labels = restore_labels(candidate.run(fitted).labels[0], size, self._spec.frame)
            reference = self._reference(size)
            self._add(scorer, frame, labels, reference)
            if progress is not None:
                progress(count / self.frames)
        date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        return self.judged(scorer.truth.frames, scorer.equal_labels, date)

    def fits(self, counts: NDArray[np.int64]) -> bool:
        """Whether counts are of these frames and their truth."""
        base = self._base.truth.frames
        return counts.shape == base.shape and np.array_equal(counts[:, 1], base[:, 1])

    def judged(self, counts: NDArray[np.int64], equal_labels: float, date: str) -> Measured:
        """What was counted, held to the budget.

        Args:
            counts: `ConfusionMatrix.frames` of a candidate on these frames, [F, 3, C].
            equal_labels: Its share of equal labels, 0..100.
            date: Of the measurement, ISO 8601.

        Raises:
            MediaError: They are of another number of frames.
        """
        base = self._base.truth.frames
        if len(counts) != len(base):
            raise MediaError(f"{self._clip.name}: the clip has changed while it was read", fix="leave it as it is")
        block = block_length(len(base), self._clip.fps * len(base) / self.frames)
        verdict = judge(base, counts, self._spec.classes, self._budget, block_frames=block)
        return Measured(verdict, equal_labels, counts, date)

    @property
    def key(self) -> str:
        """SHA-256 over frames, truth and the reference's labels: counts of one key may be compared."""
        return hashlib.sha256(self.sha256.encode() + self._base.truth.frames.tobytes()).hexdigest()

    def _fitted(self) -> Iterator[tuple[Frame, NDArray[np.uint8]]]:
        for frame in self._clip:
            yield frame, np.ascontiguousarray(fit_frame(frame.image, self._spec.frame))[None]

    def _add(self, scorer: Scorer, frame: Frame, labels: NDArray[np.uint8], reference: NDArray[np.uint8]) -> None:
        truth = self._truth_of(frame, reference)
        try:
            scorer.add(labels, reference, truth)
        except MediaError as error:
            raise MediaError(f"{self._clip.name}, frame {frame.index}: {error.message}", fix=error.fix) from error

    def _keep(self, labels: NDArray[np.uint8]) -> None:
        try:
            if self._kept.write(np.ascontiguousarray(labels).data) != labels.nbytes:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise self._no_room(error) from error

    def _no_room(self, error: OSError) -> MediaError:
        folder = tempfile.tempdir or "any temporary folder"
        return MediaError(
            f"{self._clip.name}: the reference's labels cannot be kept in {folder}: {error.strerror}",
            fix="free space there, or set TMPDIR to a folder on another disk",
        )

    def _reference(self, size: tuple[int, ...]) -> NDArray[np.uint8]:
        data = self._kept.read(size[0] * size[1])
        if len(data) != size[0] * size[1]:
            raise MediaError(f"{self._clip.name}: the clip has changed while it was read", fix="leave it as it is")
        return np.frombuffer(data, np.uint8).reshape(size)

    def _truth_of(self, frame: Frame, reference: NDArray[np.uint8]) -> NDArray[np.uint8] | None:
        if self.truth == "reference":
            return reference
        if frame.labels is not None and frame.labels.shape != frame.image.shape[:2]:
            raise MediaError(
                f"{self._clip.name}, frame {frame.index}: label map is {frame.labels.shape[1]}x{frame.labels.shape[0]},"
                f" the frame is {frame.image.shape[1]}x{frame.image.shape[0]}",
                fix="give label maps of the frames' size",
            )
        return frame.labels
