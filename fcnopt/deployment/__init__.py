"""Deployment: a folder with a bundle and all that one stack needs to run it. One file a stack, templates beside them.

What a stack's function gets is a new, empty folder; it takes its place when the function ends well, so that a
deployment is whole or not there. Importing this loads no stack, since the command line lists them.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from fcnopt.errors import UsageError

if TYPE_CHECKING:
    from fcnopt.bundle import Bundle
    from fcnopt.signing import TrustedKeys


def _stack(module: str) -> Callable[[Bundle, Path], None]:
    """The function `write` of a module here, which is imported when it is called."""

    def write(bundle: Bundle, folder: Path) -> None:
        import_module(f"fcnopt.deployment.{module}").write(bundle, folder)

    return write


TARGETS: dict[str, Callable[[Bundle, Path], None]] = {
    "triton": _stack("triton"),
    "isaac-ros": _stack("isaac_ros"),
    "autoware": _stack("autoware"),
    "cpp": _stack("cpp"),
    "docker": _stack("docker"),
}
"""The stacks by name; each function writes what its stack needs into an empty folder."""


def deploy(bundle: str | Path, *, to: str, output: str | Path | None = None, trusted_keys: TrustedKeys = ()) -> Path:
    """Write a folder that holds a bundle and all that a stack needs to run it.

    Args:
        bundle: The folder engines/NAME. Its signature and hashes are checked, and the copy's again.
        to: The stack: a key of `TARGETS`.
        output: The folder to write; None for deploy/NAME-TO. An earlier deployment there is replaced.
        trusted_keys: See `fcnopt.load`.

    Returns:
        The folder.

    Raises:
        UsageError: The stack is unknown, or cannot run this bundle.
        BundleError: The bundle is damaged or not signed as required, or the folder cannot be written.
    """
    from fcnopt.bundle import Bundle
    from fcnopt.deployment.folder import replaced

    if to not in TARGETS:
        raise UsageError(f"deploy: {to!r} is not known", fix=f"use one of {', '.join(TARGETS)}")
    found = Bundle.read_trusted(bundle, trusted_keys)
    place = Path(output) if output is not None else Path("deploy") / f"{found.path.resolve().name}-{to}"
    with replaced(place) as folder:
        TARGETS[to](found, folder)
    return place
