"""Hostile input in short: every hand-made file, and a few generated ones of every kind."""

from __future__ import annotations

from pathlib import Path

import pytest
from faults import archives, checkpoints, graphs, recordings
from faults.hostile import ROWS, Row, hostile
from faults.outcome import Tally


@pytest.fixture(scope="module")
def tallies(seeds: Path) -> dict[str, Tally]:
    return {row.what: tally for row, tally in zip(ROWS, hostile(seeds, 300), strict=True)}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.what)
def test_every_file_is_read_or_refused_in_words(tallies: dict[str, Tally], row: Row) -> None:
    tally = tallies[row.what]
    if tally.reason:
        pytest.skip(tally.reason)
    assert tally.faults == []
    assert tally.held, tally.verdict
    assert tally.worst_mib is not None


def test_every_hand_made_file_is_among_them(tallies: dict[str, Tally]) -> None:
    made = {
        "faults.checkpoints:cases": len(checkpoints.HOSTILE),
        "faults.graphs:cases": len(graphs.HOSTILE) + len(graphs.LARGE),
        "faults.archives:cases": len(archives.HOSTILE),
        "faults.recordings:pictures": len(recordings.HOSTILE) + len(recordings.LABELS),
    }
    for row in ROWS:
        assert tallies[row.what].reason or tallies[row.what].runs >= made.get(row.target, 1), row.what
    assert sum(row.share for row in ROWS) == 100
