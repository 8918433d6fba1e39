"""Stretches of a network: what a weighted node's result reaches before the next weighted nodes.

Convolutions, ReLU and pooling are positively homogeneous, f(a x) = a f(x) for a > 0. In a stretch of such operations a
factor can therefore move from the weights that write it to the weights that read it, and nothing else changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

_WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm"})


@dataclass(frozen=True)
class Stretch:
    """One weighted node and all that its result reaches.

    Attributes:
        source: The weighted node.
        tensors: Its result, and what the operations between make of it.
        readers: The weighted nodes at the end; each reads a tensor of the stretch as its data input.
    """

    source: gs.Node
    tensors: tuple[gs.Tensor, ...]
    readers: tuple[gs.Node, ...]


def stretch_of(node: gs.Node, protected: AbstractSet[str], passing: AbstractSet[str]) -> Stretch | None:
    """The stretch behind a node; None where its tensors cannot be scaled.

    Args:
        node: Any node; one without weights has no stretch.
        protected: Names of tensors that must keep their values: the graph's outputs.
        passing: Operations that a factor passes through.

    Returns:
        None where something else than `passing` or a weighted node reads a tensor, or where weights are not float32
        constants, or are shared.
    """
    if node.op not in _WEIGHTED or not _own_constants(node, node.inputs[1:]):
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
            elif reader.op in passing:
                tensors.append(reader.outputs[0])
            else:
                return None
    return Stretch(node, tuple(tensors), tuple(readers.values()))


def _own_constants(node: gs.Node, values: Sequence[gs.Tensor]) -> bool:
    """Whether these inputs are float32 constants that no other node reads."""
    given = [value for value in values if not value.is_empty()]
    return all(
        isinstance(value, gs.Constant) and value.dtype == np.float32 and all(r is node for r in value.outputs)
        for value in given
    )
