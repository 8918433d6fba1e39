"""Procedural textures: noise, facades, foliage, the ground and the sky panorama; all from one random generator."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from fcnopt.media.synth.canvas import Image, Texture

PX_PER_M = 14
GROUND_TILE = 512
_WALLS = (  # BGR
    (108, 128, 160), (150, 190, 205), (165, 170, 175), (92, 108, 150), (140, 160, 185),
    (185, 190, 188), (120, 150, 178), (95, 100, 108), (170, 178, 200), (130, 140, 140),
)  # fmt: skip
_AWNINGS = ((60, 60, 170), (120, 80, 40), (70, 120, 60), (50, 130, 180), (90, 50, 110))


def noise(
    rng: np.random.Generator, height: int, width: int, octaves: tuple[tuple[int, float], ...]
) -> NDArray[np.float32]:
    """Tileable smooth noise [height, width] about 0: a sum of (cell size in pixels, amplitude) octaves."""
    total = np.zeros((height, width), np.float32)
    for cell, amplitude in octaves:
        rows, cols = max(2, height // cell), max(2, width // cell)
        grid = np.pad(rng.standard_normal((rows, cols)).astype(np.float32), 2, mode="wrap")
        fine = cv2.resize(grid, None, fx=width / cols, fy=height / rows, interpolation=cv2.INTER_CUBIC)
        top, left = round(2 * height / rows), round(2 * width / cols)
        total += amplitude * fine[top : top + height, left : left + width]
    return total


def facade(rng: np.random.Generator, width_m: float, floors: int, *, plain: bool) -> Texture:
    """A house front of `floors` floors of 3 m; a `plain` one is a side wall with few windows and no shop."""
    pitch = 3 * PX_PER_M
    height, width = floors * pitch, round(width_m * PX_PER_M)
    image = np.empty((height, width, 3), np.float32)
    image[:] = np.array(_WALLS[rng.integers(len(_WALLS))]) * rng.uniform(0.8, 1.1)
    image += noise(rng, height, width, ((2, 5.0), (24, 6.0)))[..., None]
    if rng.random() < 0.45:
        image[:: PX_PER_M // 3] *= 0.93  # brick courses
    columns = max(2, round(width_m / rng.uniform(2.2, 3.2)))
    shop = not plain and rng.random() < 0.6
    frame = np.array((205, 210, 212)) * rng.uniform(0.45, 1.05)
    window_w, window_h = rng.uniform(0.42, 0.62), rng.uniform(0.5, 0.66)
    for floor in range(floors):
        if floor == floors - 1 and shop:
            _shop_front(rng, image[floor * pitch :])
            continue
        for column in range(columns):
            if plain and rng.random() < 0.7:
                continue
            x0 = round((column + 0.5 - window_w / 2) * width / columns)
            x1 = round((column + 0.5 + window_w / 2) * width / columns)
            y0 = floor * pitch + round(pitch * (0.5 - window_h / 2))
            _window(rng, image, (x0, y0, x1, y0 + round(pitch * window_h)), frame)
    if not plain:
        for floor in range(1, floors):
            image[floor * pitch - 2 : floor * pitch] *= 0.86
        image[:6] = image[:6] * 0.5 + 95  # cornice
        image[6:9] *= 0.62
    return Texture.of(np.clip(image, 0, 255).astype(np.uint8))


def _window(
    rng: np.random.Generator, image: NDArray[np.float32], box: tuple[int, int, int, int], frame: NDArray[np.float64]
) -> None:
    x0, y0, x1, y1 = box
    image[y0 - 2 : y1 + 2, max(0, x0 - 2) : x1 + 2] = frame
    glass = np.array((96, 78, 62)) * rng.uniform(0.5, 1.3)
    shade = np.linspace(1.5, 0.7, max(1, y1 - y0))[:, None, None]
    image[y0:y1, x0:x1] = glass * shade
    if rng.random() < 0.35:
        image[y0 : y0 + round((y1 - y0) * rng.uniform(0.2, 0.8)), x0:x1] = (175, 185, 190)  # a blind
    middle = (x0 + x1) // 2
    image[y0:y1, middle : middle + 2] = frame
    image[y1 + 2 : y1 + 4, max(0, x0 - 4) : x1 + 4] *= 0.6  # the sill's shadow


def _shop_front(rng: np.random.Generator, image: NDArray[np.float32]) -> None:
    height, width = image.shape[:2]
    image[round(height * 0.3) : round(height * 0.88)] = np.array((70, 62, 55)) * rng.uniform(0.7, 1.4)
    for x in range(0, width, 2 * PX_PER_M):
        image[round(height * 0.3) :, x : x + 3] = (150, 155, 160)
    for _ in range(5):  # goods behind the glass
        x, y = int(rng.integers(0, max(1, width - 12))), int(height * rng.uniform(0.5, 0.75))
        image[y : y + 9, x : x + 10] = rng.uniform(60, 200, 3)
    awning = np.array(_AWNINGS[rng.integers(len(_AWNINGS))])
    stripes = (np.arange(width) // 8 % 2)[None, :, None]
    image[round(height * 0.1) : round(height * 0.32)] = awning + stripes * rng.choice([0.0, 60.0])


def foliage(rng: np.random.Generator, hue: NDArray[np.float64], size: int = 128) -> Texture:
    """The crown of a tree: overlapping lit clumps with ragged edges."""
    image = np.zeros((size, size, 3), np.float32)
    alpha = np.zeros((size, size), np.uint8)
    clumps = [(rng.normal(0.5, 0.19, 2), rng.uniform(0.1, 0.2)) for _ in range(60)]
    clumps.sort(key=lambda c: -c[0][1])
    for center, radius in clumps:
        x, y = (np.clip(center, radius, 1 - radius) * size).astype(int)
        light = 0.62 + 0.6 * (0.75 - y / size) + rng.uniform(-0.14, 0.14)
        color = hue * light
        cv2.circle(image, (int(x), int(y)), int(radius * size), tuple(float(c) for c in color), -1)
        cv2.circle(alpha, (int(x), int(y)), int(radius * size), 255, -1)
    leaves = noise(rng, size, size, ((2, 0.5), (5, 0.5)))
    image *= (1 + 0.34 * leaves)[..., None]
    ragged = cv2.GaussianBlur(alpha, (0, 0), 3).astype(np.float32) + 60 * leaves
    return Texture.of(np.clip(image, 0, 255).astype(np.uint8), np.where(ragged > 128, 255, 0).astype(np.uint8))


def hedge(rng: np.random.Generator, hue: NDArray[np.float64]) -> Texture:
    """A wall of leaves with an uneven top."""
    height, width = 64, 256
    leaves = noise(rng, height, width, ((2, 0.6), (6, 0.6), (20, 0.4)))
    light = np.linspace(1.15, 0.45, height)[:, None] * (1 + 0.25 * leaves)
    top = noise(rng, 1 * 8, width, ((16, 4.0),))[0] + 5
    alpha = (np.arange(height)[:, None] > top).astype(np.uint8) * 255
    return Texture.of(np.clip(hue * light[..., None], 0, 255).astype(np.uint8), alpha)


def ground(rng: np.random.Generator) -> NDArray[np.float32]:
    """Brightness factors of asphalt and paving, [2, tile, tile], to be flattened and looked up."""
    tile = GROUND_TILE
    asphalt = 1 + noise(rng, tile, tile, ((1, 0.09), (3, 0.05), (32, 0.03), (128, 0.05)))
    for _ in range(9):  # cracks, filled with tar
        start = rng.uniform(0, tile, 2)
        steps = np.cumsum(rng.normal(0, 6, (22, 2)) + rng.normal(0, 4, 2), axis=0)
        cv2.polylines(asphalt, [(start + steps).astype(np.int32)], False, 0.72, 2)
    paving = 1 + noise(rng, tile, tile, ((1, 0.05), (6, 0.04)))
    slab = 64
    shades = rng.uniform(0.9, 1.08, (tile // slab, tile // slab)).astype(np.float32)
    paving *= np.kron(shades, np.ones((slab, slab), np.float32))
    paving[::slab], paving[1::slab], paving[:, ::slab], paving[:, 1::slab] = 0.7, 0.7, 0.7, 0.7
    return np.stack([asphalt, paving]).astype(np.float32)


def sky(rng: np.random.Generator, size: tuple[int, int], horizon: int, tint: NDArray[np.float64]) -> Image:
    """The panorama behind everything: a gradient with clouds above row `horizon`; `size` is (height, width)."""
    height, width = size
    rise = np.clip((horizon - np.arange(height)) / horizon, 0, 1)[:, None, None] ** 0.7
    zenith, haze = np.array((205, 150, 92.0)), np.array((232, 222, 210.0)) * tint
    image = np.repeat(haze * (1 - rise) + zenith * rise, width, axis=1)
    puffs = noise(rng, height, width, ((200, 0.9), (90, 0.7), (40, 0.4), (16, 0.2), (7, 0.1)))
    flat = cv2.resize(puffs[:, : width // 2], (width, height), interpolation=cv2.INTER_LINEAR)
    cover = np.clip((flat + rng.uniform(-0.9, 0.35)) * 0.75, 0, 1)[..., None]
    lit = np.array((246, 246, 246.0)) * (0.86 + 0.14 * tint) - 42 * np.clip(cover - 0.5, 0, 1)
    clouded = image * (1 - 0.85 * cover) + lit * 0.85 * cover
    return np.asarray(np.clip(clouded, 0, 255), np.uint8)


def skyline(rng: np.random.Generator, width: int, horizon: int, scale: float) -> tuple[NDArray[np.int32], Image]:
    """Far roofs and tree tops along the horizon: rows of their tops [width], and 1 where it is built, else 0."""
    tops = horizon - scale * (9 + noise(rng, 8, width, ((64, 2.5), (20, 1.2), (6, 0.7)))[0])
    built = np.zeros(width, np.uint8)
    x = 0
    while x < width:
        span = int(rng.uniform(8, 34) * scale)
        if rng.random() < 0.55:
            tops[x : x + span] = horizon - scale * rng.uniform(7, 19)
            built[x : x + span] = 1
        x += span
    return np.minimum(tops, horizon - 2).astype(np.int32), built
