"""Finding and reading picture files."""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from fcnopt.errors import MediaError
from fcnopt.media.headers import JPEG, MAX_PIXELS, PNG, picture_size

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".webp"})
VIDEO_SUFFIXES = frozenset(
    {
        ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".m2ts", ".wmv", ".flv", ".ogv",
        ".y4m", ".h264", ".264", ".h265", ".hevc", ".mjpeg", ".mjpg",
    }
)  # fmt: skip

_JPEG_SCAN, _JPEG_END = b"\xff\xda", b"\xff\xd9"


def natural_key(path: Path) -> tuple[tuple[int, int | str], ...]:
    """Sorts `frame2` before `frame10`, and folders before what is in them."""
    parts = re.split(r"(\d+)", path.as_posix().lower())
    return tuple((0, int(part)) if part.isdigit() else (1, part) for part in parts if part)


def files_in(folder: Path, suffixes: frozenset[str], *, nested: bool = False) -> list[Path]:
    """The files of a folder with one of `suffixes`, in natural order, hidden ones left out.

    Raises:
        MediaError: The folder cannot be read.
    """
    try:
        found = folder.rglob("*") if nested else folder.iterdir()
        files = [p for p in found if p.suffix.lower() in suffixes and not p.name.startswith(".") and p.is_file()]
    except OSError as error:
        raise MediaError(
            f"{folder}: cannot be read: {error.strerror or error}", fix="give a folder that you may read"
        ) from error
    return sorted(files, key=natural_key)


def read_bytes(path: Path) -> bytes:
    """The content of a picture file, which announces no larger picture than any camera's.

    Raises:
        MediaError: It is missing, empty, cut off, too large, of a format that is not read, or may not be read.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise MediaError(
            f"{path}: cannot be read: {error.strerror or error}", fix="give the path of a file that you may read"
        ) from error
    cut_png = data.startswith(PNG) and b"IEND" not in data[-4096:]
    # inside a scan every 0xff is followed by 0x00 or a restart mark, so that these two are real
    cut_jpeg = data.startswith(JPEG) and data.rfind(_JPEG_END) < data.rfind(_JPEG_SCAN)
    if not data or cut_png or cut_jpeg:
        what = "empty" if not data else f"cut off after {len(data)} bytes"
        raise MediaError(f"{path}: the file is {what}", fix="copy the file again, or remove it")
    size = picture_size(data)
    if size is None:
        raise _undecodable(path)
    if size[0] * size[1] > MAX_PIXELS:
        raise MediaError(
            f"{path}: a picture of {size[1]}x{size[0]} is announced, more than {MAX_PIXELS:,} pixels",
            fix="scale it down, or remove the file",
        )
    return data


def read_image(path: Path) -> NDArray[np.uint8]:
    """A picture as uint8 [H, W, 3], BGR.

    Raises:
        MediaError: It cannot be read or decoded.
    """
    data = read_bytes(path)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise _undecodable(path) from error
    if image is None:
        raise _undecodable(path)
    return image.astype(np.uint8, copy=False)


def _undecodable(path: Path) -> MediaError:
    return MediaError(
        f"{path}: not a picture that can be decoded",
        fix=f"give an intact picture ({', '.join(sorted(s[1:] for s in IMAGE_SUFFIXES))}), or remove the file",
    )
