"""A camera topic of a robot log as a clip."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fcnopt.errors import MediaError
from fcnopt.media.base import Clip, Frame, with_labels
from fcnopt.media.logs.base import ImageMessage, Log, LogError, Topic
from fcnopt.media.logs.pictures import decode_picture, is_picture
from fcnopt.media.logs.pixels import as_bgr
from fcnopt.media.logs.videos import PacketDecoder, codec_of, is_key

_TIMED = 33  # messages whose times give the frame rate
_LATEST = 32  # packets that a decoder may hold: H.264 reorders 16 at most

_Stamped = tuple[int, ImageMessage]
_Decoded = tuple[int, NDArray[np.uint8]]


class LogClip(Clip):
    """The images of one topic; a damaged log is never a shorter clip.

    Times are those of the messages' headers, or of the recorder where the first header has none. Where a log of video
    begins between two key frames, the clip begins at the first one, and `dropped` says how many messages that costs.
    `fps` is the median rate of the first messages.

    Args:
        log: Opened.
        topic: One of the log's.
        labels: A label map for each frame, in order, or none at all.

    Raises:
        MediaError: The topic has no messages, the first image cannot be decoded, or the label maps are not as many as
            its frames.

    Attributes:
        path: Of the log.
        topic: The topic's name.
        start_ns: When the first frame was taken, in nanoseconds since the epoch of the log's clock.
        frame_id: The camera's coordinate frame, as the first message names it.
        dropped: Messages before the first frame that can be decoded.
    """

    def __init__(self, log: Log, topic: Topic, labels: tuple[Path, ...] = ()) -> None:
        self._log, self._labels = log, labels
        self.path, self.topic = log.path, topic.name
        self.name = f"{log.path.stem}{topic.name.replace('/', '_')}"
        self.labelled = bool(labels)
        if not topic.messages:
            raise self._error("has no messages", "give a topic that was recorded")
        self._messages = topic.messages
        self._by_header = True
        self.dropped = self._find_start()
        self._measure_time()
        _, first = next(self._images(), (0, None))
        if first is None:
            raise self._error("holds no image that can be decoded", "record the topic anew")
        self.size = (first.shape[0], first.shape[1])
        if labels and len(labels) != len(self):
            raise self._error(
                f"{len(self)} frames, but {len(labels)} label maps in {labels[0].parent}",
                "give one label map a frame; the i-th in natural order of names belongs to frame i",
            )

    def __len__(self) -> int:
        return self._messages - self.dropped

    def __iter__(self) -> Iterator[Frame]:
        for frame in self.images():
            yield with_labels(frame, self._labels)

    def images(self) -> Iterator[Frame]:
        """The frames, label maps left unread."""
        count = 0
        for time_ns, image in self._images():
            if (image.shape[0], image.shape[1]) != self.size:
                raise self._error(
                    f"frame {count} is {image.shape[1]}x{image.shape[0]}, those before it are "
                    f"{self.size[1]}x{self.size[0]}",
                    "cut the log there; one clip has one size",
                )
            yield Frame(count, (time_ns - self.start_ns) / 1e9, image)
            count += 1
        if count != len(self):
            raise self._error(f"{len(self)} frames announced, found {count}", "copy the log again, or index it anew")

    def _find_start(self) -> int:
        """The number of the first message that decoding can begin with."""
        self._by_header = True
        for number, (_, message) in enumerate(self._parsed(0)):
            if not number:
                self._by_header = message.stamp_ns != 0
            try:
                codec = None if message.shape or is_picture(message.data) else codec_of(message.format)
                if codec is None or is_key(codec, message.data):
                    return number
            except LogError as error:
                raise self._error(f"message {number}: {error.message}", error.fix) from error
        raise self._error(f"no key frame in {self._messages} messages of video", "record more of it")

    def _measure_time(self) -> None:
        found = list(itertools.islice(self._parsed(self.dropped), _TIMED))
        self.start_ns, self.frame_id = found[0][0], found[0][1].frame_id
        steps = np.diff([time_ns for time_ns, _ in found])
        middle = float(np.median(steps)) if len(steps) else 0.0
        self.fps = 1e9 / middle if middle > 0 else 0.0

    def _parsed(self, start: int) -> Iterator[_Stamped]:
        """Times and messages, from message `start` on."""
        number = 0
        try:
            for number, logged in enumerate(self._log.messages(self.topic)):
                if number >= start:
                    message = logged.parse()
                    yield (message.stamp_ns if self._by_header else logged.log_time_ns), message
                if number >= self._messages:
                    return  # one too many is enough to see that the count is wrong
        except LogError as error:
            raise self._error(f"message {number} of {self._messages}: {error.message}", error.fix) from error

    def _images(self) -> Iterator[_Decoded]:
        """Times and images. A video's decoder gives a frame some packets later, or at the end."""
        decoder: PacketDecoder | None = None
        pending: dict[int, int] = {}
        number = self.dropped
        try:
            for number, (time_ns, message) in enumerate(self._parsed(self.dropped), self.dropped):
                still = _still(message)
                if still is not None:
                    yield time_ns, still
                    continue
                codec = codec_of(message.format)
                if codec is None:
                    raise LogError(
                        f"the image is compressed as {message.format!r}", "record it as jpeg, png, h264 or h265"
                    )
                decoder = decoder or PacketDecoder(codec)
                pending[number] = time_ns
                if len(pending) > _LATEST:
                    raise LogError(f"the decoder gave no frame for the last {_LATEST} packets")
                for packet, image in decoder.feed(number, message.data):
                    yield pending.pop(packet), image
            for packet, image in decoder.flush() if decoder else ():
                yield pending.pop(packet), image
        except LogError as error:
            raise self._error(f"message {number} of {self._messages}: {error.message}", error.fix) from error

    def _error(self, message: str, fix: str) -> MediaError:
        return MediaError(f"{self.path}: {self.topic}: {message}", fix=fix)


def _still(message: ImageMessage) -> NDArray[np.uint8] | None:
    """The image of a message that holds a whole one; None of a packet of video."""
    if message.shape is not None:
        return as_bgr(message)
    return decode_picture(message.data) if is_picture(message.data) else None
