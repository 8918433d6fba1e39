"""The files of a bundle, opened so that what was checked is what is used."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
from pathlib import Path
from typing import BinaryIO

from fcnopt.errors import BundleError

_PIECE_BYTES = 1 << 20
_FIX = "copy the whole bundle again, or build it again"


def open_member(path: Path) -> BinaryIO:
    """Open a file of a bundle.

    Raises:
        BundleError: It is missing, cannot be read, or is a symbolic link, which could point anywhere and be changed at
            any time, a pipe or a device, which could give something else at each reading.
    """
    try:
        # Without NONBLOCK, opening a pipe waits for somebody to write to it.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        linked = error.errno == errno.ELOOP
        what = " is a symbolic link, expected a file" if linked else f": cannot be read: {error.strerror}"
        raise BundleError(f"{path}{what}", fix=_FIX) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise BundleError(f"{path} is no file, but a folder, pipe or device", fix=_FIX)
    return os.fdopen(descriptor, "rb")


def read_member(path: Path, most: int) -> bytes:
    """All bytes of a file of a bundle, read once.

    Raises:
        BundleError: See `open_member`; or it has more than `most` bytes.
    """
    with open_member(path) as file:
        try:
            data = file.read(most + 1)
        except OSError as error:
            raise BundleError(f"{path}: cannot be read: {error.strerror}", fix=_FIX) from error
    if len(data) > most:
        raise BundleError(f"{path}: has over {most:,} bytes", fix=_FIX)
    return data


def hash_member(path: Path, copy: Path | None = None) -> str:
    """SHA-256 of a file of a bundle, in hex; where `copy` is given, of exactly the bytes that were copied there.

    Raises:
        BundleError: See `open_member`; or the copy cannot be written.
    """
    digest = hashlib.sha256()
    try:
        with open_member(path) as source, copy.open("xb") if copy is not None else contextlib.nullcontext() as sink:
            while piece := source.read(_PIECE_BYTES):
                digest.update(piece)
                if sink is not None:
                    sink.write(piece)
    except OSError as error:
        if copy is not None:
            raise BundleError(
                f"{path}: cannot be copied to {copy.parent}: {error.strerror}",
                fix="free space there, or set TMPDIR to a folder with room for the engine",
            ) from error
        raise BundleError(f"{path}: cannot be read: {error.strerror}", fix=_FIX) from error
    return digest.hexdigest()
