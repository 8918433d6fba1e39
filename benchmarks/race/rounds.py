"""The race itself: contenders by turns, round by round, and what each of them is worth.

In every round each contender runs the same frames of the clip, then its network alone a few times; the order turns by
one each round, so that a machine that slows down or speeds up favours none. While one runs the others wait for their
input.
"""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rivals.measure import score

from fcnopt.backends.base import Progress
from fcnopt.errors import BackendError
from fcnopt.evaluate.latency import LatencySummary
from fcnopt.spec import ClassSpec
from race.process import Process
from race.wire import STAGES, Lap

Labels = NDArray[np.uint8]
_SETTLE_S = 0.1  # threads of most runtimes spin for a while after their last work


@dataclass(frozen=True)
class Course:
    """How long the race is.

    Attributes:
        frames: Of the clip, at most.
        round_frames: In a contender's turn, end to end, at most. Enough of them, that filling and draining a pipeline,
            which count, are a small part.
        network_runs: In a contender's turn, of the network alone.
        laps: How often the clip is run.
    """

    frames: int
    round_frames: int = 26
    network_runs: int = 8
    laps: int = 1

    def turns(self) -> list[int]:
        """Frames of each round, as equal as can be."""
        count = math.ceil(self.frames / self.round_frames)
        return [(place + 1) * self.frames // count - place * self.frames // count for place in range(count)]


@dataclass
class Runner:
    """A contender in the race, with everything measured of it so far.

    Attributes:
        process: It waits for its turn.
        labels: Of the clip's frames so far; of the first lap alone.
        laps: What it did in each turn, without labels.
        network_ms: Of its network alone, a frame.
        failed: Why it gave up; empty while it runs.
    """

    process: Process
    labels: list[Labels] = field(default_factory=list)
    laps: list[Lap] = field(default_factory=list)
    network_ms: list[float] = field(default_factory=list)
    failed: str = ""

    def turn(self, frames: int, course: Course) -> None:
        """Its turn in a round; a new lap begins the clip again."""
        if self.laps and len(self.laps) % len(course.turns()) == 0:
            self.process.rewind()
        lap = self.process.run(frames)
        if len(lap.labels) != frames:
            raise BackendError(f"it gave labels for {len(lap.labels)} of {frames} frames", fix="check its log")
        self.network_ms += self.process.network(course.network_runs)
        if len(self.labels) < course.frames:
            self.labels += lap.labels
        lap.labels = []
        self.laps.append(lap)

    def figures(self) -> dict[str, Any]:
        """Its speed and memory, ready for JSON."""
        counts = [len(lap.times_ms["latency"]) for lap in self.laps]
        times = {name: [ms for lap in self.laps for ms in lap.times_ms[name]] for name in STAGES}
        latency = LatencySummary.of(times.pop("latency"))
        return {
            "fps": sum(counts) / sum(lap.seconds for lap in self.laps),
            "rounds_fps": [count / lap.seconds for count, lap in zip(counts, self.laps, strict=True)],
            "rounds_latency_ms": [statistics.median(lap.times_ms["latency"]) for lap in self.laps],
            "latency_p50_ms": latency.p50_ms,
            "latency_p99_ms": latency.p99_ms,
            "stages_ms": {name: statistics.median(values) for name, values in times.items() if values},
            "network_ms": statistics.median(self.network_ms),
            "start_s": self.process.start_s,
            "peak_mib": self.process.peak_mib,
        }


def race(
    starters: Mapping[str, Callable[[], Process]], course: Course, progress: Progress
) -> tuple[dict[str, Runner], dict[str, str]]:
    """Start everyone, one after another, and run all rounds; all processes have ended when it returns.

    Args:
        starters: By name, in the order of the first round.
        course: How long.
        progress: Called after each turn.

    Returns:
        Who came through, by name, and who did not, with the reason.
    """
    runners: dict[str, Runner] = {}
    out: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        for place, (name, start) in enumerate(starters.items()):
            progress(f"start {name}", place / len(starters))
            try:
                runners[name] = Runner(stack.enter_context(start()))
            except BackendError as error:
                out[name] = error.message
        turns = course.turns()
        for number, frames in enumerate(turns * course.laps):
            _round(list(runners.items()), number, frames, course)
            progress("race", (number + 1) / len(turns) / course.laps)
        out |= {name: runner.failed for name, runner in runners.items() if runner.failed}
    return {name: runner for name, runner in runners.items() if not runner.failed}, out


def _round(runners: Sequence[tuple[str, Runner]], number: int, frames: int, course: Course) -> None:
    """One turn of everyone who is still in."""
    for place in range(len(runners)):
        _, runner = runners[(number + place) % len(runners)]
        if runner.failed:
            continue
        try:
            time.sleep(_SETTLE_S)
            runner.turn(frames, course)
        except BackendError as error:
            runner.failed = error.message
            runner.process.close()


def results(
    runners: Mapping[str, Runner], reference: str, truth: Sequence[Labels] | None, classes: ClassSpec
) -> dict[str, dict[str, Any]]:
    """Speed, memory and accuracy of everyone, by name, ready for JSON.

    Args:
        runners: Who came through.
        reference: Whose labels the others' are compared with, and whose speed is 1.
        truth: Label maps of the frames; None takes the reference's labels for it.
        classes: Of the network.

    Raises:
        BackendError: The reference did not come through.
    """
    if reference not in runners:
        raise BackendError(f"{reference} did not come through the race, so nobody can be compared", fix="see its log")
    base = runners[reference]
    found = {}
    for name, runner in runners.items():
        figures = runner.figures()
        figures["x"] = figures["fps"] / base.figures()["fps"]
        found[name] = figures | score(runner.labels, base.labels, truth or base.labels, classes)
    return found
