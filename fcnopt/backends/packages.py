"""Importing runtimes that may not be installed, and saying how to install them."""

from __future__ import annotations

import importlib
from importlib import util
from types import ModuleType

from fcnopt.errors import BackendError

EXTRAS = {
    "torch": "export",
    "openvino": "cpu",
    "onnxruntime": "cpu",
    "tensorrt": "gpu",
    "tensorrt_rtx": "rtx",
    "cuda": "gpu",
}
"""Which extra of fcnopt installs a module."""


def pip_command(module: str) -> str:
    """The command that installs `module`."""
    return f'pip install "fcnopt[{EXTRAS[module]}]"'


def require(module: str, *, install: str | None = None) -> ModuleType:
    """Import a runtime.

    Args:
        module: Such as "openvino".
        install: The command that installs it, where it is not the one of its extra.

    Raises:
        BackendError: It is not installed, or cannot be loaded.
    """
    fix = install or (pip_command(module.split(".")[0]))
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise BackendError(f"{module} is not installed ({error})", fix=f"run: {fix}") from error
    except (ImportError, OSError, RuntimeError) as error:
        raise BackendError(
            f"{module} is installed but cannot be loaded: {error}", fix=f"install it again: {fix} --force-reinstall"
        ) from error


def installed(module: str) -> bool:
    """Whether `module` can be found; it is not imported."""
    return util.find_spec(module) is not None


def version_of(module: str) -> str | None:
    """The installed version of a runtime, None where it is not installed; it is not imported."""
    from importlib import metadata  # slow to import, and the command line imports this module

    if not installed(module):
        return None
    for distribution in (module, f"{module}-gpu", f"{module}_cu13", f"{module}_cu12", f"{module}-python"):
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return "unknown"
