"""Label maps as a lossless video: FFV1 (RFC 9043) of 8-bit grey in Matroska, a pixel's value is its label.

Every frame is a key frame, and slices carry checksums, so that players can seek and damage is seen. Matroska keeps
times in milliseconds. The classes are the tag FCNOPT_CLASSES: JSON {names, palette, ignore_index}.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import av
import numpy as np
from numpy.typing import NDArray

from fcnopt.errors import MediaError
from fcnopt.media.base import Frame
from fcnopt.media.sinks.base import LabelSink

if TYPE_CHECKING:
    from av.container import OutputContainer
    from av.video.stream import VideoStream

CLASSES_TAG = "FCNOPT_CLASSES"
_TICK = Fraction(1, 1000)
_TICK_NS = 10**6
_DEFAULT_FPS = 10


class VideoSink(LabelSink):
    """A `.mkv` of one size."""

    _container: OutputContainer | None = None
    _stream: VideoStream | None = None
    _last = -1

    def _open(self, part: Path) -> None:
        self._container = av.open(str(part), "w", format="matroska")
        self._container.metadata[CLASSES_TAG] = json.dumps(asdict(self.source.classes), separators=(",", ":"))

    def _write(self, frame: Frame, labels: NDArray[np.uint8]) -> None:
        stream = self._stream or self._start(labels)
        if labels.shape != (stream.height, stream.width):
            raise MediaError(
                f"{self.path}: frame {frame.index} is {labels.shape[1]}x{labels.shape[0]}, the video is "
                f"{stream.width}x{stream.height}",
                fix="write pictures of several sizes to a folder or to .mcap",
            )
        tick = round((self.source.time_ns(frame) - self.source.start_ns) / _TICK_NS)
        if tick <= self._last:
            raise MediaError(
                f"{self.path}: frame {frame.index} has the time {tick} ms, the one before it {self._last} ms; "
                "a video's times must grow",
                fix="write to a folder or to .mcap, which keep any times",
            )
        picture = av.VideoFrame.from_ndarray(labels, format="gray")
        picture.pts, picture.time_base, self._last = tick, _TICK, tick
        self._mux(picture)

    def _start(self, labels: NDArray[np.uint8]) -> VideoStream:
        if self._container is None:
            raise RuntimeError("VideoSink is used outside its context")
        rate = Fraction(self.source.fps or _DEFAULT_FPS).limit_denominator(1001)
        stream = self._container.add_stream("ffv1", rate=rate)
        stream.height, stream.width = labels.shape
        stream.pix_fmt = "gray"
        stream.codec_context.time_base = _TICK
        stream.options = {"level": "3", "slicecrc": "1", "g": "1"}
        self._stream = stream
        return stream

    def _mux(self, picture: av.VideoFrame | None) -> None:
        if self._container is not None and self._stream is not None:
            self._container.mux(self._stream.encode(picture))

    def _close(self) -> None:
        container, self._container = self._container, None
        if container is None:
            return
        try:
            if self._stream is not None:
                container.mux(self._stream.encode(None))
        finally:
            container.close()

    def _faults(self) -> tuple[type[Exception], ...]:
        return (av.FFmpegError,)
