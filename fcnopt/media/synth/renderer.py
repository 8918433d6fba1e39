"""Draws one moment of the world: backdrop, ground with shadows, then everything that stands on it."""

from __future__ import annotations

import math
from collections.abc import Iterator

import cv2
import numpy as np
from numpy.typing import NDArray

from fcnopt.media.synth import actors, cars, textures
from fcnopt.media.synth.camera import Camera, Vector
from fcnopt.media.synth.canvas import Canvas, Image
from fcnopt.media.synth.ground import draw_ground, draw_shadows
from fcnopt.media.synth.world import DRAW_DISTANCE_M, Hedge, World

_BACKDROP_DEPTH_M = 400.0
_PANORAMA = 2.4  # width of the panorama over the width of the image


class Renderer:
    """The world with the textures that do not change from frame to frame.

    Args:
        world: What is drawn.
        seed: Of the textures.
        size: (height, width) of the canvas.
    """

    def __init__(self, world: World, seed: int, size: tuple[int, int]) -> None:
        rng = np.random.default_rng([seed, 1])
        self.world = world
        self.size = size
        height, width = size
        self._cars = [(car, cars.body(car)) for car in world.cars]
        self._tile = textures.ground(rng)
        self._horizon = round(0.62 * height)
        shape = (self._horizon + round(0.2 * height), round(_PANORAMA * width))
        self.haze_bgr = np.array((222, 214, 204.0)) * (1 - world.warmth * np.array((0.16, 0.06, -0.02)))
        self._sky = textures.sky(rng, shape, self._horizon, self.haze_bgr / (232, 222, 210))
        self._mark_skyline(rng, shape, height / 192)

    def _mark_skyline(self, rng: np.random.Generator, shape: tuple[int, int], scale: float) -> None:
        tops, built = textures.skyline(rng, shape[1], self._horizon, scale)
        rows = np.arange(shape[0])[:, None]
        solid = rows >= tops
        self._labels = np.where(solid, np.where(built, actors.BUILDING, actors.TREE), actors.SKY).astype(np.uint8)
        walls = np.array((128, 134, 140.0)) * (1 + 0.12 * textures.noise(rng, 8, shape[1], ((12, 1.0),))[0])[:, None]
        leaves = self.world.leaves * (0.7 + 0.12 * textures.noise(rng, 8, shape[1], ((3, 1.0),))[0])[:, None]
        colors = np.where(built[:, None] > 0, walls, leaves)
        painted = np.where(solid[..., None], np.clip(colors, 0, 255)[None], self._sky)
        self._sky = np.dstack([painted, solid]).astype(np.uint8)

    def draw(self, camera: Camera, time_s: float, sun_level: float) -> Canvas:
        """One moment, seen through `camera`; `sun_level` is 1 in full sun and 0 under a cloud."""
        canvas = self._backdrop(camera)
        light = actors.Light(self.world.sun, sun_level)
        shadow = draw_shadows(camera, self._shadow_outlines(camera, time_s))
        full = light.on(np.array([0, 1.0, 0]))
        shade = np.float32(full) - shadow * np.float32(full - 0.64 + 0.2 * (1 - sun_level))
        draw_ground(canvas, self.world.road, self.world.crossings, self._tile, shade.astype(np.float32))
        self._draw_things(canvas, time_s, light)
        return canvas

    def _backdrop(self, camera: Camera) -> Canvas:
        """A canvas with sky and skyline: a panorama at a great distance that shifts as the camera turns."""
        height, width = camera.size
        x = self._labels.shape[1] / 2 + camera.focal_px * math.tan(camera.yaw)
        y = self._horizon - camera.focal_px * math.tan(camera.pitch)
        cos, sin, level = math.cos(camera.roll), math.sin(camera.roll), 0.46 * height
        warp = np.array([[cos, -sin, x - cos * width / 2 + sin * level], [sin, cos, y - sin * width / 2 - cos * level]])

        def seen(panorama: Image, flags: int) -> Image:
            """The part in view; below it comes the ground, which has its own picture."""
            rows = min(height, round(0.6 * height))
            part = np.zeros((height, *((width, 4) if panorama.ndim == 3 else (width,))), np.uint8)
            flags |= cv2.WARP_INVERSE_MAP
            part[:rows] = cv2.warpAffine(panorama, warp, (width, rows), flags=flags, borderMode=cv2.BORDER_REPLICATE)
            part[rows:] = part[rows - 1]
            return part

        labels = seen(self._labels, cv2.INTER_NEAREST)
        inverse_depth = (labels != actors.SKY) * np.float32(1 / _BACKDROP_DEPTH_M)
        return Canvas(camera, seen(self._sky, cv2.INTER_LINEAR), labels, inverse_depth)

    def _draw_things(self, canvas: Canvas, time_s: float, light: actors.Light) -> None:
        """Everything that stands or moves, near things first: what they hide is then cheap."""
        world, here = self.world, canvas.camera.position[2]
        for walker in world.pedestrians:
            if here + 1 < walker.place(time_s)[1] < here + 90:
                actors.draw_pedestrian(canvas, world, walker, time_s, light)
        for car, faces in self._cars:
            if here - 4 < car.position_z(time_s) < here + 150:
                cars.draw_car(canvas, world, car, faces, time_s, light)
        for sign in world.signs:
            if here < sign.z < here + 110:
                actors.draw_sign(canvas, world, sign, light)
        for tree in world.trees:
            if here < tree.z < here + DRAW_DISTANCE_M:
                actors.draw_tree(canvas, world, tree, light)
        for front in world.frontages:
            if here < front.z1 and front.z0 < here + DRAW_DISTANCE_M:
                if isinstance(front, Hedge):
                    actors.draw_hedge(canvas, world, front, light)
                else:
                    actors.draw_building(canvas, world, front, light)

    def _shadow_outlines(self, camera: Camera, time_s: float) -> Iterator[Vector]:
        """What lies in shadow on the ground: convex outlines, world points (N, 3)."""
        world, here = self.world, camera.position[2]
        cast = -world.sun / world.sun[1]  # of a point 1 m above the ground
        cast = np.array([cast[0], 0, cast[2]])
        for house in world.frontages:
            if here - 5 < house.z1 and house.z0 < here + 80 and cast[0] * house.side < 0:
                base = [world.road.point(z, house.side * world.road.frontage_m) for z in (house.z0, house.z1)]
                reach = cast * house.height_m
                yield np.stack([base[0], base[1], base[1] + reach, base[0] + reach])
        for tree in world.trees:
            if here - 8 < tree.z < here + 60:
                foot = world.road.point(tree.z, tree.offset_m)
                yield _ellipse(foot + cast * (tree.trunk_m + tree.crown_m / 2), tree.crown_m * 0.42)
                yield _stripe(foot, cast * (tree.trunk_m + tree.crown_m / 2), 0.16)
        for car in world.cars:
            z = car.position_z(time_s)
            if here < z < here + 70:
                center = world.road.point(z, car.offset_m)
                length, width, tall = car.size_m
                for lean in (0 * cast, cast * tall * 0.8):
                    yield _box(center + lean, width / 2 + 0.08, length / 2 + 0.08)
        for walker in world.pedestrians:
            offset, z = walker.place(time_s)
            if here < z < here + 35:
                yield _stripe(world.road.point(z, offset), cast * walker.height_m, 0.2)


def _ellipse(center: Vector, radius_m: float) -> Vector:
    angles = np.linspace(0, 2 * math.pi, 12, endpoint=False)
    ring: Vector = center + radius_m * np.stack([np.cos(angles), 0 * angles, np.sin(angles)], axis=1)
    return ring


def _stripe(foot: Vector, reach: Vector, half_m: float) -> Vector:
    aside = np.array([half_m, 0, 0])
    return np.stack([foot - aside, foot + aside, foot + reach + aside, foot + reach - aside])


def _box(center: Vector, half_x_m: float, half_z_m: float) -> Vector:
    signs = ((-1, -1), (1, -1), (1, 1), (-1, 1))
    return np.stack([center + np.array([sx * half_x_m, 0, sz * half_z_m]) for sx, sz in signs])


def light_over_time(seed: int, time_s: float) -> tuple[float, float, float]:
    """How the light changes along a clip: (sun level 0 to 1, exposure gain, colour temperature)."""
    phases: NDArray[np.float64] = np.random.default_rng([seed, 2]).uniform(0, 2 * math.pi, 3)
    sun_level = 0.62 + 0.38 * math.sin(0.55 * time_s + phases[0])
    gain = 1.14 + 0.14 * math.sin(0.8 * time_s + phases[1])
    return sun_level, gain, 0.5 * math.sin(0.4 * time_s + phases[2])
