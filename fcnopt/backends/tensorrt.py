"""TensorRT, both flavours: standard (`tensorrt`) and TensorRT-RTX (`tensorrt_rtx`), which share one API.

`tensorrt_build` builds, `tensorrt_run` runs, `tensorrt_log` reads what TensorRT says.
"""

from fcnopt.backends.tensorrt_build import TensorRtBuilder
from fcnopt.backends.tensorrt_log import Flavour
from fcnopt.backends.tensorrt_run import TensorRtRunner

__all__ = ["Flavour", "TensorRtBuilder", "TensorRtRunner"]
