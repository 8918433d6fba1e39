"""Timing of one engine: its own reader of the clip, and turns of a few frames each through the whole pipeline.

Within a turn the clip is decoded and fitted to the engine's size in the stream's reading thread while the engine
infers, as in use. In use this pipeline is started once; here it is started and drained in every turn, which is no
property of the engine. The rate of a turn is therefore that of the frames after its first: the clock runs from when
the first frame's labels are done to when the last one's are, by when every stage has done its share of each of these
frames. With several frames in flight, in batches or side by side, labels come in bursts, and the clock starts when as
many are done as are in flight: from then on a burst of frames counts with the time that it took. A turn of no more
frames than that has nothing to overlap with and is timed whole.

Latency runs from "frame available" to "labels available". A clip can be decoded faster than it is inferred, so that
decoded frames queue up; a camera's do not. A frame therefore counts as available when it has been decoded and the
frame before it is done:

    latency = preprocess + max(done - max(fitted, done before), inference + postprocess)

where the second term of the `max` holds for engines that work on several frames at once. What a batch waits for its
last frame is not in it: that depends on the camera.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fcnopt.backends.base import Outputs, Runner
from fcnopt.errors import BackendError, FcnoptError
from fcnopt.evaluate.memory import PeakMemory
from fcnopt.media.clips import Clip, Frame, fit_frame, restore_labels


def close(iterator: Iterator[Any]) -> None:
    """Close an iterator that can be closed, as generators can: what it has open is freed now."""
    closing = getattr(iterator, "close", None)
    if closing is not None:
        closing()


def in_flight(runner: Runner) -> int:
    """Frames that an engine works on at once in a stream."""
    return runner.in_flight * (runner.batch or 1)


@dataclass(frozen=True)
class FrameTimes:
    """Where the time of one frame went, in ms."""

    decode_ms: float
    preprocess_ms: float
    inference_ms: float
    postprocess_ms: float
    latency_ms: float


@dataclass
class Turn:
    """What one engine did with a few frames.

    Attributes:
        labels: uint8 [H, W] a frame, at the frame's size.
        times: One a frame.
        paced: (frames, seconds) for the rate: the frames after the first ones in flight, and from the last of these
            done to the last frame done. With no more frames than these, all of them and the whole time.
        memory: Of the process during the turn.
    """

    labels: list[NDArray[np.uint8]] = field(default_factory=list)
    times: list[FrameTimes] = field(default_factory=list)
    paced: tuple[int, float] = (0, 0.0)
    memory: PeakMemory = field(default_factory=PeakMemory)


@dataclass(frozen=True)
class _Fed:
    """A frame on its way into the engine. `fitted` is a time of `perf_counter`."""

    index: int
    size: tuple[int, int]
    decode_ms: float
    preprocess_ms: float
    fitted: float


class Entrant:
    """An engine in a benchmark, with its own place in the clip.

    Attributes:
        runner: The engine; the caller opens and closes it.
        name: Unique in the benchmark.
    """

    def __init__(self, runner: Runner, name: str, clip: Clip, *, prefetch: int) -> None:
        """Open a reader of the clip.

        Args:
            runner: The engine.
            name: For results and errors.
            clip: What to run on.
            prefetch: Frames read ahead of the engine at most.
        """
        self.runner, self.name = runner, name
        self._prefetch = prefetch
        self._frames: Iterator[Frame] = clip.images()
        self._clip_error: BaseException | None = None
        self._drawn = 0

    def close(self) -> None:
        """Close the reader of the clip."""
        close(self._frames)

    def run(self, count: int) -> Turn:
        """Run the next `count` frames, fewer at the clip's end.

        Raises:
            MediaError: The clip cannot be read.
            FcnoptError: The engine failed; the message names engine and frame. Any other exception of the engine
                is a fault of its runtime or of fcnopt: it is passed on with a note that names engine and frame.
        """
        turn, fed = Turn(), list[_Fed]()
        source = self._feed(count, fed)
        stream = self.runner.stream(source, prefetch=self._prefetch)
        try:
            with turn.memory:
                self._run(turn, fed, stream)
        except Exception as error:
            if error is self._clip_error:
                raise
            place = len(turn.times)
            where = f"{self.name}, frame {fed[place].index if place < len(fed) else self._drawn}"
            if isinstance(error, FcnoptError):
                raise type(error)(f"{where}: {error.message}", fix=error.fix) from error
            error.add_note(f"while running {where}")
            raise
        finally:
            close(stream)  # ends its threads, so that none is inside `source` any more
            source.close()
        return turn

    def _run(self, turn: Turn, fed: list[_Fed], stream: Iterator[Outputs]) -> None:
        start = lead_done = before = time.perf_counter()
        lead = in_flight(self.runner)
        for outputs in stream:
            if len(turn.times) >= len(fed):
                raise BackendError("it gave more labels than it was given frames", fix="check the runtime's stream")
            this = fed[len(turn.times)]
            received = time.perf_counter()
            turn.labels.append(self._restored(outputs, this))
            done = time.perf_counter()
            post_ms = (done - received) * 1e3
            service_ms = max((done - max(this.fitted, before)) * 1e3, outputs.inference_ms + post_ms)
            latency_ms = this.preprocess_ms + service_ms
            turn.times.append(FrameTimes(this.decode_ms, this.preprocess_ms, outputs.inference_ms, post_ms, latency_ms))
            if len(turn.times) == lead:
                lead_done = done
            before = done
        frames = len(turn.times)
        turn.paced = (frames - lead, before - lead_done) if frames > lead else (frames, before - start)
        if len(turn.times) != len(fed):
            raise BackendError(
                f"it gave labels for {len(turn.times)} of {len(fed)} frames", fix="check the runtime's stream"
            )

    def _feed(self, count: int, fed: list[_Fed]) -> Generator[NDArray[np.uint8], None, None]:
        """Frames fitted to the engine; runs in the stream's reading thread."""
        for _ in range(count):
            start = time.perf_counter()
            frame = self._next_frame()
            if frame is None:
                return
            self._drawn = frame.index
            decoded = time.perf_counter()
            image = fit_frame(frame.image, self.runner.spec.frame)
            fitted = time.perf_counter()
            height, width = frame.image.shape[:2]
            fed.append(_Fed(frame.index, (height, width), (decoded - start) * 1e3, (fitted - decoded) * 1e3, fitted))
            yield image

    def _next_frame(self) -> Frame | None:
        try:
            return next(self._frames, None)
        except Exception as error:
            self._clip_error = error
            raise

    def _restored(self, outputs: Outputs, fed: _Fed) -> NDArray[np.uint8]:
        labels = outputs.labels
        if labels.dtype != np.uint8 or labels.ndim != 3 or labels.shape[0] != 1:
            raise BackendError(
                f"labels must be uint8 [1, H, W], found {labels.dtype} {list(labels.shape)}",
                fix="use a model that gives one label a pixel",
            )
        restored: NDArray[np.uint8] = restore_labels(labels[0], fed.size, self.runner.spec.frame)
        return restored
