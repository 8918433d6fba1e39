"""What a picture's header announces, read before a decoder takes memory for it.

A few bytes can announce any size, and a few MiB of zeros unpack to gigabytes. Formats: PNG (ISO/IEC 15948), JPEG (ITU
T.81), BMP, Netpbm, WebP (RFC 9649).
"""

from __future__ import annotations

import re
import struct

MAX_PIXELS = 1 << 27
"""Largest picture that is decoded: beyond any camera (16384 x 8192)."""

PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
# Start of a frame, by its kind of coding; the three left out are tables.
_FRAME_MARKS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# Marks without a length.
_BARE_MARKS = frozenset({0x01, *range(0xD0, 0xD9)})
# Width and height of P1 to P6, with comments before and between them.
_NETPBM = re.compile(rb"P[1-6](?:\s|#[^\n]*\n)+(\d{1,9})(?:\s|#[^\n]*\n)+(\d{1,9})\s")


def picture_size(data: bytes) -> tuple[int, int] | None:
    """(height, width) as the header says; None where it is damaged or of another format."""
    try:
        if data.startswith(PNG):
            width, height = struct.unpack_from(">II", data, 16)
        elif data.startswith(JPEG):
            return jpeg_size(data)
        elif data.startswith(b"BM"):
            return _bmp_size(data)
        elif data.startswith(b"RIFF") and data[8:12] == b"WEBP":
            return _webp_size(data)
        elif found := _NETPBM.match(data[:4096]):
            width, height = int(found[1]), int(found[2])
        else:
            return None
    except (struct.error, IndexError):
        return None
    return height, width


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """(height, width) of a JPEG's first frame; None where it has none."""
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        mark = data[at + 1]
        if mark in _FRAME_MARKS:
            height, width = struct.unpack_from(">HH", data, at + 5)
            return height, width
        if mark == 0xFF:  # filler
            at += 1
        elif mark in _BARE_MARKS:
            at += 2
        else:
            at += 2 + int(struct.unpack_from(">H", data, at + 2)[0])
    return None


def _bmp_size(data: bytes) -> tuple[int, int]:
    if struct.unpack_from("<I", data, 14)[0] == 12:  # OS/2's header
        width, height = struct.unpack_from("<HH", data, 18)
    else:
        width, height = struct.unpack_from("<ii", data, 18)
    return abs(height), abs(width)  # from top to bottom where it is negative


def _webp_size(data: bytes) -> tuple[int, int] | None:
    kind = data[12:16]
    if kind == b"VP8X":  # 24 bits each, less one
        width, height = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))
        return height, width
    if kind == b"VP8L":  # 14 bits each, less one
        bits = int(struct.unpack_from("<I", data, 21)[0])
        return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
    if kind == b"VP8 ":  # 14 bits each, scales above them
        width, height = struct.unpack_from("<HH", data, 26)
        return height & 0x3FFF, width & 0x3FFF
    return None
