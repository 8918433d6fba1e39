"""Clips and runners that know exactly what they will answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fcnopt.backends.base import Outputs, Runner
from fcnopt.evaluate.options import BenchOptions
from fcnopt.media.clips import Clip, Frame
from fcnopt.spec import ClassSpec, FrameSpec, ModelSpec

CLASSES = ClassSpec(
    ("road", "car", "pole", "sky"), ((128, 64, 128), (0, 0, 190), (190, 150, 150), (70, 130, 180)), ignore_index=255
)

SMALL = BenchOptions(warmup_frames=2, round_frames=4, bootstrap_samples=200)


class FakeClip(Clip):
    """Frames whose blue channel is the label map, so that a runner can read the truth off the image."""

    def __init__(self, frames: int = 12, size: tuple[int, int] = (24, 32), labelled: bool = True) -> None:
        self.name = "fake.mp4"
        self.size = size
        self.fps = 15.0
        self.labelled = labelled
        self.opened = 0
        self._frames = [self._frame(i) for i in range(frames)]

    def _frame(self, index: int) -> Frame:
        rows, columns = np.mgrid[: self.size[0], : self.size[1]]
        labels = ((rows // 6 + (columns + index) // 8) % len(CLASSES)).astype(np.uint8)
        image = np.stack([labels, *[np.full(self.size, 40 * c, np.uint8) for c in (1, 2)]], axis=-1)
        return Frame(index, index / 15, image, labels if self.labelled else None)

    def truth(self, index: int) -> NDArray[np.uint8]:
        return self._frames[index].image[:, :, 0]

    def __iter__(self) -> Iterator[Frame]:
        self.opened += 1
        return iter(self._frames)

    def images(self) -> Iterator[Frame]:
        self.opened += 1
        return (Frame(f.index, f.timestamp_s, f.image) for f in self._frames)

    def __len__(self) -> int:
        return len(self._frames)


class FakeRunner(Runner):
    """Labels are the image's blue channel, changed by `change(labels, call)`."""

    def __init__(
        self,
        name: str = "torch fp32",
        change: Callable[[NDArray[np.uint8], int], NDArray[np.uint8]] | None = None,
        *,
        size: tuple[int | None, int | None] = (None, None),
        classes: ClassSpec = CLASSES,
        sleep_s: float = 0.0,
        inference_ms: float = 2.0,
        log: list[tuple[str, int]] | None = None,
    ) -> None:
        self.name = name
        self.spec = ModelSpec(FrameSpec(*size), classes)
        self.calls = 0
        self.frame_sizes: set[tuple[int, ...]] = set()
        self._change = change
        self._sleep_s = sleep_s
        self._inference_ms = inference_ms
        self._log = log

    def infer(self, frames: Any) -> Outputs:
        self.frame_sizes.add(frames.shape[1:3])
        labels = np.ascontiguousarray(frames[0, :, :, 0])
        if self._change is not None:
            labels = self._change(labels.copy(), self.calls)
        if self._log is not None:
            self._log.append((self.name, self.calls))
        self.calls += 1
        time.sleep(self._sleep_s)
        return Outputs(labels[None], inference_ms=self._inference_ms)


def wrong_corner(labels: NDArray[np.uint8], _call: int = 0) -> NDArray[np.uint8]:
    """The top left 4 x 4 pixels become the next class."""
    labels[:4, :4] = (labels[:4, :4] + 1) % len(CLASSES)
    return labels
