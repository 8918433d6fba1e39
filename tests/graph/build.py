"""Tiny ONNX models for the tests of this room."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from fcnopt.graph import io
from fcnopt.graph.compare import compare
from fcnopt.graph.passes import CPU_PASSES, PASSES, Pass, PassReport, optimize

Dims = Sequence[int | str | None] | None
TOLERANCE = 2e-6


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Dims],
    outputs: Mapping[str, Dims],
    constants: Mapping[str, NDArray[Any]] | None = None,
    *,
    opset: int = 17,
    elem_type: int = TensorProto.FLOAT,
    output_type: int | None = None,
    as_inputs: bool = False,
    as_nodes: bool = False,
) -> onnx.ModelProto:
    """A checked model; its constants are initializers, initializers that are inputs too, or Constant nodes."""
    arrays = dict(constants or {})
    tensors = [numpy_helper.from_array(value, name) for name, value in arrays.items()]
    values = [helper.make_tensor_value_info(name, elem_type, dims) for name, dims in inputs.items()]
    extra = [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in tensors] if as_inputs else []
    made = [helper.make_node("Constant", [], [t.name], value=t) for t in tensors] if as_nodes else []
    kind = elem_type if output_type is None else output_type
    graph = helper.make_graph(
        [*made, *nodes],
        "tiny",
        [*values, *extra],
        [helper.make_tensor_value_info(name, kind, dims) for name, dims in outputs.items()],
        [] if as_nodes else tensors,
    )
    result = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], producer_name="tiny")
    result.ir_version = 3 if as_inputs else 8
    onnx.checker.check_model(result, full_check=True)
    return result


def ops(graph: onnx.ModelProto) -> list[str]:
    """Operators in order, constants left out."""
    return [node.op_type for node in graph.graph.node if node.op_type != "Constant"]


def node(graph: onnx.ModelProto, op: str) -> onnx.NodeProto:
    """The one node of an operator."""
    (found,) = [node for node in graph.graph.node if node.op_type == op]
    return found


def attribute(of: onnx.NodeProto, name: str) -> Any:
    """An attribute's value, None where it is not given."""
    return next((helper.get_attribute_value(a) for a in of.attribute if a.name == name), None)


def constant(graph: onnx.ModelProto, name: str) -> NDArray[Any]:
    """The value of an initializer."""
    (found,) = [tensor for tensor in graph.graph.initializer if tensor.name == name]
    return numpy_helper.to_array(found)


def optimized(
    before: onnx.ModelProto, only: type[Pass[Any]] | None = None, *, tolerance: float = TOLERANCE
) -> tuple[onnx.ModelProto, tuple[PassReport, ...]]:
    """The model after optimization, checked, and held against the one before at two inputs of another seed."""
    kept = before.SerializeToString()
    passes = PASSES if only is None else tuple(one for one in (*PASSES, *CPU_PASSES) if isinstance(one, only))
    assert passes
    after, reports = optimize(before, passes=passes, strict=True)
    assert before.SerializeToString() == kept, "the model handed in was changed"
    onnx.checker.check_model(after, full_check=True)
    found = compare(before, after, seed=7, samples=2)
    assert found.max_relative_error < tolerance, found
    assert found.equal_labels == 1.0
    assert io.graph_hash(optimize(after, passes=passes)[0]) == io.graph_hash(after), "a second time changes more"
    return after, reports


def changed(reports: Sequence[PassReport]) -> list[str]:
    """All lines about rewrites."""
    return [line for report in reports for line in report.changed]


def declined(reports: Sequence[PassReport]) -> str:
    """All reasons, in one text."""
    return "\n".join(line for report in reports for line in report.declined)


def conv_weights(
    rng: np.random.Generator, shape: tuple[int, ...], *, bias: int | None = None
) -> dict[str, NDArray[np.float32]]:
    """Random weights `w` and, where a count is given, a bias `b`."""
    arrays = {"w": rng.standard_normal(shape, np.float32)}
    if bias is not None:
        arrays["b"] = rng.standard_normal(bias, np.float32)
    return arrays


def norm_constants(rng: np.random.Generator, channels: int, prefix: str = "") -> dict[str, NDArray[np.float32]]:
    """Random statistics `gamma`, `beta`, `mean`, `var` of a BatchNormalization."""
    names = ("gamma", "beta", "mean", "var")
    arrays = {prefix + name: rng.standard_normal(channels, np.float32) for name in names}
    arrays[prefix + "var"] = rng.uniform(0.5, 2.0, channels).astype(np.float32)
    return arrays
