"""Precision as a graph rewrite: calibration frames, ranges, explicit quantization, half precision."""

from fcnopt.quantize.frames import CalibrationFrames
from fcnopt.quantize.methods import Method
from fcnopt.quantize.precision import PrecisionResult, make_precision

__all__ = ["CalibrationFrames", "Method", "PrecisionResult", "make_precision"]
