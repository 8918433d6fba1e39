"""Out of memory: loading, running and streaming with an address space that is too small (RLIMIT_AS)."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from faults.outcome import Progress, Tally
from faults.process import program, run_in

FAMILY = "out of memory"
_PATIENCE_S = 120.0
_PROMISE = (
    "done, or a clear error (fcnopt's own, MemoryError, or the loader's ImportError) and a clean exit; no "
    "crash, no hang, and no labels but the right ones"
)


def out_of_memory(bundle: Path, steps: int = 12, progress: Progress | None = None) -> list[Tally]:
    """Load, run and stream in a process whose memory ends somewhere in each of them.

    Args:
        bundle: Whose engine.
        steps: Limits, evenly spaced from what Python alone takes to what all of it takes.
        progress: Called as they go by.
    """
    tally = Tally(FAMILY, "load, run and stream", _PROMISE, needed=("done", "refused"))
    least, most = _needed(bundle, tally)
    for number in range(steps + 1):
        limit_mib = least + (most - least) * number // steps
        _one(bundle, limit_mib, tally)
        if progress is not None:
            progress(FAMILY, (number + 1) / (steps + 1))
    tally.notes.append(f"address space from {least} to {most} MiB")
    return [tally]


def _needed(bundle: Path, tally: Tally) -> tuple[int, int]:
    """Address space, in MiB, before anything is loaded, and after everything."""
    done = _run(bundle, 0)
    if done is None or done.returncode:
        tally.faults.append(f"it fails without a limit: {'hangs' if done is None else done.stderr[-300:].strip()}")
        return 0, 1
    said = json.loads(done.stdout.splitlines()[-1])
    return int(said["before_mib"]), int(said["after_mib"]) + 64


def _run(bundle: Path, limit_mib: int) -> subprocess.CompletedProcess[str] | None:
    try:
        return run_in(bundle.parent, program("short", limit_mib, bundle.resolve()), _PATIENCE_S)
    except subprocess.TimeoutExpired:
        return None


def _one(bundle: Path, limit_mib: int, tally: Tally) -> None:
    start = time.perf_counter()
    done = _run(bundle, limit_mib)
    seconds = time.perf_counter() - start
    outcome, fault = ("hangs", f"no end after {_PATIENCE_S:g} s") if done is None else _judged(done)
    tally.add(outcome, seconds=seconds, fault=f"with {limit_mib} MiB: {fault}" if fault else "")


def _judged(done: subprocess.CompletedProcess[str]) -> tuple[str, str]:
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        return f"died by {name}", f"{name}: {done.stderr[-300:].strip()}"
    try:
        said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        # Python itself could not go on; it says so and ends
        short = (
            "MemoryError" in done.stderr or "Cannot allocate memory" in done.stderr or "cannot allocate" in done.stderr
        )
        return ("refused: MemoryError", "") if short else ("no answer", done.stderr[-300:].strip())
    return str(said["outcome"]), str(said["fault"])
