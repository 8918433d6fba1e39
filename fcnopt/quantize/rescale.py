"""Tensors too large for float16 made smaller, exactly.

Convolutions, ReLU, pooling and crops are positively homogeneous: f(a x) = a f(x) for a > 0. So where a convolution's
result reaches nothing but other convolutions through such operations,

    conv(x; W, b) -> ReLU -> ... -> conv(.; V, c)   equals   conv(x; a W, a b) -> ReLU -> ... -> conv(.; V / a, c)

and with `a` a power of two not a bit of a float changes but its exponent. A network whose folded BatchNormalization
drives activations to 46000 then computes in float16 throughout, with the headroom that frames not seen need.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import onnx_graphsurgeon as gs

from fcnopt.graph.io import export_graph, import_graph
from fcnopt.quantize.judge import LARGEST
from fcnopt.quantize.ranges import Ranges, TensorRange

if TYPE_CHECKING:
    import onnx

_WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm"})
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


@dataclass(frozen=True)
class _Stretch:
    source: gs.Node
    tensors: tuple[gs.Tensor, ...]
    readers: tuple[gs.Node, ...]


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
        stretch = _stretch(node, protected) if node.op in _WEIGHTED else None
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
    return export_graph(graph, like=model), Ranges(tensors, ranges.frames), tuple(changed)


def _stretch(node: gs.Node, protected: set[str]) -> _Stretch | None:
    """All that a weighted node's result reaches before the next weighted nodes; None where it cannot be rescaled."""
    if not _own_constants(node, node.inputs[1:]):
        return None
    tensors: list[gs.Tensor] = [node.outputs[0]]
    readers: dict[int, gs.Node] = {}
    for tensor in tensors:  # grows while it is walked
        if tensor.name in protected or not tensor.outputs:
            return None
        for reader in tensor.outputs:
            if sum(value is tensor for value in reader.inputs) != 1 or reader.inputs[0] is not tensor:
                return None
            if reader.op in _WEIGHTED and _own_constants(reader, reader.inputs[1:2]):
                readers[id(reader)] = reader
            elif reader.op in _HOMOGENEOUS:
                tensors.append(reader.outputs[0])
            else:
                return None
    return _Stretch(node, tuple(tensors), tuple(readers.values()))


def _own_constants(node: gs.Node, values: Sequence[gs.Tensor]) -> bool:
    """Whether these inputs are float32 constants that no other node reads."""
    given = [value for value in values if not value.is_empty()]
    return all(
        isinstance(value, gs.Constant) and value.dtype == np.float32 and all(r is node for r in value.outputs)
        for value in given
    )


def _apply(stretch: _Stretch, exponent: int) -> None:
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
