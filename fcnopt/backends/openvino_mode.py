"""What the floating-point layers of a graph compute in on OpenVINO, chosen when it is compiled.

The choice is made from the graph itself, ONNX file or IR, and so is the same for an engine, for the candidates of a
search that led to it, and for their timing.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

from fcnopt.backends.base import FP8_FIX, Mode, Precision
from fcnopt.backends.cpurates import macs_a_cycle
from fcnopt.backends.machine import cpu_isa, int8_saturates
from fcnopt.errors import BackendError
from fcnopt.graph.optimizers import is_wide

# Small layers stay further below the peak than large ones: FP32 costs about twice the estimate (an FCN-8s: 0.35 %
# estimated, 0.6 % measured; with its first layer float 1.4 and 2.8 %). So this is one percent of the time.
_LITTLE = 0.005
_ANY_SIZE = 512  # for dynamic axes: layers' shares of the work hardly hang on the size
_CONVOLUTIONS = {"Convolution": 1, "GroupConvolution": 2}  # axes of the weights that are no sum: out, (group, out)
_DECONVOLUTIONS = {"ConvolutionBackpropData": 1, "GroupConvolutionBackpropData": 2}  # in, (group, in)
_OF_WEIGHTS = {"Convert", "Subtract", "Multiply", "Reshape", "Transpose"}  # between their integers and the layer


def compile_model(
    core: Any, graph: Any, precision: Precision, device: str, mode: Mode = "latency", *, profile: bool = False
) -> Any:
    """Compile for `mode` in the execution mode of the graph.

    Args:
        core: An `openvino.Core`.
        graph: An `openvino.Model`; unchanged afterwards.
        precision: Of the graph.
        device: "CPU" or "GPU".
        mode: What to compile for.
        profile: Whether inference requests shall tell times of layers.
    """
    hints = {
        "PERFORMANCE_HINT": mode.upper(),
        "INFERENCE_PRECISION_HINT": execution_mode(graph, precision, capabilities(core, device), device),
        "PERF_COUNT": "YES" if profile else "NO",
    }
    if device == "CPU" and int8_saturates() and _has_wide_weights(graph):
        hints["LP_TRANSFORMS_MODE"] = "NO"  # quantized values, exactly, in float layers
    return core.compile_model(graph, device, hints)


def _has_wide_weights(graph: Any) -> bool:
    """As `fcnopt.graph.optimizers.has_wide_weights`, of an `openvino.Model`."""
    constants = (op for op in graph.get_ops() if op.get_type_name() == "Constant")
    return any(is_wide(op.data) for op in constants if op.get_element_type().get_type_name() == "i8")


def capabilities(core: Any, device: str) -> frozenset[str]:
    """What a device computes in by its plugin: "FP32", "BF16", "INT8" and others."""
    return frozenset(core.get_property(device, "OPTIMIZATION_CAPABILITIES"))


def check_precision(precision: Precision, has: Collection[str], device: str) -> None:
    """Refuse a precision that a device lacks.

    Raises:
        BackendError: BF16, FP16 or FP8 is asked for and the device has none: it would be FP32 under another name.
    """
    if precision == "fp8":
        raise BackendError(f"openvino: this {device} has no fp8 kernels", fix=FP8_FIX)
    if precision in ("bf16", "fp16") and precision.upper() not in has:
        others = [name for name in ("bf16", "int8", "fp32") if name.upper() in has and name != precision]
        raise BackendError(
            f"openvino: this {device} has no {precision.upper()} (it has {', '.join(sorted(has))})",
            fix=f"use --precision {' or '.join(others)} here",
        )


def execution_mode(graph: Any, precision: Precision, has: Collection[str], device: str) -> str:
    """What floating-point layers compute in: OpenVINO's type name.

    What an INT8 graph leaves float takes the half precision that the device has. On a CPU it takes FP32 where that
    costs next to nothing (`_fp32_costs`): then what is left are score layers and the last upsampling, where BF16's
    rounding decides labels (0.03 % of them on an FCN-8s). Where a search left heavy layers float, FP32 would take
    twice BF16's time for them, and on AMX sixteen times.

    Args:
        graph: An `openvino.Model`.
        precision: Of the graph.
        has: The device's `capabilities`.
        device: "CPU" or "GPU".

    Raises:
        BackendError: See `check_precision`.
    """
    check_precision(precision, has, device)
    if precision == "int8" and device == "CPU" and "BF16" in has:
        return "f32" if _fp32_costs(graph) < _LITTLE else "bf16"
    if precision in ("bf16", "int8") and "BF16" in has:
        return "bf16"
    if precision == "fp16" or (precision == "int8" and device != "CPU" and "FP16" in has):
        return "f16"
    return "f32"


def _fp32_costs(graph: Any) -> float:
    """How much longer a quantized graph takes on this CPU with FP32 for float layers than with BF16, as a share.

    Estimated from multiply-accumulates and the CPU's peaks; 1 where a layer's shape is unknown.
    """
    cycle = macs_a_cycle(cpu_isa())
    half = cycle.get("bf16", 2 * cycle["fp32"])
    floats = integers = 0
    for op in _static(graph).get_ordered_ops():
        macs = _macs(op)
        if macs is None:
            return 1.0
        if _has_integer_weights(op):
            integers += macs
        else:
            floats += macs
    total = integers / cycle["int8"] + floats / half
    return floats * (1 / cycle["fp32"] - 1 / half) / total if total else 0.0


def _static(graph: Any) -> Any:
    """The graph with a size for dynamic axes of the frames."""
    if not graph.is_dynamic():
        return graph
    copy = graph.clone()
    copy.reshape(
        {
            port: [_ANY_SIZE if axis.is_dynamic else axis.get_length() for axis in port.get_partial_shape()]
            for port in copy.inputs
        }
    )
    return copy


def _macs(op: Any) -> int | None:
    """Multiply-accumulates of an operation, 0 where it has none; None where its shape is unknown.

    As `fcnopt.graph.stats` counts them. Weights are (out, in, kH, kW), (group, out, in, kH, kW), and for a transposed
    convolution (in, out, kH, kW), (group, in, out, kH, kW), out and in being those of one group.
    """
    kind = op.get_type_name()
    if kind not in _CONVOLUTIONS and kind not in _DECONVOLUTIONS and kind != "MatMul":
        return 0
    left, right, result = op.input(0), op.input(1), op.output(0)
    if any(port.get_partial_shape().is_dynamic for port in (left, right, result)):
        return None
    if kind in _CONVOLUTIONS:
        return _product(result) * _product(right, _CONVOLUTIONS[kind])
    if kind in _DECONVOLUTIONS:
        return _product(left) * _product(right, _DECONVOLUTIONS[kind])
    summed = -2 if op.get_attributes()["transpose_a"] else -1
    return _product(result) * int(left.get_shape()[summed])


def _product(port: Any, skipped: int = 0) -> int:
    """Of the sizes of a tensor's axes, the first ones left out."""
    return math.prod(int(size) for size in list(port.get_shape())[skipped:])


def _has_integer_weights(op: Any) -> bool:
    """Whether a layer is quantized: its weights are then integers in the file, and its activations too."""
    if op.get_input_size() < 2:
        return False
    node = op.input_value(1).get_node()
    while node.get_type_name() in _OF_WEIGHTS:
        node = node.input_value(0).get_node()
    return node.get_type_name() == "Constant" and node.get_element_type().get_type_name() in ("i8", "u8")
