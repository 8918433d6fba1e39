"""A command under a limit: python -m faults.inside limit BYTES LINE...

    limit BYTES LINE...                       no file larger than BYTES (RLIMIT_FSIZE); becomes the command
    disk BYTES FOLDER COMMAND INPUTS          FOLDER on a tmpfs with BYTES free beside the command's inputs
    read-only 0 FOLDER COMMAND INPUTS         FOLDER read-only once the inputs are in it

The last two run in mount namespaces of their own, and write a line of JSON: how the command ended and what is there.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

from faults.commands import Inputs, commands, looked
from faults.process import run_in

_PAGE = 4096
_DISK = 1 << 30


def main() -> None:
    """Parse, limit, run."""
    kind, size = sys.argv[1], int(sys.argv[2])
    if kind == "limit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        os.execv(sys.argv[3], sys.argv[3:])  # noqa: S606  (the command as it was given)
    _mounted(kind, size, Path(sys.argv[3]), sys.argv[4], json.loads(sys.argv[5]))


def _mounted(kind: str, size: int, folder: Path, name: str, inputs: dict[str, str]) -> None:
    command = commands(Inputs.of(inputs))[name]
    if kind == "disk":
        _mount("-t", "tmpfs", "-o", f"size={_DISK}", "none", str(folder))
    else:
        _mount("--bind", str(folder), str(folder))
    command.ready(folder / "work")
    if kind == "disk":
        _fill(folder, size)
    else:
        _mount("-o", "remount,ro,bind", str(folder))
    done = run_in(folder / "work", command.line())
    there, fault = looked(command.look, folder / "work")
    left = command.leftovers(folder / "work")
    said = {"returncode": done.returncode, "stderr": done.stderr[-4000:], "there": there, "fault": fault, "left": left}
    print(json.dumps(said))


def _fill(folder: Path, free: int) -> None:
    """Fill the disk up to `free` bytes, in whole pages."""
    with (folder / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(_PAGE))
    os.truncate(folder / "filler", (folder / "filler").stat().st_size - -(-free // _PAGE) * _PAGE)


def _mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True, capture_output=True)  # noqa: S607  (mount(8), wherever it is)


if __name__ == "__main__":
    main()
