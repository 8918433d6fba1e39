from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from fcnopt.graph.io import import_graph
from fcnopt.graph.passes.dead import DeadCodePass
from fcnopt.graph.passes.fold import ConstantFoldPass
from fcnopt.graph.passes.noop import NoopPass
from fcnopt.graph.passes.view import GraphView
from tests.graph.build import attribute, changed, constant, conv_weights, declined, model, node, ops, optimized


class TestFold:
    def test_a_tree_of_constants(self) -> None:
        before = model(
            [
                helper.make_node("Constant", [], ["one"], value_float=1.0),
                helper.make_node("Constant", [], ["list"], value_ints=[1, 3]),
                helper.make_node("Add", ["one", "k"], ["sum"]),
                helper.make_node("Expand", ["sum", "list"], ["wide"]),
                helper.make_node("Mul", ["x", "wide"], ["y"], name="mul"),
            ],
            {"x": [2, 3]},
            {"y": [2, 3]},
            {"k": np.array(2.0, np.float32)},
        )
        made, reports = optimized(before, ConstantFoldPass)
        assert [n.op_type for n in made.graph.node] == ["Mul"]
        assert constant(made, "wide").shape == (1, 3)
        assert len(changed(reports)) == 4

    def test_scalars_stay_scalars(self) -> None:
        before = model(
            [helper.make_node("Constant", [], ["k"], value_float=2.0), helper.make_node("Mul", ["x", "k"], ["y"])],
            {"x": []},
            {"y": []},
        )
        assert constant(optimized(before, ConstantFoldPass)[0], "k").shape == ()

    def test_shape_of_known_axes_of_a_dynamic_tensor(self) -> None:
        before = model(
            [
                helper.make_node("Shape", ["x"], ["c"], start=1, end=2),
                helper.make_node("Shape", ["x"], ["h"], start=2, end=3),
                helper.make_node("Concat", ["c", "h"], ["y"], axis=0),
            ],
            {"x": ["N", 3, "H", "W"]},
            {"y": [2]},
            output_type=TensorProto.INT64,
        )
        made, _ = optimized(before, ConstantFoldPass)
        assert ops(made) == ["Shape", "Concat"]
        assert constant(made, "c").tolist() == [3]

    def test_cast_like_takes_the_type_only(self) -> None:
        before = model(
            [
                helper.make_node("CastLike", ["k", "x"], ["c"]),
                helper.make_node("Add", ["x", "c"], ["y"]),
            ],
            {"x": [2]},
            {"y": [2]},
            {"k": np.array([1, 2])},
        )
        made, _ = optimized(before, ConstantFoldPass)
        assert ops(made) == ["Add"]
        assert constant(made, "c").dtype == np.float32

    def test_quantization_is_kept(self, rng: np.random.Generator) -> None:
        before = model(
            [
                helper.make_node("DequantizeLinear", ["q", "s", "z"], ["w"], axis=0),
                helper.make_node("Conv", ["x", "w"], ["y"]),
            ],
            {"x": [1, 3, 4, 4]},
            {"y": [1, 2, 4, 4]},
            {
                "q": rng.integers(-127, 128, (2, 3, 1, 1)).astype(np.int8),
                "s": np.array([0.1, 0.2], np.float32),
                "z": np.zeros(2, np.int8),
            },
        )
        assert ops(optimized(before)[0]) == ["DequantizeLinear", "Conv"]

    def test_random_numbers_are_kept(self) -> None:
        before = model(
            [
                helper.make_node("RandomNormalLike", ["k"], ["noise"], seed=1.0),
                helper.make_node("Mul", ["noise", "zero"], ["silence"]),
                helper.make_node("Add", ["x", "silence"], ["y"]),
            ],
            {"x": [2]},
            {"y": [2]},
            {"k": np.zeros(2, np.float32), "zero": np.zeros(2, np.float32)},
        )
        assert ops(optimized(before, ConstantFoldPass)[0]) == ["RandomNormalLike", "Mul", "Add"]

    @pytest.mark.parametrize("op", ["Expand", "ConstantOfShape", "Tile"])
    def test_results_that_bloat_the_file_are_declined(self, op: str) -> None:
        constants = {
            "Expand": {"one": np.ones((1, 1), np.float32), "shape": np.array([1000, 600])},
            "ConstantOfShape": {"shape": np.array([1000, 600])},
            "Tile": {"one": np.ones((10, 6), np.float32), "shape": np.array([100, 100])},
        }[op]
        before = model(
            [helper.make_node(op, list(constants), ["big"], name="grow"), helper.make_node("Add", ["x", "big"], ["y"])],
            {"x": [1000, 600]},
            {"y": [1000, 600]},
            constants,
        )
        made, reports = optimized(before, ConstantFoldPass)
        assert ops(made) == [op, "Add"]
        assert f"{op} 'grow': its result has" in declined(reports)

    @pytest.mark.parametrize(
        ("node", "constants", "why"),
        [
            (
                helper.make_node("Range", list("abc"), ["big"], name="grow"),
                {"a": 0.0, "b": 4e8, "c": 1.0},
                "has 1600000000",
            ),
            (
                helper.make_node("Pad", ["one", "pads"], ["big"], name="grow"),
                {"one": [1.0], "pads": np.array([0, 1 << 28])},
                "result",
            ),
            (
                helper.make_node("HannWindow", ["n"], ["big"], name="grow"),
                {"n": np.array(1 << 28)},
                "result",
            ),
        ],
    )
    def test_a_few_numbers_do_not_become_gigabytes(self, node: Any, constants: dict[str, Any], why: str) -> None:
        before = model(
            [
                node,
                helper.make_node("ReduceSum", ["big"], ["sum"], keepdims=0),
                helper.make_node("Add", ["x", "sum"], ["y"]),
            ],
            {"x": [3]},
            {"y": [3]},
            {
                name: value if isinstance(value, np.ndarray) else np.array(value, np.float32)
                for name, value in constants.items()
            },
        )
        made = import_graph(before)
        outcome = ConstantFoldPass().run(GraphView(made))
        assert [node.op for node in made.nodes] == [node.op for node in import_graph(before).nodes]
        assert any("grow" in reason and why in reason for reason in outcome.declined)

    def test_a_short_range_is_folded(self) -> None:
        before = model(
            [helper.make_node("Range", list("abc"), ["r"]), helper.make_node("Add", ["x", "r"], ["y"])],
            {"x": [4]},
            {"y": [4]},
            {"a": np.array(8, np.float32), "b": np.array(0, np.float32), "c": np.array(-2, np.float32)},
        )
        np.testing.assert_array_equal(constant(optimized(before, ConstantFoldPass)[0], "r"), [8, 6, 4, 2])

    def test_weights_computed_from_weights_are_folded_whatever_their_size(self, rng: np.random.Generator) -> None:
        before = model(
            [helper.make_node("Transpose", ["w"], ["t"]), helper.make_node("MatMul", ["x", "t"], ["y"])],
            {"x": [1, 700]},
            {"y": [1, 800]},
            {"w": rng.standard_normal((800, 700), np.float32)},
        )
        assert ops(optimized(before, ConstantFoldPass)[0]) == ["MatMul"]

    def test_a_sequence_of_constants_is_kept(self) -> None:
        pair = helper.make_node("SequenceConstruct", ["a", "b"], ["s"], name="pair")
        nodes = [pair, helper.make_node("SequenceAt", ["s", "i"], ["c"]), helper.make_node("Add", ["x", "c"], ["y"])]
        constants = {"a": np.ones(2, np.float32), "b": np.zeros(2, np.float32), "i": np.array(1)}
        made, reports = optimized(model(nodes, {"x": [2]}, {"y": [2]}, constants))
        assert ops(made) == ["SequenceConstruct", "SequenceAt", "Add"]
        assert "its result is a sequence or an optional, not a tensor" in declined(reports)

    def test_output_that_is_constant_is_kept(self) -> None:
        before = model(
            [helper.make_node("Add", ["k", "k"], ["y"], name="sum"), helper.make_node("Relu", ["x"], ["z"])],
            {"x": [2]},
            {"y": [2], "z": [2]},
            {"k": np.ones(2, np.float32)},
        )
        made, reports = optimized(before)
        assert sorted(ops(made)) == ["Add", "Relu"]
        assert "its result is an output of the graph" in declined(reports)


def noop(
    op: str, inputs: list[str], constants: dict[str, Any] | None = None, opset: int = 17, **attrs: Any
) -> onnx.ModelProto:
    """A node that does nothing, between a Relu and a Sigmoid."""
    return model(
        [
            helper.make_node("Relu", ["x"], ["r"]),
            helper.make_node(op, inputs, ["n"], name="noop", **attrs),
            helper.make_node("Sigmoid", ["n"], ["y"]),
        ],
        {"x": [2, 3, 4, 5]},
        {"y": [2, 3, 4, 5]},
        constants,
        opset=opset,
    )


def integers(*values: int) -> np.ndarray[Any, Any]:
    return np.array(values, np.int64)


NOOPS = {
    "identity": noop("Identity", ["r"]),
    "dropout": noop("Dropout", ["r"]),
    "dropout, opset 9": noop("Dropout", ["r"], opset=9, ratio=0.3),
    "dropout, not training": noop("Dropout", ["r", "p", "t"], {"p": np.array(0.3, np.float32), "t": np.array(False)}),
    "cast": noop("Cast", ["r"], to=TensorProto.FLOAT),
    "transpose": noop("Transpose", ["r"], perm=[0, 1, 2, 3]),
    "reshape": noop("Reshape", ["r", "s"], {"s": integers(2, 3, 4, 5)}),
    "reshape, inferred": noop("Reshape", ["r", "s"], {"s": integers(0, -1, 4, 0)}),
    "expand": noop("Expand", ["r", "s"], {"s": integers(1, 3, 1, 5)}),
    "slice": noop("Slice", ["r", "s", "e"], {"s": integers(0, 0), "e": integers(2**31 - 1, 3)}),
    "slice, opset 9": noop("Slice", ["r"], opset=9, axes=[2, 3], starts=[0, -5], ends=[4, 99]),
    "pad": noop("Pad", ["r", "p"], {"p": integers(*[0] * 8)}),
    "pad, opset 9": noop("Pad", ["r"], opset=9, pads=[0] * 8),
    "concat": noop("Concat", ["r"], axis=1),
    "max": noop("Max", ["r"]),
    "add": noop("Add", ["r", "k"], {"k": np.zeros((3, 1, 1), np.float32)}),
    "add, constant first": noop("Add", ["k", "r"], {"k": np.zeros((), np.float32)}),
    "sub": noop("Sub", ["r", "k"], {"k": np.zeros(1, np.float32)}),
    "mul": noop("Mul", ["k", "r"], {"k": np.ones((1, 3, 4, 5), np.float32)}),
    "div": noop("Div", ["r", "k"], {"k": np.ones((1, 1), np.float32)}),
}


@pytest.mark.parametrize("before", NOOPS.values(), ids=NOOPS)
def test_noop_goes(before: onnx.ModelProto) -> None:
    made, reports = optimized(before, NoopPass, tolerance=1e-12)
    assert ops(made) == ["Relu", "Sigmoid"]
    (line,) = changed(reports)
    assert line.startswith("removed ")


KEPT = {
    "cast": ("Cast", {"to": TensorProto.DOUBLE}, {}),
    "transpose": ("Transpose", {"perm": [0, 1, 3, 2]}, {}),
    "reshape": ("Reshape", {}, {"s": integers(2, 3, 5, 4)}),
    "slice": ("Slice", {}, {"s": integers(1), "e": integers(2), "a": integers(2)}),
    "slice, step": ("Slice", {}, {"s": integers(0), "e": integers(99), "a": integers(2), "t": integers(2)}),
    "pad": ("Pad", {}, {"p": integers(0, 0, 0, 1, 0, 0, 0, 0)}),
    "sub from zero": ("Sub", {}, {"k": np.zeros(1, np.float32)}),
    "one over": ("Div", {}, {"k": np.ones(1, np.float32)}),
    "broadcast": ("Add", {}, {"k": np.zeros((1, 2, 3, 4, 5), np.float32)}),
    "some one": ("Mul", {}, {"k": np.array([[[1]], [[1]], [[2]]], np.float32)}),
}


@pytest.mark.parametrize(("op", "attrs", "constants"), KEPT.values(), ids=KEPT)
def test_node_that_does_something_stays(op: str, attrs: dict[str, Any], constants: dict[str, Any]) -> None:
    first = op in ("Sub", "Div")
    inputs = [*constants, "x"] if first else ["x", *constants]
    kind = TensorProto.DOUBLE if op == "Cast" else TensorProto.FLOAT
    rank = 5 if any(v.ndim == 5 for v in constants.values()) else 4
    before = model(
        [helper.make_node(op, inputs, ["y"], **attrs)],
        {"x": [2, 3, 4, 5]},
        {"y": [None] * rank},
        constants,
        output_type=kind,
    )
    assert ops(optimized(before)[0]) == [op]


def test_two_transposes_are_one_or_none() -> None:
    nodes = [
        helper.make_node("Transpose", ["x"], ["a"], perm=[0, 2, 3, 1]),
        helper.make_node("Transpose", ["a"], ["b"], perm=[0, 2, 1, 3]),
        helper.make_node("Transpose", ["a"], ["c"], perm=[0, 3, 1, 2]),
        helper.make_node("Relu", ["c"], ["z"]),
        helper.make_node("Relu", ["b"], ["y"]),
    ]
    before = model(nodes, {"x": [2, 3, 4, 5]}, {"y": [2, 5, 4, 3], "z": [2, 3, 4, 5]})
    made, _ = optimized(before, NoopPass)
    assert sorted(ops(made)) == ["Relu", "Relu", "Transpose"]
    assert attribute(node(made, "Transpose"), "perm") == [0, 3, 2, 1]


def test_output_keeps_its_name_when_its_writer_goes() -> None:
    before = model(
        [
            helper.make_node("Relu", ["x"], ["r"]),
            helper.make_node("Identity", ["r"], ["y"]),
            helper.make_node("Abs", ["r"], ["z"]),
        ],
        {"x": [2]},
        {"y": [2], "z": [2]},
    )
    made, _ = optimized(before)
    assert ops(made) == ["Relu", "Abs"]
    assert [value.name for value in made.graph.output] == ["y", "z"]
    assert node(made, "Abs").input[0] == "y"


@pytest.mark.parametrize("middle", ["x", "r"])
def test_identity_between_two_ends_stays(middle: str) -> None:
    """From an input or an output to an output."""
    nodes = [helper.make_node("Relu", ["x"], ["r"]), helper.make_node("Identity", [middle], ["y"], name="id")]
    made, reports = optimized(model(nodes, {"x": [2]}, {"r": [2], "y": [2]}))
    assert sorted(ops(made)) == ["Identity", "Relu"]
    assert "Identity 'id': its output is the graph's" in declined(reports)


def test_dropout_whose_mask_is_read_stays() -> None:
    before = model([helper.make_node("Dropout", ["x"], ["y", "m"], name="drop")], {"x": [2]}, {"y": [2]})
    before.graph.output.append(helper.make_tensor_value_info("m", TensorProto.BOOL, [2]))
    made, reports = optimized(before)
    assert ops(made) == ["Dropout"]
    assert "its mask is read" in declined(reports)


class TestDead:
    def test_nodes_and_initializers(self, rng: np.random.Generator) -> None:
        before = model(
            [
                helper.make_node("Conv", ["x", "w"], ["lost"], name="lost"),
                helper.make_node("Abs", ["lost"], ["lost2"], name="lost2"),
                helper.make_node("Relu", ["x"], ["y"]),
            ],
            {"x": [1, 3, 4, 4]},
            {"y": [1, 3, 4, 4]},
            conv_weights(rng, (5, 3, 1, 1)) | {"nobody": np.ones(7, np.float32)},
        )
        made, reports = optimized(before, DeadCodePass)
        assert ops(made) == ["Relu"]
        assert not made.graph.initializer
        assert set(changed(reports)) == {"removed initializer 'nobody'", "removed Conv 'lost'", "removed Abs 'lost2'"}
        assert (reports[0].before.parameters, reports[0].after.parameters) == (22, 0)

    def test_unused_input_of_the_graph_is_kept(self) -> None:
        before = model([helper.make_node("Relu", ["x"], ["y"])], {"x": [2], "unused": [3]}, {"y": [2]})
        assert [value.name for value in optimized(before)[0].graph.input] == ["x", "unused"]
