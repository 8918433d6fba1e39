"""Readers as they must not be: what watches readers has to notice each of them."""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from faults.case import Case

from fcnopt.errors import BundleError

_KEPT: list[bytearray] = []


class _Runs:
    def __init__(self, path: str) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self._path,)


def _pickled(folder: Path) -> Path:
    (folder / "net.pth").write_bytes(pickle.dumps(_Runs(str(folder.parent / "canary"))))
    return folder / "net.pth"


def _unpickles(path: Path) -> str:
    pickle.loads(path.read_bytes())  # noqa: S301  (that it is unsafe is what has to be noticed)
    return "read"


def _takes_memory(_: Path) -> str:
    _KEPT.append(bytearray(b"\1" * (100 << 20)))
    return "read"


def _raises(_: Path) -> str:
    raise TypeError("an error of somebody else's")


def _says_nothing(_: Path) -> str:
    raise BundleError("", fix="")


def _reads_outside(path: Path) -> str:
    return (path / ".." / "secret.txt").read_text()[:4]


def _follows_a_link(path: Path) -> str:
    (path / "link").symlink_to(path.parent / "secret.txt")
    return (path / "link").read_text()[:4]


def _is_slow(_: Path) -> str:
    time.sleep(1.5)
    return "read"


def _hangs(_: Path) -> str:
    time.sleep(3600)
    return "read"


def _dies(_: Path) -> str:
    os.abort()


def _is_fine(path: Path) -> str:
    (path / "file").write_text("x")
    return (path / "file").read_text()


READERS: dict[str, Callable[[Path], str]] = {
    "takes memory": _takes_memory,
    "raises": _raises,
    "says nothing": _says_nothing,
    "reads outside": _reads_outside,
    "follows a link": _follows_a_link,
    "is slow": _is_slow,
    "hangs": _hangs,
    "dies": _dies,
    "is fine": _is_fine,
}


def cases() -> Iterator[Case]:
    """Each of them, and one that is fine at the end."""
    yield Case("unpickles", _pickled, _unpickles)
    for name, reader in READERS.items():
        yield Case(name, lambda folder: folder, partial(reader))


def broken() -> Iterator[Case]:
    """Cases that cannot even be made."""
    raise RuntimeError("no cases")
    yield
