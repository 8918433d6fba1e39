"""What every place for labels is: written beside its name, and renamed when it is whole."""

from __future__ import annotations

import contextlib
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from fcnopt.errors import MediaError
from fcnopt.leftovers import clear_up, part_of
from fcnopt.media.base import Frame
from fcnopt.spec import ClassSpec


@dataclass(frozen=True)
class LabelSource:
    """What is known of the labels before the first one.

    Attributes:
        classes: Names and palette, stored with them.
        fps: Of the clip; 0 where it does not know.
        start_ns: When its first frame was taken, on the clock of its log; 0 where there is none.
        frame_id: The camera's coordinate frame.
    """

    classes: ClassSpec
    fps: float = 0.0
    start_ns: int = 0
    frame_id: str = ""

    def time_ns(self, frame: Frame) -> int:
        """When a frame was taken. Pictures of a folder have no times: they get 10 a second."""
        if not self.fps and not self.start_ns and not frame.timestamp_s:
            return frame.index * 10**8
        return self.start_ns + round(frame.timestamp_s * 1e9)


class LabelSink(ABC):
    """Writes label maps in order.

    Args:
        path: File or folder to write.
        overwrite: Replace what is there.

    Raises:
        MediaError: Something is there that is not to be replaced.

    Attributes:
        frames: How many were written.
    """

    source: LabelSource

    def __init__(self, path: Path, *, overwrite: bool = False) -> None:
        self.path = path
        self.frames = 0
        self._replaces = overwrite
        self._part = part_of(path, f".part{path.suffix}")
        self._check_place()

    @contextlib.contextmanager
    def opened(self, source: LabelSource) -> Iterator[Self]:
        """Begin to write, alone; see the function `opened`."""
        with opened([self], source):
            yield self

    def begin(self, source: LabelSource) -> None:
        """Begin to write beside the place.

        Raises:
            MediaError: It cannot be written, or something is there that is not to be replaced.
        """
        self.source = source
        with self._told():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            clear_up(self.path)
            self._check_place()  # what a killed process had moved aside may be back
            self._open(self._part)

    def end(self) -> None:
        """End to write.

        Raises:
            MediaError: It cannot be written, there were no frames, or the place was taken meanwhile.
        """
        with self._told():
            self._close()
            if not self.frames:
                raise MediaError(f"{self.path}: no frames to write", fix="give a clip with frames")
            self._check_place()

    def place(self) -> None:
        """Put what was written where it belongs.

        Raises:
            MediaError: It cannot be put there.
        """
        with self._told():
            self._take_place()

    def discard(self) -> None:
        """Remove what was written so far."""
        with contextlib.suppress(OSError, *self._faults()):
            self._close()
        if self._part.is_dir():
            shutil.rmtree(self._part, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                self._part.unlink(missing_ok=True)

    def write(self, frame: Frame, labels: NDArray[np.uint8]) -> None:
        """Add the labels of the next frame.

        Args:
            frame: With its image.
            labels: uint8 [H, W], of the frame's size.

        Raises:
            MediaError: They cannot be written.
        """
        with self._told():
            self._write(frame, np.ascontiguousarray(labels))
        self.frames += 1

    @abstractmethod
    def _open(self, part: Path) -> None:
        """Begin to write at `part`."""

    @abstractmethod
    def _write(self, frame: Frame, labels: NDArray[np.uint8]) -> None:
        """Add a frame."""

    @abstractmethod
    def _close(self) -> None:
        """End what `_open` began; called once more after a failure."""

    def _check_place(self) -> None:
        """Refuse what is at `path` already, unless it is to be replaced."""
        if not self.path.exists():
            return
        if self.path.is_dir():
            raise MediaError(f"{self.path}: is a folder, expected a file", fix="name another file")
        if not self._replaces:
            raise MediaError(f"{self.path}: is there already", fix="name another place, or add --overwrite")

    def _take_place(self) -> None:
        self._part.replace(self.path)

    def _faults(self) -> tuple[type[Exception], ...]:
        """What a writer's library raises beside `OSError`."""
        return ()

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """What goes wrong within becomes a `MediaError`."""
        faults: tuple[type[Exception], ...] = (OSError, *self._faults())
        try:
            yield
        except faults as error:
            raise MediaError(
                f"{self.path}: cannot be written: {getattr(error, 'strerror', None) or error}",
                fix="choose a folder that you may write to, on a disk with free space",
            ) from error


@contextlib.contextmanager
def opened(sinks: Sequence[LabelSink], source: LabelSource) -> Iterator[None]:
    """Begin to write to all of them. Left without an error, what was written takes its name, once all of it is whole.

    Left with one, Ctrl-C too, nothing remains, and what was there before is untouched. A process that is killed leaves
    a hidden `.NAME.*.part` of each, which the next one that writes there removes.

    Raises:
        MediaError: One cannot be written, or there were no frames.
    """
    whole, begun = False, list[LabelSink]()
    try:
        for sink in sinks:
            begun.append(sink)
            sink.begin(source)
        yield
        for sink in sinks:
            sink.end()
        for sink in sinks:
            sink.place()
        whole = True
    finally:
        if not whole:
            for sink in begun:
                sink.discard()
