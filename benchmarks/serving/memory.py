"""Memory of a server's processes over time."""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

_EDGE = 0.2  # share of a run that is compared at its end, and after its start


class MemoryWatch:
    """Samples the memory of a process and its descendants while its context is open.

    Counted is the proportional set size (PSS): memory that several of them share counts once in their sum.

    Args:
        process: Number of the process.
        every_s: Time between samples.

    Attributes:
        samples: Seconds since the start, and MiB.
    """

    def __init__(self, process: int, every_s: float = 1.0) -> None:
        self._process, self._every_s = process, every_s
        self.samples: list[tuple[float, float]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    @property
    def growth_mib(self) -> float:
        """The median of the last fifth less that of the second fifth: the first one warms up."""
        values = [mib for _, mib in self.samples]
        edge = max(1, round(len(values) * _EDGE))
        return float(np.median(values[-edge:]) - np.median(values[edge : 2 * edge] or values[:edge]))

    @property
    def peak_mib(self) -> float:
        """The largest sample."""
        return max(mib for _, mib in self.samples)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        start = time.perf_counter()
        while True:
            self.samples.append((time.perf_counter() - start, tree_mib(self._process)))
            if self._stop.wait(self._every_s):
                return


def tree_mib(process: int) -> float:
    """Memory of a process and its descendants."""
    return sum(_pss_kib(each) for each in descendants(process)) / 1024


def descendants(process: int) -> list[int]:
    """A process that runs, and all those that it started, and these."""
    found = [process]
    for task in Path(f"/proc/{process}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # a thread, or the process, may end meanwhile
            for child in task.read_text().split():
                found += descendants(int(child))
    return found


def _pss_kib(process: int) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1])
    return 0
