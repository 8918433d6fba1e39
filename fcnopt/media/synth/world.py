"""The street as data: what stands and moves along the road, laid out from one seed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fcnopt.media.synth import textures
from fcnopt.media.synth.camera import Drive, Road
from fcnopt.media.synth.canvas import Color, Texture

DRAW_DISTANCE_M = 170.0
SignShape = Literal["round", "triangle", "diamond", "square", "board"]
_PAINTS: tuple[Color, ...] = (
    (190, 192, 195), (225, 226, 228), (40, 40, 44), (95, 98, 102), (44, 38, 150), (120, 70, 36),
    (70, 84, 60), (40, 120, 170), (150, 140, 120), (60, 60, 66),
)  # fmt: skip
_CLOTHES: tuple[Color, ...] = (
    (40, 40, 48), (110, 70, 45), (60, 50, 140), (150, 150, 155), (60, 110, 70), (30, 110, 170),
    (200, 200, 205), (120, 60, 110), (90, 95, 100), (45, 70, 110),
)  # fmt: skip


@dataclass(frozen=True)
class Building:
    """A house on the building line, from z0 to z1, `side` -1 left or 1 right of the road."""

    side: int
    z0: float
    z1: float
    setback_m: float
    height_m: float
    front: Texture
    flank: Texture


@dataclass(frozen=True)
class Hedge:
    """Leaves that fill a gap between houses."""

    side: int
    z0: float
    z1: float
    height_m: float
    texture: Texture


@dataclass(frozen=True)
class Tree:
    """A street tree: trunk and crown."""

    offset_m: float
    z: float
    trunk_m: float
    crown_m: float
    texture: Texture


@dataclass(frozen=True)
class Sign:
    """A traffic sign on a post, facing the demo car or turned away from it."""

    offset_m: float
    z: float
    height_m: float
    shape: SignShape
    color: Color
    away: bool


@dataclass(frozen=True)
class Car:
    """A car; `direction` 1 drives as the demo car does, -1 comes towards it; it stands where `speed_mps` is 0."""

    offset_m: float
    z: float
    speed_mps: float
    direction: int
    paint: Color
    size_m: tuple[float, float, float]
    boxy: bool

    def position_z(self, time_s: float) -> float:
        """Where it is along the road."""
        return self.z + self.direction * self.speed_mps * time_s


@dataclass(frozen=True)
class Pedestrian:
    """A walker; `velocity` is (across, along) the road in m/s."""

    offset_m: float
    z: float
    velocity: tuple[float, float]
    height_m: float
    stride_phase: float
    shirt: Color
    trousers: Color
    skin: Color
    hair: Color

    def place(self, time_s: float) -> tuple[float, float]:
        """(offset, z) at a time."""
        return self.offset_m + self.velocity[0] * time_s, self.z + self.velocity[1] * time_s


@dataclass(frozen=True)
class World:
    """Everything that the renderer draws.

    Attributes:
        road: Its shape.
        drive: The demo car's path.
        crossings: z of the near edge of each zebra crossing.
        sun: Unit vector to the sun, (x, y, z).
        warmth: 0 a white noon, 1 a low yellow sun.
        leaves: BGR of foliage.
    """

    road: Road
    drive: Drive
    crossings: tuple[float, ...]
    frontages: tuple[Building | Hedge, ...]
    trees: tuple[Tree, ...]
    signs: tuple[Sign, ...]
    cars: tuple[Car, ...]
    pedestrians: tuple[Pedestrian, ...]
    sun: NDArray[np.float64]
    warmth: float
    leaves: NDArray[np.float64]

    @classmethod
    def from_seed(cls, seed: int, duration_s: float) -> World:
        """Lay out a street long enough for a drive of `duration_s`."""
        rng = np.random.default_rng(seed)
        parked = rng.random() < 0.5
        road = Road(
            swing_m=rng.uniform(1.0, 4.5),
            wavelength_m=rng.uniform(40, 75),
            phase=rng.uniform(0, 2 * math.pi),
            lane_m=rng.uniform(3.2, 3.8),
            shoulder_m=rng.uniform(2.0, 2.4) if parked else rng.uniform(0.35, 0.9),
            pavement_m=rng.uniform(2.6, 4.4),
        )
        phases = rng.uniform(0, 2 * math.pi, 4)
        drive = Drive(road, rng.uniform(6, 11), (phases[0], phases[1], phases[2], phases[3]))
        end = drive.speed_mps * (duration_s + 1) + DRAW_DISTANCE_M
        start = drive.position_z(0)
        leaves = np.array((50, 118, 88.0)) if rng.random() < 0.75 else np.array((48, 110, 150.0))
        leaves = leaves * rng.uniform(0.8, 1.15, 3)
        crossings = tuple(float(z) for z in np.arange(start + rng.uniform(12, 30), end, rng.uniform(45, 75)))
        elevation, azimuth = rng.uniform(0.35, 1.0), rng.uniform(-math.pi, math.pi)
        flat = math.cos(elevation)
        sun = np.array([flat * math.sin(azimuth), math.sin(elevation), flat * math.cos(azimuth)])
        frontages = _frontages(rng, start, end, leaves)
        return cls(
            road, drive, crossings, frontages,
            _trees(rng, road, (start, end), leaves),
            _signs(rng, road, (start, end), crossings),
            _cars(rng, road, drive, (start, end), parked=parked),
            _pedestrians(rng, road, drive, (start, end), crossings),
            sun, float(np.clip(1.15 - elevation, 0, 1)), leaves,
        )  # fmt: skip


def _frontages(
    rng: np.random.Generator, start: float, end: float, leaves: NDArray[np.float64]
) -> tuple[Building | Hedge, ...]:
    styles = []
    for _ in range(9):
        width, floors = rng.uniform(9, 17), int(rng.integers(2, 6))
        styles.append((width, floors, textures.facade(rng, width, floors, plain=False),
                       textures.facade(rng, 10, floors, plain=True)))  # fmt: skip
    green = [textures.hedge(rng, leaves * rng.uniform(0.7, 1.0)) for _ in range(3)]
    fronts: list[Building | Hedge] = []
    for side in (-1, 1):
        z = start - rng.uniform(10, 20)
        while z < end:
            if rng.random() < 0.22:
                length = rng.uniform(5, 16)
                fronts.append(Hedge(side, z, z + length, rng.uniform(1.7, 3.2), green[rng.integers(3)]))
            else:
                length, floors, front, flank = styles[rng.integers(len(styles))]
                height = floors * rng.uniform(2.8, 3.3)
                fronts.append(Building(side, z, z + length, rng.choice([0, 0, 0.8]), height, front, flank))
            z += length
    return tuple(sorted(fronts, key=lambda front: front.z0))


def _trees(
    rng: np.random.Generator, road: Road, span: tuple[float, float], leaves: NDArray[np.float64]
) -> tuple[Tree, ...]:
    crowns = [textures.foliage(rng, leaves * rng.uniform(0.75, 1.2)) for _ in range(5)]
    trees = []
    for side in (-1, 1):
        spacing = rng.uniform(9, 24)
        for z in np.arange(span[0] + rng.uniform(0, spacing), span[1], spacing):
            if rng.random() < 0.75:
                offset = side * (road.half_m + rng.uniform(0.6, 0.9))
                trees.append(Tree(offset, float(z + rng.uniform(-2, 2)), rng.uniform(1.9, 2.8),
                                  rng.uniform(2.6, 4.6), crowns[rng.integers(5)]))  # fmt: skip
    return tuple(trees)


def _signs(
    rng: np.random.Generator, road: Road, span: tuple[float, float], crossings: tuple[float, ...]
) -> tuple[Sign, ...]:
    kinds: tuple[tuple[SignShape, Color], ...] = (
        ("round", (40, 36, 190)), ("triangle", (40, 36, 190)), ("diamond", (40, 190, 235)),
        ("square", (160, 90, 30)), ("round", (160, 90, 30)), ("board", (70, 120, 40)),
    )  # fmt: skip
    signs = [Sign(side * (road.half_m + 0.45), z - 0.8, 2.3, "square", (160, 90, 30), side < 0)
             for z in crossings for side in (-1, 1)]  # fmt: skip
    z = span[0] + rng.uniform(6, 14)
    while z < span[1]:
        shape, color = kinds[rng.integers(len(kinds))]
        side = 1 if rng.random() < 0.65 else -1
        signs.append(Sign(side * (road.half_m + rng.uniform(0.35, 0.6)), float(z), rng.uniform(2.1, 2.6), shape, color,
                          bool(side < 0 and rng.random() < 0.5)))  # fmt: skip
        z += rng.uniform(9, 22)
    return tuple(signs)


def _car(rng: np.random.Generator, offset_m: float, z: float, speed_mps: float, direction: int) -> Car:
    boxy = bool(rng.random() < 0.22)
    size = (rng.uniform(4.6, 5.4), rng.uniform(1.85, 2.0), rng.uniform(1.9, 2.4)) if boxy else (
        rng.uniform(3.8, 4.6), rng.uniform(1.72, 1.86), rng.uniform(1.4, 1.62))  # fmt: skip
    paint = _PAINTS[rng.integers(len(_PAINTS))]
    return Car(offset_m, float(z), speed_mps, direction, paint, size, boxy)


def _cars(
    rng: np.random.Generator, road: Road, drive: Drive, span: tuple[float, float], *, parked: bool
) -> tuple[Car, ...]:
    lane = road.lane_m / 2
    ahead = span[0] + rng.uniform(9, 24)
    cars = [_car(rng, lane, ahead, drive.speed_mps * rng.uniform(0.98, 1.08), 1)]
    for _ in range(int(rng.integers(0, 3))):
        ahead += rng.uniform(12, 35)
        cars.append(_car(rng, lane, ahead, drive.speed_mps * rng.uniform(1.0, 1.1), 1))
    speed = rng.uniform(7, 12)
    z = span[0] + rng.uniform(18, 40)
    while z < span[1] * 2 + 100:
        cars.append(_car(rng, -lane + rng.uniform(-0.2, 0.2), z, speed, -1))
        z += rng.uniform(14, 55)
    if parked:
        for side in (-1, 1):
            z = span[0] + rng.uniform(4, 12)
            while z < span[1]:
                if rng.random() < 0.6:
                    cars.append(_car(rng, side * (road.lane_m + road.shoulder_m / 2), z, 0.0, side))
                z += rng.uniform(6, 9)
    return tuple(cars)


def _pedestrians(
    rng: np.random.Generator, road: Road, drive: Drive, span: tuple[float, float], crossings: tuple[float, ...]
) -> tuple[Pedestrian, ...]:
    def person(offset_m: float, z: float, velocity: tuple[float, float]) -> Pedestrian:
        tone = rng.uniform(0.45, 1.0)
        clothes = [_CLOTHES[i] for i in rng.integers(len(_CLOTHES), size=2)]
        skin, hair = (140 * tone, 165 * tone, 215 * tone), (30.0, 38.0, 50.0)
        return Pedestrian(float(offset_m), float(z), velocity, rng.uniform(1.55, 1.9), rng.uniform(0, 6.3),
                          clothes[0], clothes[1], skin, hair)  # fmt: skip

    people = []
    for side in (-1, 1):
        z = span[0] + rng.uniform(3, 9)
        while z < span[1]:
            offset = side * (road.half_m + rng.uniform(1.2, road.pavement_m - 0.4))
            people.append(person(offset, z, (0.0, rng.choice([-1, 1]) * rng.uniform(0.9, 1.6))))
            z += rng.uniform(1.0, 22)
    for z in crossings:
        arrival = (z - drive.position_z(0)) / drive.speed_mps
        for _ in range(int(rng.integers(0, 4))):  # they are across before the demo car is there
            side, speed = rng.choice([-1, 1]), rng.uniform(1.1, 1.6)
            gone = arrival - rng.uniform(2.0, 5.0)
            # at the far kerb at time `gone`; before the start it would stand inside the houses
            offset = min(speed * gone - road.half_m - 1.0, road.half_m + road.pavement_m)
            people.append(person(side * offset, z + rng.uniform(0.5, 2.5), (-side * speed, 0.0)))
    return tuple(people)
