"""The pipeline, on engines whose timing a test decides."""

from __future__ import annotations

import gc
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fcnopt.backends import readahead
from fcnopt.backends.base import Outputs, Runner
from fcnopt.backends.readahead import Ready
from fcnopt.backends.streaming import Stream, StreamOptions
from fcnopt.errors import UsageError
from tests.backends.lanes import Lanes, frame, labels, numbered, threads, uneven


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("batch", [None, 3])
def test_results_come_in_order_however_many_are_in_flight(count: int, batch: int | None) -> None:
    runner = Lanes(count, batch, uneven)
    outs = list(runner.stream(numbered(25)))
    assert labels(outs) == list(range(25))
    assert [out.index for out in outs] == list(range(25))
    assert {out.skipped for out in outs} == {0}
    assert all(out.labels.shape == (1, 2, 2) for out in outs)
    assert all(0 < out.latency_ms < 1000 for out in outs)
    assert not threads()


def test_batches_in_flight_are_as_many_as_the_engine_was_opened_for_or_as_asked() -> None:
    for asked, most in ((None, 3), (1, 1), (2, 2)):
        runner = Lanes(3, work=lambda _: time.sleep(0.01))
        list(runner.stream(numbered(12), in_flight=asked))
        assert runner.most_at_once == most


def test_a_fixed_batch_is_gathered_and_the_last_one_is_filled_up() -> None:
    runner = Lanes(2, batch=4)
    outs = list(runner.stream(numbered(10), prefetch=1))
    assert labels(outs) == list(range(10))
    assert runner.shapes == [(4, 2, 2, 3)] * 3


def test_frames_of_a_batch_must_be_alike_and_in_host_memory() -> None:
    from tests.backends.fakes import FakeCuda, GpuArray

    other = np.zeros((2, 3, 3), np.uint8)
    with pytest.raises(UsageError, match=r"must be alike, found uint8 \[2, 2, 3\] and uint8 \[2, 3, 3\]"):
        list(Lanes(batch=2).stream([frame(0), other]))
    with pytest.raises(UsageError, match=r"must be uint8 \[N, 2, 2, 3\], found float32 \[2, 2, 2, 3\]"):
        list(Lanes(batch=2).stream([frame(0).astype(np.float32)] * 2))
    cuda = FakeCuda()
    with pytest.raises(UsageError, match="must be in host memory"):
        list(Lanes(batch=2).stream([GpuArray(cuda, frame(0)), GpuArray(cuda, frame(1))]))
    assert not threads()


@pytest.mark.parametrize(("count", "batch", "prefetch"), [(1, None, 4), (2, None, 3), (2, 4, 2)])
def test_what_is_held_is_bounded_while_the_caller_is_slow(count: int, batch: int | None, prefetch: int) -> None:
    drawn = 0

    def endless() -> Iterator[NDArray[np.uint8]]:
        nonlocal drawn
        for number in itertools.count():
            drawn += 1
            yield frame(number)

    with Lanes(count, batch).stream(endless(), prefetch=prefetch) as stream:
        next(stream)
        time.sleep(0.3)
        size = batch or 1
        taken, waiting, in_hand = size, max(prefetch, size), 1
        assert drawn <= taken + 2 * count * size + waiting + in_hand
        assert drawn >= taken + count * size
    assert not threads()


def test_the_newest_frame_replaces_those_that_wait_and_none_is_lost_silently() -> None:
    """A camera of 200 frames a second, an engine of 50."""

    def camera() -> Iterator[NDArray[np.uint8]]:
        for number in range(100):
            time.sleep(0.005)
            yield frame(number)

    outs = list(Lanes(work=lambda _: time.sleep(0.02)).stream(camera(), policy="drop-oldest"))
    indices = [out.index for out in outs]
    assert 10 < len(outs) < 60
    assert indices[-1] == 99, "the newest frame always comes through"
    assert labels(outs) == indices
    before = [-1, *indices[:-1]]
    assert [out.skipped for out in outs] == [i - b - 1 for i, b in zip(indices, before, strict=True)]
    assert len(outs) + sum(out.skipped for out in outs) == 100
    assert max(out.latency_ms for out in outs) < 500, "no frame grew old in line"


def test_a_slow_caller_gets_the_newest_frame_too() -> None:
    def camera() -> Iterator[NDArray[np.uint8]]:
        for number in range(60):
            time.sleep(0.005)
            yield frame(number)

    ages = []
    start = time.perf_counter()
    with Lanes().stream(camera(), policy="drop-oldest") as stream:
        for out in stream:
            ages.append((time.perf_counter() - start) / 0.005 - (out.index or 0))
            time.sleep(0.03)
    assert 4 < len(ages) < 20


@pytest.mark.parametrize("count", [1, 3])
def test_an_engine_s_error_comes_in_its_place(count: int) -> None:
    def work(number: int) -> None:
        uneven(number)
        if number == 8:
            raise KeyError("kernel")

    got: list[Outputs] = []
    stream = Lanes(count, work=work).stream(numbered(20))
    with pytest.raises(KeyError, match="kernel"):
        got.extend(stream)
    assert labels(got) == list(range(8))
    assert list(stream) == [], "after an error there is nothing more"
    assert not threads()


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("batch", [None, 2])
def test_the_source_s_error_comes_after_the_frames_before_it(count: int, batch: int | None) -> None:
    def source() -> Iterator[NDArray[np.uint8]]:
        yield from numbered(5)
        raise ConnectionError("camera unplugged")

    got: list[Outputs] = []
    with pytest.raises(ConnectionError, match="camera unplugged"):
        got.extend(Lanes(count, batch, uneven).stream(source()))
    assert labels(got) == list(range(5))
    assert not threads()


@pytest.mark.parametrize("where", ["prepare", "finish"])
def test_an_error_of_the_work_around_inference_closes_the_stream(where: str) -> None:
    def broken(_: Any) -> Any:
        raise ZeroDivisionError

    def prepare(item: Any) -> Ready:
        return Ready(item, finish=broken)

    runner = Lanes(2)
    stream = Stream(
        numbered(50), [runner._lane(runner.infer)], StreamOptions(), {"prepare": broken}.get(where, prepare)
    )
    with pytest.raises(ZeroDivisionError):
        next(stream)
    assert not threads()


def test_nothing_is_drawn_before_a_result_is_asked_for() -> None:
    drawn: list[int] = []
    stream = Lanes().stream(drawn.append(i) or frame(i) for i in range(5))
    time.sleep(0.05)
    assert (drawn, threads()) == ([], [])
    stream.close()
    assert list(stream) == []
    assert drawn == []


def test_a_stream_left_half_read_ends_its_threads() -> None:
    for out in Lanes(2).stream(numbered(1000)):
        assert out.index == 0
        break
    del out
    gc.collect()
    assert not threads()


@pytest.mark.parametrize("policy", ["block", "drop-oldest"])
def test_a_stalled_source_can_be_closed_while_the_caller_waits(policy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readahead, "_PATIENCE_S", 0.1)
    stalled, release = threading.Event(), threading.Event()

    def source() -> Iterator[NDArray[np.uint8]]:
        yield frame(0)
        stalled.set()
        release.wait(20)

    stream = Lanes(2).stream(source(), policy=policy)
    closer = threading.Thread(target=lambda: stalled.wait(5) and time.sleep(0.05) is None and stream.close())
    closer.start()
    start = time.perf_counter()
    outs = list(stream)
    assert time.perf_counter() - start < 2
    assert labels(outs) == [0]
    closer.join(2)
    assert threads() == ["fcnopt-stream-source"], "only what hangs in the source is left"
    release.set()
    for thread in threading.enumerate():
        if thread.name == "fcnopt-stream-source":
            thread.join(2)
    assert not threads()


def test_closing_waits_for_inference_under_way() -> None:
    done = threading.Event()

    def work(number: int) -> None:
        if number == 1:
            time.sleep(0.1)
            done.set()

    with Lanes(work=work).stream(numbered(3)) as stream:
        next(stream)
        time.sleep(0.02)
    assert done.is_set(), "the engine may be freed now"
    assert not threads()


@pytest.mark.parametrize(
    ("choice", "says"),
    [
        ({"max_latency_ms": 0}, "max_latency_ms is 0"),
        ({"max_latency_ms": float("nan")}, "max_latency_ms is nan"),
        ({"stall_s": -1.0}, "stall_s is -1.0"),
        ({"prefetch": -1}, "prefetch is -1"),
        ({"policy": "latest"}, "policy 'latest' is unknown"),
        ({"in_flight": 0}, "in_flight is 0"),
    ],
)
def test_impossible_choices_are_refused(choice: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        Lanes().stream(numbered(1), **choice)


def test_many_frames_take_no_more_memory_than_few(open_tiny: Callable[..., Runner], frames: Any) -> None:
    """2,000 frames; `benchmarks/streaming.py` shows the same for 10,000 of a full network."""
    from fcnopt.evaluate.memory import resident_mib

    def endless() -> Iterator[NDArray[np.uint8]]:
        return itertools.cycle(f.copy() for f in frames)

    with open_tiny() as runner:
        mib = []
        for out in itertools.islice(runner.stream(endless()), 2000):
            if (out.index or 0) % 100 == 0:
                mib.append(resident_mib() or 0.0)
    settled = mib[4:]
    assert len(settled) == 16
    assert max(settled) <= 1.05 * min(settled)
    assert not threads()


def test_a_closed_stream_gives_nothing_that_is_left_of_a_batch() -> None:
    with Lanes(batch=3).stream(numbered(9)) as stream:
        assert next(stream).index == 0
        stream.close()
        assert list(stream) == []
    with Lanes(batch=3).stream(numbered(9)) as stream:
        next(stream)
        stream.abort(OSError("the engine is closed"))
        with pytest.raises(OSError, match="the engine is closed"):
            next(stream)
        assert list(stream) == []


def test_threads_that_cannot_be_started_end_the_stream_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    start = threading.Thread.start

    def limited(thread: threading.Thread) -> None:
        if thread.name == "fcnopt-stream-lane-1":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        next(Lanes(2).stream(numbered(5)))
    assert not threads()
