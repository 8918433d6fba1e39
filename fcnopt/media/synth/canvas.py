"""A canvas with colour, label and depth: planar polygons are drawn with a depth test, flat or textured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from fcnopt.media.synth.camera import NEAR_M, Camera, Vector, clip_near

Image = NDArray[np.uint8]
Color = tuple[float, float, float]
Outline = list[tuple[float, float]]

_SUBPIXEL_BITS = 4
_SUBPIXELS = float(1 << _SUBPIXEL_BITS)
# A detail drawn after the face it lies on wins over it: that much nearer counts as equally near.
_COPLANAR = np.float32(1.002)


@dataclass(frozen=True)
class Texture:
    """A picture on a surface, with smaller copies for surfaces far away.

    Attributes:
        levels: uint8 [h, w, 4] each, every one half as large as the one before; the last channel is 255 where
            the surface is solid.
    """

    levels: tuple[Image, ...]

    @classmethod
    def of(cls, image: Image, alpha: Image | None = None) -> Texture:
        """A texture from its largest picture, uint8 [h, w, 3], and, for foliage, what is solid, uint8 [h, w]."""
        solid = np.full(image.shape[:2], 255, np.uint8) if alpha is None else alpha
        levels: list[Image] = [np.dstack([image, solid])]
        while min(levels[-1].shape[:2]) > 8:
            half = (levels[-1].shape[1] // 2, levels[-1].shape[0] // 2)
            levels.append(cv2.resize(levels[-1], half, interpolation=cv2.INTER_AREA).astype(np.uint8))
        return cls(tuple(levels))


@dataclass(frozen=True)
class _Patch:
    """What a polygon covers: its rectangle on the canvas, where it is visible there (0 or 1), and 1 / depth."""

    rows: slice
    cols: slice
    mask: Image
    inverse_depth: NDArray[np.float32]


class Canvas:
    """Colour, label and inverse depth of one frame while it is drawn.

    Attributes:
        camera: Through which it is seen.
        pixels: uint8 [H, W, 4], BGR and a channel without meaning: four bytes a pixel are copied as one word.
        labels: uint8 [H, W].
        inverse_depth: float32 [H, W], 1/metres, 0 in the sky.
    """

    def __init__(self, camera: Camera, pixels: Image, labels: Image, inverse_depth: NDArray[np.float32]) -> None:
        height, width = camera.size
        self.camera = camera
        self.pixels = pixels
        self.labels = labels
        self.inverse_depth = inverse_depth
        self._words = pixels.view(np.uint32)[..., 0]
        self._columns = np.arange(width, dtype=np.float32)
        self._rows = np.arange(height, dtype=np.float32)[:, None]

    def sees(self, place: Vector, reach_m: float) -> bool:
        """Whether something within `reach_m` of a world point may be in the picture."""
        u, v, depth = self.camera.matrix @ (place - self.camera.position)
        margin = self.camera.focal_px * reach_m
        height, width = self.camera.size
        return bool(depth > -reach_m and -margin < u < width * depth + margin and -margin < v < height * depth + margin)

    def height_px(self, place: Vector, height_m: float) -> float:
        """How tall something of `height_m` at a world point is on the canvas."""
        depth = float(self.camera.matrix[2] @ (place - self.camera.position))
        return self.camera.focal_px * height_m / max(depth, 0.1)

    def decals(self, points: Vector, ends: Sequence[int], colors: Sequence[Color], label: int) -> None:
        """Draw convex polygons that lie in one plane, later ones over earlier ones, as one surface.

        Args:
            points: World points (K, 3) of all polygons, one after the other; the first polygon tells the plane.
            ends: Where each polygon ends in `points`.
            colors: BGR of each.
            label: The class of all.
        """
        corners = self._corners(points, ends)
        box = self._box(corners)
        if box is None:
            return
        left, top, right, bottom = box
        drawn = np.zeros((bottom - top, right - left, 4), np.uint8)
        for outline, (blue, green, red) in zip(corners, colors, strict=True):
            if len(outline) >= 3:
                fixed = np.array(_fixed_point(outline, left, top), np.int32)
                cv2.fillConvexPoly(drawn, fixed, (blue, green, red, 1), cv2.LINE_8, _SUBPIXEL_BITS)
        patch = self._patch(points[: ends[0]], box, np.asarray(cv2.extractChannel(drawn, 3), np.uint8))
        if patch is not None:
            visible = patch.mask.view(np.bool_)
            np.copyto(self._words[patch.rows, patch.cols], drawn.view(np.uint32)[..., 0], where=visible)
            self._commit(patch, label)

    def textured(self, corners: Vector, texture: Texture, gain: float, label: int) -> None:
        """Draw a parallelogram with a texture.

        Args:
            corners: World points (3, 3): of the texture's top left, top right and bottom left.
            texture: What to draw.
            gain: Factor on its colours: the light that falls on it.
            label: The class of its solid part.
        """
        origin, right, down = corners[0], corners[1] - corners[0], corners[2] - corners[0]
        outline = np.stack([origin, origin + right, origin + right + down, origin + down])
        seen = self._corners(outline, (4,))
        box = self._box(seen)
        if box is None:
            return
        mask = np.zeros((box[3] - box[1], box[2] - box[0]), np.uint8)
        fixed = np.array(_fixed_point(seen[0], box[0], box[1]), np.int32)
        cv2.fillConvexPoly(mask, fixed, 1, cv2.LINE_8, _SUBPIXEL_BITS)
        patch = self._patch(outline, box, mask)
        if patch is None:
            return
        to_screen = self.camera.matrix @ np.stack([right, down, origin - self.camera.position], axis=1)
        source = texture.levels[self._level(texture, float(np.linalg.norm(down)), patch)]
        to_screen[:2] -= np.outer((patch.cols.start, patch.rows.start), to_screen[2])
        to_screen /= (source.shape[1], source.shape[0], 1)
        size = (patch.mask.shape[1], patch.mask.shape[0])
        image = cv2.warpPerspective(source, to_screen, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        np.bitwise_and(patch.mask, image[..., 3] > 110, out=patch.mask)
        cv2.copyTo(cv2.convertScaleAbs(image, alpha=gain), patch.mask, self.pixels[patch.rows, patch.cols])
        self._commit(patch, label)

    def _level(self, texture: Texture, height_m: float, patch: _Patch) -> int:
        """Which copy of a texture has about as many rows as it covers."""
        pixels = max(1.0, self.camera.focal_px * height_m * float(patch.inverse_depth.max()))
        level = math.floor(math.log2(max(1.0, texture.levels[0].shape[0] / pixels)) + 0.3)
        return min(level, len(texture.levels) - 1)

    def _corners(self, points: Vector, ends: Sequence[int]) -> list[Outline]:
        """Polygons, as in `decals`, on the canvas; what lies behind the near plane is cut off.

        Lists and Python's floats from here on: for four corners they are several times as fast as NumPy.
        """
        seen = self.camera.project(points)
        starts = (0, *ends[:-1])
        if seen[:, 2].min() > NEAR_M:
            pixels = [(x / w, y / w) for x, y, w in seen.tolist()]
            return [pixels[start:end] for start, end in zip(starts, ends, strict=True)]
        clipped = (clip_near(seen[start:end]).tolist() for start, end in zip(starts, ends, strict=True))
        return [[(x / w, y / w) for x, y, w in outline] for outline in clipped]

    def _box(self, corners: list[Outline]) -> tuple[int, int, int, int] | None:
        """Left, top, right and bottom of what polygons cover of the canvas, None where nothing."""
        u, v = [x for outline in corners for x, _ in outline], [y for outline in corners for _, y in outline]
        if len(u) < 3:
            return None
        height, width = self.camera.size
        left, right = max(0, math.floor(min(u))), min(width, math.ceil(max(u)) + 1)
        top, bottom = max(0, math.floor(min(v))), min(height, math.ceil(max(v)) + 1)
        return (left, top, right, bottom) if left < right and top < bottom else None

    def _patch(self, plane: Vector, box: tuple[int, int, int, int], mask: Image) -> _Patch | None:
        """What is visible of `mask` (0 or 1) in the plane through the points `plane`, None where nothing is."""
        left, top, right, bottom = box
        a, b, c = self.camera.inverse_depth_plane(plane)
        inverse = self._columns[left:right] * a + (self._rows[top:bottom] * b + c)
        nearer = cv2.compare(inverse * _COPLANAR, self.inverse_depth[top:bottom, left:right], cv2.CMP_GE)
        cv2.bitwise_and(mask, nearer, mask)
        return _Patch(slice(top, bottom), slice(left, right), mask, inverse) if cv2.hasNonZero(mask) else None

    def _commit(self, patch: _Patch, label: int) -> None:
        visible = patch.mask.view(np.bool_)
        np.copyto(self.inverse_depth[patch.rows, patch.cols], patch.inverse_depth, where=visible)
        np.copyto(self.labels[patch.rows, patch.cols], np.uint8(label), where=visible)


def _fixed_point(outline: Outline, left: int, top: int) -> list[tuple[int, int]]:
    """Corners relative to a box, for cv2, in fractions of a pixel."""
    return [(int((u - left) * _SUBPIXELS), int((v - top) * _SUBPIXELS)) for u, v in outline]
