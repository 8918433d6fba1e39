"""The measured rounds of a benchmark: whose turn it is, what each turn adds, and the figures that come of it."""

from __future__ import annotations

import contextlib
import itertools
import math
import re
from collections.abc import Sequence
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from fcnopt.backends.base import Precision, Progress, Runner
from fcnopt.errors import FcnoptError, MediaError
from fcnopt.evaluate.latency import LatencySummary
from fcnopt.evaluate.observe import BenchObserver, FrameHasher
from fcnopt.evaluate.options import BenchOptions
from fcnopt.evaluate.resample import block_length, blocks_of
from fcnopt.evaluate.result import EngineResult, Memory, Stages, Truth
from fcnopt.evaluate.scores import Scorer, accuracy
from fcnopt.evaluate.turns import Entrant, FrameTimes, Pace, Turn, close, in_flight
from fcnopt.media.clips import Clip, Frame


class Contender:
    """An engine with everything measured of it so far.

    Attributes:
        entrant: Runs it.
        scorer: Its accuracy.
        times: One a frame.
        rounds: Of each turn.
        peak_mib: See `Memory.process_peak_mib`.
        growth_mib: See `Memory.growth_mib`.
    """

    def __init__(self, entrant: Entrant, scorer: Scorer) -> None:
        self.entrant = entrant
        self.scorer = scorer
        self.times: list[FrameTimes] = []
        self.rounds: list[Pace] = []
        self.peak_mib: float | None = None
        self.growth_mib: float | None = None

    def remember(self, turn: Turn) -> None:
        """Take over the figures of a turn that counts."""
        self.times += turn.times
        if turn.times:
            self.rounds.append(turn.pace)
        self.remember_memory(turn)

    @property
    def paces(self) -> list[Pace]:
        """Those of `rounds` that the rate is taken from: a turn timed whole counts only where all of them are."""
        return [pace for pace in self.rounds if not pace.whole] or self.rounds

    def remember_memory(self, turn: Turn) -> None:
        """Take over the memory of a turn; warm-up counts here, because buffers are allocated in it."""
        memory = turn.memory
        if memory.peak_mib is None or memory.start_mib is None:
            return
        self.peak_mib = max(self.peak_mib or 0.0, memory.peak_mib)
        self.growth_mib = max(self.growth_mib or 0.0, memory.peak_mib - memory.start_mib)


class Rounds:
    """The measured part of a benchmark. The reference is the first contender.

    Attributes:
        truth: What accuracy is measured against.
        frames: Frames measured so far.
        truth_frames: Those of them that have a truth.
        hasher: Of the frames measured, as the reference takes them.
    """

    def __init__(
        self,
        clip: Clip,
        runners: Sequence[Runner],
        names: Sequence[str],
        options: BenchOptions,
        observers: Sequence[BenchObserver],
    ) -> None:
        """Open a reader of the clip for every engine; `names` are unique."""
        self._clip = clip
        self._options = options
        self.truth: Truth = "labels" if clip.labelled else "reference"
        self.frames = 0
        self.truth_frames = 0
        self.hasher = FrameHasher(runners[0].spec.frame)
        self._observers = observers
        self._source = iter(clip)  # with label maps, read between turns: no engine pays for them
        classes = runners[0].spec.classes
        self.contenders = [
            Contender(
                Entrant(runner, name, clip, prefetch=options.prefetch),
                Scorer(classes, unknown=options.unknown_labels),
            )
            for runner, name in zip(runners, names, strict=True)
        ]

    def measure(self, frames: int, size: int, progress: Progress | None) -> None:
        """Run all rounds."""
        with contextlib.ExitStack() as stack:
            stack.callback(close, self._source)
            for contender in self.contenders:
                stack.callback(contender.entrant.close)
            count, rounds = len(self.contenders), math.ceil(frames / size)
            for number in range(rounds):
                turns: dict[int, Turn] = {}
                for place in range(count):
                    which = (number + place) % count
                    turns[which] = self.contenders[which].entrant.run(min(size, frames - self.frames))
                    self.contenders[which].remember(turns[which])
                    if progress is not None:
                        progress("bench", (number * count + place + 1) / (rounds * count))
                self._score([turns[i] for i in range(count)])
                if len(turns[0].times) < size:
                    break
        if not self.frames:
            raise MediaError(f"{self._clip.name}: the clip has no frames", fix="give a clip with at least one frame")

    def _score(self, turns: Sequence[Turn]) -> None:
        found = {len(turn.labels) for turn in turns}
        if len(found) != 1:
            raise MediaError(
                f"{self._clip.name}: read twice, the clip gave {min(found)} and {max(found)} frames in one round",
                fix="do not change the clip while it is benched",
            )
        for place, frame in enumerate(itertools.islice(self._source, found.pop())):
            labels = [turn.labels[place] for turn in turns]
            truth = self._truth_of(frame, labels[0])
            for contender, own in zip(self.contenders, labels, strict=True):
                self._add(contender, frame, own, labels[0], truth)
            self.hasher.add(frame.image)
            self.frames += 1
            self.truth_frames += truth is not None
            named = {c.entrant.name: own for c, own in zip(self.contenders[1:], labels[1:], strict=True)}
            for observer in self._observers:
                observer.on_frame(frame, labels[0], named)

    def _truth_of(self, frame: Frame, reference: NDArray[np.uint8]) -> NDArray[np.uint8] | None:
        if self.truth == "reference":
            return reference
        if frame.labels is not None and frame.labels.shape != frame.image.shape[:2]:
            found, wanted = frame.labels.shape, frame.image.shape[:2]
            raise MediaError(
                f"{self._clip.name}, frame {frame.index}: label map is {found[1]}x{found[0]}, "
                f"the frame is {wanted[1]}x{wanted[0]}",
                fix="give label maps of the frames' size",
            )
        return frame.labels

    def _add(
        self,
        contender: Contender,
        frame: Frame,
        labels: NDArray[np.uint8],
        reference: NDArray[np.uint8],
        truth: NDArray[np.uint8] | None,
    ) -> None:
        try:
            contender.scorer.add(labels, reference, truth)
        except FcnoptError as error:
            whose = self._clip.name if isinstance(error, MediaError) else contender.entrant.name
            raise type(error)(f"{whose}, frame {frame.index}: {error.message}", fix=error.fix) from error

    @property
    def interval_block_frames(self) -> int | None:
        """Frames a block of the intervals: a second of those with a truth. None where there are no intervals."""
        if self._options.bootstrap_samples < 1 or self.truth_frames < 2:
            return None
        return block_length(self.truth_frames, self._clip.fps * self.truth_frames / self.frames)

    @property
    def truth_pixels(self) -> tuple[int, ...]:
        """Pixels of truth a class."""
        return tuple(int(count) for count in self.contenders[0].scorer.truth.frames[:, 1].sum(axis=0))

    @property
    def truth_blocks(self) -> tuple[int, ...]:
        """Blocks of frames that show a class; the blocks of the intervals, and single frames where there are none."""
        pixels = self.contenders[0].scorer.truth.frames[:, 1]
        return tuple(int(count) for count in blocks_of(pixels, self.interval_block_frames or 1))

    def result(self, which: int) -> EngineResult:
        """The figures of one contender."""
        if not self.truth_frames:
            raise MediaError(
                f"{self._clip.name}: none of the {self.frames} frames has a label map",
                fix="give label maps, or none at all to measure against the reference",
            )
        own, base = self.contenders[which], self.contenders[0]
        spec = own.entrant.runner.spec.frame
        fps, rate = _fps(own), _fps_inference(own)
        base_rate = _fps_inference(base)
        flicker, base_flicker = own.scorer.flicker, base.scorer.flicker
        return EngineResult(
            name=own.entrant.name,
            precision=_precision(own.entrant, self._options),
            frame_size=(spec.height or self._clip.size[0], spec.width or self._clip.size[1]),
            fps=fps,
            fps_inference=rate,
            speedup=fps / _fps(base),
            speedup_inference=rate / base_rate if rate and base_rate else None,
            fps_rounds=tuple(pace.frames / pace.seconds for pace in own.paces),
            latency=LatencySummary.of([t.latency_ms for t in own.times]),
            stages=_stages(own.times),
            memory=Memory(own.peak_mib, own.growth_mib),
            accuracy=accuracy(own.scorer.truth),
            versus_reference=accuracy(own.scorer.reference),
            equal_labels=own.scorer.equal_labels,
            drop=own.scorer.drop_from(base.scorer, self._options.bootstrap_samples, self.interval_block_frames),
            flicker=flicker,
            flicker_excess=None if flicker is None or base_flicker is None else flicker - base_flicker,
            mode="latency" if own.entrant.runner.in_flight == 1 else "throughput",
            in_flight=own.entrant.runner.in_flight,
            batch=own.entrant.runner.batch or 1,
        )


def _precision(entrant: Entrant, options: BenchOptions) -> str:
    if entrant.name in options.precisions:
        return options.precisions[entrant.name]
    words = re.split(r"[^a-z0-9]+", entrant.name.lower())
    return next((word for word in words if word in get_args(Precision)), "")


def _fps(contender: Contender) -> float:
    return sum(pace.frames for pace in contender.paces) / sum(pace.seconds for pace in contender.paces)


def _fps_inference(contender: Contender) -> float | None:
    total_ms = sum(t.inference_ms for t in contender.times)
    # each frame's time is that of its batch, during which the others in flight were worked on too
    return 1e3 * len(contender.times) * in_flight(contender.entrant.runner) / total_ms if total_ms > 0 else None


def _stages(times: Sequence[FrameTimes]) -> Stages:
    mean = np.mean([[t.decode_ms, t.preprocess_ms, t.inference_ms, t.postprocess_ms] for t in times], axis=0)
    return Stages(*(float(m) for m in mean))
