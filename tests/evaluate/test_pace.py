"""The clock of a turn against a simulated pipeline, whose rate without end is known."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace

import numpy as np
import pytest

from fcnopt.evaluate.bench import unsteady
from fcnopt.evaluate.turns import Pace, pace_of, uncounted

_Process = Generator[float | Callable[[], bool], None, None]


@dataclass(frozen=True)
class Pipeline:
    """A stream: a reader, lanes and a caller, each of which needs a core while it works.

    Times are seconds a frame with a core of its own; `jitter` spreads each of them evenly by so much to either side.
    """

    read: float
    infer: float
    post: float = 0.01
    lanes: int = 1
    batch: int = 1
    prefetch: int = 4
    cores: float = math.inf
    jitter: float = 0.0

    @property
    def lead(self) -> int:
        return self.lanes * self.batch

    def turn(self, counted: int) -> int:
        """Frames of a turn in which about so many count."""
        return math.ceil((counted + uncounted(self.prefetch, self.lead)) / self.lead) * self.lead

    @property
    def rate(self) -> float:
        """Frames a second, without end."""
        done = Simulation(self, 2400, seed=0).done
        return 1800 / (done[2200] - done[400])


class Simulation:
    """Runs frames through a pipeline; cores are shared evenly by what works at a time.

    A process yields the work it has to do, or what it waits for.

    Attributes:
        fitted: When each frame was read.
        fed_until: When the reader would have read the next frame.
        done: When each frame was done.
    """

    def __init__(self, pipeline: Pipeline, frames: int, seed: int) -> None:
        self.fitted, self.fed_until, self.done = list[float](), math.inf, list[float]()
        self._pipeline, self._frames, self._random = pipeline, frames, np.random.default_rng(seed)
        self._now, self._waiting, self._taken, self._given, self._places = 0.0, 0, 0, 0, 2 * pipeline.lanes
        self._results: dict[int, int] = {}
        self._run([self._reader(), *(self._lane() for _ in range(pipeline.lanes)), self._caller()])

    @property
    def pace(self) -> Pace:
        return pace_of(0.0, self.fitted, self.fed_until, self.done, self._pipeline.lead)

    def _run(self, processes: list[_Process]) -> None:
        state = {process: next(process, None) for process in processes}
        while True:
            woken = True
            while woken:
                woken = False
                for process, wish in state.items():
                    if callable(wish) and wish():
                        state[process], woken = next(process, None), True
            work = {process: wish for process, wish in state.items() if isinstance(wish, float)}
            if not work:
                break
            speed = min(1.0, self._pipeline.cores / len(work))
            step = min(work.values())
            self._now += step / speed
            for process, left in work.items():
                state[process] = left - step if left - step > 1e-12 else next(process, None)

    def _work(self, seconds: float) -> float:
        return seconds * float(self._random.uniform(1 - self._pipeline.jitter, 1 + self._pipeline.jitter))

    def _reader(self) -> _Process:
        for _ in range(self._frames):
            yield self._work(self._pipeline.read)
            self.fitted.append(self._now)
            yield lambda: self._waiting < max(self._pipeline.prefetch, self._pipeline.batch)
            self._waiting += 1
        self.fed_until = self._now

    def _lane(self) -> _Process:
        batch = self._pipeline.batch
        while True:
            yield lambda: self._places > 0
            self._places -= 1
            yield lambda: self._waiting >= batch or self.fed_until <= self._now
            if not self._waiting:
                return
            taken, number = min(batch, self._waiting), self._taken
            self._waiting -= taken
            self._taken += 1
            yield self._work(self._pipeline.infer * batch)
            self._results[number] = taken

    def _caller(self) -> _Process:
        while len(self.done) < self._frames:
            yield lambda: self._given in self._results
            self._places += 1
            for _ in range(self._results.pop(self._given)):
                yield self._work(self._pipeline.post)
                self.done.append(self._now)
            self._given += 1


OWN_CORES = {
    "inference slower": Pipeline(0.2, 1.0),
    "inference a little slower": Pipeline(0.8, 1.0),
    "reading slower": Pipeline(1.0, 0.3),
    "as fast": Pipeline(1.0, 1.0),
    "caller slower": Pipeline(0.1, 0.5, post=1.0),
    "read ahead by one": Pipeline(0.5, 1.0, prefetch=1),
    "batches": Pipeline(0.1, 1.0, batch=4),
    "batches, reading slower": Pipeline(1.0, 0.5, batch=4),
    "several in flight": Pipeline(0.05, 1.0, lanes=4),
}
SHARED_CORES = {
    "inference slower": Pipeline(0.5, 1.0, cores=1),
    "inference much slower": Pipeline(0.1, 1.0, cores=1),
    "reading slower": Pipeline(2.0, 1.0, cores=1),
    "as fast": Pipeline(1.0, 1.0, cores=1),
    "with a busy caller": Pipeline(0.3, 1.0, post=0.2, cores=1),
    "batches": Pipeline(0.3, 1.0, batch=4, cores=1),
    "two in flight": Pipeline(0.5, 1.0, lanes=2, cores=2),
    "four in flight": Pipeline(0.2, 1.0, lanes=4, cores=2),
    "batches in flight": Pipeline(0.3, 1.0, lanes=2, batch=4, cores=2),
}
PIPELINES = {f"own cores, {k}": v for k, v in OWN_CORES.items()} | {f"shared, {k}": v for k, v in SHARED_CORES.items()}


def after_lead(turn: Simulation, lead: int) -> float:
    """The rate from when as many frames are done as are in flight to the turn's end, which a turn was once given."""
    return (len(turn.done) - lead) / (turn.done[-1] - turn.done[lead - 1])


@pytest.mark.parametrize(
    ("pipeline", "seconds"),
    [
        (OWN_CORES["inference slower"], 1.0),
        (OWN_CORES["reading slower"], 1.0),
        (OWN_CORES["caller slower"], 1.0),
        (OWN_CORES["several in flight"], 0.25),
        (SHARED_CORES["inference slower"], 1.51),
        (SHARED_CORES["reading slower"], 3.01),
        (SHARED_CORES["four in flight"], 1.21 / 2),
    ],
)
def test_the_simulated_rate_is_that_of_what_limits_it(pipeline: Pipeline, seconds: float) -> None:
    assert 1 / pipeline.rate == pytest.approx(seconds, rel=2e-3)


@pytest.mark.parametrize("counted", [8, 32])
@pytest.mark.parametrize("name", PIPELINES)
def test_the_pace_of_a_turn_is_that_of_the_stream_without_end(name: str, counted: int) -> None:
    pipeline = PIPELINES[name]
    pace = Simulation(pipeline, pipeline.turn(max(counted, 4 * pipeline.lead)), seed=0).pace
    assert not pace.whole
    assert pace.frames % pipeline.lead == 0
    assert pace.frames / pace.seconds == pytest.approx(pipeline.rate, rel=0.01)


@pytest.mark.parametrize("name", PIPELINES)
def test_the_pace_is_right_on_average_where_every_frame_takes_another_time(name: str) -> None:
    pipeline = replace(PIPELINES[name], jitter=0.2)
    turns = [Simulation(pipeline, pipeline.turn(max(32, 4 * pipeline.lead)), seed).pace for seed in range(1, 61)]
    assert not any(pace.whole for pace in turns)
    rate = sum(pace.frames for pace in turns) / sum(pace.seconds for pace in turns)
    assert rate == pytest.approx(pipeline.rate, rel=0.02)


@pytest.mark.parametrize("name", SHARED_CORES)
def test_to_count_until_the_last_frame_would_overstate_the_rate_of_shared_cores(name: str) -> None:
    """Why the clock stops while the reader is fed: the last frames are inferred while nothing is read."""
    pipeline = SHARED_CORES[name]
    turn = Simulation(pipeline, pipeline.turn(max(8, 4 * pipeline.lead)), seed=0)
    assert after_lead(turn, pipeline.lead) > 1.02 * pipeline.rate


def test_to_count_all_frames_while_the_reader_is_fed_would_understate_the_rate_of_shared_cores() -> None:
    """Why as many frames are on their way at both ends: in the first moments more are read than inferred."""
    pipeline = SHARED_CORES["inference slower"]
    turn = Simulation(pipeline, pipeline.turn(8), seed=0)
    last = max(place for place, now in enumerate(turn.done) if now <= turn.fed_until)
    assert last / (turn.done[last] - turn.done[0]) < 0.95 * pipeline.rate


def test_most_frames_of_a_turn_are_counted() -> None:
    for pipeline in (OWN_CORES["inference slower"], SHARED_CORES["inference much slower"]):
        assert Simulation(pipeline, pipeline.turn(32), seed=0).pace.frames == 32


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_a_turn_in_which_reading_ends_first_is_timed_whole(frames: int) -> None:
    turn = Simulation(Pipeline(0.1, 1.0), frames, seed=0)
    assert turn.pace == Pace(frames, turn.done[-1], whole=True)


def test_a_turn_of_less_than_a_burst_is_timed_whole() -> None:
    turn = Simulation(Pipeline(0.3, 1.0, lanes=2, batch=4), 8, seed=0)
    assert turn.pace == Pace(8, turn.done[-1], whole=True)


def test_a_turn_without_frames_has_no_pace() -> None:
    assert pace_of(3.0, [], 3.1, [], 1) == Pace(0, 0.0, whole=True)


def test_the_stretch_has_as_many_frames_on_their_way_at_both_ends_and_ends_while_the_reader_is_fed() -> None:
    fitted = [1.0, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0]
    done = [2.25, 3.25, 4.25, 5.25, 6.25, 7.25, 8.25]  # on their way: 1, 2, 2, 2, 2, 1, 0
    assert pace_of(0.5, fitted, 6.5, done, 1) == Pace(3, 3.0, whole=False)  # from 3.25 to 6.25
    assert pace_of(0.5, fitted, 5.5, done, 1) == Pace(2, 2.0, whole=False)
    assert pace_of(0.5, fitted, 7.5, done, 1) == Pace(5, 5.0, whole=False)  # from 2.25 to 7.25
    assert pace_of(0.5, fitted, 3.5, done, 1) == Pace(7, 7.75, whole=True)


def test_the_stretch_is_of_whole_bursts() -> None:
    done = [10.0, 10.25, 20.0, 20.25, 30.0, 30.25, 40.0, 40.25]
    fitted = [now - 5.0 for now in done]
    assert pace_of(0.0, fitted, 35.0, done, 2) == Pace(4, 20.0, whole=False)


def test_the_stretch_begins_when_as_many_are_done_as_are_in_flight() -> None:
    done = [10.0, 20.0, 30.0, 40.0]
    fitted = [now - 5.0 for now in done]
    assert pace_of(0.0, fitted, 45.0, done, 2) == Pace(2, 20.0, whole=False)  # from 20 to 40
    assert pace_of(0.0, fitted, 35.0, done, 2) == Pace(4, 40.0, whole=True)  # 10 to 30 would begin too early


def test_rates_that_differ_from_round_to_round_are_told() -> None:
    steady = [Pace(10, 1.0, whole=False), Pace(10, 0.9, whole=False)]
    assert unsteady("int8", steady) == ""
    assert unsteady("int8", [*steady, Pace(10, 2.0, whole=False)]) == "int8 ran at 5 to 11.1 FPS"
    # the timing of a few milliseconds says nothing of the machine
    assert unsteady("int8", [*steady, Pace(1, 0.2, whole=False)]) == ""
