"""Deploy trained fully convolutional segmentation networks on NVIDIA GPUs.

The verbs are `slim`, `export`, `optimize`, `build`, `sign` (with a key that `new_key` makes), `load`, `run`, `bench`,
`compare`, `deploy`, `serve` and `inspect`; `SlimOptions` (with `RecoveryOptions` for training), `ExportOptions`,
`BuildSettings` (with `BuildOptions` for the runtime, `ValidationSource` and `Budget` for accuracy), `RunOptions`,
`ServeOptions` and `BenchFiles` hold their less common choices. Each is imported when it is first used, so that `import
fcnopt` loads no runtime.
"""

from typing import TYPE_CHECKING

from fcnopt.errors import FcnoptError
from fcnopt.version import __version__

if TYPE_CHECKING:
    from fcnopt.accuracy import ValidationSource
    from fcnopt.backends.base import BuildOptions
    from fcnopt.benchmark import BenchFiles, bench
    from fcnopt.builder import build, optimize
    from fcnopt.bundle import load, sign
    from fcnopt.comparison import compare
    from fcnopt.deployment import deploy
    from fcnopt.evaluate.budget import Budget
    from fcnopt.evaluate.result import check_gates
    from fcnopt.exporter import ExportOptions, export
    from fcnopt.inspection import inspect
    from fcnopt.recording import RunOptions, run
    from fcnopt.serving import ServeOptions, serve
    from fcnopt.settings import BuildSettings
    from fcnopt.signing import new_key
    from fcnopt.slimming.options import RecoveryOptions, SlimOptions
    from fcnopt.slimming.slimmer import slim

__all__ = [
    "BenchFiles",
    "Budget",
    "BuildOptions",
    "BuildSettings",
    "ExportOptions",
    "FcnoptError",
    "RecoveryOptions",
    "RunOptions",
    "ServeOptions",
    "SlimOptions",
    "ValidationSource",
    "__version__",
    "bench",
    "build",
    "check_gates",
    "compare",
    "deploy",
    "export",
    "inspect",
    "load",
    "new_key",
    "optimize",
    "run",
    "serve",
    "sign",
    "slim",
]

_HOMES = {
    "Budget": "fcnopt.evaluate.budget",
    "BenchFiles": "fcnopt.benchmark",
    "BuildOptions": "fcnopt.backends.base",
    "BuildSettings": "fcnopt.settings",
    "ExportOptions": "fcnopt.exporter",
    "RecoveryOptions": "fcnopt.slimming.options",
    "RunOptions": "fcnopt.recording",
    "ServeOptions": "fcnopt.serving",
    "SlimOptions": "fcnopt.slimming.options",
    "ValidationSource": "fcnopt.accuracy",
    "bench": "fcnopt.benchmark",
    "build": "fcnopt.builder",
    "check_gates": "fcnopt.evaluate.result",
    "compare": "fcnopt.comparison",
    "deploy": "fcnopt.deployment",
    "export": "fcnopt.exporter",
    "inspect": "fcnopt.inspection",
    "load": "fcnopt.bundle",
    "new_key": "fcnopt.signing",
    "optimize": "fcnopt.builder",
    "run": "fcnopt.recording",
    "serve": "fcnopt.serving",
    "sign": "fcnopt.bundle",
    "slim": "fcnopt.slimming.slimmer",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
