"""Writing pictures and videos: into a temporary file that is renamed, so that nothing half-written remains."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from fcnopt.errors import MediaError, UsageError
from fcnopt.leftovers import clear_up, part_of

_QUALITY = "12"  # constant rate factor of x264: hardly to be told from the original


def write_image(path: str | Path, image: NDArray[np.uint8]) -> Path:
    """Write uint8 [H, W] or BGR [H, W, 3] in the format of the file's suffix; folders are made.

    Raises:
        MediaError: The file cannot be written.
    """
    path = Path(path)
    ok, data = cv2.imencode(path.suffix, image)
    if not ok:
        raise MediaError(f"{path}: the picture cannot be encoded", fix="use .png or .jpg")
    part = part_of(path, f".part{path.suffix}")
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(data.tobytes())
        part.replace(path)
    except OSError as error:
        _discard(part)
        raise _unwritable(path, error) from error
    return path


def write_video(path: str | Path, images: Iterable[NDArray[np.uint8]], fps: float) -> Path:
    """Write BGR frames uint8 [H, W, 3] of one size as H.264 that any player and browser plays; folders are made.

    Raises:
        UsageError: There are no frames, or their height or width is odd.
        MediaError: The file cannot be written.
    """
    import av

    path = Path(path)
    part = part_of(path, f".part{path.suffix}")
    done = False
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        clear_up(path)
        with av.open(str(part), "w", options={"movflags": "+faststart"}) as container:
            stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
            stream.pix_fmt = "yuv420p"
            stream.options = {"crf": _QUALITY, "preset": "veryfast"}
            count = 0
            for image in images:
                if not count:
                    stream.height, stream.width = _even_size(path, image)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="bgr24")))
                count += 1
            if not count:
                raise UsageError(f"{path}: no frames to write", fix="give at least one frame")
            container.mux(stream.encode())
        part.replace(path)
        done = True
    except (OSError, av.FFmpegError) as error:
        raise _unwritable(path, error) from error
    finally:
        if not done:
            _discard(part)
    return path


def _even_size(path: Path, image: NDArray[np.uint8]) -> tuple[int, int]:
    height, width = image.shape[:2]
    if height % 2 or width % 2:
        raise UsageError(
            f"{path}: H.264 needs an even size, found {width}x{height}", fix="use an even width and height"
        )
    return height, width


def _discard(part: Path) -> None:
    with contextlib.suppress(OSError):  # where it could not even be made
        part.unlink()


def _unwritable(path: Path, error: Exception) -> MediaError:
    return MediaError(
        f"{path}: cannot be written: {getattr(error, 'strerror', None) or error}",
        fix="choose a folder that you may write to, on a disk with free space",
    )
