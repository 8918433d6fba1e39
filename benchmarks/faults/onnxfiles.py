"""Small ONNX models to do harm with: what they have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper

FLOAT = TensorProto.FLOAT
_DOUBLED = 20  # levels; with two branches each, a graph doubles with every level


def model_of(
    nodes: list[NodeProto],
    constants: list[TensorProto] | None = None,
    result: str = "y",
    shape: Sequence[int | str] = ("N", "C", "H", "W"),
) -> ModelProto:
    """Valid but for what is meant to be wrong with it: what is refused for another reason shows nothing."""
    given = helper.make_tensor_value_info("x", FLOAT, [1, 3, 8, 8])
    wanted = helper.make_tensor_value_info(result, FLOAT, shape)
    graph = helper.make_graph(nodes, "hostile", [given], [wanted], constants or [])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def constant(name: str, values: list[float]) -> TensorProto:
    """Floats in a row."""
    return helper.make_tensor(name, FLOAT, [len(values)], values)


def summed(constants: list[TensorProto], *nodes: NodeProto) -> ModelProto:
    """The input and the sum of `w`, which fits whatever shape `w` has."""
    total = helper.make_node("ReduceSum", ["w"], ["total"], keepdims=0)
    return model_of([*nodes, total, helper.make_node("Add", ["x", "total"], ["y"])], constants)


def branches(depth: int) -> Callable[[Path], bytes]:
    """Ifs within Ifs; written by hand, since protobuf's own writer gives up before its readers have to."""

    def field(number: int, content: bytes) -> bytes:
        return _varint(number << 3 | 2) + _varint(len(content)) + content

    def make(_: Path) -> bytes:
        given = helper.make_tensor_value_info("x", FLOAT, [1, 3, 8, 8]).SerializeToString()
        condition = helper.make_tensor_value_info("c", TensorProto.BOOL, []).SerializeToString()
        result = helper.make_tensor_value_info("y", FLOAT, [1, 3, 8, 8]).SerializeToString()
        ends = field(2, b"g") + field(12, result)
        graph = field(1, field(1, b"x") + field(2, b"y") + field(4, b"Relu")) + ends
        for _level in range(depth):
            node = field(1, b"c") + field(2, b"y") + field(4, b"If")
            for name in (b"then_branch", b"else_branch") if depth < _DOUBLED else (b"then_branch",):
                node += field(5, field(1, name) + field(6, graph) + _varint(20 << 3) + _varint(AttributeProto.GRAPH))
            graph = field(1, node) + ends
        opset = field(8, _varint(2 << 3) + _varint(17))
        return _varint(1 << 3) + _varint(9) + field(7, graph + field(11, given) + field(11, condition)) + opset

    return make


def _varint(value: int) -> bytes:
    """A number as protobuf writes it: seven bits a byte, the lowest first."""
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(found) + bytes((value,))
