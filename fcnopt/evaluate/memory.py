"""Peak resident memory of this process, sampled while something runs."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

_STATM = Path("/proc/self/statm")
_EVERY_S = 0.01
_MIB = 1 << 20


class PeakMemory:
    """Context manager that notes the process's resident memory at its start and at most within it.

    A thread looks every 10 ms, so that a shorter spike can be missed. Where the system does not tell (no `/proc`),
    both figures are None.

    Attributes:
        start_mib: On entering.
        peak_mib: The most seen until leaving.
    """

    def __init__(self) -> None:
        self.start_mib: float | None = None
        self.peak_mib: float | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self.start_mib = self.peak_mib = resident_mib()
        if self.start_mib is not None:
            self._thread = threading.Thread(target=self._watch, name="fcnopt-memory", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._look()

    def _watch(self) -> None:
        while not self._stop.wait(_EVERY_S):
            self._look()

    def _look(self) -> None:
        now = resident_mib()
        if now is not None and self.peak_mib is not None:
            self.peak_mib = max(self.peak_mib, now)


def resident_mib() -> float | None:
    """Resident memory of this process in MiB, or None where the system does not tell."""
    try:
        pages = int(_STATM.read_text("ascii").split()[1])
    except OSError:
        return None
    return pages * os.sysconf("SC_PAGE_SIZE") / _MIB
