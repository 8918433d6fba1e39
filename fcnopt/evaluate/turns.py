"""Timing of one engine: its own reader of the clip, and turns of a few frames each through the whole pipeline.

Within a turn the clip is decoded and fitted to the engine's size in the stream's reading thread while the engine
infers, as in use. In use this pipeline is started once; here it is started and drained in every turn, which is no
property of the engine. While it starts, frames are read ahead that are inferred later; while it drains, frames are
inferred and none is read. Where reading and inference share cores, a stretch that reads fewer frames than it infers
shows too high a rate, and one that reads more too low a rate. The rate of a turn is therefore that of a stretch

- from one frame done to another, in which as many frames are read as are done: at both ends as many are on their way;
- whose frames are a multiple of those in flight, in batches or side by side, because their labels come in bursts;
- that begins when at least as many are done as are in flight: before, a part of the engine had nothing to do;
- that ends while the reader is fed, which is until it would read on beyond the turn: as in a stream without end.

Of these stretches it is the one that ends last, when the number on their way has settled, and of those the longest. A
turn too short for any is timed whole.

Latency runs from "frame available" to "labels available". A clip can be decoded faster than it is inferred, so that
decoded frames queue up; a camera's do not. A frame therefore counts as available when it has been decoded and the
frame before it is done:

    latency = preprocess + max(done - max(fitted, done before), inference + postprocess)

where the second term of the `max` holds for engines that work on several frames at once. What a batch waits for its
last frame is not in it: that depends on the camera.
"""

from __future__ import annotations

import bisect
import time
from collections.abc import Generator, Iterator, Sequence
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


def uncounted(prefetch: int, lead: int) -> int:
    """Frames of a turn, about, that are not in its pace: those read ahead, and `lead` in each of three places.

    These are the first frames, with which the engine starts; and at the end those in the engine and those after it.

    Args:
        prefetch: Frames read ahead of the engine at most.
        lead: Frames in flight.
    """
    return max(prefetch, lead) + 3 * lead


@dataclass(frozen=True)
class Pace:
    """Frames and the time that they took; what the rate of a turn is taken from.

    Attributes:
        frames: How many.
        seconds: For all of them.
        whole: They are the whole turn, which was too short for a stretch of it: the pipeline's start and end are in
            the time.
    """

    frames: int = 0
    seconds: float = 0.0
    whole: bool = True


def pace_of(start: float, fitted: Sequence[float], fed_until: float, done: Sequence[float], lead: int) -> Pace:
    """The pace of a turn, as the module says; all times are of one clock, in seconds.

    Args:
        start: When the turn began.
        fitted: When each frame was read and ready for the engine.
        fed_until: When the reader was ready to read the frame after the last one.
        done: When the labels of each frame were.
        lead: Frames in flight.
    """
    pace = Pace(len(done), done[-1] - start if done else 0.0)
    first: dict[tuple[int, int], int] = {}  # by frames on their way, and place within a burst
    for place, now in enumerate(done):
        if now > fed_until:
            break
        if place < lead - 1:
            continue
        on_their_way = bisect.bisect_right(fitted, now) - (place + 1)
        begin = first.setdefault((on_their_way, place % lead), place)
        if begin < place:
            pace = Pace(place - begin, now - done[begin], whole=False)
    return pace


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
        pace: For the rate.
        memory: Of the process during the turn.
    """

    labels: list[NDArray[np.uint8]] = field(default_factory=list)
    times: list[FrameTimes] = field(default_factory=list)
    pace: Pace = field(default_factory=Pace)
    memory: PeakMemory = field(default_factory=PeakMemory)


@dataclass(frozen=True)
class _Fed:
    """A frame on its way into the engine. `fitted` is a time of `perf_counter`."""

    index: int
    size: tuple[int, int]
    decode_ms: float
    preprocess_ms: float
    fitted: float


@dataclass
class _Feed:
    """What was fed in a turn. `until` is when the reader last turned to the clip, a time of `perf_counter`."""

    frames: list[_Fed] = field(default_factory=list)
    until: float = 0.0


class Entrant:
    """An engine in a benchmark, with its own place in the clip.

    Attributes:
        runner: The engine; the caller opens and closes it.
        name: Unique in the benchmark.
    """

    def __init__(self, runner: Runner, name: str, clip: Clip, *, prefetch: int | None = None) -> None:
        """Open a reader of the clip.

        Args:
            runner: The engine.
            name: For results and errors.
            clip: What to run on.
            prefetch: Frames read ahead of the engine at most; None for what it says itself.
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
        turn, feed = Turn(), _Feed()
        source = self._feed(count, feed)
        # A loaded engine's own stream takes frames as a camera gives them, and would fit these a second time.
        stream = Runner.stream(self.runner, source, prefetch=self._prefetch)
        try:
            with turn.memory:
                self._run(turn, feed, stream)
        except Exception as error:
            if error is self._clip_error:
                raise
            place, fed = len(turn.times), feed.frames
            where = f"{self.name}, frame {fed[place].index if place < len(fed) else self._drawn}"
            if isinstance(error, FcnoptError):
                raise type(error)(f"{where}: {error.message}", fix=error.fix) from error
            error.add_note(f"while running {where}")
            raise
        finally:
            close(stream)  # ends its threads, so that none is inside `source` any more
            source.close()
        return turn

    def _run(self, turn: Turn, feed: _Feed, stream: Iterator[Outputs]) -> None:
        fed, all_done = feed.frames, list[float]()
        start = before = time.perf_counter()
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
            all_done.append(done)
            before = done
        if len(turn.times) != len(fed):
            raise BackendError(
                f"it gave labels for {len(turn.times)} of {len(fed)} frames", fix="check the runtime's stream"
            )
        turn.pace = pace_of(start, [frame.fitted for frame in fed], feed.until, all_done, in_flight(self.runner))

    def _feed(self, count: int, feed: _Feed) -> Generator[NDArray[np.uint8], None, None]:
        """Frames fitted to the engine; runs in the stream's reading thread."""
        for _ in range(count):
            start = feed.until = time.perf_counter()
            frame = self._next_frame()
            if frame is None:
                return
            self._drawn = frame.index
            decoded = time.perf_counter()
            image = fit_frame(frame.image, self.runner.spec.frame)
            fitted = time.perf_counter()
            height, width = frame.image.shape[:2]
            times = (decoded - start) * 1e3, (fitted - decoded) * 1e3, fitted
            feed.frames.append(_Fed(frame.index, (height, width), *times))
            yield image
        feed.until = time.perf_counter()

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
