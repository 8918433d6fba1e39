"""Hidden parts of files: named for their process, and gone once it is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fcnopt.errors import UsageError
from fcnopt.leftovers import clear_up, is_running, part_of


@pytest.fixture
def dead() -> int:
    """The number of a process that is no more."""
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


def test_a_part_is_hidden_beside_its_file_and_another_each_time(tmp_path: Path) -> None:
    one, other = part_of(tmp_path / "net.onnx"), part_of(tmp_path / "net.onnx", ".part.mkv")
    assert one.parent == other.parent == tmp_path
    assert one.name.startswith(f".net.onnx.{os.getpid()}-")
    assert one.suffix == ".tmp"
    assert other.name.endswith(".part.mkv")
    assert part_of(tmp_path / "net.onnx") != one


def test_what_killed_processes_left_is_removed_and_nothing_else(tmp_path: Path, dead: int) -> None:
    gone = [tmp_path / f".net.onnx.{dead}-0123abcd{end}" for end in (".tmp", ".data.tmp", ".part")]
    gone[0].write_text("x")
    gone[1].write_text("x")
    gone[2].mkdir()
    (gone[2] / "0.png").write_text("x")
    kept = [
        part_of(tmp_path / "net.onnx"),  # of this process
        tmp_path / f".net.onnx.v2.{dead}-0123abcd.tmp",  # of another file
        tmp_path / ".net.onnx.backup",
        tmp_path / "net.onnx",
    ]
    for path in kept:
        path.write_text("x")
    clear_up(tmp_path / "net.onnx")
    assert sorted(tmp_path.iterdir()) == sorted(kept)


def test_what_was_moved_aside_for_a_new_one_comes_back_only_where_nothing_is(tmp_path: Path, dead: int) -> None:
    old, new = tmp_path / f".labels.{dead}-0123abcd.old", tmp_path / f".labels.{dead}-0123abcd.part"
    for folder in (old, new):
        folder.mkdir()
    (old / "0.png").write_text("x")
    clear_up(tmp_path / "labels")
    assert [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*")] == ["labels", "labels/0.png"]
    old.mkdir()
    clear_up(tmp_path / "labels")
    assert [p.name for p in tmp_path.iterdir()] == ["labels"]
    assert (tmp_path / "labels" / "0.png").exists()


@pytest.mark.parametrize("path", [".", "/", ""])
def test_what_has_no_name_has_no_part(path: str) -> None:
    with pytest.raises(UsageError, match="cannot be written anew"):
        part_of(Path(path))


def test_a_link_that_is_named_like_a_part_goes_and_what_it_points_to_stays(tmp_path: Path, dead: int) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine").write_text("x")
    (tmp_path / f".net.onnx.{dead}-0123abcd.tmp").symlink_to(tmp_path / "folder")
    clear_up(tmp_path / "net.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]
    assert (tmp_path / "folder" / "mine").exists()


def test_a_folder_that_is_not_there_is_no_error(tmp_path: Path) -> None:
    clear_up(tmp_path / "nowhere" / "net.onnx")


def test_processes_are_told_apart(dead: int) -> None:
    assert is_running(os.getpid())
    assert not is_running(dead)
