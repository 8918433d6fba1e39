"""Runtimes: each in a file of its own, behind one contract (`base`). Importing this package loads none of them."""

from fcnopt.backends.opening import default_target, make_builder, open_engine, open_onnx
from fcnopt.backends.survey import RuntimeStatus, survey
from fcnopt.backends.targets import Target

__all__ = [
    "RuntimeStatus",
    "Target",
    "default_target",
    "make_builder",
    "open_engine",
    "open_onnx",
    "survey",
]
