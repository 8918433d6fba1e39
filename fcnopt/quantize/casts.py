"""Half precision as a strongly typed graph: weights, activations and casts say what every node computes in.

A node becomes half where all of its float inputs and outputs may be (see `judge`); else it keeps FP32, with casts at
the border and none elsewhere. The types of the graph's inputs and outputs stay as they are. Which inputs of an
operator follow its type is read from ONNX's operator schemas.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from fcnopt.errors import GraphError
from fcnopt.graph.io import export_graph, import_graph
from fcnopt.graph.shapes import tensor_types
from fcnopt.quantize.judge import SATURATING, Judge
from fcnopt.quantize.opset import at_least_opset
from fcnopt.quantize.ranges import HalfType, TensorRange

_ELEMENT: Mapping[HalfType, int] = {"fp16": onnx.TensorProto.FLOAT16, "bf16": onnx.TensorProto.BFLOAT16}
_OPSET: Mapping[HalfType, int] = {"fp16": 13, "bf16": 22}  # Conv and MaxPool know bfloat16 from 22 on
_QDQ_OPSET = 19  # Quantize- and DequantizeLinear with half scales
_WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


@dataclass(frozen=True)
class Kept:
    """A node that stays FP32.

    Attributes:
        node: Its name.
        op: Its operator.
        reason: Why.
    """

    node: str
    op: str
    reason: str


@dataclass(frozen=True)
class CastReport:
    """What `to_half` did.

    Attributes:
        dtype: The half type.
        half: How many nodes compute in it.
        kept: Nodes with float data that stay FP32.
        casts: How many casts were inserted.
        unknown: How many tensors had no evidence and were taken to be safe.
    """

    dtype: HalfType
    half: int
    kept: tuple[Kept, ...]
    casts: int
    unknown: int


def to_half(
    model: onnx.ModelProto, evidence: Mapping[str, TensorRange], dtype: HalfType
) -> tuple[onnx.ModelProto, CastReport]:
    """Rewrite a graph to half precision.

    Args:
        model: FP32, optimized; may hold Quantize- and DequantizeLinear nodes. Unchanged afterwards.
        evidence: Ranges of its tensors on calibration frames; a tensor without one is taken to be safe.
        dtype: "fp16" or "bf16".

    Returns:
        The new model, and what was done.

    Raises:
        GraphError: The graph has control flow, or its opset cannot be raised to what half types need.
    """
    quantized = any(node.op_type == "QuantizeLinear" for node in model.graph.node)
    model = at_least_opset(model, _QDQ_OPSET if quantized else _OPSET[dtype])
    _refuse_control_flow(model)
    graph = import_graph(model)
    judge = Judge(graph, dtype, evidence, {name: kind.elem_type for name, kind in tensor_types(model).items()})
    half, kept = _decide(graph, judge)
    writer = _Writer(graph, judge, half)
    writer.rewrite()
    graph.cleanup().toposort()
    return export_graph(graph, like=model), CastReport(dtype, len(half), kept, writer.casts, len(judge.unknown))


def _decide(graph: gs.Graph, judge: Judge) -> tuple[set[int], tuple[Kept, ...]]:
    reasons: dict[int, str] = {}
    half: set[int] = set()
    for node in graph.nodes:
        reason = judge.reason(node)
        if reason is not None:
            reasons[id(node)] = reason
        elif judge.may_be_half(node):
            half.add(id(node))
    for node in graph.nodes:
        if id(node) in half and _follows_float(node, half):
            half.discard(id(node))
            reasons[id(node)] = "fuses into the convolution before it, which is FP32"
    changed = True
    while changed:  # a node that leaves may leave its neighbour alone
        alone = [node for node in graph.nodes if id(node) in half and _is_island(node, half, judge)]
        half -= {id(node) for node in alone}
        reasons.update((id(node), "stands between FP32 nodes: casts would cost more") for node in alone)
        changed = bool(alone)
    for node in graph.nodes:
        if id(node) in half and _serves_float(node, half):
            half.discard(id(node))
            reasons[id(node)] = "its layer is FP32"
    named = (node for node in graph.nodes if id(node) in reasons)
    return half, tuple(Kept(node.name or node.outputs[0].name, node.op, reasons[id(node)]) for node in named)


def _follows_float(node: gs.Node, half: set[int]) -> bool:
    """Whether a cast would stand between a weighted node and the activation that runtimes fuse into it."""
    producers = node.inputs[0].inputs if node.op in SATURATING else []
    return any(producer.op in _WEIGHTED and id(producer) not in half for producer in producers)


def _serves_float(node: gs.Node, half: set[int]) -> bool:
    """Whether a cast would stand between a DequantizeLinear and its layer, which no runtime would see as quantized."""
    return node.op == "DequantizeLinear" and not any(id(reader) in half for reader in node.outputs[0].outputs)


def _is_island(node: gs.Node, half: set[int], judge: Judge) -> bool:
    """Whether a cheap node would be cast to on all of its inputs and back on all of its outputs."""
    inputs, outputs = judge.slots(node) or ((), ())
    variables = [node.inputs[index] for index in inputs if not isinstance(node.inputs[index], gs.Constant)]
    if node.op in _WEIGHTED or node.op == "DequantizeLinear" or not variables or not outputs:
        return False
    before = (producer for tensor in variables for producer in tensor.inputs)
    after = (reader for index in outputs for reader in node.outputs[index].outputs)
    return not any(id(other) in half for other in (*before, *after))


def _refuse_control_flow(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            raise GraphError(
                f"node {node.name!r} ({node.op_type}) has a subgraph, which half precision does not reach into",
                fix="export the network without control flow, or build it in FP32",
            )


class _Writer:
    """Turns the chosen nodes half and puts casts at the border."""

    def __init__(self, graph: gs.Graph, judge: Judge, half: set[int]) -> None:
        self.casts = 0
        self._graph = graph
        self._judge = judge
        self._half = half
        self._element = _ELEMENT[judge.dtype]
        self._numpy: Any = onnx.helper.tensor_dtype_to_np_dtype(self._element)
        self._constants: dict[int, gs.Constant] = {}
        self._to_half: dict[int, gs.Variable] = {}
        self._to_float: dict[int, gs.Variable] = {}

    def rewrite(self) -> None:
        """Change the graph in place."""
        nodes = list(self._graph.nodes)
        slots = {id(node): self._judge.slots(node) or ((), ()) for node in nodes if id(node) in self._half}
        turned = {id(node.outputs[i]) for node in nodes if id(node) in self._half for i in slots[id(node)][1]}
        turned |= self._keep_outputs(turned)
        for node in nodes:
            half_inputs = slots[id(node)][0] if id(node) in self._half else ()
            for index, tensor in enumerate(list(node.inputs)):
                if index in half_inputs and id(tensor) not in turned:
                    node.inputs[index] = self._as_half(tensor)
                elif index not in half_inputs and id(tensor) in turned:
                    node.inputs[index] = self._as_float(tensor)
        for node in nodes:
            for tensor in node.outputs:
                if id(tensor) in turned:
                    tensor.dtype = self._numpy
                    if node.op == "Cast":
                        node.attrs["to"] = self._element

    def _keep_outputs(self, turned: set[int]) -> set[int]:
        """Give half tensors that are graph outputs another name, and the outputs a cast; the new tensors' ids."""
        fresh = set()
        for output in self._graph.outputs:
            if id(output) not in turned:
                continue
            inner = gs.Variable(f"{output.name}_{self._judge.dtype}", self._numpy, output.shape)
            producer = output.inputs[0]
            producer.outputs[producer.outputs.index(output)] = inner
            for reader in list(output.outputs):
                reader.inputs = [inner if value is output else value for value in reader.inputs]
            self._cast(inner, output, onnx.TensorProto.FLOAT)
            self._to_float[id(inner)] = output
            fresh.add(id(inner))
        return fresh

    def _as_half(self, tensor: gs.Tensor) -> gs.Tensor:
        if isinstance(tensor, gs.Constant):
            if id(tensor) not in self._constants:
                values = np.asarray(tensor.values).astype(self._numpy)
                self._constants[id(tensor)] = gs.Constant(f"{tensor.name}_{self._judge.dtype}", values)
            return self._constants[id(tensor)]
        if id(tensor) not in self._to_half:
            result = gs.Variable(f"{tensor.name}_{self._judge.dtype}", self._numpy, tensor.shape)
            self._cast(tensor, result, self._element)
            self._to_half[id(tensor)] = result
        return self._to_half[id(tensor)]

    def _as_float(self, tensor: gs.Tensor) -> gs.Tensor:
        if id(tensor) not in self._to_float:
            result = gs.Variable(f"{tensor.name}_fp32", np.float32, tensor.shape)
            self._cast(tensor, result, onnx.TensorProto.FLOAT)
            self._to_float[id(tensor)] = result
        return self._to_float[id(tensor)]

    def _cast(self, source: gs.Tensor, result: gs.Variable, element: int) -> None:
        self._graph.nodes.append(gs.Node("Cast", f"{result.name}_cast", {"to": element}, [source], [result]))
        self.casts += 1
