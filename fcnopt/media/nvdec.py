"""Videos decoded by an NVIDIA GPU's decoder, through PyNvVideoCodec.

Its thread decodes ahead, the copy to host memory included, so that the CPU has little more to do than to put the
channels in order. YUV becomes RGB on the GPU, which rounds otherwise than FFmpeg does: pixels can differ a little.
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from fcnopt.errors import MediaError

_AHEAD = 8  # frames
_AT_ONCE = 4  # frames; not more than _AHEAD
_FIX = "decode it by PyAV: decoder pyav or auto"


def decode(path: Path) -> Iterator[NDArray[np.uint8]]:
    """The frames of a video, uint8 [H, W, 3], BGR, in order of display; the first ones are decoded at once.

    Raises:
        MediaError: There is no PyNvVideoCodec or no GPU, or it cannot decode this file.
    """
    try:
        import PyNvVideoCodec as codec  # noqa: N813  (its own name for itself)
    except (ImportError, OSError, RuntimeError) as error:  # it loads the driver's libraries
        raise MediaError(f"{path}: PyNvVideoCodec cannot be used here: {error}", fix=_FIX) from error
    # its exceptions derive from nothing but Exception
    try:
        color = codec.OutputColorType.RGB
        decoder = codec.ThreadedDecoder(str(path), _AHEAD, use_device_memory=False, output_color_type=color)
        first = decoder.get_batch_frames(_AT_ONCE)
    except Exception as error:
        raise MediaError(f"{path}: the GPU cannot decode it: {_words(error)}", fix=_FIX) from error
    return _frames(decoder, first, path)


def _frames(decoder: Any, batch: list[Any], path: Path) -> Iterator[NDArray[np.uint8]]:
    try:
        for count in itertools.count():
            for frame in batch:
                yield _as_bgr(frame)
            try:
                batch = decoder.get_batch_frames(_AT_ONCE)
            except Exception as error:
                where = f"after {_AT_ONCE * (count + 1)} frames"
                raise MediaError(f"{path}: the GPU stopped decoding {where}: {_words(error)}", fix=_FIX) from error
            if not batch:
                return
    finally:
        decoder.end()


def _as_bgr(frame: Any) -> NDArray[np.uint8]:
    """A copy of the decoder's frame, whose memory is used again for a later one."""
    height, width, channels = (int(length) for length in frame.shape)
    pointer = ctypes.cast(int(frame.GetPtrToPlane(0)), ctypes.POINTER(ctypes.c_uint8))
    rgb = np.ctypeslib.as_array(pointer, shape=(height, width, channels))
    return np.asarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), np.uint8)


def _words(error: Exception) -> str:
    """Its message on one line."""
    return " ".join(str(error).split())
