"""An engine made of Python whose timing a test decides, and frames that say their number."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fcnopt.backends.base import Outputs, Runner
from tests.backends.tiny import tiny_spec

Infer = Callable[[Any], Outputs]


class Lanes(Runner):
    """Labels are the frames' first channel; `work(number of the first frame)` takes its time."""

    def __init__(self, count: int = 1, batch: int | None = None, work: Callable[[int], None] | None = None) -> None:
        self.name, self.spec, self.batch, self.in_flight = "fake", tiny_spec(2, 2), batch, count
        self.shapes: list[tuple[int, ...]] = []
        self.at_once = self.most_at_once = 0
        self._work, self._lock = work, threading.Lock()

    def infer(self, frames: Any) -> Outputs:
        with self._lock:
            self.shapes.append(frames.shape)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            if self._work is not None:
                self._work(int(frames[0, 0, 0, 0]))
        finally:
            with self._lock:
                self.at_once -= 1
        return Outputs(frames[..., 0].copy(), inference_ms=1.0)

    def lanes(self, count: int) -> Sequence[Infer]:
        return [self.infer] * count


def frame(number: int) -> NDArray[np.uint8]:
    return np.full((2, 2, 3), number % 256, np.uint8)


def numbered(count: int) -> Iterator[NDArray[np.uint8]]:
    return (frame(i) for i in range(count))


def labels(outs: Sequence[Outputs]) -> list[int]:
    return [int(out.labels[0, 0, 0]) for out in outs]


def threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("fcnopt-stream")]


def uneven(number: int) -> None:
    """Later frames are done before earlier ones."""
    time.sleep(0.02 if number % 4 == 0 else 0.001)
