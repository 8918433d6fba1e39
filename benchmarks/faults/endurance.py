"""A stream over very many frames: memory, threads and open files stay what they are."""

from __future__ import annotations

import itertools
import statistics
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import fcnopt
from faults.outcome import Progress, Tally, not_run
from faults.watching import status_kib
from fcnopt.backends.readahead import Policy
from fcnopt.engine import Engine

FAMILY = "endurance"
_SAMPLES = 100
_FILES = Path("/proc/self/fd")
_MOST_MIB = 8.0
"""Growth that a flat line may show: between the second fifth of the frames and the last, by their medians."""
_PROMISE = f"memory grows by less than {_MOST_MIB:g} MiB after the first fifth; threads and open files not at all"


@dataclass
class Samples:
    """Of this process, as the frames go by.

    Attributes:
        mib: Resident memory.
        threads: How many.
        files: Open ones.
    """

    mib: list[float] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)
    files: list[int] = field(default_factory=list)

    def take(self) -> None:
        """Look."""
        self.mib.append(status_kib("VmRSS") / 1024)
        self.threads.append(threading.active_count())
        self.files.append(sum(1 for _ in _FILES.iterdir()))

    def faults(self) -> list[str]:
        """What grew."""
        grown = [] if self.growth < _MOST_MIB else [f"memory grew by {self.growth:.1f} MiB"]
        for name in ("threads", "files"):
            values = getattr(self, name)
            first, last = max(values[: len(values) // 2]), min(values[-len(values) // 5 :])
            if last > first:
                grown.append(f"{name} grew from {first} to {last}")
        return grown

    @property
    def growth(self) -> float:
        """Memory, in MiB: the median of the last fifth less that of the second."""
        fifth = max(1, len(self.mib) // 5)
        return statistics.median(self.mib[-fifth:]) - statistics.median(self.mib[fifth : 2 * fifth])


def endurance(bundle: Path, frames: int = 100_000, progress: Progress | None = None) -> list[Tally]:
    """Stream so many frames in all, half of them under each policy, by an engine.

    Args:
        bundle: Of a small network: it is the stream that has to last.
        frames: In all.
        progress: Called as they go by.
    """
    if not _FILES.is_dir():
        return [not_run(FAMILY, "a long stream", _PROMISE, "this system does not tell (no /proc)")]
    with fcnopt.load(bundle, mode="throughput") as engine:
        return [_row(engine, policy, frames // 2, progress) for policy in ("block", "drop-oldest")]


def _row(engine: Engine, policy: Policy, count: int, progress: Progress | None) -> Tally:
    tally = Tally(FAMILY, f"a stream of {count} frames, {policy}", _PROMISE)
    watch(engine, policy, count, tally, progress)
    return tally


def watch(engine: Engine, policy: Policy, count: int, tally: Tally, progress: Progress | None = None) -> Samples:
    """Stream, and count every frame; what grew is a fault of the row."""
    samples, seen, start = Samples(), 0, time.perf_counter()
    step = max(1, count // _SAMPLES)
    due = step
    for out in engine.stream(_camera(engine, count), policy=policy, stall_s=60):
        seen += 1 + out.skipped
        if seen >= due:
            due += step
            samples.take()
            if progress is not None:
                progress(tally.what, seen / count)
    tally.outcomes["frames"] = seen
    tally.worst_s = time.perf_counter() - start
    tally.worst_mib = max(0.0, samples.growth)
    tally.faults += samples.faults()
    if seen != count:
        tally.faults.append(f"{count} frames went in, {seen} came out or were counted as skipped")
    tally.notes.append(
        f"{samples.mib[0]:.0f} to {samples.mib[-1]:.0f} MiB, {samples.threads[-1]} threads, {samples.files[-1]} files; "
        "the time is that of the whole stream"
    )
    return samples


def _camera(engine: Engine, count: int) -> Iterator[Any]:
    size = engine.spec.frame
    rng = np.random.default_rng(0)
    few = [rng.integers(40, 200, (size.height or 64, size.width or 96, 3), np.uint8) for _ in range(7)]
    return itertools.islice(itertools.cycle(few), count)
