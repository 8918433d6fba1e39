"""fcnopt's command line, killed before a change to the file system: python -m faults.crash_at NUMBER WORDS...

Changes are those of files and folders below the current folder, which Python tells of as it makes them (PEP 578). With
0 nothing is killed, and "changes: N" is written to standard error at the end.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
from pathlib import Path
from typing import Any

_CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def main() -> None:
    """Listen, and run."""
    at, here, seen = int(sys.argv[1]), str(Path.cwd()), 0

    def hear(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event in _CHANGES or (event == "open" and (arguments[2] or 0) & _WRITES):
            path = arguments[0]
            if isinstance(path, str | bytes | os.PathLike) and os.path.realpath(os.fsdecode(path)).startswith(
                here + os.sep
            ):
                seen += 1
                if seen == at:
                    os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hear)
    if not at:
        atexit.register(lambda: print(f"changes: {seen}", file=sys.stderr))
    from fcnopt.cli import main as fcnopt

    fcnopt(sys.argv[2:], prog_name="fcnopt")


if __name__ == "__main__":
    main()
