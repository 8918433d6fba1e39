"""Programs of this package, and fcnopt's own, as processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import fcnopt

BENCHMARKS = Path(__file__).parents[1]


def program(name: str, *words: object) -> list[str]:
    """The command line of a module of this package."""
    return [sys.executable, "-m", f"faults.{name}", *map(str, words)]


def environment() -> dict[str, str]:
    """Of processes: this fcnopt and this package, and no trusted keys from outside."""
    own = {key: value for key, value in os.environ.items() if key != "FCNOPT_TRUSTED_KEYS"}
    root = str(Path(fcnopt.__file__).parents[1])
    return {**own, "PYTHONPATH": os.pathsep.join(filter(None, (root, str(BENCHMARKS), own.get("PYTHONPATH"))))}


def run_in(folder: Path, line: Sequence[str], timeout_s: float = 900.0) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        line, cwd=folder, capture_output=True, text=True, errors="replace", timeout=timeout_s, env=environment()
    )
