"""What watches readers notices each way in which one can be unsafe."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from faults.outcome import Tally, not_run
from faults.probing import Cases, probe
from faults.served import served


@pytest.fixture(scope="module")
def tally() -> Tally:
    cases = Cases("tests.reliability.unsafe:cases", count=10, bound_mib=64, bound_s=1.0)
    return probe(cases, Tally("unsafe", "readers", "nothing"))


@pytest.mark.parametrize(
    ("reader", "what"),
    [
        ("unpickles", "ran code out of the file"),
        ("takes memory", r"took [12]\d\d MiB, more than 64"),
        ("raises", "TypeError: an error of somebody else's"),
        ("says nothing", "BundleError without a message or a fix"),
        ("reads outside", r"opened .*secret\.txt, outside the folder"),
        ("follows a link", r"opened .*secret\.txt, outside the folder"),
        ("is slow", r"took 1\.\d s, more than 1"),
        ("hangs", "hangs"),
        ("dies", "died by SIGABRT"),
    ],
)
def test_an_unsafe_reader_is_noticed(tally: Tally, reader: str, what: str) -> None:
    found = [fault for fault in tally.faults if reader in fault]
    assert found, tally.faults
    assert any(re.search(what, fault) for fault in found), found


def test_the_cases_after_one_that_hangs_or_dies_are_run_too(tally: Tally) -> None:
    assert tally.runs == 10
    assert not [fault for fault in tally.faults if "is fine" in fault]
    assert len(tally.faults) == 9
    assert tally.verdict == "BROKEN 9 of 10"


def test_cases_that_cannot_be_made_are_a_fault() -> None:
    tally = probe(Cases("tests.reliability.unsafe:broken"), Tally("unsafe", "cases", "nothing"))
    assert "no cases" in tally.faults[0]
    assert not tally.held


def test_a_row_without_what_it_needs_proves_nothing() -> None:
    tally = Tally("kill -9", "build", "nothing", needed=("killed",))
    assert tally.verdict == "proves nothing: no killed"
    tally.add("done before")
    assert not tally.held
    tally.add("killed, then whole")
    assert tally.held
    assert not_run("load", "x", "y", "no server").verdict == "not run: no server"


def test_a_server_that_dies_under_load_is_no_row_that_was_not_run(tmp_path: Path) -> None:
    dying = tmp_path / "python"
    dying.write_text("#!/bin/sh\necho 'Segmentation fault' >&2\nexit 139\n")
    dying.chmod(0o755)
    (row,) = served(tmp_path / "net", dying, 0.1)
    assert row.faults == ["exit code 139 before the end: Segmentation fault"]
    assert not row.held
    (without,) = served(tmp_path / "net", None)
    assert without.verdict.startswith("not run: ")
