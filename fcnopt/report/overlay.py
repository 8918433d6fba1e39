"""A video of an engine's labels that plays in a browser.

H.264 in yuv420p with the index in front (faststart), so that it starts to play before it is loaded.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import av
import cv2
import numpy as np

from fcnopt.errors import MediaError
from fcnopt.leftovers import clear_up, part_of
from fcnopt.media.clips import Frame
from fcnopt.report.drawing import Image, Labels, blend, difference, legend
from fcnopt.spec import ClassSpec

if TYPE_CHECKING:
    import av.container
    import av.video

_FAILURES = (OSError, av.FFmpegError)  # FFmpeg's errors are OSErrors only where the system has a number for them

# Browsers decode H.264 in hardware up to 4096 columns; two panels of full HD stay below.
_MAX_WIDTH = 3840
_DEFAULT_FPS = 10.0


class OverlayWriter:
    """A `BenchObserver` that writes a video of one engine's labels while a benchmark runs.

    On the left the frame with the labels laid over it; on the right, if asked for, where they differ from the
    reference's; below, the classes. The file appears when the context is left without an error, whole or not at all.
    """

    def __init__(
        self,
        path: Path,
        classes: ClassSpec,
        *,
        engine: str | None = None,
        fps: float = 0.0,
        show_difference: bool = True,
        alpha: float = 0.5,
    ) -> None:
        """Prepare to write; nothing is created before the context is entered.

        Args:
            path: The video, `.mp4`.
            classes: For colours and legend.
            engine: Name of the engine to show; None for the first one, or the reference where it is alone.
            fps: Frames a second; 0 where the clip does not know, then 10.
            show_difference: Add the panel with the differences.
            alpha: How much the colours cover, 0..1.
        """
        self._path = path
        self._classes = classes
        self._engine = engine
        self._rate = Fraction(fps if fps > 0 else _DEFAULT_FPS).limit_denominator(1001)
        self._show_difference = show_difference
        self._alpha = alpha
        self._temporary: Path | None = None
        self._container: av.container.OutputContainer | None = None
        self._stream: av.video.VideoStream | None = None
        self._size = (0, 0)
        self._legend: Image | None = None
        self.frames = 0

    def __enter__(self) -> Self:
        if self._path.suffix.lower() != ".mp4":
            raise MediaError(f"{self._path}: an overlay video must be .mp4", fix="name the file with .mp4 at its end")
        try:
            clear_up(self._path)
            self._temporary = part_of(self._path, ".part.mp4")
            self._temporary.touch(exist_ok=False)  # FFmpeg makes it with the first frame
            self._container = av.open(str(self._temporary), "w", options={"movflags": "faststart"})
        except _FAILURES as error:
            self._discard()
            raise self._cannot(error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None or not self.frames:
            self._discard()
            return
        try:
            self._finish()
        except _FAILURES as failure:
            self._discard()
            raise self._cannot(failure) from failure

    def on_frame(self, frame: Frame, reference: Labels, engines: Mapping[str, Labels]) -> None:
        """Add a frame.

        Raises:
            MediaError: The video cannot be written, or the engine is not in the benchmark.
        """
        picture = self._picture(frame.image, self._labels(reference, engines), reference, bool(engines))
        try:
            stream = self._stream or self._open(picture)
            if picture.shape[:2] != self._size:
                picture = cv2.resize(picture, self._size[::-1], interpolation=cv2.INTER_AREA).astype(np.uint8)
            video = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="bgr24")
            self._write(stream.encode(video))
        except _FAILURES as error:
            raise self._cannot(error) from error
        self.frames += 1

    def _labels(self, reference: Labels, engines: Mapping[str, Labels]) -> Labels:
        if self._engine is None:
            return next(iter(engines.values()), reference)
        if self._engine not in engines:
            raise MediaError(
                f"overlay: no engine is called {self._engine!r}, there is {', '.join(engines) or 'only the reference'}",
                fix="name one of these",
            )
        return engines[self._engine]

    def _picture(self, image: Image, labels: Labels, reference: Labels, compared: bool) -> Image:
        panels = [blend(image, labels, self._classes, alpha=self._alpha)]
        if self._show_difference and compared:
            panels.append(difference(image, labels, reference))
        picture = np.hstack(panels)
        if picture.shape[1] > _MAX_WIDTH:
            height = round(picture.shape[0] * _MAX_WIDTH / picture.shape[1])
            picture = cv2.resize(picture, (_MAX_WIDTH, height), interpolation=cv2.INTER_AREA).astype(np.uint8)
        if self._legend is None or self._legend.shape[1] != picture.shape[1]:
            self._legend = legend(self._classes, picture.shape[1])
        return _even(np.vstack([picture, self._legend]))

    def _open(self, picture: Image) -> av.video.VideoStream:
        if self._container is None:
            raise RuntimeError("OverlayWriter is used outside its context")
        stream = self._container.add_stream("libx264", rate=self._rate)
        stream.height, stream.width = self._size = picture.shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.options = {"preset": "veryfast", "crf": "21"}
        self._stream = stream
        return stream

    def _write(self, packets: Any) -> None:
        if self._container is not None:
            self._container.mux(packets)

    def _finish(self) -> None:
        if self._container is None or self._stream is None or self._temporary is None:
            return
        self._write(self._stream.encode(None))
        self._container.close()
        self._container = None
        self._temporary.replace(self._path)

    def _discard(self) -> None:
        """Leave nothing behind. Closing writes the rest of the file, so that it can fail once more: no matter here."""
        if self._container is not None:
            with contextlib.suppress(*_FAILURES):
                self._container.close()
            self._container = None
        if self._temporary is not None:
            with contextlib.suppress(OSError):  # where it could not even be made
                self._temporary.unlink()

    def _cannot(self, error: OSError | av.FFmpegError) -> MediaError:
        return MediaError(
            f"{self._path}: the overlay video cannot be written: {error.strerror or error}",
            fix="check that the folder exists, is writable and has space",
        )


def _even(image: Image) -> Image:
    """The image with an even number of rows and columns, as yuv420p needs; the last ones are repeated."""
    rows, columns = (n % 2 for n in image.shape[:2])
    return np.pad(image, ((0, rows), (0, columns), (0, 0)), mode="edge") if rows or columns else image
