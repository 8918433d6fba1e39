"""Commands that are killed, or find the disk full or read-only, in short; and writers that do it wrong are noticed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from faults.commands import Command, commands
from faults.disks import full_disks, limited_files, may_mount, read_only
from faults.kills import crash_points, kills
from reliability import small_inputs


@pytest.fixture(scope="module")
def every(seeds: Path) -> dict[str, Command]:
    return commands(replace(small_inputs(seeds), precision="fp32"))


def test_a_killed_build_leaves_nothing_that_loads_and_the_next_clears_up(
    every: dict[str, Command], tmp_path: Path
) -> None:
    tally = kills(every["build"], tmp_path / "build", 3, seed=3)
    assert tally.faults == []
    assert tally.runs == 5


@pytest.mark.parametrize("name", ["sign", "run, MCAP"])
def test_killed_before_a_change_of_a_file(every: dict[str, Command], name: str, tmp_path: Path) -> None:
    tally = crash_points(every[name], tmp_path / "points", 3)
    assert tally.faults == []
    assert tally.held, tally.verdict


@pytest.mark.parametrize("name", ["sign", "run, video"])
def test_a_full_disk_and_a_read_only_folder(every: dict[str, Command], name: str, tmp_path: Path) -> None:
    if reason := may_mount():
        pytest.skip(f"no mounts of one's own: {reason}")
    for tally in (full_disks(every[name], tmp_path / "full", 2), read_only(every[name], tmp_path)):
        assert tally.faults == [], tally.what
        assert tally.held, tally.verdict


def test_files_of_limited_size(every: dict[str, Command], tmp_path: Path) -> None:
    tally = limited_files(every["sign"], tmp_path / "limited", 2)
    assert tally.faults == []
    assert tally.held, tally.verdict


_CARELESS = """
import sys, time
from pathlib import Path
part = Path(".whole.partial")
part.write_text("x")
with Path("whole").open("w") as file:
    for letter in "whole":
        file.write(letter)
        file.flush()
        time.sleep(0.2)
"""


class Careless(Command):
    """Writes in place, slowly, and leaves something hidden."""

    def line(self) -> list[str]:
        import sys

        return [sys.executable, "-c", _CARELESS]


def _look(folder: Path) -> str:
    path = folder / "whole"
    if not path.exists():
        return "nothing there"
    assert path.read_text() == "whole", f"it is {path.read_text()!r}"
    return "whole"


@pytest.fixture
def careless(every: dict[str, Command]) -> Careless:
    return Careless("careless", every["sign"].inputs, (), _look, lambda folder: folder.mkdir(parents=True), "whole")


def test_a_writer_that_writes_in_place_is_noticed(careless: Careless, tmp_path: Path) -> None:
    tally = kills(careless, tmp_path / "work", 6)
    assert any("it is " in fault for fault in tally.faults)
    assert any("hidden files are left after the next run: .whole.partial" in fault for fault in tally.faults)


def test_a_trace_and_half_a_file_are_noticed(careless: Careless, tmp_path: Path) -> None:
    tally = limited_files(careless, tmp_path / "limited", 1)
    (fault,) = tally.faults
    assert "it is 'wh'" in fault
    assert "a trace: OSError" in fault
    assert "left hidden: .whole.partial" in fault
