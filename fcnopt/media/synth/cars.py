"""Cars as meshes of planar faces, each with its details: glass, lights, number plate, wheels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fcnopt.media.synth.actors import CAR, Light, cross, disc, join, tint
from fcnopt.media.synth.camera import Vector
from fcnopt.media.synth.canvas import Canvas, Color
from fcnopt.media.synth.world import Car, World


@dataclass(frozen=True)
class Face:
    """One side of a car with what is on it, in the car's axes: x right, y up, z forward.

    Attributes:
        points: Corners (K, 3) of the face, then of its details.
        ends: Where each of these polygons ends in `points`.
        colors: Of each.
        normal: Outwards.
        small: Left out where the car is only some pixels tall.
        shade: Factor on the colour of the face: a cabin lies in its own shade.
        far: How many polygons are drawn where the car is far away.
    """

    points: Vector
    ends: list[int]
    colors: list[Color]
    normal: Vector
    small: bool
    shade: float
    far: int


def body(car: Car) -> tuple[Face, ...]:
    """The faces of a car."""
    faces = []
    for name, outline in _faces(car).items():
        parts: list[tuple[Vector, Color]] = [(outline, car.paint)]
        parts += [(_on_face(outline, *box), color) for box, color in _DETAILS.get(name, ())]
        if name in ("left", "right"):
            parts += _wheels(car, outline[0][0])
        normal = cross(outline[3] - outline[0], outline[1] - outline[0])
        far = 1 if name in ("left", "right") else min(3, len(parts))
        faces.append(Face(*join(parts), normal, name in _SMALL_FACES, 0.85 if name.endswith("cabin") else 1.0, far))
    return tuple(faces)


def _faces(car: Car) -> dict[str, Vector]:
    """Corners of each face, from its lower left as seen from outside, anticlockwise."""
    length, width, height = car.size_m
    x, front, rear, sill = width / 2, length / 2, -length / 2, _SILL_M
    belt = height * (0.52 if car.boxy else 0.58)
    roof_x = x * (0.9 if car.boxy else 0.8)
    if car.boxy:
        c0, c1, r0, r1 = rear + 0.02, front - 0.75, rear + 0.08, front - 1.35
    else:
        c0, c1, r0, r1 = rear + 0.15, front - 1.05, rear + 0.75, front - 1.85

    def quad(*points: tuple[float, float, float]) -> Vector:
        return np.array(points)

    return {
        "rear": quad((-x, sill, rear), (x, sill, rear), (x, belt, rear), (-x, belt, rear)),
        "front": quad((x, sill, front), (-x, sill, front), (-x, belt * 0.9, front), (x, belt * 0.9, front)),
        "left": quad((-x, sill, front), (-x, sill, rear), (-x, belt, rear), (-x, belt, c1), (-x, belt * 0.9, front)),
        "right": quad((x, sill, rear), (x, sill, front), (x, belt * 0.9, front), (x, belt, c1), (x, belt, rear)),
        "bonnet": quad((-x, belt, c1), (x, belt, c1), (x, belt * 0.9, front), (-x, belt * 0.9, front)),
        "deck": quad((-x, belt, rear), (x, belt, rear), (x, belt, c0), (-x, belt, c0)),
        "rear_glass": quad((-x, belt, c0), (x, belt, c0), (roof_x, height, r0), (-roof_x, height, r0)),
        "windscreen": quad((x, belt, c1), (-x, belt, c1), (-roof_x, height, r1), (roof_x, height, r1)),
        "left_cabin": quad((-x, belt, c1), (-x, belt, c0), (-roof_x, height, r0), (-roof_x, height, r1)),
        "right_cabin": quad((x, belt, c0), (x, belt, c1), (roof_x, height, r1), (roof_x, height, r0)),
        "roof": quad((-roof_x, height, r0), (roof_x, height, r0), (roof_x, height, r1), (-roof_x, height, r1)),
    }  # fmt: skip


def _on_face(face: Vector, left: float, right: float, low: float, high: float) -> Vector:
    """A part of a quad, in its own coordinates 0 to 1, from its lower left corner."""
    bottom = [face[0] + (face[1] - face[0]) * t for t in (left, right)]
    upper = [face[3] + (face[2] - face[3]) * t for t in (left, right)]
    return np.stack([
        bottom[0] + (upper[0] - bottom[0]) * low, bottom[1] + (upper[1] - bottom[1]) * low,
        bottom[1] + (upper[1] - bottom[1]) * high, bottom[0] + (upper[0] - bottom[0]) * high,
    ])  # fmt: skip


_SILL_M = 0.28
_GLASS: Color = (72, 62, 54)
_DARK: Color = (26, 26, 28)
# Left out where the car is only some pixels tall.
_SMALL_FACES = ("bonnet", "deck", "roof", "left_cabin", "right_cabin")
# Details on a face: (left, right, low, high) of it and a colour.
_DETAILS: dict[str, tuple[tuple[tuple[float, float, float, float], Color], ...]] = {
    "rear": (
        ((0.0, 1.0, 0.0, 0.16), _DARK),
        ((0.03, 0.2, 0.55, 0.9), (36, 30, 190)), ((0.8, 0.97, 0.55, 0.9), (36, 30, 190)),
        ((0.36, 0.64, 0.3, 0.5), (210, 225, 230)),
    ),
    "front": (
        ((0.0, 1.0, 0.0, 0.16), _DARK), ((0.25, 0.75, 0.45, 0.75), _DARK), ((0.04, 0.22, 0.6, 0.9), (235, 245, 250)),
        ((0.78, 0.96, 0.6, 0.9), (235, 245, 250)), ((0.38, 0.62, 0.22, 0.4), (210, 225, 230)),
    ),
    "rear_glass": (((0.08, 0.92, 0.1, 0.86), _GLASS),),
    "windscreen": (((0.05, 0.95, 0.06, 0.92), _GLASS),),
    "left_cabin": (((0.08, 0.47, 0.08, 0.84), _GLASS), ((0.52, 0.9, 0.08, 0.84), _GLASS)),
    "right_cabin": (((0.1, 0.48, 0.08, 0.84), _GLASS), ((0.53, 0.92, 0.08, 0.84), _GLASS)),
}  # fmt: skip


def draw_car(canvas: Canvas, world: World, car: Car, faces: tuple[Face, ...], time_s: float, light: Light) -> None:
    """A car with the faces from `body`; those turned away are left out."""
    z = car.position_z(time_s)
    place = world.road.point(z, car.offset_m)
    if not canvas.sees(place, car.size_m[0]):
        return
    heading = world.road.heading(z) + (0.0 if car.direction > 0 else math.pi)
    sin, cos = math.sin(heading), math.cos(heading)
    turn = np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]])
    eye = turn.T @ (canvas.camera.position - place)
    tall = canvas.height_px(place, car.size_m[2])
    if tall > 10:
        canvas.decals(_treads(car, eye) @ turn.T + place, (4, 8, 12), (_DARK,) * 3, CAR)
    for face in faces:
        if face.normal @ (eye - face.points[0]) <= 0 or (tall < 10 and face.small):
            continue
        gain = light.on(turn @ face.normal)
        count = face.far if tall < 22 else len(face.ends)
        first, *details = face.colors[:count]
        # lamps shine by themselves
        colors = [tint(color, max(gain, 0.85) if color[2] > 180 else gain) for color in details]
        points = face.points[: face.ends[count - 1]] @ turn.T + place
        canvas.decals(points, face.ends[:count], [tint(first, gain * face.shade), *colors], CAR)


def _treads(car: Car, eye: Vector) -> Vector:
    """The dark underbody and two tyres that show below the nearer bumper: three quads in the car's axes, (12, 3)."""
    length, width, _ = car.size_m
    z = math.copysign(length / 2 - 0.4, eye[2])
    spans = [(-width / 2, width / 2, 0.14, 0.34)]
    spans += [(side - 0.11, side + 0.11, 0.0, 0.4) for side in (0.13 - width / 2, width / 2 - 0.13)]
    corners = [((a, low, z), (b, low, z), (b, high, z), (a, high, z)) for a, b, low, high in spans]
    return np.array(corners).reshape(12, 3)


def _wheels(car: Car, x: float) -> list[tuple[Vector, Color]]:
    """Tyres and rims on a side of the car, in its axes."""
    parts: list[tuple[Vector, Color]] = []
    for z in (-0.31 * car.size_m[0], 0.31 * car.size_m[0]):
        for radius, color in ((0.36, (20.0, 20.0, 22.0)), (0.19, (105.0, 107.0, 110.0))):
            ring = disc(np.array([z, _SILL_M + 0.06, 0.0]), radius, 12)
            parts.append((np.stack([np.full(12, x), ring[:, 1], ring[:, 0]], axis=1), color))
    return parts
