"""Which nodes of a graph may compute in a half type, judged by data.

A node may where all of its float inputs and outputs may. A tensor may be half if

- it does not overflow: its largest magnitude on calibration frames, times a headroom for frames not seen, stays
  below the type's largest number (65504 for float16);
- rounding does not drown it: signal to rounding noise on those frames (of a weight: over its values) is at least
  40 dB. Ordinary values have 73 dB in float16 and 56 dB in bfloat16; less means that many are subnormal or vanish.
  For Add and Sub the rounding noise of the inputs counts too: it is what is left when they cancel.

What is computed from shapes alone (bounds of crops, scales of a Resize) stays FP32: such numbers must be exact.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from fcnopt.quantize.ranges import HalfType, TensorRange, decibels, round_to

HEADROOM = 1.5
MIN_DB = 40.0
LARGEST: Mapping[HalfType, float] = {"fp16": 65504.0, "bf16": 3.3895e38}
_TYPE_NAME: Mapping[HalfType, str] = {"fp16": "tensor(float16)", "bf16": "tensor(bfloat16)"}
# TensorRT refuses to build a bfloat16 deconvolution.
_REFUSED: Mapping[HalfType, frozenset[str]] = {"fp16": frozenset(), "bf16": frozenset({"ConvTranspose"})}
_SOURCES = frozenset({"Constant", "ConstantOfShape", "EyeLike", "RandomNormal", "RandomUniform"})
# ReLU and Clip after an overflow give what they should, as an infinity is only more of the same sign; so what comes
# out of them is evidence enough for what goes in, and calibration need not split them from their convolution.
SATURATING = frozenset({"Relu", "Clip"})
# Their infinities are bounds and fillings, and the same in every float type; anywhere else they are a defect.
_UNBOUNDED = frozenset({"Clip", "Max", "Min", "Pad", "Where"})
_SHAPES = frozenset({"Shape", "Size"})


class Judge:
    """Decides for one graph.

    Attributes:
        dtype: The half type.
        unknown: Tensors without evidence, taken to be safe.

    Args:
        graph: In topological order.
        dtype: The half type.
        evidence: Ranges of tensors of the FP32 graph.
        types: ONNX element types of all tensors.
    """

    def __init__(
        self, graph: gs.Graph, dtype: HalfType, evidence: Mapping[str, TensorRange], types: Mapping[str, int]
    ) -> None:
        self.dtype = dtype
        self.unknown: set[str] = set()
        self._types = types
        self._opset = graph.opset
        self._imports = {entry.domain: entry.version for entry in graph.import_domains or []}
        self._evidence = {**evidence, **_through_quantization(graph, evidence)}
        self._data = _data_nodes(graph)
        self._constants: dict[tuple[int, bool], str | None] = {}

    def reason(self, node: gs.Node) -> str | None:
        """Why a node must keep FP32; None if it may be half or has no float data at all."""
        if not self.is_float(node) or node.op in _SOURCES:
            return None
        if id(node) not in self._data:
            return "computed from shapes: must be exact"
        if node.op in _REFUSED[self.dtype]:
            return f"{node.op}: TensorRT has no {self.dtype} kernel for it"
        if not self.slots(node):
            return f"{node.op}: ONNX opset {self._opset} has no {self.dtype} form of it"
        for tensor in self._tensors(node):
            constant = isinstance(tensor, gs.Constant)
            reason = self._constant(tensor, node.op in _UNBOUNDED) if constant else self._variable(tensor)
            if reason is not None:
                return f"{tensor.name!r} {reason}"
        return self._cancellation(node)

    def may_be_half(self, node: gs.Node) -> bool:
        """Whether a node has float data and nothing against its being half."""
        return self.is_float(node) and node.op not in _SOURCES and self.reason(node) is None

    def is_float(self, node: gs.Node) -> bool:
        """Whether a node reads or writes float32 data."""
        return any(self._is_float(tensor) for tensor in (*node.inputs, *node.outputs))

    def slots(self, node: gs.Node) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
        """Indices of the float inputs and outputs that turn half with the node.

        Returns:
            None where one of them has no such form; an input of a fixed type (a Resize's scales) is left out.
        """
        domain = node.domain or ""
        try:
            schema = onnx.defs.get_schema(node.op, self._imports.get(domain, self._opset), domain)
        except onnx.defs.SchemaError:
            return None
        allowed = {entry.type_param_str: entry.allowed_type_strs for entry in schema.type_constraints}
        found: list[tuple[int, ...]] = []
        for tensors, formals in ((node.inputs, schema.inputs), (node.outputs, schema.outputs)):
            indices = []
            for index, tensor in enumerate(tensors):
                formal = formals[min(index, len(formals) - 1)]
                if not self._is_float(tensor) or formal.type_str not in allowed:
                    continue
                if _TYPE_NAME[self.dtype] not in allowed[formal.type_str]:
                    return None
                indices.append(index)
            found.append(tuple(indices))
        return (found[0], found[1]) if any(found) else None

    def _is_float(self, tensor: gs.Tensor) -> bool:
        if isinstance(tensor, gs.Constant):
            return bool(tensor.dtype == np.float32)
        return self._types.get(tensor.name) == onnx.TensorProto.FLOAT

    def _tensors(self, node: gs.Node) -> Iterator[gs.Tensor]:
        inputs, outputs = self.slots(node) or ((), ())
        yield from (node.inputs[index] for index in inputs)
        yield from (node.outputs[index] for index in outputs)

    def _constant(self, tensor: gs.Constant, unbounded: bool) -> str | None:
        key = (id(tensor), unbounded)
        if key not in self._constants:
            self._constants[key] = self._judge_values(np.asarray(tensor.values, np.float32), unbounded)
        return self._constants[key]

    def _judge_values(self, values: NDArray[np.float32], unbounded: bool) -> str | None:
        finite = values[np.isfinite(values)]
        if finite.size < values.size and (not unbounded or np.isnan(values).any()):
            return f"is not finite in {values.size - finite.size} of {values.size} values"
        exact = finite.astype(np.float64)
        error = round_to(finite, self.dtype).astype(np.float64) - exact
        reach = float(np.abs(exact).max(initial=0.0))
        noise = decibels(float(exact @ exact), float(error @ error))
        return self._verdict(reach, noise, headroom=1.0)

    def _variable(self, tensor: gs.Tensor) -> str | None:
        found = self._range(tensor)
        if found is None:
            if not _from_constants(tensor):
                self.unknown.add(tensor.name)
            return None
        return self._verdict(found.reach, found.noise_db[self.dtype], headroom=HEADROOM)

    def _verdict(self, reach: float, noise_db: float, headroom: float) -> str | None:
        if reach * headroom > LARGEST[self.dtype]:
            room = f" with headroom {headroom:g}" if headroom != 1 else ""
            return f"overflows: reaches {reach:.6g},{room} {self.dtype} ends at {LARGEST[self.dtype]:g}"
        if noise_db < MIN_DB and reach > 0:
            return f"loses precision: {noise_db:.1f} dB after rounding to {self.dtype}, needs {MIN_DB:g}"
        return None

    def _range(self, tensor: gs.Tensor) -> TensorRange | None:
        found = self._evidence.get(tensor.name)
        if found is None and tensor.outputs and all(reader.op in SATURATING for reader in tensor.outputs):
            return self._evidence.get(tensor.outputs[0].outputs[0].name)
        return found

    def _cancellation(self, node: gs.Node) -> str | None:
        result = self._range(node.outputs[0]) if node.op in ("Add", "Sub") else None
        if result is None:
            return None
        noise = sum(self._noise_power(tensor) for tensor in (*node.inputs, node.outputs[0]))
        quality = decibels(result.rms**2, noise)
        if quality < MIN_DB:
            return f"cancels: {quality:.1f} dB left of its rounded inputs, needs {MIN_DB:g}"
        return None

    def _noise_power(self, tensor: gs.Tensor) -> float:
        """Mean square of the error of rounding a tensor."""
        if isinstance(tensor, gs.Constant):
            values = np.asarray(tensor.values, np.float32)
            return float(np.mean((round_to(values, self.dtype).astype(np.float64) - values) ** 2))
        found = self._range(tensor)
        return found.rms**2 * 10 ** (-found.noise_db[self.dtype] / 10) if found is not None else 0.0


def _data_nodes(graph: gs.Graph) -> set[int]:
    """Nodes whose results depend on the frame's content, not on its shape alone."""
    inputs = {id(tensor) for tensor in graph.inputs}
    found: set[int] = set()
    for node in graph.nodes:
        if node.op in _SHAPES:
            continue
        if any(id(t) in inputs or any(id(p) in found for p in t.inputs) for t in node.inputs) or (
            # A weight's DequantizeLinear depends on nothing, and is part of its convolution.
            node.op == "DequantizeLinear"
        ):
            found.add(id(node))
    return found


def observable(graph: gs.Graph, types: Mapping[str, int]) -> tuple[str, ...]:
    """The float32 tensors whose ranges decide about half precision, in order.

    Tensors that only a ReLU or Clip reads are left out: what comes out of it stands in for them, and a runtime that
    has to hand them out could not fuse it.
    """
    data = _data_nodes(graph)
    return tuple(
        tensor.name
        for node in graph.nodes
        if id(node) in data and node.op != "DequantizeLinear"
        for tensor in node.outputs
        if types.get(tensor.name) == onnx.TensorProto.FLOAT
        and not (tensor.outputs and all(reader.op in SATURATING for reader in tensor.outputs))
    )


def _from_constants(tensor: gs.Tensor) -> bool:
    return bool(tensor.inputs) and all(isinstance(value, gs.Constant) for value in tensor.inputs[0].inputs)


def _through_quantization(graph: gs.Graph, evidence: Mapping[str, TensorRange]) -> dict[str, TensorRange]:
    """Ranges of dequantized tensors: those of the tensors that were quantized, clipped to the grid."""
    found = {}
    for node in graph.nodes:
        source = node.inputs[0].inputs[0] if node.op == "DequantizeLinear" and node.inputs[0].inputs else None
        if source is None or source.op != "QuantizeLinear" or source.inputs[0].name not in evidence:
            continue
        before = evidence[source.inputs[0].name]
        limit = 255 * float(np.max(node.inputs[1].values))
        found[node.outputs[0].name] = replace(
            before, minimum=max(before.minimum, -limit), maximum=min(before.maximum, limit)
        )
    return found
