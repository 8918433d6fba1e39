"""From a drawn scene to a camera's picture: haze, motion blur, exposure, colour of the light, vignette and noise."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from fcnopt.media.synth.camera import Camera
from fcnopt.media.synth.canvas import Image

Plane = NDArray[np.float32]

_SHUTTER = 0.4  # of the time between two frames
_VISIBILITY_M = 330.0


@dataclass(frozen=True)
class Exposure:
    """What light and camera do to one frame.

    Attributes:
        gain: Overall brightness.
        temperature: Above 0 warm (red up, blue down), below 0 cold.
        noise: Standard deviation of the sensor noise at middle grey, in 8-bit steps.
        haze_bgr: Colour of the air.
        sun_px: Where the sun stands in the image, (u, v), or None where it is behind or far outside.
    """

    gain: float
    temperature: float
    noise: float
    haze_bgr: NDArray[np.float64]
    sun_px: tuple[float, float] | None


def add_haze(image: Image, inverse_depth: Plane, haze_bgr: NDArray[np.float64]) -> Plane:
    """Blend distant things into the colour of the air; the sky (inverse depth 0) has its own. float32 [H, W, 3]."""
    clear = np.exp((-1 / _VISIBILITY_M) / np.maximum(inverse_depth, (1 / 400)))
    clear[inverse_depth == 0] = 1
    hazed = image.astype(np.float32)
    haze = haze_bgr.astype(np.float32)
    for c in range(3):
        hazed[..., c] = haze[c] + (hazed[..., c] - haze[c]) * clear
    return hazed


def motion_blur(image: Plane, inverse_depth: Plane, before: Camera, after: Camera) -> Plane:
    """Average the picture along each pixel's path between two cameras, as an open shutter does.

    Every pixel is lifted to the world by its depth and seen again from `after`; a pixel moves by the difference.
    """
    height, width = inverse_depth.shape
    change = after.matrix @ before.inverse
    shift = after.matrix @ (before.position - after.position)
    u, v = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)[:, None]
    moved = [
        a * u + (b * v + c) + offset * inverse_depth
        for (a, b, c), offset in zip(change.tolist(), shift.tolist(), strict=True)
    ]
    scale = 1 / np.maximum(moved[2], 0.2)
    flow_x, flow_y = (moved[0] * scale - u) * _SHUTTER, (moved[1] * scale - v) * _SHUTTER
    blurred = image.copy()
    for part in (0.33, 0.67, 1.0):
        map_x, map_y = u + part * flow_x, v + part * flow_y
        blurred += cv2.remap(image, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    blurred *= 0.25
    return blurred


def vignette(size: tuple[int, int]) -> Plane:
    """Brightness factor [H, W, 1]: a lens is darker in its corners."""
    height, width = size
    x = (np.arange(width, dtype=np.float32) - width / 2) / (width / 2)
    y = (np.arange(height, dtype=np.float32)[:, None] - height / 2) / (width / 2)
    return np.asarray(1 - 0.17 * (x * x + y * y), np.float32)[..., None]


def develop(image: Plane, exposure: Exposure, lens: Plane, grain: Plane) -> Image:
    """Apply exposure, colour of the light, glare, vignette and noise, and round to uint8.

    Args:
        image: float32 [H, W, 3], changed in place.
        exposure: Of this frame.
        lens: From `vignette`.
        grain: Normal noise of variance 1, float32 [H, W, 3].
    """
    warm = exposure.temperature
    image *= np.array((1 - 0.13 * warm, 1.0, 1 + 0.09 * warm), np.float32) * exposure.gain * lens
    if exposure.sun_px is not None:
        image += _glare(image.shape[:2], exposure.sun_px)[..., None] * np.array((0.82, 0.93, 1.0), np.float32)
    # a soft shoulder instead of hard clipping
    np.minimum(image, 200 + (image - 200) * 0.45, out=image)
    # the noise of photons grows with the light
    image += grain * ((0.55 * exposure.noise) + image * (0.0035 * exposure.noise))
    return np.asarray(cv2.convertScaleAbs(np.maximum(image, 0)), np.uint8)


def _glare(size: tuple[int, ...], sun_px: tuple[float, float]) -> Plane:
    """Light scattered in the lens about the sun."""
    height, width = size
    x = (np.arange(width, dtype=np.float32) - (sun_px[0])) / width
    y = (np.arange(height, dtype=np.float32)[:, None] - (sun_px[1])) / width
    distance = np.sqrt(x * x + y * y)
    halo, disc = np.exp(distance * -9), np.exp(-np.square(distance * 28))
    return np.asarray(110 * halo + 150 * disc, np.float32)


def sun_pixel(camera: Camera, sun: NDArray[np.float64]) -> tuple[float, float] | None:
    """Where the sun is in the image, None where it is behind the camera or too far outside to matter."""
    u, v, depth = camera.matrix @ sun
    if depth < 0.05:
        return None
    height, width = camera.size
    x, y = u / depth, v / depth
    near = -0.4 * width < x < 1.4 * width and -0.8 * height < y < height
    return (float(x), float(y)) if near and math.isfinite(x + y) else None
