"""Whether a frame can be what a working camera sees: black, over-exposed, frozen, of another size than expected.

An engine labels a black picture as calmly as a street. A frame that fails here is still inferred, and its result says
so (`FrameStatus.problems`): what to do about it is the vehicle's decision.

Every check looks at one pixel in `stride` x `stride`: about 0.1 ms of CPU time for a frame of 1280x720.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from fcnopt.errors import UsageError

Problem = Literal["black", "overexposed", "frozen", "wrong-size"]
"""What can be implausible of a frame."""
Problems = tuple[Problem, ...]
"""Of one frame; empty where it is plausible."""

_BLOCKS = 12  # in each direction, whose means show whether a dark picture has structure
_LEAST_SAMPLES = 48  # rows and columns that are looked at even of a small frame, so that noise averages out


@dataclass(frozen=True)
class Plausibility:
    """Where a frame stops being plausible. Levels are 0..255.

    Attributes:
        black_level: A sample is dark where no channel is above it. 32 is twice the black of limited-range video (16):
            what a covered lens gives, noise included.
        black_share: At least this share of samples is dark in a black frame. The rest is for hot pixels.
        black_contrast: A frame is black only where block means vary by less (standard deviation, in levels): noise
            averages out within a block, while the dimmest street at night has structure and a lamp 20 pixels wide
            at 1280x720 raises its block enough. CamVid's frames have 36 and more.
        bright_level: A sample is saturated where every channel is at least this; 250 leaves room for compression.
        bright_share: At least this share of samples is saturated in an over-exposed frame. A white sky is no fault:
            of CamVid's frames it fills up to 0.32, of one without houses about half.
        frozen_frames: So many frames in a row that are equal to the one before them are frozen. An uncompressed picture
            is never equal to the one before: for a camera's own frames 2 are enough. Recordings repeat frames to keep
            their rate, and H.264 drops the noise of a scene in which nothing moves: at crf 23 up to 8 such frames
            were equal in a row, which 10 leaves out, and at crf 28 up to 40.
        size: (height, width) that frames should have; None for that of the first frame.
        stride: Of the samples, in pixels, in both directions; less for small frames.
    """

    black_level: int = 32
    black_share: float = 0.998
    black_contrast: float = 0.75
    bright_level: int = 250
    bright_share: float = 0.8
    frozen_frames: int = 10
    size: tuple[int, int] | None = None
    stride: int = 8

    def __post_init__(self) -> None:
        for name in ("black_level", "bright_level"):
            self._demand(name, 0 <= getattr(self, name) <= 255, "a level of 0 to 255")
        for name in ("black_share", "bright_share"):
            self._demand(name, 0 < getattr(self, name) <= 1, "a share above 0, at most 1")
        for name in ("frozen_frames", "stride"):
            self._demand(name, getattr(self, name) >= 1, "1 or more")
        self._demand("size", self.size is None or (len(self.size) == 2 and min(self.size) > 0), "(height, width)")
        self._demand("black_contrast", 0 <= self.black_contrast < math.inf, "0 or more")

    def _demand(self, name: str, holds: bool, what: str) -> None:
        if not holds:
            raise UsageError(f"plausibility: {name} is {getattr(self, name)}", fix=f"give {what}")


DEFAULT = Plausibility()
"""What `Engine.run` and `Engine.stream` look at frames with, unless told otherwise."""


class Watch:
    """Looks at the frames of one camera, one after the other; any thread may call it.

    It keeps the samples of the last frame and no frame.

    Args:
        options: Where a frame stops being plausible.
    """

    def __init__(self, options: Plausibility = DEFAULT) -> None:
        self._options = options
        self._size = options.size
        self._last: NDArray[np.uint8] | None = None
        self._equal = 0  # frames in a row, up to now, that were equal to the one before them
        self._lock = threading.Lock()

    def look(self, frame: NDArray[np.uint8]) -> Problems:
        """What is implausible of the next frame, uint8 [H, W, 3] of any colour order."""
        samples = self._sampled(frame)
        problems: list[Problem] = []
        means = cv2.mean(samples)[:3]
        if self._is_black(samples, means):
            problems.append("black")
        if self._is_overexposed(samples, means):
            problems.append("overexposed")
        with self._lock:
            if self._is_frozen(samples):
                problems.append("frozen")
            if self._has_another_size(frame.shape[0], frame.shape[1]):
                problems.append("wrong-size")
        return tuple(problems)

    def look_at_all(self, frames: Iterable[NDArray[np.uint8]]) -> tuple[Problems, ...]:
        """What is implausible of the next frames, in order."""
        return tuple(self.look(frame) for frame in frames)

    def _sampled(self, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """A copy of the pixels that are looked at: uint8 [h, w, 3]. Cameras may use the frame's memory again."""
        height, width = (max(s // self._options.stride, min(s, _LEAST_SAMPLES)) for s in frame.shape[:2])
        return np.asarray(cv2.resize(frame, (width, height), interpolation=cv2.INTER_NEAREST), np.uint8)

    def _is_black(self, samples: NDArray[np.uint8], means: Sequence[float]) -> bool:
        """Whether it is; `means`, one a channel, tell it of most frames at once."""
        share, level = self._options.black_share, self._options.black_level
        if max(means) > share * level + (1 - share) * 255 or _share_within(samples, 0, level) < share:
            return False
        # as float: rounded means of a dim scene would lose what they are asked for
        blocks = cv2.resize(samples.astype(np.float32), (_BLOCKS, _BLOCKS), interpolation=cv2.INTER_AREA)
        deviation = cv2.meanStdDev(blocks)[1]  # one a channel
        return bool(np.all(deviation < self._options.black_contrast))

    def _is_overexposed(self, samples: NDArray[np.uint8], means: Sequence[float]) -> bool:
        share, level = self._options.bright_share, self._options.bright_level
        return min(means) >= share * level and _share_within(samples, level, 255) >= share

    def _is_frozen(self, samples: NDArray[np.uint8]) -> bool:
        self._equal = self._equal + 1 if self._last is not None and np.array_equal(samples, self._last) else 0
        self._last = samples
        return self._equal >= self._options.frozen_frames

    def _has_another_size(self, height: int, width: int) -> bool:
        self._size = self._size or (height, width)
        return self._size != (height, width)


def _share_within(samples: NDArray[np.uint8], least: int, most: int) -> float:
    """Which share of samples [h, w, 3] has all channels within least..most."""
    count = cv2.countNonZero(cv2.inRange(samples, (least,) * 3, (most,) * 3))
    return float(count / samples[..., 0].size)
