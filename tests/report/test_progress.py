"""Progress off a terminal: plain lines, and only for what takes long."""

from __future__ import annotations

import threading

import pytest

from fcnopt.report import progress
from fcnopt.report.progress import ConsoleProgress


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_QUIET_S", 0.05)


def test_a_step_that_reports_nothing_is_announced_and_closed(capsys: pytest.CaptureFixture[str]) -> None:
    with ConsoleProgress() as console:
        console("convert", 0.0)
        threading.Event().wait(0.2)
        console("verify", 0.0)
    assert capsys.readouterr().err.splitlines() == ["convert ...", "convert: done in 0 s"]


def test_done_closes_the_last_step_and_is_none_itself(capsys: pytest.CaptureFixture[str]) -> None:
    with ConsoleProgress() as console:
        console("prove", 0.0)
        threading.Event().wait(0.2)
        console("done", 1.0)
        threading.Event().wait(0.2)
    assert capsys.readouterr().err.splitlines() == ["prove ...", "prove: done in 0 s"]


def test_fractions_are_shown_ever_more_rarely(capsys: pytest.CaptureFixture[str]) -> None:
    with ConsoleProgress() as console:
        for done in range(1, 41):
            console("calibrate", done / 40)
            threading.Event().wait(0.02)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "calibrate ..."
    assert lines[-1] == "calibrate: done in 1 s"
    assert 1 <= sum("%" in line for line in lines) <= 5


def test_a_short_step_and_a_failed_one_say_nothing_of_being_done(capsys: pytest.CaptureFixture[str]) -> None:
    with ConsoleProgress() as console:
        console("short", 1.0)
    assert capsys.readouterr().err == ""

    def fail() -> None:
        with ConsoleProgress() as console:
            console("long", 0.5)
            threading.Event().wait(0.2)
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        fail()
    assert "done" not in capsys.readouterr().err
