"""Streams that have to be in time: deadlines, stalls, the end from outside."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fcnopt.backends.base import FrameStatus, Outputs
from fcnopt.backends.readahead import Ready
from fcnopt.backends.streaming import Stream, StreamOptions
from fcnopt.errors import MediaError, UsageError
from tests.backends.lanes import Lanes, frame, labels, numbered, threads


def camera(count: int, every_s: float) -> Iterator[NDArray[np.uint8]]:
    for number in range(count):
        time.sleep(every_s)
        yield frame(number)


def test_results_after_the_deadline_are_flagged_and_all_of_them_come() -> None:
    runner = Lanes(work=lambda number: time.sleep(1.0 if number == 2 else 0))
    outs = []
    for number in range(4):  # one at a time, so that none waits behind another
        outs += runner.stream([frame(number)], max_latency_ms=800.0)
    assert [out.status for out in outs] == [(FrameStatus(late=number == 2),) for number in range(4)]
    assert outs[2].latency_ms > 800


def test_without_a_deadline_nothing_is_late() -> None:
    (out,) = Lanes(work=lambda _: time.sleep(0.05)).stream([frame(0)])
    assert out.status == (FrameStatus(),)
    assert out.status[0].ok


def test_an_engine_slower_than_the_deadline_still_gives_results_all_of_them_late() -> None:
    runner = Lanes(work=lambda _: time.sleep(0.1))
    outs = list(runner.stream(camera(60, 0.01), policy="drop-oldest", max_latency_ms=1.0))
    assert len(outs) > 3
    assert all(out.status[0].late for out in outs)
    assert len(outs) + sum(out.skipped for out in outs) == 60
    assert labels(outs) == [out.index for out in outs]


def test_frames_that_waited_beyond_the_deadline_are_not_inferred() -> None:
    """A camera of 5 frames a second, and an engine that takes 0.5 s for its first frame."""
    inferred: list[int] = []

    def work(number: int) -> None:
        inferred.append(number)
        time.sleep(0.5 if number == 0 else 0)

    runner = Lanes(work=work)
    outs = list(runner.stream(camera(5, 0.2), policy="drop-oldest", max_latency_ms=20.0))
    assert len(outs) + sum(out.skipped for out in outs) == 5
    assert inferred == [out.index for out in outs]
    # While frame 0 was inferred, 1 and 2 came; 2 had then waited for 0.1 s, far beyond 20 ms.
    assert 2 not in inferred
    assert inferred[-1] == 4


def test_a_batch_that_takes_longer_to_gather_than_the_deadline_comes_late_and_not_never() -> None:
    outs = list(Lanes(batch=4).stream(camera(24, 0.01), policy="drop-oldest", max_latency_ms=5.0))
    assert len(outs) + sum(out.skipped for out in outs) == 24
    assert len(outs) >= 8
    assert outs[0].status[0].late


def test_the_work_on_a_result_counts_as_latency_and_the_wait_for_the_caller_does_not() -> None:
    def finish(out: Outputs) -> Outputs:
        time.sleep(0.9)
        return out

    def prepare(item: Any) -> Ready:
        return Ready(item, ("black",), finish)

    runner = Lanes()
    lane, options = runner._lane(runner.infer), StreamOptions(max_latency_ms=800.0)
    with Stream(numbered(1), [lane], options, prepare) as late:
        assert next(late).status == (FrameStatus(late=True, problems=("black",)),)
    with Stream(numbered(3), [lane], options) as stream:
        next(stream)
        time.sleep(0.9)
        assert not next(stream).status[0].late


def test_a_result_that_waits_for_those_before_it_is_not_there_before_them() -> None:
    runner = Lanes(2, work=lambda number: time.sleep(0.6 if number == 0 else 0))
    outs = list(runner.stream(numbered(3), max_latency_ms=300.0))
    assert labels(outs) == [0, 1, 2]
    assert all(out.latency_ms > 500 for out in outs)
    assert all(out.status[0].late for out in outs)


def test_a_live_picture_grows_old_while_its_caller_is_busy() -> None:
    with Lanes().stream(camera(30, 0.01), policy="drop-oldest", max_latency_ms=250.0) as stream:
        next(stream)
        time.sleep(0.6)  # the next result is there long before it is asked for
        out = next(stream)
    assert out.latency_ms > 400
    assert out.status[0].late


def test_the_time_that_a_frame_waited_for_its_turn_is_told_apart() -> None:
    """Of a clip that is there at once, frames wait in line; of a camera that is slower than the engine none does."""
    runner = Lanes(work=lambda _: time.sleep(0.1))
    line = list(runner.stream(numbered(8), prefetch=4))
    assert all(out.waited_ms > 200 for out in line[5:])
    assert all(90 < out.latency_ms - out.waited_ms < 200 for out in line[5:])
    assert all(out.waited_ms < 50 for out in runner.stream(camera(4, 0.2)))


@pytest.mark.parametrize("policy", ["block", "drop-oldest"])
@pytest.mark.parametrize("batch", [None, 4])
def test_a_source_that_stalls_ends_the_stream_after_the_frames_before(policy: Any, batch: int | None) -> None:
    release = threading.Event()

    def stalling() -> Iterator[NDArray[np.uint8]]:
        yield from camera(6, 0.02)
        release.wait(60)

    got: list[Outputs] = []
    start = time.perf_counter()
    with pytest.raises(MediaError, match=r"stalled: no frame for 0\.5 s after frame 5") as caught:
        got.extend(Lanes(batch=batch).stream(stalling(), policy=policy, stall_s=0.5))
    assert time.perf_counter() - start < 30, "it does not wait for the source any more"
    assert "longer stall_s" in caught.value.fix
    assert labels(got)[-1] == 5
    assert len(got) + sum(out.skipped for out in got) == 6
    release.set()


@pytest.mark.parametrize("prefetch", [0, 4])
def test_a_stall_that_is_over_before_anybody_waits_for_the_source_is_one_too(prefetch: int) -> None:
    """Whether a source is given up does not hang on how fast the engine is."""

    def recovering() -> Iterator[NDArray[np.uint8]]:
        yield from camera(2, 0.02)
        time.sleep(0.5)
        yield from camera(2, 0.02)

    runner = Lanes(work=lambda _: time.sleep(0.7))
    got: list[Outputs] = []
    with pytest.raises(MediaError, match=r"stalled: no frame for 0\.2 s after frame 1"):
        got.extend(runner.stream(recovering(), policy="drop-oldest", prefetch=prefetch, stall_s=0.2))
    assert labels(got)[-1] == 1


def test_a_caller_s_pause_is_no_stall_of_the_source() -> None:
    stream = Lanes().stream(numbered(20), stall_s=1.0)
    assert next(stream).index == 0
    time.sleep(1.5)
    assert [out.index for out in stream] == list(range(1, 20))


def test_aborting_gives_the_reason_to_who_waits_and_then_the_end() -> None:
    release = threading.Event()

    def stalling() -> Iterator[NDArray[np.uint8]]:
        yield frame(0)
        release.wait(60)

    stream = Lanes(2).stream(stalling())
    next(stream)
    threading.Timer(0.1, lambda: stream.abort(UsageError("gone", fix="none"))).start()
    with pytest.raises(UsageError, match="gone"):
        next(stream)
    assert list(stream) == []
    release.set()
    stream.close()
    for thread in threading.enumerate():
        if thread.name == "fcnopt-stream-source":
            thread.join(5)
    assert not threads()


def test_several_threads_may_take_from_one_stream() -> None:
    stream = Lanes(2).stream(numbered(200))
    found: list[list[Outputs]] = [[], [], []]
    takers = [threading.Thread(target=mine.extend, args=(stream,)) for mine in found]
    for taker in takers:
        taker.start()
    for taker in takers:
        taker.join(60)
    assert sorted(out.index or 0 for mine in found for out in mine) == list(range(200))
    for mine in found:
        assert [out.index for out in mine] == sorted(out.index or 0 for out in mine)
