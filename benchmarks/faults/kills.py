"""kill -9 at any moment: nothing half-written ever loads, and the next run succeeds and clears up.

At random moments of the whole run; and, where a run writes, exactly before every change to the file system.
"""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import numpy as np

from faults.commands import WHOLE, Command, looked
from faults.outcome import Progress, Tally
from faults.process import environment, program, run_in

FAMILY = "kill -9"
_PROMISE = (
    "what is at the result's place is whole or not there; the next run succeeds, and nothing hidden of the killed ones "
    "is left after it"
)
_EVERY = 10  # kills between two runs that are let through


def kills(command: Command, folder: Path, count: int, seed: int = 0, progress: Progress | None = None) -> Tally:
    """Kill a command at random moments of its time.

    Args:
        command: What to kill.
        folder: To work in; made.
        count: How often.
        seed: Of the moments.
        progress: Called as they go by.
    """
    tally = Tally(FAMILY, f"{command.name}, at random moments", _PROMISE, needed=("killed",))
    command.ready(folder)
    length = _let_through(command, folder, tally)
    tally.notes.append(f"one whole run takes {length:.1f} s")
    rng = np.random.default_rng(seed)
    for number in range(count):
        if number % 2:  # every other time over a result that is there
            command.forget(folder)
        _kill(command, folder, float(rng.uniform(0, length)), tally)
        if number % _EVERY == _EVERY - 1 or number == count - 1:
            _let_through(command, folder, tally)
        if progress is not None:
            progress(tally.what, (number + 1) / count)
    return tally


def _kill(command: Command, folder: Path, after_s: float, tally: Tally) -> None:
    start = time.perf_counter()
    process = subprocess.Popen(
        command.line(), cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment()
    )
    try:
        process.wait(after_s)
    except subprocess.TimeoutExpired:
        process.kill()
    died = process.wait() == -signal.SIGKILL
    _judge(command, folder, tally, "killed" if died else "done before", f"after {after_s:.2f} s", start)


def crash_points(command: Command, folder: Path, most: int = 1000, progress: Progress | None = None) -> Tally:
    """Kill a command before each of its changes to the file system.

    Args:
        command: What to kill.
        folder: To work in; made.
        most: Points, spread evenly, if there are more.
        progress: Called as they go by.
    """
    tally = Tally(FAMILY, f"{command.name}, before every change of a file", _PROMISE, needed=("killed",))
    command.ready(folder)
    changes = _count_changes(command, folder, tally)
    tally.notes.append(f"one run makes {changes} changes")
    points = sorted({1 + index * changes // min(changes, most) for index in range(min(changes, most))})
    for number, point in enumerate(points):
        if number % 2:
            command.forget(folder)
        start = time.perf_counter()
        done = run_in(folder, _crashing(command, point))
        outcome = "killed" if done.returncode == -signal.SIGKILL else "done before"
        _judge(command, folder, tally, outcome, f"before change {point}", start)
        if progress is not None:
            progress(tally.what, (number + 1) / len(points))
    _let_through(command, folder, tally)
    return tally


def _judge(command: Command, folder: Path, tally: Tally, outcome: str, when: str, start: float) -> None:
    there, fault = looked(command.look, folder)
    outcome = f"{outcome}, then {there}"
    tally.add(outcome, seconds=time.perf_counter() - start, fault=f"{when}: {fault}" if fault else "")


def _crashing(command: Command, point: int) -> list[str]:
    return program("crash_at", point, *command.words)


def _count_changes(command: Command, folder: Path, tally: Tally) -> int:
    """How many changes a whole run makes; 0 is a point that is never reached."""
    command.forget(folder)
    done = run_in(folder, _crashing(command, 0))
    counted = [line for line in done.stderr.splitlines() if line.startswith("changes: ")]
    if done.returncode or not counted:
        tally.faults.append(f"a whole run fails: {done.stderr[-300:].strip()}")
        return 1
    return int(counted[-1].split()[1])


def _let_through(command: Command, folder: Path, tally: Tally) -> float:
    """Run to the end: it succeeds, its result is whole, and nothing of killed runs is left."""
    start = time.perf_counter()
    done = run_in(folder, command.line())
    seconds = time.perf_counter() - start
    there, fault = looked(command.look, folder)
    if done.returncode:
        fault = f"the next run fails: {done.stderr[-300:].strip()}"
    elif there != WHOLE and not fault:
        fault = f"after the next run there is {there}"
    elif left := command.leftovers(folder):
        fault = f"{len(left)} hidden files are left after the next run: {', '.join(left[:5])}"
    tally.add("let through", fault=fault)
    return seconds
