"""Compressed still images of messages. Their headers are read first: what they announce must be possible."""

from __future__ import annotations

import struct

import cv2
import numpy as np
from numpy.typing import NDArray

from fcnopt.media.headers import JPEG, MAX_PIXELS, PNG, jpeg_size
from fcnopt.media.logs.base import LogError

_JPEG_SCAN, _JPEG_END = b"\xff\xda", b"\xff\xd9"
# Deflate packs 1032 bytes into one at best, a JPEG scan 64 pixels into two bits.
_PIXELS_A_BYTE = 1032
_CUT_OFF = "the {} of {} bytes is cut off"


def is_picture(data: memoryview) -> bool:
    """Whether data is a JPEG or a PNG."""
    return bytes(data[: len(PNG)]) == PNG or bytes(data[:2]) == JPEG


def decode_picture(data: memoryview) -> NDArray[np.uint8]:
    """A JPEG or PNG as uint8 [H, W, 3], BGR.

    Raises:
        LogError: It is cut off or damaged, has samples of more than 8 bits, or its header announces a size that so
            few bytes cannot hold.
    """
    height, width = _announced_size(bytes(data))
    if not 0 < height * width <= min(MAX_PIXELS, _PIXELS_A_BYTE * len(data)):
        raise LogError(f"a picture of {width}x{height} is announced, in {len(data)} bytes")
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_BGR)
    except cv2.error as error:
        raise LogError(f"the picture cannot be decoded: {error.err}") from error
    if image is None or image.shape[:2] != (height, width):
        raise LogError(f"the picture of {width}x{height} cannot be decoded")
    return np.asarray(image, np.uint8)


def _announced_size(data: bytes) -> tuple[int, int]:
    """(height, width) as the header says, of a picture that ends where it should."""
    if data.startswith(PNG):
        if b"IEND" not in data[-4096:] or len(data) < 26:
            raise LogError(_CUT_OFF.format("PNG", len(data)))
        width, height, depth = struct.unpack_from(">IIB", data, 16)
        if depth > 8:
            raise LogError(f"the PNG has {depth} bits a sample, as depth has", "give the topic of a camera's colours")
        return height, width
    # inside a scan every 0xff is followed by 0x00 or a restart mark, so that these two are real
    if data.rfind(_JPEG_END) < data.rfind(_JPEG_SCAN):
        raise LogError(_CUT_OFF.format("JPEG", len(data)))
    found = jpeg_size(data)
    if found is None:
        raise LogError("the JPEG has no frame")
    return found
