"""Memory that something takes, files that it opens, and whether it ended in time; all of this process."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # proc(5): resets VmHWM


class MemoryRise:
    """Context manager: the most resident memory within it, less that at its start.

    The kernel keeps the peak (VmHWM), so that no spike is missed. What was freed before and kept by the allocator is
    given back first: it would hide what is taken.

    Attributes:
        mib: On top, in MiB; 0 where the system does not tell.
    """

    mib = 0.0

    def __enter__(self) -> Self:
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
        with contextlib.suppress(OSError):
            _CLEAR.write_text(_RESET_PEAK)
        self._start_kib = status_kib("VmRSS")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.mib = max(0, status_kib("VmHWM") - self._start_kib) / 1024


def status_kib(name: str) -> int:
    """A figure of /proc/self/status, in KiB."""
    found = re.search(rf"^{name}:\s+(\d+) kB", _STATUS.read_text("ascii"), re.MULTILINE) if _STATUS.is_file() else None
    return int(found[1]) if found else 0


class OpenedFiles:
    """Notes every file that is opened outside of some folders, while `noting`; Python's own modules do not count.

    Python tells of what it opens (PEP 578), not of what a library in C opens by itself.

    Args:
        inside: Folders in which files may be opened.
    """

    def __init__(self, inside: Iterable[Path]) -> None:
        installed = {sys.prefix, sys.base_prefix, *sysconfig.get_paths().values(), *filter(None, sys.path)}
        # Where packages lie, what the kernel tells of the process, and time zones
        known = {
            *installed,
            str(Path(__file__).parents[2]),
            "/proc/self",
            "/dev/null",
            "/dev/urandom",
            "/etc/localtime",
        }
        self._inside = tuple(os.path.realpath(path) for path in (*inside, *known, "/usr/share/zoneinfo"))
        self._noted: list[str] = []
        self._active = False
        sys.addaudithook(self._hear)

    @contextlib.contextmanager
    def noting(self) -> Iterator[list[str]]:
        """What is opened outside within the block."""
        self._noted = []
        self._active = True
        try:
            yield self._noted
        finally:
            self._active = False

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._active or event != "open" or not isinstance(arguments[0], str | bytes | os.PathLike):
            return
        self._active = False  # looking at a path must not be heard
        path = os.path.realpath(os.fsdecode(arguments[0]))
        if not any(path == place or path.startswith(place + os.sep) for place in self._inside):
            self._noted.append(path)
        self._active = True


def within(seconds: float, work: Callable[[], Any]) -> tuple[bool, Any]:
    """Do something in a thread of its own; whether it ended in time, and what it returned or raised."""
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(work())
        except BaseException as error:  # noqa: BLE001  (handed to the caller, whatever it is)
            found.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    return bool(found), found[0] if found else None
