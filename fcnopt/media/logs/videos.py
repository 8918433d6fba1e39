"""Compressed video whose packets are messages: H.264 and H.265 in Annex B form, parameter sets in band.

Foxglove's CompressedVideo asks for exactly one frame a message, and for parameter sets beside every key frame.
"""

from __future__ import annotations

import re
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from fcnopt.media.headers import MAX_PIXELS
from fcnopt.media.logs.base import LogError

_CODECS = {"h264": "h264", "avc": "h264", "h265": "hevc", "hevc": "hevc"}
_UNIT = re.compile(rb"\x00\x00\x01(.)", re.DOTALL)


def codec_of(format_: str) -> str | None:
    """FFmpeg's name of the codec that a message's format names; None where it names none that is known."""
    return _CODECS.get(format_.lower().strip().removeprefix("video/").split(";")[0].strip())


def is_key(codec: str, data: memoryview) -> bool:
    """Whether decoding can begin with this packet.

    Raises:
        LogError: It is no Annex B packet.
    """
    units = [found[1][0] for found in _UNIT.finditer(data)]
    if not units:
        raise LogError(
            f"the {codec} packet of {len(data)} bytes has no start code", "record the video in Annex B form (H.264)"
        )
    # nal_unit_type: of H.264 (7.4.1) 5 is an IDR slice; of H.265 (7.4.2.2) 16 to 23 are random access pictures
    return any(unit & 31 == 5 if codec == "h264" else 16 <= unit >> 1 & 63 <= 23 for unit in units)


class PacketDecoder:
    """Decodes packets one after another, from a key frame on.

    Args:
        codec: "h264" or "hevc".
    """

    def __init__(self, codec: str) -> None:
        self._codec = codec
        self._context = av.CodecContext.create(codec, "r")
        # A parameter set announces the size, and FFmpeg takes the memory for it.
        self._context.options = {"max_pixels": str(MAX_PIXELS), "threads": "1"}

    def feed(self, number: int, data: memoryview) -> list[tuple[int, NDArray[np.uint8]]]:
        """Decode a packet.

        Args:
            number: Of the packet.
            data: One frame.

        Returns:
            Frames that are done, uint8 [H, W, 3] BGR, with the numbers of their packets; none while the decoder waits
            for more.

        Raises:
            LogError: The packet is damaged, or the one before it is missing.
        """
        packet = av.Packet(bytes(data))
        packet.pts = number
        return self._decoded(packet)

    def flush(self) -> list[tuple[int, NDArray[np.uint8]]]:
        """The frames that are still in the decoder."""
        return self._decoded(None)

    def _decoded(self, packet: av.Packet[Any] | None) -> list[tuple[int, NDArray[np.uint8]]]:
        found = []
        try:
            for frame in self._context.decode(packet):  # type: ignore[attr-defined]  # of a video's context
                if frame.is_corrupt:
                    raise LogError(f"the {self._codec} packet is damaged, or one before it is missing")
                found.append((int(frame.pts), np.asarray(frame.to_ndarray(format="bgr24"), np.uint8)))
        except av.FFmpegError as error:
            raise LogError(f"the {self._codec} packet cannot be decoded ({error.strerror})") from error
        return found
