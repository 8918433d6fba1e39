"""Weights rounded so that the errors of a channel's weights cancel in the layer's result.

Rounding each weight to its nearest level ignores that inputs are correlated: neighbouring pixels and channels mostly
move together. For a channel's weights w and inputs x the error to keep small is

    E[(w - q) x]^2 = (w - q)^T H (w - q),   H = E[x x^T]

One weight after the other is rounded, and what it left over is taken up by the weights still to come, in the proportion
that minimizes this error (OBQ: Frantar, Singh, Alistarh, "Optimal Brain Compression", NeurIPS 2022; in the blocked
order of GPTQ: Frantar et al., "GPTQ", ICLR 2023). H comes from the quantized network's own activations on calibration
frames. Scales stay those of rounding to nearest, and so does the cost at run time.

What remains of an error on average, (w - q) E[x], is added to the bias (bias correction: Nagel et al., "Data-Free
Quantization Through Weight Equalization and Bias Correction", ICCV 2019).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from fcnopt.backends.targets import Form
from fcnopt.graph.io import import_graph
from fcnopt.quantize.frames import CalibrationFrames
from fcnopt.quantize.patches import patches
from fcnopt.quantize.placement import Placement, output_axis
from fcnopt.quantize.qdq import Grid, Rounded, insert, quantize_weight, weight_levels
from fcnopt.quantize.sessions import Session

if TYPE_CHECKING:
    import onnx

# H takes 4 * inputs^2 bytes and inputs^3 operations. Up to 3x3x512 inputs (85 MB, seconds); fc6 of an FCN, 7x7x512,
# would take 2.5 GB and minutes, and its single layer of noise is averaged over 25088 products.
MAX_INPUTS = 4608
_ROWS = 768  # places a frame; neighbouring ones tell little new
_DAMPING = 0.01  # of H's mean diagonal, added to it: what few frames leave undetermined stays as it is
_BLOCK = 128
_SEED = 0

Matrix = NDArray[np.float32]


@dataclass(frozen=True)
class _Layer:
    node: gs.Node
    source: str  # name of its data input in the quantized graph
    inputs: int


@dataclass
class _Moments:
    """Sums over rows of a layer's input."""

    rows: int
    first: Matrix  # [inputs]
    second: Matrix | None  # [inputs, inputs]; None where the layer is too wide

    @classmethod
    def of_nothing(cls, inputs: int, *, squares: bool) -> Self:
        second = np.zeros((inputs, inputs), np.float32) if squares and inputs <= MAX_INPUTS else None
        return cls(0, np.zeros(inputs, np.float32), second)


def round_weights(
    model: onnx.ModelProto,
    placement: Placement,
    found: Mapping[str, Grid],
    frames: CalibrationFrames,
    form: Form,
    progress: Callable[[float], None],
    *,
    rounding: bool = True,
    shift: bool = True,
) -> dict[str, Rounded]:
    """Round the weights of every quantized layer that can be seen as a matrix product.

    Args:
        model: FP32; unchanged afterwards.
        placement: What is quantized.
        found: The grid of every tensor in it, integers.
        frames: Calibration frames.
        form: Decides how scales are rounded.
        progress: Called with the fraction done.
        rounding: Let errors cancel; otherwise weights are rounded to nearest.
        shift: Correct biases.

    Returns:
        By name of the weight tensor, for `insert`. Layers with more than `MAX_INPUTS` inputs are rounded to nearest.
        Left out, and so rounded to nearest without a shift, are those with several groups, those with other than two
        spatial axes, those that share their weight, and those whose bias is computed or, in a Gemm, multiplied.
    """
    layers = _layers(model, placement, found, form)
    if not layers:
        return {}
    moments = _observe(
        insert(model, placement, found, form), layers, frames, lambda done: progress(done / 2), squares=rounding
    )
    rounded: dict[str, Rounded] = {}
    for count, layer in enumerate(layers, start=1):
        weight = layer.node.inputs[1]
        rounded[weight.name] = _round(layer.node, moments.pop(weight.name), form, shift=shift)
        progress(0.5 + 0.5 * count / len(layers))
    return rounded


def _round(node: gs.Node, moments: _Moments, form: Form, *, shift: bool) -> Rounded:
    weight, axis = node.inputs[1].values, output_axis(node)
    values, scales = quantize_weight(weight, axis, form)
    # [out, inputs]; a Gemm with transB = 0 keeps the inputs first
    rows = np.moveaxis(weight, axis, 0).reshape(len(scales), -1)
    if moments.second is not None:
        whole = cancelled(rows, scales, moments.second / np.float32(moments.rows), weight_levels(form))
        values = np.moveaxis(whole.reshape(np.moveaxis(weight, axis, 0).shape), 0, axis)
    error = rows - np.moveaxis(values, axis, 0).reshape(rows.shape) * scales[:, None]
    lost = error @ (moments.first / np.float32(moments.rows)) if shift else None
    return Rounded(np.ascontiguousarray(values), scales, lost)


def cancelled(weight: Matrix, scales: NDArray[np.float32], moment: Matrix, most: int = 127) -> NDArray[np.int8]:
    """Round the rows of a weight, later columns taking up what earlier ones left over.

    Args:
        weight: [out, in].
        scales: [out], positive.
        moment: E[x x^T] of the inputs, [in, in], symmetric.
        most: The largest level.

    Returns:
        -most to most, [out, in].
    """
    inputs = weight.shape[1]
    order = np.argsort(-np.diagonal(moment), kind="stable")  # the inputs that count most first: much is still to come
    upper = _factor(moment[np.ix_(order, order)])
    left = weight[:, order].astype(np.float32)
    levels = np.empty((inputs, len(weight)), np.float32)
    step = scales.astype(np.float32)
    for start in range(0, inputs, _BLOCK):
        stop = min(start + _BLOCK, inputs)
        block = np.ascontiguousarray(left[:, start:stop].T)  # [columns, out]
        inner = upper[start:stop, start:stop]
        errors = np.empty_like(block)
        for column in range(stop - start):
            levels[start + column] = np.clip(np.round(block[column] / step), -most, most)
            errors[column] = (block[column] - levels[start + column] * step) / inner[column, column]
            block[column + 1 :] -= np.outer(inner[column, column + 1 :], errors[column])
        left[:, stop:] -= errors.T @ upper[start:stop, stop:]
    result = np.empty(weight.shape, np.int8)
    result[:, order] = levels.T
    return result


def _factor(moment: Matrix) -> Matrix:
    """Upper U with U^T U = (H + damping)^-1, up to a factor: row i says how the weights after i take up its error.

    From the Cholesky factor of H turned about both axes: H = R R^T with R upper, so that U is R's inverse.
    """
    mean = float(np.einsum("ii->i", moment).mean(dtype=np.float64))
    if not np.isfinite(mean) or mean < np.finfo(np.float32).smallest_normal:  # beyond float32, or nothing came in
        return np.eye(len(moment), dtype=np.float32)
    damped = (moment / mean).astype(np.float32)  # only ratios matter, and the inverse of a tiny H would overflow
    diagonal = np.einsum("ii->i", damped)  # a view
    damping = _DAMPING
    while True:
        diagonal += damping
        try:
            lower = np.linalg.cholesky(damped[::-1, ::-1])
            return _inverted(np.ascontiguousarray(lower[::-1, ::-1]))
        except np.linalg.LinAlgError:  # not positive in float32: few frames, or inputs that repeat others
            damping *= 10


def _inverted(upper: Matrix) -> Matrix:
    """The inverse of an upper triangular matrix, by halves: most of it is matrix products."""
    size = len(upper)
    if size <= _BLOCK:
        return np.asarray(np.linalg.inv(upper), np.float32)
    half = size // 2
    result = np.zeros_like(upper)
    result[:half, :half] = _inverted(upper[:half, :half])
    result[half:, half:] = _inverted(upper[half:, half:])
    result[:half, half:] = -result[:half, :half] @ upper[:half, half:] @ result[half:, half:]
    return result


def _layers(model: onnx.ModelProto, placement: Placement, found: Mapping[str, Grid], form: Form) -> list[_Layer]:
    nodes = {node.outputs[0].name: node for node in import_graph(model).nodes}
    skeleton = {node.output[0]: node for node in insert(model, placement, found, form).graph.node}
    return [
        _Layer(nodes[name], skeleton[name].input[0], _inputs(nodes[name]))
        for name in placement.layers
        if _is_product(nodes[name])
    ]


def _inputs(node: gs.Node) -> int:
    return int(node.inputs[1].values.size // node.inputs[1].shape[output_axis(node)])


def _is_product(node: gs.Node) -> bool:
    """Whether the result is `x @ weight + bias`, with a bias that is known and a weight that nobody else reads."""
    weight, *rest = node.inputs[1:]
    if len(weight.outputs) != 1 or any(not (b.is_empty() or isinstance(b, gs.Constant)) for b in rest):
        return False
    if node.op == "Gemm":
        return all(node.attrs.get(name, 1.0) == 1.0 for name in ("alpha", "beta"))
    return int(node.attrs.get("group", 1)) == 1 and len(weight.shape) == 4


def _observe(
    quantized: onnx.ModelProto,
    layers: list[_Layer],
    frames: CalibrationFrames,
    progress: Callable[[float], None],
    *,
    squares: bool,
) -> dict[str, _Moments]:
    """The moments of every layer's input, by name of its weight."""
    rng = np.random.default_rng(_SEED)
    readers: dict[str, list[_Layer]] = {}
    for layer in layers:
        readers.setdefault(layer.source, []).append(layer)
    found: dict[str, _Moments] = {}
    with Session(quantized, tuple(readers)) as session:
        for count, frame in enumerate(frames, start=1):
            for source, values in session.stream(frame):
                for layer in readers[source]:
                    _add(found, layer, patches(layer.node, values, _ROWS, rng), squares=squares)
            progress(count / frames.count)
    return found


def _add(found: dict[str, _Moments], layer: _Layer, rows: Matrix, *, squares: bool) -> None:
    name = layer.node.inputs[1].name
    if name not in found:
        found[name] = _Moments.of_nothing(layer.inputs, squares=squares)
    sums = found[name]
    sums.rows += len(rows)
    sums.first += rows.sum(axis=0)
    if sums.second is not None:
        with np.errstate(over="ignore", invalid="ignore"):  # `_factor` looks at the sum
            sums.second += rows.T @ rows
