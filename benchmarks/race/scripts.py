"""What a peer's script does around its network, as the peers' own examples do it: one frame after another, in NumPy.

Decoding is the same for all: PyAV, with FFmpeg's own choice of threads. This module needs NumPy, PyAV and OpenCV: it
runs in every contender's environment.
"""

from __future__ import annotations

import argparse
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from race.wire import Lap


@dataclass(frozen=True)
class Task:
    """What every contender gets.

    Attributes:
        clip: The video.
        size: (height, width) that the network takes.
        color: Channel order that the network takes: "RGB" or "BGR".
        scale: Factor on pixels before `mean` is taken off.
        mean: One value a channel.
        std: One value a channel.
    """

    clip: str
    size: tuple[int, int]
    color: str
    scale: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @classmethod
    def read(cls, path: Path) -> Self:
        """The task in a JSON file."""
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        data |= {name: tuple(value) for name, value in data.items() if isinstance(value, list)}
        return cls(**data)

    def frames(self) -> Iterator[NDArray[np.uint8]]:
        """The clip's frames, uint8 [h, w, 3], in the network's channel order."""
        with av.open(self.clip) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            for frame in container.decode(stream):
                yield np.asarray(frame.to_ndarray(format=f"{self.color.lower()}24"), np.uint8)


def parser_of(doc: str | None) -> argparse.ArgumentParser:
    """The arguments that all contenders' programs take."""
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("task", type=Path, help="JSON of a Task")
    return parser


class Script(ABC):
    """A peer's script. A peer has its own `infer`, and its own `prepare` and `finish` where its examples use no NumPy.

    Args:
        task: What to run on.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        self._mean = np.array(task.mean, np.float32)
        self._std = np.array(task.std, np.float32)
        self._frames = task.frames()

    @abstractmethod
    def infer(self, x: Any) -> Any:
        """The network: what `prepare` gives to what `finish` takes."""

    def prepare(self, image: NDArray[np.uint8]) -> Any:
        """Normalize: uint8 [H, W, 3] to float32 [1, 3, H, W]."""
        x = (image.astype(np.float32) * np.float32(self.task.scale) - self._mean) / self._std
        return np.ascontiguousarray(x.transpose(2, 0, 1)[None])

    def finish(self, logits: Any) -> NDArray[np.uint8]:
        """The most likely class: float [1, C, H, W] to uint8 [H, W]."""
        labels: NDArray[np.uint8] = np.argmax(logits, axis=1)[0].astype(np.uint8)
        return labels

    def rewind(self) -> None:
        """Begin the clip again."""
        self._frames = self.task.frames()

    def run(self, frames: int) -> Lap:
        """Run the next frames, one after another."""
        lap = Lap()
        start = time.perf_counter()
        for _ in range(frames):
            begun = time.perf_counter()
            image = next(self._frames, None)
            if image is None:
                break
            decoded = time.perf_counter()
            x = self.prepare(self.fitted(image))
            prepared = time.perf_counter()
            answer = self.infer(x)
            inferred = time.perf_counter()
            lap.labels.append(self.restored(self.finish(answer), image))
            done = time.perf_counter()
            times = (decoded - begun, prepared - decoded, inferred - prepared, done - inferred, done - decoded)
            for name, seconds in zip(lap.times_ms, times, strict=True):
                lap.times_ms[name].append(seconds * 1e3)
        lap.seconds = time.perf_counter() - start
        return lap

    def network(self, runs: int) -> list[float]:
        """Milliseconds of each run of the network on one prepared frame."""
        x = self.prepare(self.blank())
        found = []
        for _ in range(runs):
            start = time.perf_counter()
            self.infer(x)
            found.append((time.perf_counter() - start) * 1e3)
        return found

    def fitted(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The frame at the network's size; averaged where it shrinks, interpolated where it grows."""
        height, width = self.task.size
        if image.shape[:2] == (height, width):
            return image
        shrinks = height * width < image.shape[0] * image.shape[1]
        method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        return np.asarray(cv2.resize(image, (width, height), interpolation=method), np.uint8)

    def restored(self, labels: NDArray[np.uint8], image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Labels at the frame's own size."""
        height, width = image.shape[:2]
        if labels.shape == (height, width):
            return labels
        return np.asarray(cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST_EXACT), np.uint8)

    def blank(self) -> NDArray[np.uint8]:
        """Any frame of the network's size: noise, the same in every process."""
        return np.random.default_rng(0).integers(0, 256, (*self.task.size, 3), dtype=np.uint8)
