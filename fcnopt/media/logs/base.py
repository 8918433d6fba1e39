"""What every robot log is: messages by topic, of which those with images matter here."""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

FAULTS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
)
"""What parsers raise on damaged data, beside exceptions of their own."""


class LogError(Exception):
    """Something in a log cannot be read; who knows file, topic and message makes a `MediaError` of it.

    Args:
        message: What was expected and what was found.
        fix: What the user can do.
    """

    def __init__(self, message: str, fix: str = "copy the log again, or record it anew") -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix


@dataclass(frozen=True)
class Topic:
    """A topic of a log.

    Attributes:
        name: "/camera/front/image_raw".
        kind: Type of its messages as ROS 2 writes it, "sensor_msgs/msg/Image", or a protobuf name, "foxglove.RawImage".
        messages: How many the log announces.
    """

    name: str
    kind: str
    messages: int


@dataclass(frozen=True)
class ImageMessage:
    """An image as it was sent.

    Attributes:
        stamp_ns: When it was taken, as its header says; 0 where that is not set.
        frame_id: Coordinate frame of the camera, as its header says.
        format: Encoding of the pixels ("bgr8"), or what compressed them ("jpeg", "h264").
        data: Bytes; a view into what was read.
        shape: (rows, columns, bytes a row) of plain pixels; None where they are compressed.
    """

    stamp_ns: int
    frame_id: str
    format: str
    data: memoryview
    shape: tuple[int, int, int] | None = None


@dataclass(frozen=True)
class Logged:
    """A message and when it was recorded.

    Attributes:
        log_time_ns: Of the recorder's clock.
        parse: Reads the message; raises `LogError` where it is damaged.
    """

    log_time_ns: int
    parse: Callable[[], ImageMessage]


class Log(ABC):
    """A recording that can be read more than once.

    Attributes:
        path: File or folder.
        topics: Those with images that can be read, by name in order.
        others: Names of the others.
    """

    path: Path
    topics: tuple[Topic, ...]
    others: tuple[str, ...]

    @abstractmethod
    def messages(self, topic: str) -> Iterator[Logged]:
        """The messages of a topic, in the order of their log times.

        Raises:
            LogError: The log is damaged there.
        """


class Bounded:
    """A file that refuses to read what it does not hold, before memory is taken for it.

    Args:
        file: Open for reading.
        size: Its length in bytes.
    """

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size = file, size

    def read(self, count: int = -1) -> bytes:
        """`count` bytes, or the rest.

        Raises:
            LogError: There are fewer.
        """
        left = self._size - self._file.tell()
        if count > left:
            raise LogError(f"{count} bytes are announced at byte {self._file.tell()}, but {max(0, left)} are left")
        return self._file.read(count)

    def seek(self, offset: int, whence: int = 0) -> int:
        """As a file does."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """As a file does."""
        return self._file.tell()

    def seekable(self) -> bool:
        """Yes."""
        return True
