"""Files as they are written, before they take their name: hidden, beside it, and gone when a killed process left them.

Whoever writes a file whole or not at all writes it under another name first. A process that is killed meanwhile leaves
that behind; it is never read, but it can be large. So the name holds the process's number, and who writes the same file
next removes what belongs to a process that is no more. A folder cannot take the place of another at once: the one that
was there is called `.old` for an instant, and who comes next brings it back where that instant was the last.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
from pathlib import Path

from fcnopt.errors import UsageError

OLD = ".old"
"""End of the name of a folder that was moved aside for a new one."""


def part_of(path: Path, end: str = ".tmp") -> Path:
    """A new name, hidden and beside `path`, that ends in `end`.

    Raises:
        UsageError: `path` has no name of its own: "." or "/".
    """
    if not path.name:
        raise UsageError(f"{path}: a folder that is in use cannot be written anew", fix="name a file or folder in it")
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}{end}")


def clear_up(path: Path) -> None:
    """Remove what killed processes left of `path`: what `part_of` names, with any end; best effort.

    What one had moved aside takes its place again, if nothing is there.
    """
    name = re.compile(rf"\.{re.escape(path.name)}\.(\d+)-[0-9a-f]{{8}}\..*")
    with contextlib.suppress(OSError):
        for entry in path.parent.iterdir():
            found = name.fullmatch(entry.name)
            if found is not None and not is_running(int(found[1])):
                if entry.suffix == OLD and not os.path.lexists(path):
                    entry.rename(path)
                elif entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry, ignore_errors=True)
                else:
                    entry.unlink(missing_ok=True)


def exchange(part: Path, path: Path) -> None:
    """Put the folder `part`, which `part_of` named, at `path`; what was there is kept until it is."""
    old = part.with_suffix(OLD)
    replaced = path.exists()
    if replaced:
        path.rename(old)
    try:
        part.rename(path)
    except OSError:
        if replaced:
            old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def is_running(process: int) -> bool:
    """Whether there is a process of this number."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
