"""Explicit quantization: QuantizeLinear and DequantizeLinear nodes around the layers that run in INT8 or FP8.

Activations: `x -> QuantizeLinear(scale, zero) -> DequantizeLinear(scale, zero) -> readers`, one scale a tensor.
Weights: stored as int8 with one scale an output channel, `DequantizeLinear -> Conv`; a scale is the channel's largest
magnitude / 127. Biases stay float. A runtime reads this as the integer convolution

    y[o] = scale_x * scale_w[o] * sum((q_x - zero_x) * q_w[o]) + bias[o]

Form `tensorrt` is symmetric: int8 activations with zero point 0, and scales that float16 holds exactly, so that the
float part of the graph can become half precision afterwards without touching a quantized value. Forms `openvino`
and `onnxruntime` give activations uint8 over the interval that they use: VNNI multiplies uint8 by int8, and after a
ReLU the grid is twice as fine. Frames that a layer reads as uint8 are dequantized with scale 1. The two differ in where
they quantize: `fcnopt.quantize.placement`.

FP8 is form `tensorrt` with E4M3 in the place of int8: `value = number * scale`, the scale of a weight's channel its
largest magnitude / 448, and no zero point but 0. Values beyond the grid saturate. Behind a MaxPool the pool's result
is quantized, not what it reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from fcnopt.backends.machine import int8_saturates
from fcnopt.backends.targets import Form
from fcnopt.errors import CalibrationError
from fcnopt.graph.io import export_graph, import_graph
from fcnopt.graph.optimizers import NARROW
from fcnopt.quantize.fp8 import E4M3, to_fp8
from fcnopt.quantize.methods import Interval, Levels, Quantized, Rule, check_method
from fcnopt.quantize.opset import at_least_opset
from fcnopt.quantize.placement import Placement, Point, Reader, above_pools, output_axis, reads_whole_numbers
from fcnopt.quantize.ranges import Ranges
from fcnopt.quantize.scales import DEAD, SMALLEST, half_at_least

if TYPE_CHECKING:
    import onnx

Kind = Literal["int8", "uint8", "fp8"]
"""The numbers that a tensor is stored in; weights know no uint8."""
Choice = Mapping[str, Rule]
"""The calibration method of every quantized tensor."""

_OPSET: Mapping[Form, int] = {
    "tensorrt": 19,
    "openvino": 13,
    "onnxruntime": 13,
}  # float16 scales; DequantizeLinear with an axis
_LEVELS: Mapping[Kind, Levels] = {"int8": 127, "uint8": 255, "fp8": 448}
_NUMPY: Mapping[Kind, Any] = {"int8": np.int8, "uint8": np.uint8, "fp8": E4M3}


@dataclass(frozen=True)
class Grid:
    """The numbers a tensor may have: `value = (q - zero) * scale`.

    Attributes:
        scale: Positive; of integers the distance of two levels.
        zero: The q that stands for 0.
        kind: What q is.
    """

    scale: float
    zero: int
    kind: Kind

    @classmethod
    def over(cls, interval: Interval, kind: Kind) -> Grid:
        """The grid of a kind over an interval that holds zero; an empty interval (a dead tensor) gets scale 1.

        Raises:
            CalibrationError: The interval is too wide for a float16 scale, which int8 and fp8 have.
        """
        low, high = interval
        if high - low < DEAD:
            return cls(1.0, 0, kind)
        if kind != "uint8":
            return cls(float(half_at_least(max(max(-low, high) / _LEVELS[kind], SMALLEST))), 0, kind)
        scale = float(np.float32((high - low) / 255))
        return cls(scale, int(np.clip(np.round(-low / scale), 0, 255)), kind)


@dataclass(frozen=True, eq=False)
class Rounded:
    """A weight that is rounded already.

    Attributes:
        values: int8, or E4M3, shaped as the weight.
        scales: float32 [out], one an output channel.
        shift: float32 [out], to be added to the layer's bias; None for nothing.
    """

    values: NDArray[Any]
    scales: NDArray[np.float32]
    shift: NDArray[np.float32] | None = None


def weight_levels(form: Form, precision: Quantized = "int8") -> int:
    """The largest number that a weight is rounded to.

    For CPUs it is half of int8's where this one would saturate with more (`int8_saturates`): then integer kernels
    compute what the graph says here too. TensorRT's engines run elsewhere.
    """
    if precision == "int8" and form != "tensorrt" and int8_saturates():
        return NARROW
    return _LEVELS[precision]


def activation_kind(form: Form, precision: Quantized = "int8") -> Kind:
    """What activations are stored in.

    Raises:
        CalibrationError: FP8 in a form for CPUs.
    """
    if precision == "int8":
        return "int8" if form == "tensorrt" else "uint8"
    if form != "tensorrt":
        raise CalibrationError(
            "fp8: no CPU runtime has kernels for it", fix="use --precision int8 here, or --target tensorrt-rtx:sm89"
        )
    return "fp8"


def grids(
    placement: Placement, ranges: Ranges, choice: Choice, form: Form, precision: Quantized = "int8"
) -> dict[str, Grid]:
    """The grid of every quantized tensor; tensors of one group get the widest interval among them.

    Raises:
        CalibrationError: A tensor has no range, or one too wide for the form; the precision has no such method.
    """
    kind = activation_kind(form, precision)
    levels = _LEVELS[kind]
    widest: dict[str, Interval] = {}
    for point in placement.points:
        found = ranges.tensors.get(point.tensor)
        if found is None or not found.intervals:
            raise CalibrationError(
                f"tensor {point.tensor!r} is to be quantized, but the ranges do not have it",
                fix="delete the range file to calibrate again: it was made for another graph",
            )
        method = choice[point.tensor]
        check_method(method, precision)
        low, high = found.intervals[method][levels]
        before = widest.get(point.group, (0.0, 0.0))
        widest[point.group] = (min(low, before[0]), max(high, before[1]))
    return {point.tensor: Grid.over(widest[point.group], kind) for point in placement.points}


def insert(
    model: onnx.ModelProto,
    placement: Placement,
    found: Mapping[str, Grid],
    form: Form,
    rounded: Mapping[str, Rounded] | None = None,
) -> onnx.ModelProto:
    """Put the nodes in.

    Args:
        model: The FP32 graph that `placement` was made for; unchanged afterwards.
        placement: Layers and tensors.
        found: The grid of every tensor in it, all fp8 or none: weights are stored in fp8 then, else in int8.
        form: Decides the opset needed and how weight scales are rounded.
        rounded: Weights that are not to be rounded to nearest, by name; of int8 only.

    Returns:
        A new model; every tensor of the old one that is still read keeps its name.

    Raises:
        CalibrationError: A weight needs a scale beyond float16; or fp8 and integers are mixed, which no kernel
            multiplies.
    """
    fp8 = {point.tensor for point in placement.points if found[point.tensor].kind == "fp8"}
    if 0 < len(fp8) < len(placement.points):
        raise CalibrationError(
            f"{len(fp8)} of {len(placement.points)} tensors are fp8, the others integers",
            fix="make the grids of one graph in one precision",
        )
    precision: Quantized = "fp8" if fp8 else "int8"
    graph = import_graph(at_least_opset(model, _OPSET[form]))
    by_output = {node.outputs[0].name: node for node in graph.nodes}
    tensors = graph.tensors()
    points = [(point, found[point.tensor]) for point in placement.points]
    for point, grid in _below_pools(placement, found, by_output) if fp8 else points:
        _quantize_activation(graph, tensors[point.tensor], point, grid, by_output)
    weights: dict[int, gs.Variable] = {}
    for layer in placement.layers:
        node = by_output[layer]
        if reads_whole_numbers(node):
            _read_whole_numbers(graph, node)
        known = (rounded or {}).get(node.inputs[1].name)
        _quantize_weight(graph, node, weights, known or _to_nearest(node, form, precision), precision)
    graph.cleanup().toposort()
    return export_graph(graph, like=model)


def quantize_weight(
    weight: NDArray[np.float32], axis: int, form: Form, precision: Quantized = "int8"
) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """Symmetric int8, or E4M3, with one scale a channel.

    Args:
        weight: For a Conv (out, in/group, kH, kW).
        axis: Of the output channels.
        form: Of TensorRT, scales are float16 values; the weights are rounded with such a scale then, so that nothing is
            lost when it is stored as one.
        precision: Of the numbers.

    Returns:
        The numbers, within `weight_levels`, shaped as the weight, and the scales [out]. A channel of zeros has scale 1.

    Raises:
        CalibrationError: A channel needs a scale beyond float16.
    """
    reach = np.abs(weight).max(axis=tuple(i for i in range(weight.ndim) if i != axis))
    most = weight_levels(form, precision)
    scales = np.where(reach < DEAD, 1.0, reach / np.float64(most))
    scales = half_at_least(scales) if form == "tensorrt" else scales.astype(np.float32)
    shape = [-1 if i == axis else 1 for i in range(weight.ndim)]
    steps = weight / scales.reshape(shape)
    if precision == "fp8":
        return to_fp8(steps), scales
    return np.clip(np.round(steps), -most, most).astype(np.int8), scales


def _below_pools(
    placement: Placement, found: Mapping[str, Grid], by_output: Mapping[str, gs.Node]
) -> list[tuple[Point, Grid]]:
    """The points with their grids, each at the very input of the layers that read it.

    TensorRT has no FP8 pooling, and a layer behind a pool would run in float. Rounding keeps order, so the largest of
    rounded values is the largest value, rounded: Q/DQ behind a MaxPool gives the layer the same numbers.
    """
    readers: dict[tuple[str, str], list[Reader]] = {}
    names = set(placement.tensors)
    for point in placement.points:
        kept = [reader for reader in point.readers if by_output[reader.node].op != "MaxPool"]
        if kept:
            readers[point.tensor, point.tensor] = kept
    for layer in placement.layers:
        tensor = by_output[layer].inputs[0]
        source = above_pools(tensor, names)
        if source is not tensor and source.name in found:
            readers.setdefault((tensor.name, source.name), []).append(Reader(layer, 0))
    return [(Point(name, tuple(who), source), found[source]) for (name, source), who in readers.items()]


def _quantize_activation(
    graph: gs.Graph, tensor: gs.Variable, point: Point, grid: Grid, by_output: Mapping[str, gs.Node]
) -> None:
    kind = _NUMPY[grid.kind]
    name = point.tensor
    scale = gs.Constant(f"{name}_scale", np.array(grid.scale, np.float32))
    zero = gs.Constant(f"{name}_zero", np.array(grid.zero, kind))
    whole = gs.Variable(f"{name}_quantized", kind, tensor.shape)
    back = gs.Variable(f"{name}_dequantized", np.float32, tensor.shape)
    saturate = {"saturate": 1} if grid.kind == "fp8" else {}
    graph.nodes.append(gs.Node("QuantizeLinear", f"{name}_quantize", saturate, [tensor, scale, zero], [whole]))
    graph.nodes.append(gs.Node("DequantizeLinear", f"{name}_dequantize", {}, [whole, scale, zero], [back]))
    for reader in point.readers:
        by_output[reader.node].inputs[reader.index] = back


def _read_whole_numbers(graph: gs.Graph, node: gs.Node) -> None:
    """Let a layer read uint8 as the numbers they are, with scale 1."""
    whole = node.inputs[0].inputs[0].inputs[0]
    back = gs.Variable(f"{whole.name}_dequantized", np.float32, whole.shape)
    one, zero = (
        gs.Constant(f"{whole.name}_{what}", np.array(value, kind))
        for what, value, kind in (("scale", 1, np.float32), ("zero", 0, np.uint8))
    )
    graph.nodes.append(gs.Node("DequantizeLinear", f"{whole.name}_dequantize", {}, [whole, one, zero], [back]))
    node.inputs[0] = back


def _to_nearest(node: gs.Node, form: Form, precision: Quantized) -> Rounded:
    return Rounded(*quantize_weight(node.inputs[1].values, output_axis(node), form, precision))


def _quantize_weight(
    graph: gs.Graph, node: gs.Node, done: dict[int, gs.Variable], rounded: Rounded, precision: Quantized
) -> None:
    weight = node.inputs[1]
    back = done.get(id(weight))  # layers may share a weight
    if back is None:
        name = weight.name
        back = gs.Variable(f"{name}_dequantized", np.float32, rounded.values.shape)
        inputs = [
            gs.Constant(f"{name}_{precision}", rounded.values),
            gs.Constant(f"{name}_scale", rounded.scales),
            gs.Constant(f"{name}_zero", np.zeros(len(rounded.scales), _NUMPY[precision])),
        ]
        graph.nodes.append(
            gs.Node("DequantizeLinear", f"{name}_dequantize", {"axis": output_axis(node)}, inputs, [back])
        )
        done[id(weight)] = back
    node.inputs[1] = back
    if rounded.shift is not None:
        _shift_bias(node, rounded.shift)


def _shift_bias(node: gs.Node, shift: NDArray[np.float32]) -> None:
    """Give the node a bias of its own: the one it had may be shared."""
    given = node.inputs[2] if len(node.inputs) > 2 and not node.inputs[2].is_empty() else None
    values = shift if given is None else given.values + shift
    bias = gs.Constant(f"{node.outputs[0].name}_bias", np.asarray(values, np.float32))
    if len(node.inputs) > 2:
        node.inputs[2] = bias
    else:
        node.inputs.append(bias)
