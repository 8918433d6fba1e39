"""Clips from video files, decoded by FFmpeg through PyAV or by the GPU; a damaged file is never a shorter clip."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from fcnopt.errors import MediaError
from fcnopt.media.base import Clip, Decoder, Frame, with_labels
from fcnopt.media.headers import MAX_PIXELS
from fcnopt.media.nvdec import decode

_BY_CPU = "decode it by PyAV: decoder pyav or auto"
_REPAIR = "copy the file again; if this is all there is, save the intact part (ffmpeg -i IN -c:v libx264 OUT.mp4)"


@dataclass(frozen=True)
class _Header:
    """What is known before the frames are decoded."""

    frames: int
    fps: float
    size: tuple[int, int]
    turned: bool


class VideoClip(Clip):
    """A video file.

    Args:
        path: Of a file with a video stream; the first one is read.
        labels: A label map for each frame, in order, or none at all.
        decoder: What decodes it; see `open_clip`.

    Raises:
        MediaError: The file is no video, has no frames, its first frame cannot be decoded, or the label maps are
            not as many as its frames.
    """

    def __init__(self, path: Path, labels: tuple[Path, ...] = (), decoder: Decoder = "pyav") -> None:
        self._decoder = decoder
        self.path = path
        self.name = path.stem
        self.labelled = bool(labels)
        self._labels = labels
        try:
            self._header = _read_header(path)
        except av.FFmpegError as error:
            raise MediaError(
                f"{path}: not a video that can be decoded ({error.strerror})",
                fix="give an intact video file, a picture or a folder of pictures",
            ) from error
        self.size = self._header.size
        self.fps = self._header.fps
        if labels and len(labels) != len(self):
            raise MediaError(
                f"{path}: {len(self)} frames, but {len(labels)} label maps in {labels[0].parent}",
                fix="give one label map a frame; the i-th in natural order of names belongs to frame i",
            )

    def __len__(self) -> int:
        return self._header.frames

    def __iter__(self) -> Iterator[Frame]:
        for frame in self.images():
            yield with_labels(frame, self._labels)

    def images(self) -> Iterator[Frame]:
        """The frames, label maps left unread."""
        decoded = 0
        for frame in self._by_gpu() or self._by_cpu():
            yield frame
            decoded += 1
        if decoded != len(self):
            raise self._damaged(decoded, "the file is cut off or corrupt there")

    def _by_gpu(self) -> Iterator[Frame] | None:
        """The frames as the GPU decodes them; None where the CPU is to do it.

        Raises:
            MediaError: Nothing but the GPU was asked for, and it cannot decode them.
        """
        if self._decoder == "pyav":
            return None
        try:
            if self._header.turned:
                raise MediaError(f"{self.path}: is turned by its header, which the GPU's decoder ignores", fix=_BY_CPU)
            images = decode(self.path)
        except MediaError:
            if self._decoder == "nvdec":
                raise
            return None
        return (self._sized(index, image, self._guessed_time(index)) for index, image in enumerate(images))

    def _by_cpu(self) -> Iterator[Frame]:
        decoded = 0
        try:
            with _open(self.path) as container:
                stream = _video_stream(container, self.path)
                stream.thread_type = "AUTO"
                start: float | None = None
                for frame in container.decode(stream):
                    start = frame.time if start is None else start
                    yield self._checked(decoded, frame, start)
                    decoded += 1
        except av.FFmpegError as error:
            raise self._damaged(decoded, f"the data is corrupt ({error.strerror})") from error

    def _checked(self, index: int, frame: VideoFrame, start: float | None) -> Frame:
        if frame.is_corrupt:
            raise self._damaged(index, "the data is corrupt there")
        time_s = frame.time - start if frame.time is not None and start is not None else self._guessed_time(index)
        return self._sized(index, _as_bgr(frame), time_s)

    def _sized(self, index: int, image: NDArray[np.uint8], time_s: float) -> Frame:
        if index >= len(self):
            raise MediaError(
                f"{self.path}: its header announces {len(self)} frames, but there are more",
                fix="write the header anew (ffmpeg -i IN -c copy OUT.mp4)",
            )
        height, width = image.shape[:2]
        if (height, width) != self.size:
            raise MediaError(
                f"{self.path}: frame {index} is {width}x{height}, those before it are {self.size[1]}x{self.size[0]}",
                fix="cut the video there, or scale it to one size (ffmpeg -i IN -vf scale=W:H OUT.mp4)",
            )
        return Frame(index, time_s, image)

    def _guessed_time(self, index: int) -> float:
        return index / self.fps if self.fps else 0.0

    def _damaged(self, reached: int, why: str) -> MediaError:
        return MediaError(
            f"{self.path}: {len(self)} frames announced, decoding stopped at frame {reached}: {why}", fix=_REPAIR
        )


def _open(path: Path) -> InputContainer:
    # names in foreign encodings are shown as they are
    return av.open(str(path), metadata_errors="replace")


def _video_stream(container: InputContainer, path: Path) -> VideoStream:
    if not container.streams.video:
        raise MediaError(f"{path}: there is no video in this file", fix="give a file with a video stream")
    stream = container.streams.video[0]
    # What a stream's headers announce is what FFmpeg takes memory for.
    stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
    return stream


def _read_header(path: Path) -> _Header:
    with _open(path) as container:
        stream = _video_stream(container, path)
        frames = _announced(stream)
        rate = stream.average_rate or stream.guessed_rate
        first = next(container.decode(stream), None)
        if first is None:
            raise MediaError(f"{path}: the video has no frame that can be decoded", fix="give a video with frames")
        height, width = _as_bgr(first).shape[:2]
        turned = bool(first.rotation)
    return _Header(frames or _count_packets(path), float(rate) if rate else 0.0, (height, width), turned)


def _announced(stream: VideoStream) -> int:
    """How many frames the container's index announces, 0 where it does not say."""
    entries = getattr(stream, "index_entries", None)  # newer than the oldest PyAV that we take
    if entries is None:
        return 0
    # frames before an edit list's start are in the file, but not shown
    hidden = sum(1 for entry in entries if entry.is_discard)
    return max(0, stream.frames - hidden)


def _count_packets(path: Path) -> int:
    """Frames of a container that does not announce them (Matroska, MPEG-TS): one a packet.

    Raises:
        MediaError: The packets end before the duration that the container announces.
    """
    count, end = 0, 0.0
    with _open(path) as container:
        stream = _video_stream(container, path)
        length = _announced_seconds(stream)
        for packet in container.demux(stream):
            if packet.size and not packet.is_discard:
                count += 1
                if packet.pts is not None and packet.time_base is not None:
                    duration = packet.duration or 0
                    end = max(end, float((packet.pts + duration) * packet.time_base))
    if not count:
        raise MediaError(f"{path}: the video has no frames", fix="give a video with frames")
    if end and length > end + max(0.25, 0.01 * length):
        raise MediaError(
            f"{path}: {length:.2f} s announced, but the data ends at frame {count}, {end:.2f} s: the file is cut off",
            fix=_REPAIR,
        )
    return count


def _announced_seconds(stream: VideoStream) -> float:
    """How long the container says that the stream lasts, 0 where it does not."""
    if stream.duration and stream.time_base:
        return float((stream.duration + (stream.start_time or 0)) * stream.time_base)
    try:  # Matroska's duration of one stream is handed on as a tag
        hours, minutes, seconds = stream.metadata.get("DURATION", "").split(":")
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    except ValueError:
        return 0.0


def _as_bgr(frame: VideoFrame) -> NDArray[np.uint8]:
    """uint8 [H, W, 3], turned upright as the file says."""
    image = np.asarray(frame.to_ndarray(format="bgr24"), np.uint8)
    quarter_turns = round(frame.rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(image, quarter_turns)) if quarter_turns else image
