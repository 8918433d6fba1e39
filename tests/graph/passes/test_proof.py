from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import TensorProto, helper

from fcnopt.errors import GraphError
from fcnopt.graph.passes import GraphView, Pass, optimize
from fcnopt.graph.passes.noop import NoopPass
from fcnopt.graph.passes.proof import TOLERANCE, tolerances
from tests.graph.build import conv_weights, model, ops


class WrongPass(Pass[gs.Node]):
    """Edits the first node of an operator, once: wrong on purpose."""

    name = "wrong"

    def __init__(self, op: str, edit: Callable[[GraphView, gs.Node], None]) -> None:
        self.op, self.edit = op, edit

    def match(self, view: GraphView, node: gs.Node) -> Iterator[gs.Node]:
        first = next((n for n in view.graph.nodes if n.op == self.op), None)
        if node is first and "edited" not in view.graph.tensors():
            yield node

    def check(self, view: GraphView, match: gs.Node) -> str:  # noqa: ARG002
        return ""

    def rewrite(self, view: GraphView, match: gs.Node) -> str:
        self.edit(view, match)
        return f"edited {match.op}"


def scaling(op: str, factor: float) -> WrongPass:
    """Multiplies the constant of an operator."""

    def edit(view: GraphView, node: gs.Node) -> None:
        values = np.asarray(node.inputs[1].values)
        node.inputs[1] = view.constant("edited", (values * factor).astype(values.dtype))

    return WrongPass(op, edit)


def dropping(op: str) -> WrongPass:
    """Takes an operator out."""
    return WrongPass(op, lambda view, node: view.bypass(node))


def heads(op: str, count: int, rng: np.random.Generator, **attrs: Any) -> onnx.ModelProto:
    """A convolution, and operators that make integers or truth values of it."""
    constants: dict[str, Any] = conv_weights(rng, (5, 3, 1, 1))
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"])]
    extra = {"TopK": ["k"], "Greater": ["limit"]}.get(op, [])
    constants |= {"TopK": {"k": np.array([1])}, "Greater": {"limit": np.array(0.5, np.float32)}}.get(op, {})
    for i in range(count):
        nodes.append(helper.make_node("Neg", ["c" if i == 0 else f"s{i - 1}"], [f"s{i}"]))
        outputs = [f"values{i}", f"y{i}"] if op == "TopK" else [f"y{i}"]
        nodes.append(helper.make_node(op, [f"s{i}", *extra], outputs, **attrs))
    kind = TensorProto.BOOL if op == "Greater" else TensorProto.INT64
    dims = [None] * (3 if op == "ArgMax" else 4)
    return model(nodes, {"x": [1, 3, 64, 64]}, {f"y{i}": dims for i in range(count)}, constants, output_type=kind)


class TestWhatDecides:
    """A scale that hardly ever changes a label is a wrong rewrite none the less."""

    @pytest.mark.parametrize(
        ("op", "count", "attrs"),
        [
            ("ArgMax", 1, {"axis": 1, "keepdims": 0}),
            ("ArgMax", 2, {"axis": 1, "keepdims": 0}),
            ("TopK", 1, {"axis": 1}),
            ("Cast", 1, {"to": TensorProto.INT64}),
            ("Greater", 1, {}),
        ],
    )
    def test_scores_behind_integers_are_held(
        self, op: str, count: int, attrs: dict[str, Any], rng: np.random.Generator
    ) -> None:
        with pytest.raises(GraphError, match=r"pass 'wrong': .*'(logits|input of \w+ \d)' is 1\.0e-03 off"):
            optimize(heads(op, count, rng, **attrs), passes=[scaling("Conv", 1.001)], strict=True)

    def test_labels_that_leave_as_floats(self, rng: np.random.Generator) -> None:
        before = model(
            [
                helper.make_node("Conv", ["x", "w"], ["c"]),
                helper.make_node("ArgMax", ["c"], ["l"], axis=1),
                helper.make_node("Cast", ["l"], ["y"], to=TensorProto.FLOAT),
            ],
            {"x": [1, 3, 8, 8]},
            {"y": [1, 1, 8, 8]},
            conv_weights(rng, (5, 3, 1, 1)),
        )
        with pytest.raises(GraphError, match=r"output 'logits' is 1\.0e-03 off"):
            optimize(before, passes=[scaling("Conv", 1.001)], strict=True)

    def test_a_pass_that_renames_what_is_read_is_accepted(self) -> None:
        nodes = [
            helper.make_node("Identity", ["x"], ["i"]),
            helper.make_node("ArgMax", ["i"], ["y"], axis=1),
            helper.make_node("Relu", ["x"], ["r"]),
            helper.make_node("Dropout", ["r"], ["d", "mask"]),
            helper.make_node("ArgMax", ["d"], ["z"], axis=1),
        ]
        dims = {"y": [1, 1, 4, 4], "z": [1, 1, 4, 4]}
        before = model(nodes, {"x": [1, 3, 4, 4]}, dims, output_type=TensorProto.INT64)
        after, reports = optimize(before, passes=[NoopPass()], strict=True)
        assert ops(after) == ["ArgMax", "Relu", "ArgMax"]
        assert reports[0].error == 0.0


class TestLabels:
    """What goes wrong after the scores is seen in the labels only."""

    def shifted(self, *, second: bool) -> onnx.ModelProto:
        nodes = [
            helper.make_node("ArgMax", ["x"], ["l"], axis=1),
            helper.make_node("Slice", ["l", "zero", "two", "axis"], ["few"]),
            helper.make_node("Mul", ["few" if second else "l", "c"], ["y"]),
            helper.make_node("Identity", ["l"], ["z"]),
        ]
        constants = {"c": np.array(3), "zero": np.array([0]), "two": np.array([2]), "axis": np.array([2])}
        outputs = {"y": [None] * 4, "z": [None] * 4} if second else {"y": [None] * 4}
        nodes = nodes if second else [nodes[0], nodes[2]]
        return model(nodes, {"x": [1, 5, 600, 4]}, outputs, constants, output_type=TensorProto.INT64)

    def test_other_labels_are_refused(self) -> None:
        with pytest.raises(
            GraphError, match=r"pass 'wrong': .*only \d+\.\d+% of the labels of output 'y' are the same"
        ):
            optimize(self.shifted(second=False), passes=[scaling("Mul", 2)], strict=True)

    def test_a_small_output_does_not_drown_in_a_large_one(self) -> None:
        with pytest.raises(GraphError, match=r"of the labels of output 'y' are the same"):
            optimize(self.shifted(second=True), passes=[scaling("Mul", 2)], strict=True)


class TestTakenBack:
    def test_the_graph_before_stays_and_the_report_says_why(self, rng: np.random.Generator) -> None:
        nodes = [helper.make_node("Identity", ["x"], ["i"]), helper.make_node("Conv", ["i", "w"], ["y"])]
        before = model(nodes, {"x": [1, 3, 4, 4]}, {"y": [1, 2, 4, 4]}, conv_weights(rng, (2, 3, 1, 1)))
        after, (broken, sound) = optimize(before, passes=[scaling("Conv", 1.5), NoopPass()])
        assert ops(after) == ["Conv"], "the sound pass ran"
        assert after.graph.initializer[0] == before.graph.initializer[0]
        assert (broken.name, broken.changed, broken.error, broken.after) == ("wrong", (), 0.0, broken.before)
        (line,) = broken.declined
        assert line.startswith("pass 'wrong': the graph it made is not the one before: output 'y' is 5.0e-01 off")
        assert line.endswith("what it did is taken back")
        assert len(sound.changed) == 1

    def test_an_invalid_graph(self, rng: np.random.Generator) -> None:
        def edit(view: GraphView, node: gs.Node) -> None:  # noqa: ARG001
            node.inputs[1] = gs.Variable("edited", dtype=np.float32)

        nodes = [helper.make_node("Conv", ["x", "w"], ["y"])]
        before = model(nodes, {"x": [1, 3, 4, 4]}, {"y": [1, 2, 4, 4]}, conv_weights(rng, (2, 3, 1, 1)))
        after, (report,) = optimize(before, passes=[WrongPass("Conv", edit)])
        assert after == before
        assert "not valid ONNX" in report.declined[0]

    def test_a_model_that_does_not_run_is_an_error_still(self) -> None:
        nodes = [helper.make_node("Identity", ["x"], ["i"]), helper.make_node("Reshape", ["i", "s"], ["y"])]
        before = model(nodes, {"x": ["N", 3, "H", "W"]}, {"y": [None, 7]}, {"s": np.array([-1, 7])})
        with pytest.raises(GraphError, match="does not run in ONNX Runtime"):
            optimize(before)


class TestDynamic:
    """A rewrite is right only if it is at both sizes and both batches."""

    @pytest.mark.parametrize(("axis", "end"), [(3, 110), (0, 1)], ids=["first only", "second only"])
    def test_wrong_at_one_of_two_sizes(self, axis: int, end: int) -> None:
        before = model(
            [helper.make_node("Relu", ["x"], ["r"]), helper.make_node("Slice", ["r", "s", "e", "a"], ["y"])],
            {"x": ["N", 3, "H", "W"]},
            {"y": [None] * 4},
            {"s": np.array([0]), "e": np.array([end]), "a": np.array([axis])},
        )
        with pytest.raises(GraphError, match=r"output 'y' was float32 \[.*\] and is float32"):
            optimize(before, passes=[dropping("Slice")], strict=True)


class TestTolerances:
    def half_beside(self, rng: np.random.Generator) -> onnx.ModelProto:
        nodes = [
            helper.make_node("Mul", ["x", "c"], ["m"]),
            helper.make_node("Cast", ["m"], ["half"], to=TensorProto.FLOAT16),
            helper.make_node("Cast", ["half"], ["k"], to=TensorProto.FLOAT),
            helper.make_node("ArgMax", ["k"], ["l"], axis=1),
            helper.make_node("Cast", ["l"], ["n"], to=TensorProto.FLOAT),
            helper.make_node("Conv", ["x", "w"], ["z"]),
        ]
        return model(
            nodes,
            {"x": [1, 3, 4, 4]},
            {"z": [1, 2, 4, 4], "k": [1, 3, 4, 4], "n": [1, 1, 4, 4]},
            conv_weights(rng, (2, 3, 1, 1)) | {"c": np.array(2, np.float32)},
        )

    def test_each_output_has_its_own(self, rng: np.random.Generator) -> None:
        assert tolerances(self.half_beside(rng)) == {"z": TOLERANCE, "k": 2e-3, "n": 2e-3, "logits": 2e-3}

    def test_a_half_output_does_not_loosen_another(self, rng: np.random.Generator) -> None:
        with pytest.raises(GraphError, match=r"output 'z' is 1\.0e-03 off.*expected below 1e-05"):
            optimize(self.half_beside(rng), passes=[scaling("Conv", 1.001)], strict=True)

    def test_what_was_rounded_to_half_may_be_that_far_off(self, rng: np.random.Generator) -> None:
        _, (report,) = optimize(self.half_beside(rng), passes=[scaling("Mul", 1.0005)], strict=True)
        assert 1e-5 < report.error < 2e-3

    def test_half_weights_round_nothing_when_it_runs(self, rng: np.random.Generator) -> None:
        weight = rng.standard_normal((2, 3, 1, 1)).astype(np.float16)
        nodes = [
            helper.make_node("Cast", ["h"], ["w"], to=TensorProto.FLOAT),
            helper.make_node("Conv", ["x", "w"], ["y"]),
        ]
        made = model(nodes, {"x": [1, 3, 4, 4]}, {"y": [1, 2, 4, 4]}, {"h": weight})
        assert tolerances(made) == {"y": TOLERANCE}
