"""Two hashes of a model: of its weights, and of everything else that decides what it computes."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator

import onnx
from onnx import numpy_helper

from fcnopt.graph.checks import tensors_of

_INDICES = (onnx.TensorProto.INT64, onnx.TensorProto.INT32, onnx.TensorProto.BOOL)
_MAX_INDICES = 1024  # a larger integer tensor is data, not a shape or a list of axes


def weights_hash(model: onnx.ModelProto) -> str:
    """SHA-256 over all constants: names, types, shapes and values, in the order of the names.

    Constants are initializers and tensors in nodes' attributes. How they are stored (raw or typed, in the file or
    beside it) makes no difference.
    """
    digest = hashlib.sha256()
    for tensor in sorted(tensors_of(model), key=lambda tensor: tensor.name):
        digest.update(f"{tensor.name}|{tensor.data_type}|{list(tensor.dims)}|".encode())
        digest.update(numpy_helper.to_array(tensor).tobytes())
    return digest.hexdigest()


def graph_hash(model: onnx.ModelProto) -> str:
    """SHA-256 over opset, inputs, outputs, nodes, attributes, and the types and shapes of the constants.

    Left out are the values of the weights, the names of nodes (those of tensors count), documentation, metadata and
    inferred shapes. Short integer constants count with their values: they are shapes, axes and bounds.
    """
    digest = hashlib.sha256()
    for entry in sorted(f"{entry.domain or 'ai.onnx'} {entry.version}" for entry in model.opset_import):
        digest.update(f"{entry};".encode())
    for part in _graph_parts(model.graph):
        digest.update(part.encode() + b";")
    for function in model.functions:
        digest.update(f"{function.domain} {function.name} {list(function.input)} {list(function.output)};".encode())
        for part in _node_parts(function.node):
            digest.update(part.encode() + b";")
    return digest.hexdigest()


def _graph_parts(graph: onnx.GraphProto) -> Iterator[str]:
    for value in (*graph.input, *graph.output):
        yield f"{value.name} {value.type.SerializeToString(deterministic=True).hex()}"
    for tensor in sorted(graph.initializer, key=lambda tensor: tensor.name):
        yield _tensor_part(tensor)
    yield from _node_parts(graph.node)


def _node_parts(nodes: Iterable[onnx.NodeProto]) -> Iterator[str]:
    for node in nodes:
        yield f"{node.domain} {node.op_type} {list(node.input)} {list(node.output)}"
        for attribute in sorted(node.attribute, key=lambda attribute: attribute.name):
            if attribute.HasField("t"):
                yield f"{attribute.name} {_tensor_part(attribute.t)}"
            elif attribute.HasField("g"):
                yield attribute.name
                yield from _graph_parts(attribute.g)
            else:
                yield attribute.SerializeToString(deterministic=True).hex()


def _tensor_part(tensor: onnx.TensorProto) -> str:
    part = f"{tensor.name} {tensor.data_type} {list(tensor.dims)}"
    if tensor.data_type in _INDICES and math.prod(tensor.dims) < _MAX_INDICES:
        part += f" {numpy_helper.to_array(tensor).tolist()}"
    return part
