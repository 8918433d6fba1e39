"""Importing the packages of the extras `logs` and `rerun`, and saying how to install them."""

from __future__ import annotations

import importlib
from typing import Any, Literal

from fcnopt.errors import MediaError

Extra = Literal["logs", "rerun"]


def require(module: str, extra: Extra = "logs") -> Any:
    """Import a module of an optional package.

    Raises:
        MediaError: The package is not installed, or cannot be loaded.
    """
    try:
        return importlib.import_module(module)
    except (ImportError, OSError) as error:
        missing = isinstance(error, ModuleNotFoundError)
        what = "is not installed" if missing else f"is installed but cannot be loaded: {error}"
        raise MediaError(f"{module.split('.')[0]} {what}", fix=f"run: pip install 'fcnopt[{extra}]'") from error
