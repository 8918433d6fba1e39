"""Deploy trained fully convolutional segmentation networks on NVIDIA GPUs.

The five verbs: `export`, `optimize`, `build`, `load`, `bench`. Each is imported when it is first used, so that
`import fcnopt` loads no runtime.
"""

from typing import TYPE_CHECKING

from fcnopt.errors import FcnoptError
from fcnopt.version import __version__

if TYPE_CHECKING:
    from fcnopt.benchmark import bench
    from fcnopt.builder import build, optimize
    from fcnopt.bundle import load
    from fcnopt.exporter import export

__all__ = ["FcnoptError", "__version__", "bench", "build", "export", "load", "optimize"]

_HOMES = {
    "bench": "fcnopt.benchmark",
    "build": "fcnopt.builder",
    "export": "fcnopt.exporter",
    "load": "fcnopt.bundle",
    "optimize": "fcnopt.builder",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
