"""What the server needs of this machine: packages, free ports, shared memory, the interpreter's shared library."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import socket
import sys
import sysconfig
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from fcnopt.backends.packages import require
from fcnopt.errors import BackendError, UsageError
from fcnopt.serving.leftovers import SHARED

_SHARED_BASE = 8 << 20  # what Triton's Python backend takes with no request at all
_NO_ADDRESS = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
_LIBRARY = f"libpython{sys.version_info.major}.{sys.version_info.minor}.so.1.0"


def optional(module: str) -> ModuleType:
    """Import a module that the extra `serve` installs; see `require`."""
    return require(module, install='pip install "fcnopt[serve]"')


def check_port(host: str, port: int, name: str) -> None:
    """Refuse a port that cannot be listened on.

    Raises:
        BackendError: It is in use, or may not be used.
        UsageError: `host` is no address of this machine.
    """
    option = f"--{name.replace('_', '-')}"
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one that was just left is free
        try:
            probe.bind((host, port))
            probe.listen()
        except (socket.gaierror, OSError) as error:
            if isinstance(error, socket.gaierror) or error.errno in _NO_ADDRESS:
                raise UsageError(
                    f"serve: {host} is no IPv4 address of this machine", fix="give --host 127.0.0.1, or 0.0.0.0 for all"
                ) from error
            raise BackendError(
                f"serve: port {port} on {host} cannot be used: {error.strerror}", fix=f"give another one with {option}"
            ) from error


def check_shared_memory(needed: int, max_batch: int) -> None:
    """Refuse too little shared memory, which would end the server in the middle of a request.

    Raises:
        BackendError: Less than `needed` bytes are free, beside what the server takes without requests.
    """
    free = shutil.disk_usage(SHARED).free if SHARED.is_dir() else 0
    total = needed + _SHARED_BASE
    if free < total:
        raise BackendError(
            f"serve: {SHARED} has {free >> 20} MiB free, requests of {max_batch} frames take {-(-total >> 20)} MiB",
            fix=f"enlarge it (docker run --shm-size={-(-total >> 20) + 64}m), or lower --max-batch",
        )


_leaving = threading.local()


def _leave_group() -> None:
    if getattr(_leaving, "group", False):
        os.setpgid(0, 0)


os.register_at_fork(after_in_child=_leave_group)


@contextlib.contextmanager
def own_group() -> Iterator[None]:
    """Let the processes that this thread forks inside have a process group of their own.

    A terminal's Ctrl-C goes to all processes of a group: Triton would end at once, with requests unanswered.
    PyTriton has no choice for this.
    """
    _leaving.group = True
    try:
        yield
    finally:
        _leaving.group = False


@contextlib.contextmanager
def own_libpython(folder: Path) -> Iterator[None]:
    """Let the processes that are started inside find this interpreter's shared library before any other.

    Triton's Python backend loads the interpreter as a library, with this environment's packages. The loader may find
    one of another patch version that the system has, to which the standard library here does not fit.

    Raises:
        BackendError: This interpreter has no shared library.
    """
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    places = [sysconfig.get_config_var(name) for name in ("LIBDIR", "MULTIARCH")]
    libdir = Path(places[0] or "/usr/lib")
    candidates = [Path(sys.base_prefix) / "lib", libdir, libdir / (places[1] or "")]
    found = next((place / _LIBRARY for place in candidates if (place / _LIBRARY).exists()), None)
    if found is None:
        raise BackendError(
            f"serve: {sys.executable} has no shared library {_LIBRARY}, which Triton's Python backend loads",
            fix=f"install it (Debian, Ubuntu: apt install lib{version}), or use a Python built with --enable-shared",
        )
    folder.mkdir()
    (folder / _LIBRARY).symlink_to(found)
    before = os.environ.get("LD_LIBRARY_PATH")
    os.environ["LD_LIBRARY_PATH"] = ":".join(filter(None, (str(folder), before)))
    try:
        yield
    finally:
        if before is None:
            del os.environ["LD_LIBRARY_PATH"]
        else:
            os.environ["LD_LIBRARY_PATH"] = before
