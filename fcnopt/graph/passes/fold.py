"""Constant folding: a node that reads nothing but constants becomes what it computes.

    Constant nodes become initializers; f(c1, c2, ...) is evaluated by ONNX's reference implementation; Shape of a
    tensor whose asked axes are known becomes these lengths; CastLike of a constant is a Cast.

Left alone: QuantizeLinear and DequantizeLinear, which say how to compute and not only what; what is random; what has
side inputs hidden in subgraphs or functions; and results that are larger than both `_MAX_GROWTH_BYTES` and the
constants they are made of (Expand, Tile), which would make the file larger than the work they save.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter

from fcnopt.graph.passes.base import Pass
from fcnopt.graph.passes.view import GraphView, label
from fcnopt.graph.shapes import evaluate, shape_range

_MAX_GROWTH_BYTES = 1 << 20
_KEPT = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")
# May give any amount of data for a few numbers; what this is, the shapes that are inferred do not always tell.
_GROWING = (
    *("Range", "Pad", "Resize", "Upsample", "OneHot", "CenterCropPad", "Col2Im", "MaxUnpool", "ConvTranspose", "DFT"),
    *("STFT", "HannWindow", "HammingWindow", "BlackmanWindow", "MelWeightMatrix"),
)
_RANDOM = ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli")


class ConstantFoldPass(Pass[gs.Node]):
    """Compute now what does not depend on the input."""

    name = "constant folding"

    def match(self, view: GraphView, node: gs.Node) -> Iterator[gs.Node]:  # noqa: ARG002  (a Pass's signature)
        """A node with constant inputs only, or a Shape."""
        if node.domain not in (None, "", "ai.onnx") or node.op in _RANDOM or node.op in _KEPT or any(node.subgraphs()):
            return
        constant = all(isinstance(tensor, gs.Constant) or tensor.is_empty() for tensor in node.inputs)
        shape = node.op == "Shape" and _known_lengths(node) is not None
        if shape or _casts_constant(node) or (constant and (node.inputs or node.op == "Constant")):
            yield node

    def check(self, view: GraphView, match: gs.Node) -> str:
        """Whether the result is small enough, and not the graph's output itself."""
        if any(view.is_output(tensor) for tensor in match.outputs):
            return "its result is an output of the graph"
        if any(isinstance(value, gs.Node.AttributeRef) for value in match.attrs.values()):
            return "an attribute is a function's parameter"
        size, limit = _result_bytes(view, match), _MAX_GROWTH_BYTES + sum(_bytes(t) for t in match.inputs)
        if size is None and match.op in _GROWING:
            return "the size of its result is not known"
        if size is not None and size > limit:
            return f"its result has {size} bytes, more than the {limit} that it may have"
        try:
            _values(view, match)
        except Exception as error:  # noqa: BLE001  (whatever the reference implementation does not support)
            return f"ONNX's reference implementation cannot compute it: {error}"
        return ""

    def rewrite(self, view: GraphView, match: gs.Node) -> str:
        """Turn the outputs into constants of the same name."""
        done = f"folded {label(match)}"
        values = _values(view, match)
        results = [tensor for tensor in match.outputs if not tensor.is_empty()]
        view.drop(match)
        for tensor, value in zip(results, values, strict=True):
            tensor.to_constant(np.asarray(value, order="C"))
        return done


def _known_lengths(node: gs.Node) -> list[int] | None:
    """The lengths that a Shape node gives, None unless all of them are known."""
    shape = node.inputs[0].shape
    if shape is None:
        return None
    axes = shape_range(int(node.attrs.get("start", 0)), node.attrs.get("end"), len(shape))
    lengths = [shape[axis] for axis in axes]
    return lengths if all(isinstance(length, int) for length in lengths) else None


def _casts_constant(node: gs.Node) -> bool:
    """Whether a node is a CastLike of a constant: of its second input it takes the type only."""
    return node.op == "CastLike" and isinstance(node.inputs[0], gs.Constant) and node.inputs[1].dtype is not None


def _values(view: GraphView, node: gs.Node) -> list[NDArray[Any]]:
    lengths = _known_lengths(node) if node.op == "Shape" else None
    if lengths is not None:
        return [np.array(lengths, np.int64)]
    if _casts_constant(node):
        return [np.asarray(node.inputs[0].values).astype(node.inputs[1].dtype)]
    tensor = node.attrs.get("value")
    if node.op == "Constant" and isinstance(tensor, gs.Constant):
        return [np.asarray(tensor.values)]
    opsets = [entry for entry in view.graph.import_domains if entry.domain in ("", "ai.onnx")]
    return evaluate(OnnxExporter.export_node(node), [view.array(t) for t in node.inputs], opsets)


def _bytes(tensor: gs.Tensor) -> int:
    return int(tensor.values.nbytes) if isinstance(tensor, gs.Constant) else 0


def _itemsize(tensor: gs.Tensor) -> int:
    return 8 if tensor.dtype is None else int(np.dtype(tensor.dtype).itemsize)


def _result_bytes(view: GraphView, node: gs.Node) -> int | None:
    """Bytes of the results, as inferred or for shape-giving operators as their input says; None if not known."""
    if node.op in ("Constant", "Shape"):
        return 0
    shape = view.array(node.inputs[0 if node.op == "ConstantOfShape" else -1])
    if node.op in ("ConstantOfShape", "Expand") and shape is not None:
        return int(np.prod(shape.astype(np.float64))) * _itemsize(node.outputs[0])
    if node.op == "Range":
        start, end, step = (view.array(tensor) for tensor in node.inputs)
        if start is None or end is None or step is None or not step.size or not np.all(step):
            return None
        return int(max(0.0, float(np.ceil((end - start) / step)))) * int(step.itemsize)
    if node.op == "Tile" and shape is not None:
        return int(np.prod(shape.astype(np.float64)) * _bytes(node.inputs[0]))
    total = 0
    for tensor in node.outputs:
        if tensor.shape is None or not all(isinstance(length, int) for length in tensor.shape):
            return None
        total += int(np.prod(tensor.shape)) * _itemsize(tensor)
    return total
