"""Plain pixels of image messages to BGR, by the encodings of ROS (sensor_msgs/image_encodings.hpp).

YUV becomes BGR as OpenCV and thus cv_bridge does it: BT.601, limited range. Bayer patterns are interpolated linearly.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from fcnopt.media.headers import MAX_PIXELS
from fcnopt.media.logs.base import ImageMessage, LogError


@dataclass(frozen=True)
class _Encoding:
    """How pixels lie in memory.

    Attributes:
        channels: Bytes a pixel of a row.
        code: OpenCV's conversion to BGR; None where there is nothing to do.
        planes: Rows of data in half rows of the picture: 3 where a plane of colours at half the height follows.
    """

    channels: int
    code: int | None = None
    planes: int = 2


# By OpenCV's names a Bayer pattern is told by its second row and column; the aliases here say what the first row holds.
_ENCODINGS = {
    "bgr8": _Encoding(3),
    "8uc3": _Encoding(3),
    "rgb8": _Encoding(3, cv2.COLOR_RGB2BGR),
    "bgra8": _Encoding(4, cv2.COLOR_BGRA2BGR),
    "8uc4": _Encoding(4, cv2.COLOR_BGRA2BGR),
    "rgba8": _Encoding(4, cv2.COLOR_RGBA2BGR),
    "mono8": _Encoding(1, cv2.COLOR_GRAY2BGR),
    "8uc1": _Encoding(1, cv2.COLOR_GRAY2BGR),
    "bayer_rggb8": _Encoding(1, cv2.COLOR_BayerRGGB2BGR),
    "bayer_bggr8": _Encoding(1, cv2.COLOR_BayerBGGR2BGR),
    "bayer_gbrg8": _Encoding(1, cv2.COLOR_BayerGBRG2BGR),
    "bayer_grbg8": _Encoding(1, cv2.COLOR_BayerGRBG2BGR),
    "uyvy": _Encoding(2, cv2.COLOR_YUV2BGR_UYVY),
    "yuv422": _Encoding(2, cv2.COLOR_YUV2BGR_UYVY),
    "yuyv": _Encoding(2, cv2.COLOR_YUV2BGR_YUY2),
    "yuv422_yuy2": _Encoding(2, cv2.COLOR_YUV2BGR_YUY2),
    "nv12": _Encoding(1, cv2.COLOR_YUV2BGR_NV12, planes=3),
    "nv21": _Encoding(1, cv2.COLOR_YUV2BGR_NV21, planes=3),
}


def as_bgr(message: ImageMessage) -> NDArray[np.uint8]:
    """The pixels of an uncompressed image message, uint8 [H, W, 3], BGR; a copy.

    Raises:
        LogError: The encoding is unknown, or size and data do not fit each other.
    """
    height, width, step = message.shape or (0, 0, 0)
    encoding = _ENCODINGS.get(message.format.lower())
    if encoding is None:
        known = ", ".join(name for name in _ENCODINGS if not name.startswith("8uc"))
        raise LogError(f"pixels are encoded as {message.format!r}", f"record them as one of {known}")
    halves = height * encoding.planes
    if not (0 < height * width <= MAX_PIXELS and width * encoding.channels <= step):
        raise LogError(f"{message.format} of {width}x{height} with {step} bytes a row is impossible")
    if halves % 2 or len(message.data) != halves // 2 * step:
        raise LogError(
            f"{message.format} of {width}x{height} with {step} bytes a row needs {halves // 2 * step} bytes, "
            f"found {len(message.data)}"
        )
    rows = np.frombuffer(message.data, np.uint8).reshape(halves // 2, step)[:, : width * encoding.channels]
    pixels = np.ascontiguousarray(rows).reshape(halves // 2, width, encoding.channels)
    if encoding.code is None:
        return pixels.copy()
    try:
        return np.asarray(cv2.cvtColor(pixels, encoding.code), np.uint8)
    except cv2.error as error:  # an odd width, a Bayer pattern of one row
        raise LogError(f"{message.format} of {width}x{height} cannot be converted: {error.err}") from error
