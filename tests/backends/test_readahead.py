from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator

import pytest

from fcnopt.backends import readahead
from fcnopt.backends.readahead import ReadAhead, ReadOptions, Ready
from fcnopt.errors import MediaError


def frames_of(reader: ReadAhead, count: int = 1) -> list[object]:
    return [drawn.ready.frame for drawn in reader.take(count)]


def everything(reader: ReadAhead) -> list[object]:
    return list(itertools.chain.from_iterable(iter(lambda: frames_of(reader), [])))


def threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name == "fcnopt-stream-source"]


def test_frames_come_in_order_with_their_places() -> None:
    reader = ReadAhead(range(100, 200), ReadOptions(3))
    taken = [reader.take()[0] for _ in range(100)]
    assert [drawn.ready.frame for drawn in taken] == list(range(100, 200))
    assert [drawn.index for drawn in taken] == list(range(100))
    assert not any(drawn.skipped for drawn in taken)
    assert reader.take() == []


def test_no_more_than_depth_frames_wait() -> None:
    drawn: list[int] = []
    reader = ReadAhead((drawn.append(i) or i for i in itertools.count()), ReadOptions(3))
    assert frames_of(reader) == [0]
    time.sleep(0.2)
    assert len(drawn) == 5  # one taken, three waiting, one in the drawing thread's hand
    reader.close()


def test_a_batch_is_waited_for_and_the_last_one_is_short() -> None:
    reader = ReadAhead(range(7), ReadOptions(3))
    assert [frames_of(reader, 3) for _ in range(4)] == [[0, 1, 2], [3, 4, 5], [6], []]


def test_the_source_s_error_is_raised_once_after_the_frames_before_it() -> None:
    def source() -> Iterator[int]:
        yield from (1, 2)
        raise KeyError("gone")

    reader = ReadAhead(source(), ReadOptions(4))
    assert frames_of(reader, 4) == [1, 2]
    with pytest.raises(KeyError, match="gone"):
        reader.take()
    assert reader.take() == []


def test_none_is_a_frame_like_any_other() -> None:
    assert everything(ReadAhead([None, 1, None], ReadOptions(2))) == [None, 1, None]


def test_the_drop_oldest_policy_keeps_the_newest_and_counts_what_it_threw_away() -> None:
    reader = ReadAhead(range(11), ReadOptions(2, "drop-oldest"))
    for thread in threads():
        thread.join(2)  # until the last one is given
    first, second = reader.take(2)
    assert (first.ready.frame, first.index, first.skipped) == (9, 9, 9)
    assert (second.ready.frame, second.index, second.skipped) == (10, 10, 0)
    assert reader.take() == []


def test_closing_ends_the_thread_and_a_taker_s_wait() -> None:
    reader = ReadAhead(itertools.count(), ReadOptions(1))
    assert frames_of(reader) == [0]
    assert len(threads()) == 1
    reader.close()
    reader.close()
    assert not threads()
    assert reader.take() == []


def test_a_source_that_hangs_is_left_behind_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readahead, "_PATIENCE_S", 0.1)
    release = threading.Event()

    def hanging() -> Iterator[int]:
        yield 0
        release.wait(10)
        yield 1

    reader = ReadAhead(hanging(), ReadOptions(4))
    assert frames_of(reader) == [0]
    start = time.perf_counter()
    reader.close()
    assert time.perf_counter() - start < 1
    assert len(threads()) == 1
    release.set()
    threads()[0].join(2)
    assert not threads(), "it ends when the source gives a frame"


def waiting(reader: ReadAhead, count: int) -> None:
    """Wait until so many frames wait."""
    for _ in range(1000):
        if len(reader._waiting) >= count:
            return
        time.sleep(0.01)
    raise AssertionError("the source gave too few frames")


@pytest.mark.parametrize("depth", [1, 3])
def test_frames_too_old_when_they_are_asked_for_make_way_for_newer_ones(depth: int) -> None:
    go = threading.Event()

    def camera() -> Iterator[int]:
        yield from range(depth)
        go.wait(60)
        yield from range(depth, 2 * depth)
        go.clear()
        go.wait(60)

    reader = ReadAhead(camera(), ReadOptions(depth, "drop-oldest", max_age_s=0.05))
    waiting(reader, depth)
    time.sleep(0.1)
    threading.Timer(0.1, go.set).start()
    drawn = reader.take(depth)
    assert [d.index for d in drawn] == list(range(depth, 2 * depth))
    assert [d.skipped for d in drawn] == [depth] + [0] * (depth - 1)
    go.set()
    assert reader.take() == []


def test_under_block_no_frame_is_too_old() -> None:
    reader = ReadAhead(range(3), ReadOptions(4, "block", max_age_s=0.01))
    waiting(reader, 3)
    time.sleep(0.05)
    assert frames_of(reader, 3) == [0, 1, 2]


def test_a_frame_that_comes_while_it_is_waited_for_is_never_too_old() -> None:
    def camera() -> Iterator[int]:
        for number in range(5):
            time.sleep(0.03)
            yield number

    reader = ReadAhead(camera(), ReadOptions(1, "drop-oldest", max_age_s=1e-9))
    assert [frames_of(reader) for _ in range(3)] != [[], [], []]


def test_of_frames_that_are_all_too_old_the_last_one_still_comes_and_counts_the_others() -> None:
    reader = ReadAhead(range(9), ReadOptions(3, "drop-oldest", max_age_s=0.01))
    for thread in threads():
        thread.join(5)
    time.sleep(0.05)
    (last,) = reader.take(3)
    assert (last.index, last.skipped) == (8, 8)
    assert reader.take() == []


def test_a_source_that_stalls_is_an_error_in_its_place() -> None:
    release = threading.Event()

    def stalling() -> Iterator[int]:
        yield from (0, 1)
        release.wait(60)
        yield 2

    reader = ReadAhead(stalling(), ReadOptions(4, stall_s=0.5))
    assert frames_of(reader, 3) == [0, 1], "what came before the stall is given first"
    with pytest.raises(MediaError, match=r"no frame for 0\.5 s after frame 1"):
        reader.take()
    start = time.perf_counter()
    reader.close()
    assert time.perf_counter() - start < 1.5, "a source known to hang is not waited for"
    release.set()
    for thread in threads():
        thread.join(5)
    assert not threads()


def test_a_source_that_never_begins_is_a_stall_too() -> None:
    release = threading.Event()
    reader = ReadAhead(iter(lambda: release.wait(60), True), ReadOptions(stall_s=0.1))
    with pytest.raises(MediaError, match=r"no frame for 0\.1 s at all"):
        reader.take()
    release.set()
    reader.close()


def test_time_in_preparation_is_age_but_no_stall() -> None:
    def prepare(item: int) -> Ready:
        time.sleep(1.0)
        return Ready(item)

    before = time.perf_counter()
    (drawn,) = ReadAhead([7], ReadOptions(stall_s=0.8), prepare).take()
    assert drawn.ready.frame == 7
    assert drawn.at - before < 0.9


@pytest.mark.parametrize("count", [1, 3])
def test_with_depth_zero_a_frame_is_drawn_only_when_it_is_waited_for(count: int) -> None:
    drawn: list[int] = []
    reader = ReadAhead((drawn.append(i) or i for i in itertools.count()), ReadOptions(0))
    time.sleep(0.05)
    assert drawn == []
    for turn in range(1, 4):
        taken = reader.take(count)
        time.sleep(0.02)
        assert [entry.ready.frame for entry in taken] == list(range(count * (turn - 1), count * turn))
        assert len(drawn) == count * turn
    reader.close()


def test_with_depth_zero_the_source_s_end_and_error_come_in_their_place() -> None:
    assert everything(ReadAhead(range(3), ReadOptions(0))) == [0, 1, 2]

    def failing() -> Iterator[int]:
        yield 0
        raise OSError("the cable is loose")

    reader = ReadAhead(failing(), ReadOptions(0))
    assert [entry.ready.frame for entry in reader.take(1)] == [0]
    with pytest.raises(OSError, match="cable"):
        reader.take(1)
    reader.close()


def test_with_depth_zero_only_the_time_that_a_frame_is_waited_for_counts_as_a_stall() -> None:
    gate = threading.Event()

    def camera() -> Iterator[int]:
        yield 0
        gate.wait(5)
        yield 1

    reader = ReadAhead(camera(), ReadOptions(0, stall_s=0.1))
    time.sleep(0.2)  # nobody asked
    assert [entry.ready.frame for entry in reader.take(1)] == [0]
    time.sleep(0.2)
    with pytest.raises(MediaError, match=r"no frame for 0\.1 s after frame 0"):
        reader.take(1)
    gate.set()
    reader.close()
