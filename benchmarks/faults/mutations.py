"""Damage to bytes, as disks, cables and attackers do it; the same for the same seed."""

from __future__ import annotations

import struct
from collections.abc import Callable

import numpy as np

_HUGE = tuple(
    struct.pack(form, value)
    for form, value in (
        ("<I", 0xFFFFFFFF), (">I", 0xFFFFFFFF), ("<I", 0x7FFFFFFF), (">I", 0x7FFFFFFF), (">I", 0x00FFFFFF),
        ("<Q", 1 << 62), (">Q", 1 << 62), ("<Q", (1 << 64) - 1), ("<H", 0xFFFF), (">H", 0x7FFF), ("<I", 0), ("<q", -1),
    )
)  # fmt: skip
_HEAD = 4096  # bytes at both ends, where formats keep what they announce

Mutation = Callable[[bytes, np.random.Generator], bytes]


def cut(data: bytes, rng: np.random.Generator) -> bytes:
    """The file ends too early."""
    return data[: rng.integers(0, len(data))]


def flip(data: bytes, rng: np.random.Generator) -> bytes:
    """One to sixteen bytes are others."""
    return flipped(data, [_place(data, rng) for _ in range(rng.integers(1, 17))], rng)


def zero(data: bytes, rng: np.random.Generator) -> bytes:
    """A stretch was never written."""
    start, end = _stretch(data, rng)
    return data[:start] + bytes(end - start) + data[end:]


def drop(data: bytes, rng: np.random.Generator) -> bytes:
    """A stretch is missing."""
    start, end = _stretch(data, rng)
    return data[:start] + data[end:]


def repeat(data: bytes, rng: np.random.Generator) -> bytes:
    """A stretch is there twice."""
    start, end = _stretch(data, rng)
    return data[:end] + data[start:]


def huge(data: bytes, rng: np.random.Generator) -> bytes:
    """A number is as large as it can be: where it is a length or a size, it announces what is not there."""
    place, number = _place(data, rng), _HUGE[rng.integers(0, len(_HUGE))]
    return data[:place] + number + data[place + len(number) :]


ALL: tuple[Mutation, ...] = (cut, flip, zero, drop, repeat, huge)


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """Damaged in one of these ways."""
    return ALL[rng.integers(0, len(ALL))](data, rng)


def flipped(data: bytes, places: list[int], rng: np.random.Generator) -> bytes:
    """Other bytes at these places."""
    changed = bytearray(data)
    for place in places:
        changed[place] ^= int(rng.integers(1, 256))
    return bytes(changed)


def _place(data: bytes, rng: np.random.Generator) -> int:
    """A place in the file; every other one near its ends."""
    if rng.random() < 0.5:
        return int(rng.integers(0, len(data)))
    near = int(rng.integers(0, min(_HEAD, len(data))))
    return near if rng.random() < 0.5 else len(data) - 1 - near


def _stretch(data: bytes, rng: np.random.Generator) -> tuple[int, int]:
    start = _place(data, rng)
    return start, min(len(data), start + int(rng.integers(1, max(2, len(data) // 8))))
