"""The folder of a running server, and what servers that were killed left: folders, shared memory, processes.

A server that gets SIGKILL cannot clean up. Triton ends with it, but its Python backend may not. The next server that is
started does it.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import tempfile
from pathlib import Path

_FOLDER = re.compile(r"fcnopt-serve-(\d+)-\w+")
_SHARED_MEMORY = "pytrtion{process}-*"  # as PyTriton spells it
SHARED = Path("/dev/shm")  # noqa: S108  (where POSIX shared memory lies on Linux)


def work_folder() -> Path:
    """A new folder for this process's server; what killed servers left is removed first."""
    for folder in Path(tempfile.gettempdir()).iterdir():
        found = _FOLDER.fullmatch(folder.name)
        if found is not None and not Path(f"/proc/{found[1]}").exists():
            _remove(folder, int(found[1]))
    return Path(tempfile.mkdtemp(prefix=f"fcnopt-serve-{os.getpid()}-"))


def _remove(folder: Path, process: int) -> None:
    """End the programs that run from a folder, and remove it and its server's shared memory.

    Another user's are left alone: their files and processes may not be touched, or seen.
    """
    for each in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (each / "exe").readlink().is_relative_to(folder):
                os.kill(int(each.name), signal.SIGKILL)
    with contextlib.suppress(OSError):
        for segment in SHARED.glob(_SHARED_MEMORY.format(process=process)):
            segment.unlink()
    shutil.rmtree(folder, ignore_errors=True)
