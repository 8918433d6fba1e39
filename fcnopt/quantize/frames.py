"""Calibration frames: few, evenly spaced over everything that was given, read once and kept on disk.

Frames are fitted to the model as they are read and spooled to a temporary file without a name, which is gone when
the frames are. So a video is decoded once however often the frames are used, and one frame is in memory at a time.
"""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fcnopt.errors import CalibrationError
from fcnopt.media import Clip, fit_frame, list_clips
from fcnopt.spec import ModelSpec

_FIX = "put images or videos into calib/, or use --calibration PATH"


class _Spool:
    """A temporary file without a name, closed when nobody refers to it any more."""

    def __init__(self) -> None:
        # Unbuffered, so that a full disk is found out by the write and not when the file is closed.
        self._file = tempfile.TemporaryFile(prefix="fcnopt-frames-", buffering=0)  # noqa: SIM115  (outlives this)
        self.size = 0
        weakref.finalize(self, self._file.close)

    def append(self, frame: NDArray[np.uint8]) -> None:
        if self._file.write(frame.data) != frame.nbytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.size += frame.nbytes

    def read(self, start: int, size: int) -> NDArray[np.uint8]:
        return np.frombuffer(os.pread(self._file.fileno(), size, start), np.uint8)


@dataclass(frozen=True, eq=False)
class CalibrationFrames:
    """Frames as the model takes them; iterate over them as often as needed.

    Attributes:
        sources: The files and folders they come from, as given.
        count: How many there are.
        available: How many frames the sources have in all.
        hash: SHA-256 over the fitted frames' bytes, in order.
        shape: (height, width, 3).
    """

    sources: tuple[str, ...]
    count: int
    available: int
    hash: str
    shape: tuple[int, int, int]
    _spool: _Spool
    _places: tuple[int, ...]

    @classmethod
    def collect(cls, paths: Sequence[Path], spec: ModelSpec, *, limit: int = 64) -> CalibrationFrames:
        """Read frames.

        Args:
            paths: Images, folders of images or clips, and videos.
            spec: Of the model; frames are resized as it says. Where it leaves the size open they keep their own.
            limit: Most frames to take; from more, evenly spaced ones.

        Raises:
            CalibrationError: There are no frames, they differ in size where the model takes any size, or the
                temporary folder is full.
            MediaError: A source is missing or cannot be read.
        """
        if limit < 1:
            raise CalibrationError(f"calibration: {limit} frames were asked for", fix="ask for at least one frame")
        clips = [clip for path in paths for clip in list_clips(path)]
        available = sum(len(clip) for clip in clips)
        if not available:
            given = ", ".join(map(str, paths)) or "nothing"
            raise CalibrationError(f"calibration: no frames found in {given}", fix=_FIX)
        count = min(limit, available)
        wanted = [index * available // count for index in range(count)]
        spool = _Spool()
        digest = hashlib.sha256()
        shape: tuple[int, ...] | None = None
        try:
            for image, place in _pick(clips, wanted):
                frame = np.ascontiguousarray(fit_frame(image, spec.frame))
                if shape is not None and frame.shape != shape:
                    raise _uneven(place, shape, frame.shape)
                shape = frame.shape
                digest.update(frame.data)
                spool.append(frame)
        except OSError as error:
            raise CalibrationError(
                f"calibration: frames cannot be kept in {tempfile.gettempdir()}: {error.strerror}",
                fix="free space there, or set TMPDIR to a folder on another disk",
            ) from error
        if shape is None or spool.size != count * int(np.prod(shape)):
            raise CalibrationError(
                f"calibration: {count} frames were expected, fewer could be read",
                fix="check the videos: one may be cut",
            )
        height, width, channels = shape
        names = tuple(str(path) for path in paths)
        return cls(names, count, available, digest.hexdigest(), (height, width, channels), spool, tuple(range(count)))

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        """The frames, uint8 [1, H, W, 3] each."""
        size = int(np.prod(self.shape))
        for place in self._places:
            yield self._spool.read(place * size, size).reshape(1, *self.shape)

    def __len__(self) -> int:
        return self.count

    def subset(self, count: int) -> CalibrationFrames:
        """At most `count` of these frames, evenly spaced; `hash` stays that of all of them."""
        taken = min(count, self.count)
        places = tuple(self._places[index * self.count // taken] for index in range(taken))
        return CalibrationFrames(self.sources, taken, self.available, self.hash, self.shape, self._spool, places)

    def describe(self) -> str:
        """One line for people: how many frames of what size from where."""
        height, width, _ = self.shape
        total = "" if self.available == self.count else f" of {self.available}"
        return f"{self.count}{total} frames, {width}x{height}, from {', '.join(self.sources)}"


def _pick(clips: Sequence[Clip], wanted: Sequence[int]) -> Iterator[tuple[NDArray[np.uint8], str]]:
    """Images of the frames with these places in the sequence of all clips, and what to call them."""
    start = 0
    for clip in clips:
        here = {index - start for index in wanted if start <= index < start + len(clip)}
        last = max(here, default=-1)
        start += len(clip)
        if not here:
            continue
        for frame in clip.images():
            if frame.index in here:
                yield frame.image, f"{clip.name}, frame {frame.index}"
            if frame.index >= last:
                break


def _uneven(place: str, expected: tuple[int, ...], found: tuple[int, ...]) -> CalibrationError:
    return CalibrationError(
        f"calibration: {place} is {found[1]}x{found[0]}, the frames before it are {expected[1]}x{expected[0]}; "
        "the model takes any size, so that none of them can be chosen",
        fix="give frames of one size, or export the model with a fixed size",
    )
