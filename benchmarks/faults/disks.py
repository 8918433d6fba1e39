"""A full disk, a limit on file sizes, and a read-only folder, for every command that writes.

The disk is a tmpfs of a few KiB to MiB, and the read-only folder a mount of that kind, both in namespaces of their own
(unshare(1), user_namespaces(7)): no root is needed, and nothing of it is seen outside. Where that is not permitted the
rows say so, and RLIMIT_FSIZE (setrlimit(2)) alone shows what writes that fail come to.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from faults.commands import WHOLE, Command, looked
from faults.outcome import Progress, Tally, not_run
from faults.process import program, run_in

FAMILY = "disks"
_PROMISE = (
    "it succeeds, or exits with 1 (or 2), one error and a fix, without a trace; what is at the result's place is "
    "whole, and after a failure nothing hidden is left"
)
_UNSHARE = ("unshare", "--user", "--map-root-user", "--mount")


def may_mount() -> str:
    """Why no mounts of one's own can be made here; empty where they can."""
    if shutil.which("unshare") is None:
        return "there is no unshare(1) here"
    done = subprocess.run([*_UNSHARE, "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, text=True)
    return done.stderr.strip().splitlines()[-1] if done.returncode else ""


def limited_files(command: Command, folder: Path, steps: int = 10, progress: Progress | None = None) -> Tally:
    """No file may be larger than a limit, from nothing to what the command needs, in so many steps."""
    tally = Tally(FAMILY, f"{command.name}, files of limited size", _PROMISE, needed=("refused",))
    limits = _limits(command, folder / "free", steps, tally, largest=True)
    for number, limit in enumerate(limits):
        place = folder / f"limit-{number}"
        command.ready(place)
        start = time.perf_counter()
        line = program("inside", "limit", limit, *command.line())
        _judge(command, place, run_in(place, line), tally, f"at {limit} bytes", time.perf_counter() - start)
        shutil.rmtree(place)
        if progress is not None:
            progress(tally.what, (number + 1) / len(limits))
    return tally


def full_disks(command: Command, folder: Path, steps: int = 10, progress: Progress | None = None) -> Tally:
    """The folder is on a disk that gets full, from at once to almost at the end."""
    what = f"{command.name}, full disk"
    if reason := may_mount():
        return not_run(FAMILY, what, _PROMISE, f"no tmpfs: {reason}")
    tally = Tally(FAMILY, what, _PROMISE, needed=("refused",))
    limits = _limits(command, folder / "free", steps, tally, largest=False)
    for number, limit in enumerate(limits):
        place = folder / f"disk-{number}"
        place.mkdir(parents=True)
        _within(command, place, ["disk", str(limit)], tally, f"with {limit} bytes free")
        if progress is not None:
            progress(tally.what, (number + 1) / len(limits))
    return tally


def read_only(command: Command, folder: Path) -> Tally:
    """The folder can be read and not written, by anybody."""
    what = f"{command.name}, read-only folder"
    if reason := may_mount():
        return not_run(FAMILY, what, _PROMISE, f"no read-only mount: {reason}")
    tally = Tally(FAMILY, what, _PROMISE, needed=("refused",))
    place = folder / "read-only"
    place.mkdir(parents=True)
    _within(command, place, ["read-only", "0"], tally, "read-only")
    return tally


def _limits(command: Command, folder: Path, steps: int, tally: Tally, *, largest: bool) -> list[int]:
    """Bytes, up to what the command writes: its largest file, or all of them.

    A disk may be full from the start. Where no file at all may have a byte there is no folder for temporary files
    either, and Python's own modules and torch's need one.
    """
    command.ready(folder)
    before = _sizes(folder)
    done = run_in(folder, command.line())
    if done.returncode or looked(command.look, folder) != (WHOLE, ""):
        tally.faults.append(f"it fails without any limit: {done.stderr[-300:].strip()}")
    new = [size for path, size in _sizes(folder).items() if before.get(path) != size]
    shutil.rmtree(folder)
    needed = max(new, default=1) if largest else sum(new)
    return [needed * (step + largest) // (steps + largest) for step in range(steps)]


def _sizes(folder: Path) -> dict[Path, int]:
    return {p: p.stat().st_size for p in folder.rglob("*") if p.is_file() and not p.is_symlink()}


def _within(command: Command, place: Path, how: Sequence[str], tally: Tally, when: str) -> None:
    """Run in a mount namespace; what is there afterwards is looked at inside it, where alone it can be seen."""
    start = time.perf_counter()
    inputs = json.dumps(command.inputs.to_dict())
    line = [*_UNSHARE, *program("inside", *how, place, command.name, inputs)]
    done = run_in(place.parent, line)
    try:
        said = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        tally.add("no answer", fault=f"{when}: {done.stderr[-300:].strip()}")
        return
    result = subprocess.CompletedProcess(line, said["returncode"], "", said["stderr"])
    faults = (said["fault"], _words(result), _hidden(result, said["left"]))
    _add(tally, result, said["there"], faults, when, time.perf_counter() - start)


def _judge(
    command: Command, place: Path, result: subprocess.CompletedProcess[str], tally: Tally, when: str, seconds: float
) -> None:
    there, fault = looked(command.look, place)
    faults = (fault, _words(result), _hidden(result, command.leftovers(place)))
    _add(tally, result, there, faults, when, seconds)


def _add(
    tally: Tally,
    result: subprocess.CompletedProcess[str],
    there: str,
    faults: Sequence[str],
    when: str,
    seconds: float,
) -> None:
    fault = "; ".join(filter(None, faults))
    if not result.returncode and there != WHOLE and not fault:
        fault = f"it says that it succeeded, and there is {there}"
    outcome = "done" if not result.returncode else "refused"
    tally.add(f"{outcome}, {there}", seconds=seconds, fault=f"{when}: {fault}" if fault else "")


def _words(result: subprocess.CompletedProcess[str]) -> str:
    """What is wrong with how it failed."""
    if not result.returncode:
        return ""
    if result.returncode < 0:
        return f"died by signal {-result.returncode}"
    if "Traceback" in result.stderr:
        return f"a trace: {result.stderr.strip().splitlines()[-1][:300]}"
    if result.returncode not in (1, 2) or "error: " not in result.stderr or "fix: " not in result.stderr:
        return f"exit code {result.returncode}: {result.stderr[-300:].strip()}"
    return ""


def _hidden(result: subprocess.CompletedProcess[str], left: Sequence[str]) -> str:
    return f"left hidden: {', '.join(left[:5])}" if result.returncode and left else ""
