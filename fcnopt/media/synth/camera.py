"""The pinhole camera of the demo car and the path it drives.

World axes: x to the right, y up, z along the road, metres. Camera axes: x right, y down, z forward. A world point P
is seen at `homogeneous = matrix @ (P - position)`, pixel = first two over the third, and the third is its depth.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]

EYE_HEIGHT_M = 1.4
HORIZONTAL_FOCAL = 0.72  # focal length over image width: a field of view of 70 degrees
NEAR_M = 0.35


@dataclass(frozen=True)
class Camera:
    """Where the camera is and how it projects.

    Attributes:
        size: (height, width) of its image in pixels.
        focal_px: Focal length in pixels.
        position: Its place in the world, shape (3,).
        yaw: Heading to the right of the z axis, radians.
        pitch: Upwards, radians.
        roll: Clockwise, radians.
        matrix: Intrinsics times rotation, shape (3, 3).
        inverse: Of `matrix`; times (u, v, 1) it is the ray whose depth is 1.
    """

    size: tuple[int, int]
    focal_px: float
    position: Vector
    yaw: float
    pitch: float
    roll: float
    matrix: Vector
    inverse: Vector

    @classmethod
    def at(cls, size: tuple[int, int], position: Vector, yaw: float, pitch: float, roll: float) -> Camera:
        """A camera with its horizon at 46 % of the image height when it is level."""
        height, width = size
        focal = HORIZONTAL_FOCAL * width
        intrinsics = np.array([[focal, 0, (width - 1) / 2], [0, focal, 0.46 * height], [0, 0, 1]])
        sy, cy, sp, cp, sr, cr = (f(a) for a in (yaw, pitch, roll) for f in (math.sin, math.cos))
        forward = np.array([sy * cp, sp, cy * cp])
        right = np.array([cy, 0.0, -sy])
        down = np.cross(right, forward)
        axes = np.stack([cr * right + sr * down, cr * down - sr * right, forward])
        matrix = intrinsics @ axes
        return cls(size, focal, position, yaw, pitch, roll, matrix, np.linalg.inv(matrix))

    def project(self, points: Vector) -> Vector:
        """World points (N, 3) as homogeneous pixels (N, 3); the third is the depth in metres."""
        result: Vector = (points - self.position) @ self.matrix.T
        return result

    def inverse_depth_plane(self, points: Vector) -> tuple[float, float, float]:
        """Coefficients (a, b, c) with `1 / depth = a * u + b * v + c` on the plane of a polygon, points (N, 3)."""
        (ax, ay, az), (bx, by, bz) = (points[[1, -1]] - points[0]).tolist()
        normal = (ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx)
        px, py, pz = (points[0] - self.position).tolist()
        distance = normal[0] * px + normal[1] * py + normal[2] * pz
        a, b, c = (np.array(normal) @ self.inverse / (distance if abs(distance) > 1e-9 else 1e-9)).tolist()
        return a, b, c


def clip_near(homogeneous: Vector) -> Vector:
    """The part of a polygon, homogeneous pixels (N, 3), that lies in front of the near plane; (M, 3), M may be 0."""
    ahead = homogeneous[:, 2] > NEAR_M
    if ahead.all() or not len(homogeneous):
        return homogeneous
    kept = []
    for a, b, a_in, b_in in zip(homogeneous, np.roll(homogeneous, -1, 0), ahead, np.roll(ahead, -1), strict=True):
        if a_in:
            kept.append(a)
        if a_in != b_in:
            kept.append(a + (b - a) * (NEAR_M - a[2]) / (b[2] - a[2]))
    return np.array(kept).reshape(-1, 3)


@dataclass(frozen=True)
class Road:
    """A road that winds slightly about the z axis.

    Attributes:
        swing_m: Amplitude of its bends.
        wavelength_m: Distance over which a bend repeats, divided by 2 pi.
        phase: Where in a bend z = 0 lies, radians.
        lane_m: Width of one lane.
        shoulder_m: Between the edge line and the kerb; wide enough for parked cars or nearly nothing.
        pavement_m: From the kerb to the building line.
    """

    swing_m: float
    wavelength_m: float
    phase: float
    lane_m: float
    shoulder_m: float
    pavement_m: float

    @property
    def half_m(self) -> float:
        """From the centre line to the kerb."""
        return self.lane_m + self.shoulder_m

    @property
    def frontage_m(self) -> float:
        """From the centre line to the building line."""
        return self.half_m + self.pavement_m

    def center(self, z: float) -> float:
        """The centre line's x at z."""
        return self.swing_m * math.sin(z / self.wavelength_m + self.phase)

    def heading(self, z: float) -> float:
        """Direction of the centre line at z, radians to the right of the z axis."""
        return math.atan(self.swing_m / self.wavelength_m * math.cos(z / self.wavelength_m + self.phase))

    def point(self, z: float, offset_m: float, height_m: float = 0.0) -> Vector:
        """The place `offset_m` to the right of the centre line."""
        return np.array([self.center(z) + offset_m, height_m, z])


@dataclass(frozen=True)
class Drive:
    """How the car moves along the road.

    Attributes:
        road: What it follows, in the right-hand lane.
        speed_mps: Its mean speed.
        phases: Four phases of the small movements of a real car: speed, drift in the lane, steering, suspension.
    """

    road: Road
    speed_mps: float
    phases: tuple[float, float, float, float]

    def position_z(self, time_s: float) -> float:
        """Distance along the road; the speed varies by a tenth."""
        return self.speed_mps * (time_s + 0.2 * math.sin(0.5 * time_s + self.phases[0]))

    def camera(self, time_s: float, size: tuple[int, int]) -> Camera:
        """The camera at one moment."""
        _, drift, steering, bumps = self.phases
        z = self.position_z(time_s)
        position = self.road.point(z, self.road.lane_m / 2 + 0.18 * math.sin(0.6 * time_s + drift), EYE_HEIGHT_M)
        yaw = self.road.heading(z + 6) + 0.012 * math.sin(0.9 * time_s + steering)
        pitch = 0.006 * math.sin(2.3 * time_s + bumps) + 0.003 * math.sin(9.1 * time_s + 2 * bumps)
        return Camera.at(size, position, yaw, pitch, 0.006 * math.sin(1.3 * time_s + drift))
