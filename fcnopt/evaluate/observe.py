"""Looking on while a benchmark runs: the observer's contract, a sampler that keeps a few frames, and a hash of all."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fcnopt.media.clips import Frame, fit_frame
from fcnopt.spec import FrameSpec


class BenchObserver(Protocol):
    """Sees every frame with all its labels, in order, outside the timed stretches."""

    def on_frame(self, frame: Frame, reference: NDArray[np.uint8], engines: Mapping[str, NDArray[np.uint8]]) -> None:
        """Take notice of a frame.

        Args:
            frame: Image, and label map where the clip has one.
            reference: The reference's labels, uint8 [H, W] of the frame's size.
            engines: The other engines' labels by the name they have in the result, in its order.
        """


@dataclass(frozen=True)
class FrameSample:
    """A frame kept for a report.

    Attributes:
        frame: Image, and label map where the clip has one.
        reference: The reference's labels, uint8 [H, W].
        engines: The other engines' labels, by name.
        differing: Share of pixels where an engine's labels are not the reference's, 0..100, of the engine that
            differs most.
    """

    frame: Frame
    reference: NDArray[np.uint8] = field(repr=False)
    engines: dict[str, NDArray[np.uint8]] = field(repr=False)
    differing: float


class FrameHasher:
    """Hashes the frames as a model takes them: two clips of one hash are the same to it.

    The hash is that of `CalibrationFrames`, so that calibration, validation and benchmark frames can be told apart.
    """

    def __init__(self, spec: FrameSpec) -> None:
        """Start with no frame; `spec` is the model's."""
        self._spec = spec
        self._digest = hashlib.sha256()

    def add(self, image: NDArray[np.uint8]) -> None:
        """Add a frame's image, uint8 [H, W, 3], BGR."""
        self._digest.update(np.ascontiguousarray(fit_frame(image, self._spec)).data)

    @property
    def sha256(self) -> str:
        """SHA-256 over the bytes of the frames so far, in hex."""
        return self._digest.hexdigest()


class FrameSampler:
    """Keeps the clip's middle frame and, from equal stretches of the clip, the frame where engines differ most.

    Stretches keep the samples apart: the frames that differ most are often neighbours that show the same. Memory is
    that of the frames kept.
    """

    def __init__(self, keep: int, frames: int) -> None:
        """Prepare to keep `keep` of `frames` frames."""
        self._middle = frames // 2
        self._stretches = max(0, keep - 1)
        self._apart = frames // (2 * max(1, keep))
        self._frames = max(1, frames)
        self._kept: dict[int, FrameSample] = {}
        self._seen = 0
        self._keep = keep

    def on_frame(self, frame: Frame, reference: NDArray[np.uint8], engines: Mapping[str, NDArray[np.uint8]]) -> None:
        """Keep the frame if it is the middle one or the most different of its stretch so far."""
        place, self._seen = self._seen, self._seen + 1
        if self._keep <= 0:
            return
        differing = max((_differing(labels, reference) for labels in engines.values()), default=0.0)
        stretch = -1 if place == self._middle else place * self._stretches // self._frames
        if stretch >= 0 and (stretch >= self._stretches or abs(place - self._middle) < self._apart):
            return
        best = self._kept.get(stretch)
        if best is None or differing > best.differing:
            self._kept[stretch] = FrameSample(frame, reference, dict(engines), differing)

    @property
    def samples(self) -> tuple[FrameSample, ...]:
        """The frames kept, in the clip's order."""
        return tuple(sorted(self._kept.values(), key=lambda s: s.frame.index))


def _differing(labels: NDArray[np.uint8], reference: NDArray[np.uint8]) -> float:
    return 100.0 * np.count_nonzero(labels != reference) / labels.size
