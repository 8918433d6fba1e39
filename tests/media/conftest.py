"""Small files to open: videos, pictures, PNGs of every kind."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from fcnopt.media.writer import write_image, write_video


def png_bytes(samples: NDArray[np.uint8], color_type: int, palette: bytes = b"") -> bytes:
    """A PNG of 8 bits a sample written by hand, since OpenCV writes no palettes; `samples` are its rows."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", samples.shape[1], samples.shape[0], 8, color_type, 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in samples)
    body = chunk(b"IHDR", header) + (chunk(b"PLTE", palette) if palette else b"")
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def frames(count: int, height: int = 48, width: int = 64) -> list[NDArray[np.uint8]]:
    """Frames that tell their number: a bar that moves over a fixed pattern."""
    rng = np.random.default_rng(5)
    pattern = cv2.resize(rng.integers(60, 120, (6, 8, 3), np.uint8), (width, height))
    made = []
    for index in range(count):
        image = np.array(pattern, np.uint8)
        image[:, 2 * index : 2 * index + 4] = 255
        made.append(image)
    return made


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """20 frames of 64x48 at 10 frames per second."""
    return write_video(tmp_path / "drive.mp4", frames(20), 10.0)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Twelve pictures whose names sort differently by letters and by numbers."""
    folder = tmp_path / "pictures"
    for index, image in enumerate(frames(12)):
        write_image(folder / f"frame{index}.png", image)
    return folder
