"""Score layers: the Convs and Gemms between which and the logits nothing but linear operations stands."""

from __future__ import annotations

import onnx_graphsurgeon as gs

WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
# What a score may pass on its way to the logits: linear, or a mere move of data.
_LINEAR = frozenset({
    "Add", "AveragePool", "BatchNormalization", "Cast", "Concat", "ConvTranspose", "DepthToSpace", "Div", "Dropout",
    "Flatten", "GlobalAveragePool", "Identity", "Mul", "Pad", "Reshape", "Resize", "Slice", "Split", "Squeeze", "Sub",
    "Sum", "Transpose", "Unsqueeze", "Upsample",
})  # fmt: skip


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
