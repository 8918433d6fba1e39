"""What a model must pass before anything is done with it."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Iterator

import numpy as np
import onnx
from onnx import numpy_helper

from fcnopt.errors import GraphError

MIN_OPSET = 9
_MAX_VERSION = 2**31 - 1
_SMALL = 1024  # elements: shapes, axes and bounds are below it, kernels above
_ONNX = ("", "ai.onnx")
_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE, onnx.TensorProto.BFLOAT16)


def check_model(model: onnx.ModelProto, name: str) -> None:
    """Refuse a model that cannot be optimized or run.

    Args:
        model: With its weights in memory.
        name: What the error calls it: a file's path.

    Raises:
        GraphError: Of an opset or with an operator that is unknown; refused by the ONNX checker; or with a weight
            that is NaN or infinite. The message names the node or tensor.
    """
    _check_opsets(model, name)
    _check_operators(model, name)
    check_structure(model, name)
    for tensor in tensors_of(model):
        check_values(tensor, name)


def check_structure(model: onnx.ModelProto, name: str) -> None:
    """Run the ONNX checker, with types and shapes, on all of the model but the values of its weights.

    Raises:
        GraphError: What the checker says.
    """
    try:
        onnx.checker.check_model(without_weights(model), full_check=True)
    # ValueError and TypeError: of text that is no UTF-8, and of types that there are not
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError, TypeError) as error:
        raise GraphError(f"{name}: not valid ONNX: {str(error).strip()}", fix="export the model again") from error


def check_values(tensor: onnx.TensorProto, name: str) -> None:
    """Refuse a tensor with too few bytes, with NaN, or with infinity.

    Infinity is allowed in a scalar only, where it is a bound (of Clip) or a padding (of MaxPool).

    Raises:
        GraphError: The message names the tensor and says how many values are not finite.
    """
    try:
        values = numpy_helper.to_array(tensor)
    except (ValueError, TypeError) as error:
        raise GraphError(
            f"{name}: tensor {tensor.name!r} of shape {list(tensor.dims)} does not have that many values: {error}",
            fix="export the model again, or copy the whole file",
        ) from error
    if tensor.data_type not in _FLOATS:
        return
    bad = int(np.isnan(values).sum()) if values.size == 1 else int(values.size - np.isfinite(values).sum())
    if bad:
        raise GraphError(
            f"{name}: weight {tensor.name!r} has {bad} of {values.size} values that are NaN or infinite",
            fix="train or export the network again: such a weight spoils every result",
        )


def tensors_of(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every constant of a model: initializers and attributes, in subgraphs and functions too."""
    yield from _tensors_of_graph(model.graph)
    for function in model.functions:
        yield from _tensors_of_nodes(function.node)


def nodes_of(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Nodes, and those of the subgraphs in their attributes."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in _graphs_of(attribute):
                yield from nodes_of(graph.node)


def without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """A light copy that large initializers enter as inputs; shapes, axes and bounds are kept as constants.

    It is below protobuf's limit whatever the size of the model, and cheap to copy, check and infer shapes on.
    """
    light = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    graph = model.graph
    light.graph.name = graph.name
    for part in ("node", "input", "output", "value_info", "sparse_initializer"):
        getattr(light.graph, part).extend(getattr(graph, part))
    inputs = {value.name for value in graph.input}
    for tensor in graph.initializer:
        if math.prod(tensor.dims) < _SMALL:
            light.graph.initializer.append(tensor)
        elif tensor.name not in inputs:
            light.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return light


def _check_opsets(model: onnx.ModelProto, name: str) -> None:
    newest = onnx.defs.onnx_opset_version()
    for entry in model.opset_import:
        if entry.domain in _ONNX and not MIN_OPSET <= entry.version <= newest:
            old = entry.version < MIN_OPSET
            raise GraphError(
                f"{name}: opset {entry.version} is not supported, expected {MIN_OPSET} to {newest}",
                fix=f"export it with opset {MIN_OPSET} or later, or convert it with onnx.version_converter"
                if old
                else "install a newer onnx, or export with an older opset",
            )


def _check_operators(model: onnx.ModelProto, name: str) -> None:
    # Versions are numbers of 64 bits; no operator set has one beyond 31, which is what can be asked for
    versions = {
        "" if entry.domain in _ONNX else entry.domain: max(0, min(entry.version, _MAX_VERSION))
        for entry in model.opset_import
    }
    local = {(function.domain, function.name) for function in model.functions}
    for node in nodes_of(model.graph.node):
        domain = "" if node.domain in _ONNX else node.domain
        if (node.domain, node.op_type) in local or _known(node.op_type, versions.get(domain, 0), domain):
            continue
        kind = str(node.op_type)  # bytes, where they are no UTF-8
        operator = f"{domain!s}::{kind}" if domain else kind
        near = difflib.get_close_matches(kind, {schema.name for schema in onnx.defs.get_all_schemas()}, n=1)
        raise GraphError(
            f"{name}: node {node.name!r} has the operator {operator}, unknown in opset {versions.get(domain, 'none')}"
            + (f" (nearest: {near[0]})" if near else ""),
            fix="export the model with standard ONNX operators only, of the opset it declares",
        )


def _known(operator: str, version: int, domain: str) -> bool:
    try:
        return bool(onnx.defs.has(operator, version, domain))
    except TypeError:  # a damaged name: bytes that are no UTF-8
        return False


def _graphs_of(attribute: onnx.AttributeProto) -> list[onnx.GraphProto]:
    return [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]


def _tensors_of_graph(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield sparse.values
        yield sparse.indices
    yield from _tensors_of_nodes(graph.node)


def _tensors_of_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for graph in _graphs_of(attribute):
                yield from _tensors_of_graph(graph)
