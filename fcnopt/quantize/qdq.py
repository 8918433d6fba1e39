"""Explicit quantization: QuantizeLinear and DequantizeLinear nodes around the layers that run in INT8.

Activations: `x -> QuantizeLinear(scale, zero) -> DequantizeLinear(scale, zero) -> readers`, one scale a tensor.
Weights: stored as int8 with one scale an output channel, `DequantizeLinear -> Conv`; a scale is the channel's largest
magnitude / 127. Biases stay float. A runtime reads this as the integer convolution

    y[o] = scale_x * scale_w[o] * sum((q_x - zero_x) * q_w[o]) + bias[o]

Form `tensorrt` is symmetric: int8 activations with zero point 0, and scales that float16 holds exactly, so that the
float part of the graph can become half precision afterwards without touching a quantized value. Form `cpu` gives
activations uint8 over the interval that they use: VNNI multiplies uint8 by int8, and after a ReLU the grid is twice
as fine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from fcnopt.errors import CalibrationError
from fcnopt.graph.io import export_graph, import_graph
from fcnopt.quantize.methods import Interval, Levels, Rule
from fcnopt.quantize.opset import at_least_opset
from fcnopt.quantize.placement import Placement, Point, output_axis
from fcnopt.quantize.ranges import Ranges
from fcnopt.quantize.scales import DEAD, SMALLEST, half_at_least

if TYPE_CHECKING:
    import onnx

Form = Literal["tensorrt", "cpu"]
Choice = Mapping[str, Rule]
"""The calibration method of every quantized tensor."""

_OPSET: Mapping[Form, int] = {"tensorrt": 19, "cpu": 13}  # float16 scales; DequantizeLinear with an axis


@dataclass(frozen=True)
class Grid:
    """Evenly spaced levels: `value = (q - zero) * scale`.

    Attributes:
        scale: Distance of two levels, positive.
        zero: The integer that stands for 0.
        signed: int8 if true, else uint8.
    """

    scale: float
    zero: int
    signed: bool

    @classmethod
    def over(cls, interval: Interval, form: Form) -> Grid:
        """The grid of a form over an interval that holds zero; an empty interval (a dead tensor) gets scale 1.

        Raises:
            CalibrationError: Form tensorrt, and the interval is too wide for a float16 scale.
        """
        low, high = interval
        if high - low < DEAD:
            return cls(1.0, 0, signed=form == "tensorrt")
        if form == "tensorrt":
            return cls(float(half_at_least(max(-low / 127, high / 127, SMALLEST))), 0, signed=True)
        scale = float(np.float32((high - low) / 255))
        return cls(scale, int(np.clip(np.round(-low / scale), 0, 255)), signed=False)


def grids(placement: Placement, ranges: Ranges, choice: Choice, form: Form) -> dict[str, Grid]:
    """The grid of every quantized tensor; tensors of one group get the widest interval among them.

    Raises:
        CalibrationError: A tensor has no range, or one too wide for the form.
    """
    levels: Levels = 127 if form == "tensorrt" else 255
    widest: dict[str, Interval] = {}
    for point in placement.points:
        found = ranges.tensors.get(point.tensor)
        if found is None or not found.intervals:
            raise CalibrationError(
                f"tensor {point.tensor!r} is to be quantized, but the ranges do not have it",
                fix="delete the range file to calibrate again: it was made for another graph",
            )
        low, high = found.intervals[choice[point.tensor]][levels]
        before = widest.get(point.group, (0.0, 0.0))
        widest[point.group] = (min(low, before[0]), max(high, before[1]))
    return {point.tensor: Grid.over(widest[point.group], form) for point in placement.points}


def insert(model: onnx.ModelProto, placement: Placement, found: Mapping[str, Grid], form: Form) -> onnx.ModelProto:
    """Put the nodes in.

    Args:
        model: The FP32 graph that `placement` was made for; unchanged afterwards.
        placement: Layers and tensors.
        found: The grid of every tensor in it.
        form: Decides the opset needed and how weight scales are rounded.

    Returns:
        A new model; every tensor of the old one that is still read keeps its name.
    """
    graph = import_graph(at_least_opset(model, _OPSET[form]))
    by_output = {node.outputs[0].name: node for node in graph.nodes}
    tensors = graph.tensors()
    for point in placement.points:
        _quantize_activation(graph, tensors[point.tensor], point, found[point.tensor], by_output)
    weights: dict[int, gs.Variable] = {}
    for layer in placement.layers:
        _quantize_weight(graph, by_output[layer], weights, form)
    graph.cleanup().toposort()
    return export_graph(graph, like=model)


def quantize_weight(
    weight: NDArray[np.float32], axis: int, *, half_exact: bool
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Symmetric int8 with one scale a channel.

    Args:
        weight: For a Conv (out, in/group, kH, kW).
        axis: Of the output channels.
        half_exact: Whether the scales must be float16 values; the weights are rounded with such a scale then, so that
            nothing is lost when it is stored as one.

    Returns:
        The integers, -127 to 127, shaped as the weight, and the scales [out]. A channel of zeros has scale 1.

    Raises:
        CalibrationError: A channel needs a scale beyond float16.
    """
    reach = np.abs(weight).max(axis=tuple(i for i in range(weight.ndim) if i != axis))
    scales = np.where(reach < DEAD, 1.0, reach / np.float64(127))
    scales = half_at_least(scales) if half_exact else scales.astype(np.float32)
    shape = [-1 if i == axis else 1 for i in range(weight.ndim)]
    return np.clip(np.round(weight / scales.reshape(shape)), -127, 127).astype(np.int8), scales


def _quantize_activation(
    graph: gs.Graph, tensor: gs.Variable, point: Point, grid: Grid, by_output: Mapping[str, gs.Node]
) -> None:
    kind: Any = np.int8 if grid.signed else np.uint8
    name = point.tensor
    scale = gs.Constant(f"{name}_scale", np.array(grid.scale, np.float32))
    zero = gs.Constant(f"{name}_zero", np.array(grid.zero, kind))
    whole = gs.Variable(f"{name}_quantized", kind, tensor.shape)
    back = gs.Variable(f"{name}_dequantized", np.float32, tensor.shape)
    graph.nodes.append(gs.Node("QuantizeLinear", f"{name}_quantize", {}, [tensor, scale, zero], [whole]))
    graph.nodes.append(gs.Node("DequantizeLinear", f"{name}_dequantize", {}, [whole, scale, zero], [back]))
    for reader in point.readers:
        by_output[reader.node].inputs[reader.index] = back


def _quantize_weight(graph: gs.Graph, node: gs.Node, done: dict[int, gs.Variable], form: Form) -> None:
    weight = node.inputs[1]
    back = done.get(id(weight))  # layers may share a weight
    if back is None:
        name, axis = weight.name, output_axis(node)
        values, scales = quantize_weight(weight.values, axis, half_exact=form == "tensorrt")
        back = gs.Variable(f"{name}_dequantized", np.float32, values.shape)
        inputs = [
            gs.Constant(f"{name}_int8", values),
            gs.Constant(f"{name}_scale", scales),
            gs.Constant(f"{name}_zero", np.zeros(len(scales), np.int8)),
        ]
        graph.nodes.append(gs.Node("DequantizeLinear", f"{name}_dequantize", {"axis": axis}, inputs, [back]))
        done[id(weight)] = back
    node.inputs[1] = back
