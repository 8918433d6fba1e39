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
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fcnopt.errors import CalibrationError
from fcnopt.media import fit_frame
from fcnopt.quantize.sources import LeftOut, draw, find_sources, nothing_found
from fcnopt.spec import FrameSpec, ModelSpec

Shape = tuple[int, int, int]


class _Spool:
    """A temporary file without a name, closed when nobody refers to it any more."""

    def __init__(self) -> None:
        # Unbuffered, so that a full disk is found out by the write and not when the file is closed.
        self._file = tempfile.TemporaryFile(prefix="fcnopt-frames-", buffering=0)  # noqa: SIM115  (outlives this)
        weakref.finalize(self, self._file.close)

    def append(self, frame: NDArray[np.uint8]) -> None:
        if self._file.write(frame.data) != frame.nbytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def read(self, start: int, size: int) -> NDArray[np.uint8]:
        return np.frombuffer(os.pread(self._file.fileno(), size, start), np.uint8)


@dataclass(frozen=True)
class Cover:
    """How well picked frames cover those that they were picked from, in the distance of the reference's features.

    Attributes:
        candidates: How many frames they were picked from.
        distance: Largest distance of a candidate to the nearest picked frame.
        even: What it would be with as many evenly spaced frames.
    """

    candidates: int
    distance: float
    even: float

    def describe(self) -> str:
        """One clause for people."""
        return (
            f"picked from {self.candidates} to cover them: the farthest is {self.distance:.3g} from a picked one, "
            f"with even spacing {self.even:.3g}"
        )


@dataclass(frozen=True, eq=False)
class CalibrationFrames:
    """Frames as the model takes them; iterate over them as often as needed.

    Attributes:
        sources: The files and folders they come from, as given.
        count: How many there are.
        available: How many frames the sources have in all.
        hash: SHA-256 over the fitted frames' bytes, in order.
        shape: (height, width, 3).
        notes: What the user should know of the sources, one line each.
        cover: Where they were picked for it, how well they cover the frames they were picked from.
    """

    sources: tuple[str, ...]
    count: int
    available: int
    hash: str
    shape: Shape
    notes: tuple[str, ...]
    cover: Cover | None
    _spool: _Spool
    _places: tuple[int, ...]
    _order: tuple[int, ...]

    @classmethod
    def collect(
        cls, paths: Sequence[Path], spec: ModelSpec, *, limit: int = 64, topic: str | None = None
    ) -> CalibrationFrames:
        """Read frames, evenly spaced over all that there are.

        Args:
            paths: Images, videos, robot logs, and folders of them. Label maps among them are left out, and so are
                pictures that cannot be decoded; `notes` say which.
            spec: Of the model; frames are resized as it says. Where it leaves the size open they keep their own.
            limit: Most frames to take; from more, evenly spaced ones.
            topic: Of robot logs among the paths; None takes the only one with images of each.

        Raises:
            CalibrationError: There are no frames, they differ in size where the model takes any size, or the
                temporary folder is full.
            MediaError: A source is missing, or a video cannot be read.
        """
        if limit < 1:
            raise CalibrationError(f"calibration: {limit} frames were asked for", fix="ask for at least one frame")
        left = LeftOut()
        sources = find_sources(paths, spec.classes, left, topic)
        available = sum(map(len, sources))
        count = min(limit, available)
        wanted = [index * available // count for index in range(count)]
        fitted = _fitted(draw(sources, wanted, spec.classes, left), spec.frame)
        spool, shape, count, digest = _keep(fitted)
        if shape is None:
            raise nothing_found(paths, left)
        return cls(
            sources=tuple(map(str, paths)),
            count=count,
            available=available - left.files,
            hash=digest,
            shape=shape,
            notes=left.notes(),
            cover=None,
            _spool=spool,
            _places=tuple(range(count)),
            _order=_halving(count),
        )

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
        kept = [index * self.count // taken for index in range(taken)]
        return replace(self._ordered(kept), count=taken, _order=_halving(taken))

    def spread(self) -> CalibrationFrames:
        """The same frames in an order whose every beginning is spread over all of them.

        So what the first 16 show is what 16 frames of the whole clip would have shown, not its start. `hash` stays
        that of the frames in order.
        """
        return replace(self._ordered(self._order), _order=tuple(range(self.count)))

    def take(self, picked: Sequence[int], cover: Cover) -> CalibrationFrames:
        """Some of these frames, kept apart, so that the disk space of the others is freed with them.

        Args:
            picked: Their indices, the most important first; the frames themselves keep their order.
            cover: How well they cover all of these.

        Raises:
            CalibrationError: The temporary folder is full.
        """
        ordered = sorted(picked)
        spool, shape, count, digest = _keep(frame[0] for frame in self._ordered(ordered))
        rank = {index: place for place, index in enumerate(ordered)}
        return replace(
            self,
            count=count,
            hash=digest,
            shape=shape or self.shape,
            cover=cover,
            _spool=spool,
            _places=tuple(range(count)),
            _order=tuple(rank[index] for index in picked),
        )

    def describe(self) -> str:
        """One line for people: how many frames of what size from where."""
        height, width, _ = self.shape
        total = "" if self.available == self.count else f" of {self.available}"
        how = "" if self.cover is None else f", {self.cover.describe()}"
        return f"{self.count}{total} frames, {width}x{height}, from {', '.join(self.sources)}{how}"

    def _ordered(self, indices: Sequence[int]) -> CalibrationFrames:
        """What iteration gives, in another order or less of it."""
        return replace(self, _places=tuple(self._places[index] for index in indices))


def _fitted(drawn: Iterable[tuple[NDArray[np.uint8], str]], spec: FrameSpec) -> Iterator[NDArray[np.uint8]]:
    """Frames as the model takes them, all of one shape."""
    shape: tuple[int, ...] | None = None
    for image, name in drawn:
        frame = np.ascontiguousarray(fit_frame(image, spec))
        if shape is not None and frame.shape != shape:
            raise _uneven(name, shape, frame.shape)
        shape = frame.shape
        yield frame


def _keep(frames: Iterable[NDArray[np.uint8]]) -> tuple[_Spool, Shape | None, int, str]:
    """Write frames to a new spool; returns it with their shape (None without frames), number and hash."""
    digest = hashlib.sha256()
    shape: Shape | None = None
    count = 0
    try:
        spool = _Spool()
        for frame in frames:
            height, width, channels = frame.shape
            shape = (height, width, channels)
            digest.update(frame.data)
            spool.append(frame)
            count += 1
    except OSError as error:
        raise CalibrationError(
            f"calibration: frames cannot be kept in {tempfile.tempdir or 'any temporary folder'}: {error.strerror}",
            fix="free space there, or set TMPDIR to a folder on another disk",
        ) from error
    return spool, shape, count, digest.hexdigest()


def _halving(count: int) -> tuple[int, ...]:
    """0 to `count` - 1 by their mirrored bits (van der Corput, 1935): every beginning is spread over all of them."""
    bits = max(1, (count - 1).bit_length())
    return tuple(sorted(range(count), key=lambda index: int(f"{index:0{bits}b}"[::-1], 2)))


def _uneven(place: str, expected: tuple[int, ...], found: tuple[int, ...]) -> CalibrationError:
    return CalibrationError(
        f"calibration: {place} is {found[1]}x{found[0]}, the frames before it are {expected[1]}x{expected[0]}; "
        "the model takes any size, so that none of them can be chosen",
        fix="give frames of one size, or export the model with a fixed size",
    )
