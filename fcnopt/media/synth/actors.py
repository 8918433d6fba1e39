"""How each kind of thing is drawn: houses, hedges, trees, signs and walkers, as planar polygons."""

from __future__ import annotations

import math
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from fcnopt.media.synth.camera import Vector
from fcnopt.media.synth.canvas import Canvas, Color
from fcnopt.media.synth.world import Building, Hedge, Pedestrian, Sign, Tree, World

BUILDING, TREE, SKY, CAR, PEDESTRIAN, SIGN = 3, 4, 5, 6, 7, 8

_UP = np.array([0.0, 1.0, 0.0])


def cross(a: Vector, b: Vector) -> Vector:
    """np.cross takes 30 times as long on one pair."""
    (ax, ay, az), (bx, by, bz) = a.tolist(), b.tolist()
    return np.array([ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx])


class Light:
    """The light on a surface, from its normal: sky light plus sun where it faces the sun."""

    def __init__(self, sun: NDArray[np.float64], sun_level: float) -> None:
        self.sun = sun
        self.sun_level = sun_level

    def on(self, normal: Vector) -> float:
        """Factor on a surface's own colour; `normal` need not be of unit length."""
        facing = float(normal @ self.sun) / max(1e-9, float(np.linalg.norm(normal)))
        return 0.56 + 0.16 * float(normal[1] > 0.5) + 0.62 * self.sun_level * max(0.0, facing)


def tint(color: Color, gain: float) -> Color:
    """A colour under a light."""
    return color[0] * gain, color[1] * gain, color[2] * gain


def draw_building(canvas: Canvas, world: World, house: Building, light: Light) -> None:
    """The front along the road and the flank that faces the camera."""
    offset = house.side * (world.road.frontage_m + house.setback_m)
    up = np.array([0, house.height_m, 0])
    a, b = world.road.point(house.z0, offset), world.road.point(house.z1, offset)
    left, right = (b, a) if house.side > 0 else (a, b)
    toward_road = cross(_UP, right - left)
    canvas.textured(np.stack([left + up, right + up, left]), house.front, light.on(toward_road), BUILDING)
    if house.z0 > canvas.camera.position[2]:
        deep = a + np.array([house.side * 10.0, 0, 0])
        canvas.textured(np.stack([a + up, deep + up, a]), house.flank, light.on(np.array([0, 0, -1.0])), BUILDING)


def draw_hedge(canvas: Canvas, world: World, hedge: Hedge, light: Light) -> None:
    """A green wall on the building line."""
    offset = hedge.side * world.road.frontage_m
    a, b = world.road.point(hedge.z0, offset), world.road.point(hedge.z1, offset)
    up = np.array([0, hedge.height_m, 0])
    gain = light.on(np.array([-hedge.side, 0.4, 0.0])) * 1.1
    canvas.textured(np.stack([a + up, b + up, a]), hedge.texture, gain, TREE)


def draw_tree(canvas: Canvas, world: World, tree: Tree, light: Light) -> None:
    """A trunk and a crown that faces the camera."""
    foot = world.road.point(tree.z, tree.offset_m)
    gain = light.on(np.array([0, 0.5, -0.5]))
    half = np.array([0.05 * tree.crown_m, 0, 0])
    top = foot + _UP * (tree.trunk_m + 0.4 * tree.crown_m)
    trunk = np.stack([foot - half * 1.2, foot + half * 1.2, top + half * 0.7, top - half * 0.7])
    canvas.decals(trunk, (4,), (tint((58, 72, 88), gain),), TREE)
    corner = foot + np.array([-tree.crown_m / 2, tree.trunk_m + tree.crown_m * 0.95, -0.02])
    size = tree.crown_m
    corners = np.stack([corner, corner + np.array([size, 0, 0]), corner - size * _UP])
    canvas.textured(corners, tree.texture, gain * 1.15, TREE)


def disc(center: Vector, radius_m: float, corners: int, turn: float = 0.0) -> Vector:
    """A regular polygon in the plane z = const."""
    angles = turn + 2 * math.pi * np.arange(corners) / corners
    ring = np.stack([np.sin(angles), np.cos(angles), np.zeros(corners)], axis=1)
    return center + radius_m * ring


def join(parts: list[tuple[Vector, Color]]) -> tuple[Vector, list[int], list[Color]]:
    """Polygons and their colours as `Canvas.decals` takes them: points, ends, colours."""
    ends = list(accumulate(len(points) for points, _ in parts))
    return np.concatenate([points for points, _ in parts]), ends, [color for _, color in parts]


_SHOES: Color = (26, 26, 28)
_HEAD = disc(np.zeros(3), 0.115, 10) * np.array([0.9, 1.1, 1])
_WHITE: Color = (228, 230, 232)
# Of each plate: its corners, the turn of the first one from straight up, and its radius in metres.
_PLATES: dict[str, tuple[int, float, float]] = {
    "round": (14, 0.0, 0.44), "triangle": (3, 0.0, 0.58), "diamond": (4, 0.0, 0.5),
    "square": (4, math.pi / 4, 0.56), "board": (4, math.pi / 4, 0.9),
}  # fmt: skip


def draw_sign(canvas: Canvas, world: World, sign: Sign, light: Light) -> None:
    """A post, a plate and what is on it."""
    foot = world.road.point(sign.z, sign.offset_m)
    gain = light.on(np.array([0, 0.2, -1.0]))
    half = np.array([0.045, 0, 0])
    top = foot + _UP * (sign.height_m + 0.3)
    post = np.stack([foot - half, foot + half, top + half, top - half])
    center = foot + np.array([0, sign.height_m, 0])
    corners, turn, radius = _PLATES[sign.shape]
    outer = disc(center, radius, corners, turn)
    if sign.shape == "board":
        outer[:, 1] = center[1] + (outer[:, 1] - center[1]) * 0.6
    parts: list[tuple[Vector, Color]] = [(post, (120, 122, 124))]
    if sign.away:
        parts.append((outer, (128, 130, 132)))
    else:
        red = sign.color[2] > 150 and sign.color[0] < 100
        inner = center + (outer - center) * (0.72 if red else 0.88)
        mark = center + (inner - center) * np.array([0.22, 0.55, 1])
        parts.append((outer, sign.color if red else _WHITE))
        parts.append((inner, _WHITE if red else sign.color))
        parts.append((mark, (30, 30, 34) if red or sign.shape == "diamond" else _WHITE))
    points, ends, colors = join(parts)
    canvas.decals(points, ends, [tint(color, gain) for color in colors], SIGN)


def draw_pedestrian(canvas: Canvas, world: World, walker: Pedestrian, time_s: float, light: Light) -> None:
    """A walking figure in the plane that faces the camera."""
    offset, z = walker.place(time_s)
    foot = world.road.point(z, offset)
    if not canvas.sees(foot, 2.0):
        return
    gain = light.on(np.array([0, 0.3, -1.0])) * 1.05
    swing = math.sin(walker.stride_phase + 5.6 * time_s) * (0.3 if abs(walker.velocity[0]) > 0.1 else 0.13)
    scale = walker.height_m / 1.75
    points, ends, colors = _figure(walker, swing)
    canvas.decals(points * scale + foot, ends, [tint(color, gain) for color in colors], PEDESTRIAN)


def _figure(walker: Pedestrian, swing: float) -> tuple[Vector, list[int], list[Color]]:
    """A person of 1.75 m with the feet at the origin, `swing` metres into a step: points, ends and colours."""
    points: list[tuple[float, float, float]] = []
    colors: list[Color] = []

    def limb(x0: float, y0: float, x1: float, y1: float, half_m: float, color: Color) -> None:
        tip = 0.8 * half_m
        points.extend(((x0 - half_m, y0, 0), (x0 + half_m, y0, 0), (x1 + tip, y1, 0), (x1 - tip, y1, 0)))
        colors.append(color)

    for side in (-1, 1):
        x = 0.09 * side + side * swing
        limb(0.07 * side, 0.86, x, 0.06, 0.085, tint(walker.trousers, 0.9 + 0.1 * side))
        limb(x, 0.08, x + 0.02, 0.0, 0.1, _SHOES)
    limb(0, 0.8, 0, 1.46, 0.2, walker.shirt)
    for side in (-1, 1):
        limb(0.22 * side, 1.42, 0.25 * side - side * swing * 0.8, 0.85, 0.055, tint(walker.shirt, 0.84))
    limb(0, 1.44, 0, 1.54, 0.05, walker.skin)
    hair = _HEAD if walker.velocity[1] > 0.1 else _HEAD[[7, 8, 9, 0, 1, 2, 3]]  # seen from behind, or a face
    ends = list(range(4, len(points) + 1, 4))
    ends += [ends[-1] + len(_HEAD), ends[-1] + len(_HEAD) + len(hair)]
    body = np.concatenate([np.array(points), _HEAD + 1.63 * _UP, hair * 1.06 + 1.645 * _UP])
    return body, ends, [*colors, walker.skin, walker.hair]
