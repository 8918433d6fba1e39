from __future__ import annotations

import itertools
import threading

import pytest

from fcnopt.backends.readahead import read_ahead


def test_items_come_in_order():
    assert list(read_ahead(range(100), 3)) == list(range(100))


def test_no_more_than_depth_items_wait():
    drawn = []
    reader = read_ahead((drawn.append(i) or i for i in itertools.count()), 3)
    assert next(reader) == 0
    threading.Event().wait(0.2)
    assert len(drawn) == 5  # one taken, three waiting, one in the drawing thread's hand
    reader.close()


def test_the_source_s_error_is_raised_in_place():
    def source():
        yield 1
        raise KeyError("gone")

    reader = read_ahead(source(), 4)
    assert next(reader) == 1
    with pytest.raises(KeyError, match="gone"):
        next(reader)


def test_none_is_an_item_like_any_other():
    assert list(read_ahead([None, 1, None], 2)) == [None, 1, None]


def test_closing_ends_the_thread():
    before = threading.active_count()
    reader = read_ahead(itertools.count(), 1)
    next(reader)
    assert threading.active_count() == before + 1
    reader.close()
    assert threading.active_count() == before
