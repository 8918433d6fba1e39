"""Score layers: the Convs and Gemms between which and the logits nothing but linear operations stands."""

from __future__ import annotations

from collections.abc import Set as AbstractSet

import onnx_graphsurgeon as gs

WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
# What a score may pass on its way to the logits: linear, or a mere move of data.
_LINEAR = frozenset({
    "Add", "AveragePool", "BatchNormalization", "Cast", "Concat", "ConvTranspose", "DepthToSpace", "Div", "Dropout",
    "Flatten", "GlobalAveragePool", "Identity", "Mul", "Pad", "Reshape", "Resize", "Slice", "Split", "Squeeze", "Sub",
    "Sum", "Transpose", "Unsqueeze", "Upsample",
})  # fmt: skip
# What may stand between a tensor and the score that reads it: the passes move crops up before the scores.
_MOVES = frozenset({"Identity", "Slice"})


def score_layers(graph: gs.Graph, logits: str) -> set[int]:
    """Ids of the Conv and Gemm nodes met first on every linear path back from the tensor named `logits`."""
    found: set[int] = set()
    seen: set[int] = set()
    pending = [node for node in graph.nodes if any(tensor.name == logits for tensor in node.outputs)]
    while pending:
        node = pending.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if node.op in WEIGHTED and node.op != "ConvTranspose":
            found.add(id(node))
        elif node.op in _LINEAR:
            pending.extend(producer for tensor in node.inputs for producer in tensor.inputs)
    return found


def score_readers(graph: gs.Graph, scores: AbstractSet[int]) -> set[int]:
    """Ids of the score layers, and of the moves of data whose result nobody but they read.

    Args:
        graph: In topological order.
        scores: Ids of the score layers.
    """
    found = set(scores)
    for node in reversed(graph.nodes):
        readers = [id(reader) for tensor in node.outputs for reader in tensor.outputs]
        if node.op in _MOVES and readers and found.issuperset(readers):
            found.add(id(node))
    return found
