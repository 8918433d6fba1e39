"""Deploy trained fully convolutional segmentation networks on NVIDIA GPUs.

The verbs are `export`, `optimize`, `build`, `load`, `bench` and `inspect`; `ExportOptions`, `BuildSettings` (with
`BuildOptions` for the runtime) and `BenchFiles` hold their less common choices. Each is imported when it is first
used, so that `import fcnopt` loads no runtime.
"""

from typing import TYPE_CHECKING

from fcnopt.errors import FcnoptError
from fcnopt.version import __version__

if TYPE_CHECKING:
    from fcnopt.backends.base import BuildOptions
    from fcnopt.benchmark import BenchFiles, bench
    from fcnopt.builder import BuildSettings, build, optimize
    from fcnopt.bundle import load
    from fcnopt.evaluate.result import check_gates
    from fcnopt.exporter import ExportOptions, export
    from fcnopt.inspection import inspect

__all__ = [
    "BenchFiles",
    "BuildOptions",
    "BuildSettings",
    "ExportOptions",
    "FcnoptError",
    "__version__",
    "bench",
    "build",
    "check_gates",
    "export",
    "inspect",
    "load",
    "optimize",
]

_HOMES = {
    "BenchFiles": "fcnopt.benchmark",
    "BuildOptions": "fcnopt.backends.base",
    "BuildSettings": "fcnopt.builder",
    "ExportOptions": "fcnopt.exporter",
    "bench": "fcnopt.benchmark",
    "build": "fcnopt.builder",
    "check_gates": "fcnopt.evaluate.result",
    "export": "fcnopt.exporter",
    "inspect": "fcnopt.inspection",
    "load": "fcnopt.bundle",
    "optimize": "fcnopt.builder",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
