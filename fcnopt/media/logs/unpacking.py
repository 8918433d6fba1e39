"""Decompression that gives no more than was announced, so that a small log cannot fill the memory."""

from __future__ import annotations

from fcnopt.media.logs.base import LogError
from fcnopt.media.logs.packages import require

MOST_BYTES = 1 << 30
"""Of one chunk or message, unpacked."""
_PIECE = 1 << 20


def unpacked(data: bytes, compression: str, size: int | None = None) -> bytes:
    """Decompress a chunk or a message.

    Args:
        data: Compressed.
        compression: "zstd", "lz4" (frames), or "" for none.
        size: Bytes announced; None where nothing was.

    Raises:
        LogError: The compression is unknown, the data is damaged, has another size, or more than `MOST_BYTES`.
        MediaError: A package is missing.
    """
    most = MOST_BYTES if size is None else size
    if most > MOST_BYTES:
        raise LogError(f"{most} bytes are announced, more than {MOST_BYTES >> 30} GiB")
    if compression == "zstd":
        plain = _zstd(data, most)
    elif compression == "lz4":
        plain = _lz4(data, most)
    elif not compression:
        plain = data
    else:
        raise LogError(f"compression {compression!r} is unknown", "compress it by zstd: mcap compress IN -o OUT")
    if len(plain) != size and (size is not None or len(plain) > most):
        found = "more" if len(plain) > most else len(plain)
        raise LogError(f"{most} bytes are announced, unpacked they are {found}")
    return plain


def _zstd(data: bytes, most: int) -> bytes:
    zstandard = require("zstandard")
    plain = bytearray()
    try:
        with zstandard.ZstdDecompressor().stream_reader(data) as reader:
            while len(plain) <= most and (piece := reader.read(_PIECE)):
                plain += piece
    except zstandard.ZstdError as error:
        raise LogError(f"zstd data is damaged: {error}") from error
    return bytes(plain)


def _lz4(data: bytes, most: int) -> bytes:
    frame = require("lz4.frame")
    plain = bytearray()
    decompressor = frame.LZ4FrameDecompressor()
    try:
        piece = decompressor.decompress(data, _PIECE)
        while piece and len(plain) <= most:
            plain += piece
            piece = b"" if decompressor.eof else decompressor.decompress(b"", _PIECE)
    except (RuntimeError, EOFError, ValueError) as error:
        raise LogError(f"lz4 data is damaged: {error}") from error
    return bytes(plain)
