"""The ground: for every pixel below the horizon, the place on the road that it sees, and what is painted there."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from fcnopt.media.synth.camera import Camera, Road, Vector, clip_near
from fcnopt.media.synth.canvas import Canvas, Image
from fcnopt.media.synth.textures import GROUND_TILE

ROAD, MARKING, PAVEMENT = 0, 1, 2

_LINE_M = 0.09  # half the width of a painted line
_DASH_M, _DASH_PERIOD_M = 4.0, 9.0
_STRIPE_M, _ZEBRA_M = 1.1, 3.2
_TEXELS_PER_M = 56.0
_ASPHALT = np.array((98, 94, 92), np.float32)
_PAVING = np.array((150, 157, 163), np.float32)
_PAINT = np.array((222, 226, 228), np.float32)

# float32 [rows, columns]; in arithmetic with Python numbers NumPy keeps that, its type stubs do not
Plane = NDArray[np.floating[Any]]
Array = TypeVar("Array", NDArray[np.float32], NDArray[np.uint8])


def draw_ground(
    canvas: Canvas, road: Road, crossings: Iterable[float], tile: NDArray[np.float32], light: Plane
) -> None:
    """Draw road, markings and pavement below the horizon.

    Edges of paint and kerb are smoothed by how much of a pixel they cover, so that the ground needs no more than one
    sample a pixel of the finished image, two by two on the canvas.

    Args:
        canvas: Holds the backdrop; ground nearer than it is drawn over it.
        road: Its shape.
        crossings: z of each zebra crossing's near edge.
        tile: From `textures.ground`.
        light: float32 [H / 2, W / 2], the light that falls on the ground (shadows included).
    """
    camera = canvas.camera
    top = _first_row(camera)
    x, z, depth = _places(camera, top)
    lateral = x - road.swing_m * np.sin(z * (1 / road.wavelength_m) + road.phase)
    across = depth * (2 / camera.focal_px)  # metres a sample
    along = depth * across * (1 / float(camera.position[1]))
    aside = np.abs(lateral)
    paint = _paint(road, crossings, Samples(lateral, aside, z, across, along))
    kerb = np.clip((aside - road.half_m) / across + 0.5, 0, 1)
    grain = _grain(tile, lateral, z, kerb > 0.5, along)
    shade = grain * light[top // 2 :]
    edge = np.clip((0.17 - np.abs(aside - (road.half_m + 0.15))) / across + 0.5, 0, 1)
    wear = paint * np.clip(2.9 * grain - 2.0, 0.25, 1)
    image = np.zeros((*depth.shape, 4), np.float32)
    for c in range(3):
        base = _ASPHALT[c] + (_PAVING[c] - _ASPHALT[c]) * kerb + 22 * edge * kerb
        image[..., c] = (base + (_PAINT[c] - base) * wear) * shade
    labels = np.where(kerb > 0.5, PAVEMENT, np.where(paint > 0.5, MARKING, ROAD)).astype(np.uint8)
    inverse = _doubled(np.asarray(1 / depth, np.float32))
    mask = cv2.compare(inverse, canvas.inverse_depth[top:], cv2.CMP_GT)
    cv2.copyTo(_doubled(np.clip(image, 0, 255).astype(np.uint8)), mask, canvas.pixels[top:])
    cv2.copyTo(_doubled(labels), mask, canvas.labels[top:])
    cv2.copyTo(inverse, mask, canvas.inverse_depth[top:])


def _doubled(plane: Array) -> Array:
    """Every sample as two by two pixels of the canvas."""
    height, width = plane.shape[:2]
    doubled = cv2.resize(plane, (2 * width, 2 * height), interpolation=cv2.INTER_NEAREST)
    return np.asarray(doubled, plane.dtype)


def _first_row(camera: Camera) -> int:
    """The first even row all of whose pixels see the ground within 2 km."""
    height, width = camera.size
    corners = camera.inverse[1] @ np.array([[0, width - 1], [0, 0], [1, 1.0]])
    limit, step = float(-camera.position[1]) / 2000, float(camera.inverse[1, 1])
    row = int(np.ceil(((limit - corners) / step).max()))
    row += row % 2
    return min(height - 2, max(0, row))


def _places(camera: Camera, top: int) -> tuple[Plane, Plane, Plane]:
    """World x and z, and depth, of the ground at the sample of each pixel that labels are taken from."""
    height, width = camera.size
    eye_x, eye_y, eye_z = camera.position.tolist()
    u, v = np.arange(1, width, 2, dtype=np.float32), np.arange(top + 1, height, 2, dtype=np.float32)[:, None]
    ray_x, ray_y, ray_z = (np.asarray(a * u + (b * v + c), np.float32) for a, b, c in camera.inverse.tolist())
    depth = -eye_y / ray_y
    return depth * ray_x + eye_x, depth * ray_z + eye_z, depth


@dataclass(frozen=True)
class Samples:
    """The ground at each sample.

    Attributes:
        lateral: Metres to the right of the centre line.
        aside: Its absolute value.
        z: Along the road.
        across: Metres that one sample covers, sideways.
        along: The same, ahead.
    """

    lateral: Plane
    aside: Plane
    z: Plane
    across: Plane
    along: Plane

    def rows(self, rows: slice) -> Samples:
        """A part of them."""
        return Samples(self.lateral[rows], self.aside[rows], self.z[rows], self.across[rows], self.along[rows])


def _paint(road: Road, crossings: Iterable[float], ground: Samples) -> Plane:
    """How much of each sample is covered by paint, 0 to 1."""
    half_dash = _DASH_M / 2
    in_dash = half_dash - np.abs(np.mod(ground.z, _DASH_PERIOD_M) - half_dash)
    paint = _cover(_LINE_M - ground.aside, ground.across) * _cover(in_dash, ground.along)
    np.maximum(paint, _cover(_LINE_M - np.abs(ground.aside - road.lane_m), ground.across), out=paint)
    middle = ground.z[:, ground.z.shape[1] // 2]
    for start in crossings:
        # enough for the sides too: the road turns little against the z axis
        found = np.flatnonzero(np.abs(middle - start) < 12)
        if found.size:
            rows = slice(found[0], found[-1] + 1)
            # other lines stop at a crossing
            clear = np.abs(ground.z[rows] - (start + 0.5)) > 3.2
            paint[rows] = np.maximum(paint[rows] * clear, _crossing(road, start, ground.rows(rows)))
    return paint


def _crossing(road: Road, start: float, ground: Samples) -> Plane:
    """A zebra crossing from z = `start` on, and the stop line before it."""
    inside = _ZEBRA_M / 2 - np.abs(ground.z - (start + _ZEBRA_M / 2))
    stripe = _STRIPE_M / 4 - np.abs(np.mod(ground.lateral, _STRIPE_M) - _STRIPE_M / 2)
    zebra = _cover(inside, ground.along) * _cover(np.minimum(stripe, road.half_m - 0.3 - ground.aside), ground.across)
    in_lane = (ground.lateral > 0) & (ground.lateral < road.lane_m)
    stop = _cover(0.2 - np.abs(ground.z - (start - 2)), ground.along) * in_lane
    return np.maximum(zebra, stop)


def _cover(depth_m: Plane, sample_m: Plane) -> Plane:
    """The share of a sample that lies inside an edge, `depth_m` metres within it."""
    return np.asarray(np.clip(depth_m / sample_m + 0.5, 0, 1), np.float32)


def _grain(tile: NDArray[np.float32], lateral: Plane, z: Plane, paved: NDArray[np.bool_], along: Plane) -> Plane:
    """Texture brightness, fading to its mean where a sample spans many texels."""
    fine = _lookup(tile, lateral * _TEXELS_PER_M, z * _TEXELS_PER_M, paved)
    # patches as of repairs: the same asphalt, seven times as large, under everything
    coarse = _lookup(tile, lateral * (_TEXELS_PER_M / 7), z * (_TEXELS_PER_M / 7))
    sharp = 0.75 / (1 + along * 5)
    return 1 + (fine - 1) * sharp + (coarse - 1) / (1 + along)


def _lookup(tile: NDArray[np.float32], x: Plane, z: Plane, paved: NDArray[np.bool_] | None = None) -> Plane:
    """Texels of asphalt or, where `paved`, of paving; the tile repeats."""
    wrap = GROUND_TILE - 1  # a power of two less one: the bits of a place in the tile
    index = (z.astype(np.int32) & wrap) * GROUND_TILE + (x.astype(np.int32) & wrap)
    if paved is not None:
        index += paved * np.int32(GROUND_TILE * GROUND_TILE)
    return np.asarray(tile.ravel().take(index), np.float32)


def draw_shadows(camera: Camera, outlines: Iterable[Vector]) -> NDArray[np.float32]:
    """Where convex outlines on the ground, world points (N, 3), are in shadow: 0 to 1, soft-edged.

    Returns:
        float32 [H / 2, W / 2] for a canvas of [H, W].
    """
    height, width = camera.size
    mask: Image = np.zeros((height // 2, width // 2), np.uint8)
    for outline in outlines:
        homogeneous = clip_near(camera.project(outline))
        if len(homogeneous) >= 3:
            pixels = np.clip(homogeneous[:, :2] / homogeneous[:, 2:] * 8, -(1 << 24), 1 << 24)
            cv2.fillConvexPoly(mask, pixels.round().astype(np.int32), 255, cv2.LINE_8, 4)
    return np.asarray(cv2.blur(mask, (3, 3)) * (1 / 255), np.float32)
