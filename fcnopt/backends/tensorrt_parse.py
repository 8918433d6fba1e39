"""ONNX into a TensorRT network; what the parser refuses, with the node's name and the fix."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fcnopt.backends.onnxfile import read_structure
from fcnopt.backends.tensorrt_log import LogBook, Messages, explain, reads_uint8_as_int8
from fcnopt.errors import BuildError

UNKNOWN_FIX = "check the model with `fcnopt inspect`; `--precision fp32` shows whether the precision is to blame"


@dataclass(frozen=True)
class Parsed:
    """A network and what must live as long: its builder, and the parser, whose memory the weights are.

    Attributes:
        builder: The `trt.Builder`.
        network: The `trt.INetworkDefinition`.
        parser: The `trt.OnnxParser`.
    """

    builder: Any
    network: Any
    parser: Any


def parse(trt: Any, book: LogBook, messages: Messages, model: Path) -> Parsed:
    """Parse an ONNX file.

    Raises:
        BuildError: The parser refused a node, or read uint8 quantization as int8.
    """
    builder = trt.Builder(book.logger)
    # From version 11 on, and in RTX, networks are always strongly typed.
    strongly_typed = trt.__name__ == "tensorrt" and int(trt.__version__.split(".")[0]) < 11
    flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED) if strongly_typed else 0
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, book.logger)
    # From the file, not from bytes, so that weights in files beside it are found.
    if not parser.parse_from_file(str(model)):
        raise _parse_error(parser, messages, model)
    if reads_uint8_as_int8(messages.warnings):
        _, fix = explain("Defaulting to INT8 instead")
        raise BuildError(
            f"{model.name}: {_uint8_nodes(model)} quantize to uint8, which {trt.__name__} would read as int8",
            fix=fix or UNKNOWN_FIX,
        )
    network.name = model.stem
    return Parsed(builder, network, parser)


def _parse_error(parser: Any, messages: Messages, model: Path) -> BuildError:
    if not parser.num_errors:
        text, fix = explain("\n".join(messages.errors) or "no reason given")
        return BuildError(f"{model.name}: tensorrt cannot parse it: {text}", fix=fix or UNKNOWN_FIX)
    error = parser.get_error(0)
    text, fix = explain(error.desc())
    if text == "false":  # the checker's whole message for an operator that TensorRT lacks
        text, fix = "the operator is not supported", "replace it by other ONNX operators"
    node = error.node_name() or (f"number {error.node()}" if error.node() >= 0 else "")
    where = f"node {node!r} ({error.node_operator()}): " if node else ""
    return BuildError(f"{model.name}: {where}{text}", fix=fix or UNKNOWN_FIX)


def _uint8_nodes(model: Path) -> str:
    """The names of up to three nodes that quantize to uint8, for the message."""
    import onnx

    graph = read_structure(model).graph
    unsigned = {i.name for i in graph.initializer if i.data_type == onnx.TensorProto.UINT8}
    names = [n.name for n in graph.node if n.op_type == "QuantizeLinear" and unsigned.intersection(n.input[2:])]
    shown = ", ".join(repr(name) for name in names[:3]) or "nodes"
    return shown + (f" and {len(names) - 3} more" if len(names) > 3 else "")
