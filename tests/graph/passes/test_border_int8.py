"""Constant borders of graphs that are quantized for CPUs: what is joined are integers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from fcnopt.graph.passes import border_plan
from fcnopt.graph.stats import stats_of
from tests.graph.build import changed, constant
from tests.graph.passes.test_border import fcn, named, of, rewritten

ABOVE_AND_BELOW = ("0a", "0b", "1a", "pool1")
"""Tensors to quantize: what the first pool reads, and what the second one makes."""


@pytest.fixture(autouse=True)
def free_joins(monkeypatch: pytest.MonkeyPatch) -> None:
    """In small networks memory would cost more than arithmetic."""
    monkeypatch.setattr(border_plan, "_WRITE_MACS", 0)


def quantized(
    model: onnx.ModelProto,
    at: Sequence[str] = ABOVE_AND_BELOW,
    kind: Any = np.uint8,
    zero: int = 3,
    opset: int = 17,
    skip: str = "crop",
) -> onnx.ModelProto:
    """Q/DQ behind some tensors, for all readers but the node named `skip`; int8 weights of all `Conv` behind them."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    result.opset_import[0].version = opset
    graph, nodes = result.graph, list(result.graph.node)
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}

    def dequantized(name: str, values: NDArray[Any] | None, scale: float, zero: NDArray[Any]) -> list[onnx.NodeProto]:
        constants = {f"{name}.scale": np.float32(scale), f"{name}.zero": zero}
        if values is not None:
            constants[f"{name}.q"] = values
        graph.initializer.extend(numpy_helper.from_array(np.asarray(v), key) for key, v in constants.items())
        grid = [f"{name}.scale", f"{name}.zero"]
        to = [] if values is not None else [helper.make_node("QuantizeLinear", [name, *grid], [f"{name}.q"])]
        return [*to, helper.make_node("DequantizeLinear", [f"{name}.q", *grid], [f"{name}.dq"])]

    made: list[onnx.NodeProto] = []
    pooled: set[str] = set()
    for node in nodes:
        reads_grid = node.input[0].endswith(".dq") or node.input[0] in pooled
        if node.op_type == "MaxPool" and reads_grid:
            pooled.add(node.output[0])
        if node.op_type == "Conv" and reads_grid and node.name not in ("z", skip):
            weight = weights[node.input[1]]
            scale = float(np.abs(weight).max() / 127)
            made += dequantized(node.input[1], np.round(weight / scale).astype(np.int8), scale, np.array(0, np.int8))
            node.input[1] += ".dq"
        made.append(node)
        for name in set(node.output) & set(at):
            made += dequantized(name, None, 0.03, np.array(zero, kind))
            for reader in nodes:
                if reader.name != skip:
                    reader.input[:] = [f"{name}.dq" if value == name else value for value in reader.input]
    del graph.node[:]
    graph.node.extend(made)
    onnx.checker.check_model(result, full_check=True)
    return result


def kinds(model: onnx.ModelProto, op: str) -> set[int]:
    """The types of what nodes of an operator write."""
    inferred = onnx.shape_inference.infer_shapes(model)
    types = {value.name: value.type.tensor_type.elem_type for value in inferred.graph.value_info}
    return {types[node.output[0]] for node in of(model, op)}


def readers_of_integers(model: onnx.ModelProto) -> list[str]:
    """Convolutions whose input is dequantized right before them."""
    made = {node.output[0]: node.op_type for node in model.graph.node}
    return [node.name for node in of(model, "Conv") if made.get(node.input[0]) == "DequantizeLinear"]


def test_uint8_is_joined_and_every_layer_stays_quantized(rng: np.random.Generator) -> None:
    before = quantized(fcn(rng))
    assert [node.name for node in of(before, "Conv") if node.input[1].endswith(".dq")] == [
        "0b.conv", "1a.conv", "1b.conv", "deep.conv",
    ]  # fmt: skip
    made, reports = rewritten(before)
    assert changed(reports)[0].startswith("constants around pool0, pool1.q: ")
    assert len(of(made, "Concat")) == 4
    assert kinds(made, "Concat") == {onnx.TensorProto.UINT8}
    assert readers_of_integers(made) == ["0b.conv", "1a.conv", "1b.conv", "deep.conv"]


def test_as_much_is_saved_as_in_float(rng: np.random.Generator) -> None:
    plain = fcn(rng)
    assert stats_of(rewritten(quantized(plain))[0]).macs == stats_of(rewritten(plain)[0]).macs


def test_constants_are_on_the_grid_of_what_they_are_joined_to(rng: np.random.Generator) -> None:
    made, _ = rewritten(quantized(fcn(rng), zero=7))
    sides = [name for node in of(made, "Concat") for name in node.input if name.endswith((".from", ".to"))]
    assert len(sides) == 8
    # a ReLU made them: nothing is below what stands for 0
    assert {constant(made, name).dtype for name in sides} == {np.dtype(np.uint8)}
    assert min(constant(made, name).min() for name in sides) == 7


def test_pool_above_a_join_reads_integers(rng: np.random.Generator) -> None:
    made, _ = rewritten(quantized(fcn(rng)))
    pool = named(made, "pool0")
    assert pool.input[0] == "0b.q"
    assert named(made, "pool1").input[0] == "1b", "is quantized below: its scores see it float"


def test_pools_in_a_row_read_integers(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(border_plan, "_WRITE_MACS", 4)  # the last pool's result is the smallest
    before = fcn(rng)
    second = helper.make_node("MaxPool", ["pool1"], ["again"], "again", kernel_shape=[1, 1], strides=[2, 2])
    place = next(i for i, node in enumerate(before.graph.node) if node.name == "deep.conv")
    before.graph.node[place].input[0] = "again"
    before.graph.node.insert(place, second)
    del before.graph.value_info[:]
    made, _ = rewritten(quantized(before, at=("0a", "0b", "1a", "1b")))
    assert any("again" in name for node in of(made, "Concat") for name in node.input)
    assert kinds(made, "Concat") == kinds(made, "MaxPool") == {onnx.TensorProto.UINT8}
    assert "deep.conv" in readers_of_integers(made)


@pytest.mark.parametrize(
    ("kind", "opset"), [pytest.param(np.int8, 17, id="symmetric"), pytest.param(np.uint8, 11, id="old opset")]
)
def test_nothing_is_joined_behind_other_quantization(kind: Any, opset: int, rng: np.random.Generator) -> None:
    made, _ = rewritten(quantized(fcn(rng), kind=kind, zero=0, opset=opset))
    assert {name for node in of(made, "Concat") for name in node.input if "pool" in name} == set()
    assert kinds(made, "Concat") <= {onnx.TensorProto.FLOAT}


def test_a_scale_of_rows_is_no_border(rng: np.random.Generator) -> None:
    before = quantized(fcn(rng), at=("0b",))
    rows = next(tensor for tensor in before.graph.initializer if tensor.name == "0b.scale")
    zeros = next(tensor for tensor in before.graph.initializer if tensor.name == "0b.zero")
    rows.CopyFrom(numpy_helper.from_array(np.full(79, 0.03, np.float32), "0b.scale"))
    zeros.CopyFrom(numpy_helper.from_array(np.full(79, 3, np.uint8), "0b.zero"))
    for node in before.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and node.input[1] == "0b.scale":
            node.attribute.append(helper.make_attribute("axis", 2))
    made, _ = rewritten(before)
    assert kinds(made, "Concat") <= {onnx.TensorProto.FLOAT}
    assert kinds(made, "MaxPool") == {onnx.TensorProto.FLOAT}
