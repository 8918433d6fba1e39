from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator

import pytest

from fcnopt.backends import readahead
from fcnopt.backends.readahead import ReadAhead


def frames_of(reader: ReadAhead, count: int = 1) -> list[object]:
    return [drawn.frame for drawn in reader.take(count)]


def everything(reader: ReadAhead) -> list[object]:
    return list(itertools.chain.from_iterable(iter(lambda: frames_of(reader), [])))


def threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name == "fcnopt-stream-source"]


def test_frames_come_in_order_with_their_places() -> None:
    reader = ReadAhead(range(100, 200), 3)
    taken = [reader.take()[0] for _ in range(100)]
    assert [drawn.frame for drawn in taken] == list(range(100, 200))
    assert [drawn.index for drawn in taken] == list(range(100))
    assert not any(drawn.skipped for drawn in taken)
    assert reader.take() == []


def test_no_more_than_depth_frames_wait() -> None:
    drawn: list[int] = []
    reader = ReadAhead((drawn.append(i) or i for i in itertools.count()), 3)
    assert frames_of(reader) == [0]
    time.sleep(0.2)
    assert len(drawn) == 5  # one taken, three waiting, one in the drawing thread's hand
    reader.close()


def test_a_batch_is_waited_for_and_the_last_one_is_short() -> None:
    reader = ReadAhead(range(7), 3)
    assert [frames_of(reader, 3) for _ in range(4)] == [[0, 1, 2], [3, 4, 5], [6], []]


def test_the_source_s_error_is_raised_once_after_the_frames_before_it() -> None:
    def source() -> Iterator[int]:
        yield from (1, 2)
        raise KeyError("gone")

    reader = ReadAhead(source(), 4)
    assert frames_of(reader, 4) == [1, 2]
    with pytest.raises(KeyError, match="gone"):
        reader.take()
    assert reader.take() == []


def test_none_is_a_frame_like_any_other() -> None:
    assert everything(ReadAhead([None, 1, None], 2)) == [None, 1, None]


def test_the_latest_policy_keeps_the_newest_and_counts_what_it_threw_away() -> None:
    reader = ReadAhead(range(11), 2, "latest")
    for thread in threads():
        thread.join(2)  # until the last one is given
    first, second = reader.take(2)
    assert (first.frame, first.index, first.skipped) == (9, 9, 9)
    assert (second.frame, second.index, second.skipped) == (10, 10, 0)
    assert reader.take() == []


def test_closing_ends_the_thread_and_a_taker_s_wait() -> None:
    reader = ReadAhead(itertools.count(), 1)
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

    reader = ReadAhead(hanging(), 4)
    assert frames_of(reader) == [0]
    start = time.perf_counter()
    reader.close()
    assert time.perf_counter() - start < 1
    assert len(threads()) == 1
    release.set()
    threads()[0].join(2)
    assert not threads(), "it ends when the source gives a frame"
