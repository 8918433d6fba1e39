"""Tensors too large for float16 made smaller, exactly.

Convolutions, ReLU, pooling and crops are positively homogeneous: f(a x) = a f(x) for a > 0. So where a convolution's
result reaches nothing but other convolutions through such operations,

    conv(x; W, b) -> ReLU -> ... -> conv(.; V, c)   equals   conv(x; a W, a b) -> ReLU -> ... -> conv(.; V / a, c)

and with `a` a power of two not a bit of a float changes but its exponent. A network whose folded BatchNormalization
drives activations to 46000 then computes in float16 throughout, with the headroom that frames not seen need.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from fcnopt.graph.io import export_graph, import_graph
from fcnopt.quantize.judge import LARGEST
from fcnopt.quantize.ranges import Ranges, TensorRange
from fcnopt.quantize.stretch import Stretch, stretch_of

if TYPE_CHECKING:
    import onnx

_HOMOGENEOUS = frozenset({
    "AveragePool", "DepthToSpace", "Dropout", "Flatten", "GlobalAveragePool", "Identity", "LeakyRelu", "MaxPool",
    "Relu", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze",
})  # fmt: skip
# As rescaling is free and exact it starts early: magnitudes above a quarter of float16's largest number are brought
# below an eighth of it. Frames not seen may then be eight times as hot.
_LIMIT = LARGEST["fp16"] / 4
_TARGET = LARGEST["fp16"] / 8


@dataclass(frozen=True)
class Rescaled:
    """A stretch of the network whose tensors were divided.

    Attributes:
        node: The weighted node that writes it.
        exponent: Tensors are now 2 ** -exponent of what they were.
        reach: Largest magnitude before.
    """

    node: str
    exponent: int
    reach: float


def rescale(model: onnx.ModelProto, ranges: Ranges) -> tuple[onnx.ModelProto, Ranges, tuple[Rescaled, ...]]:
    """Bring tensors that come near the end of float16 well into its range, where that is exact.

    Args:
        model: FP32; unchanged afterwards.
        ranges: Of its tensors.

    Returns:
        The model and the ranges of its tensors, the same objects where nothing had to change, and what did.
    """
    if all(found.reach <= _LIMIT for found in ranges.tensors.values()):
        return model, ranges, ()
    graph = import_graph(model)
    protected = {tensor.name for tensor in graph.outputs}
    changed: list[Rescaled] = []
    tensors = dict(ranges.tensors)
    for node in graph.nodes:
        stretch = stretch_of(node, protected, _HOMOGENEOUS)
        if stretch is None:
            continue
        reach = max((tensors[t.name].reach for t in stretch.tensors if t.name in tensors), default=0.0)
        if reach <= _LIMIT:
            continue
        exponent = math.ceil(math.log2(reach / _TARGET))
        _apply(stretch, exponent)
        for tensor in stretch.tensors:
            if tensor.name in tensors:
                tensors[tensor.name] = _scaled(tensors[tensor.name], 2.0**-exponent)
        changed.append(Rescaled(node.name or node.outputs[0].name, exponent, reach))
    if not changed:
        return model, ranges, ()
    return export_graph(graph, like=model), replace(ranges, tensors=tensors), tuple(changed)


def _apply(stretch: Stretch, exponent: int) -> None:
    factor = np.float32(2.0**-exponent)
    for value in stretch.source.inputs[1:]:
        if not value.is_empty():
            value.values = value.values * factor
    for reader in stretch.readers:
        reader.inputs[1].values = reader.inputs[1].values / factor


def _scaled(found: TensorRange, factor: float) -> TensorRange:
    intervals = {
        method: {levels: (low * factor, high * factor) for levels, (low, high) in by_levels.items()}
        for method, by_levels in found.intervals.items()
    }
    # What overflowed had no finite noise. Now well inside float16's normal numbers it has less than in bfloat16, whose
    # noise does not depend on scale.
    noise = {**found.noise_db, "fp16": max(found.noise_db["fp16"], found.noise_db["bf16"])}
    return replace(
        found,
        noise_db=noise,
        minimum=found.minimum * factor,
        maximum=found.maximum * factor,
        rms=found.rms * factor,
        intervals=intervals,
    )
