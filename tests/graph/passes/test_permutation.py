from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from fcnopt.graph.passes.permutation import PermutationPass
from tests.graph.build import changed, conv_weights, declined, model, ops, optimized

ORDER = [2, 0, 1]


def gather(axis: int = 1, order: list[int] | None = None) -> tuple[list[onnx.NodeProto], dict[str, Any]]:
    made = helper.make_node("Gather", ["x", "order"], ["g"], axis=axis, name="swap")
    return [made], {"order": np.array(order or ORDER)}


@pytest.mark.parametrize("kind", ["Conv", "ConvTranspose"])
def test_into_weights_with_padding(kind: str, rng: np.random.Generator) -> None:
    nodes, constants = gather()
    weight = (6, 3, 3, 3) if kind == "Conv" else (3, 6, 3, 3)
    before = model(
        [*nodes, helper.make_node(kind, ["g", "w"], ["y"], name="first", pads=[1, 1, 1, 1])],
        {"x": [1, 3, 5, 6]},
        {"y": [1, 6, 5, 6]},
        conv_weights(rng, weight) | constants,
    )
    made, reports = optimized(before, PermutationPass, tolerance=1e-6)
    assert ops(made) == [kind]
    assert changed(reports) == [f"Gather 'swap' into {kind} 'first'"]


def test_past_normalization_from_frames(rng: np.random.Generator) -> None:
    """Cast, Gather and constants on the last axis, a Transpose, and constants on axis 1."""
    vectors = {name: rng.uniform(1, 2, 3).astype(np.float32) for name in ("mean", "std")}
    before = model(
        [
            helper.make_node("Gather", ["x", "order"], ["g"], axis=3, name="swap"),
            helper.make_node("Cast", ["g"], ["f"], to=TensorProto.FLOAT),
            helper.make_node("Sub", ["f", "mean"], ["m"]),
            helper.make_node("Transpose", ["m"], ["t"], perm=[0, 3, 1, 2]),
            helper.make_node("Div", ["t", "spread"], ["n"]),
            helper.make_node("Mul", ["half", "n"], ["h"]),
            helper.make_node("Conv", ["h", "w"], ["y"], pads=[1, 1, 1, 1], name="first"),
        ],
        {"x": [1, 5, 6, 3]},
        {"y": [1, 6, 5, 6]},
        conv_weights(rng, (6, 3, 3, 3))
        | {"order": np.array(ORDER), "mean": vectors["mean"], "spread": vectors["std"].reshape(3, 1, 1)}
        | {"half": np.array(0.5, np.float32)},
        elem_type=TensorProto.UINT8,
        output_type=TensorProto.FLOAT,
    )
    made, _ = optimized(before, PermutationPass)
    assert ops(made) == ["Cast", "Sub", "Transpose", "Div", "Mul", "Conv"]
    assert ops(optimized(before)[0]) == ["Cast", "Sub", "Transpose", "Conv"]


def test_reversing_slice(rng: np.random.Generator) -> None:
    before = model(
        [
            helper.make_node("Slice", ["x", "s", "e", "a", "t"], ["g"]),
            helper.make_node("Conv", ["g", "w"], ["y"], pads=[1, 1, 1, 1]),
        ],
        {"x": [1, 3, 5, 6]},
        {"y": [1, 6, 5, 6]},
        conv_weights(rng, (6, 3, 3, 3))
        | {"s": np.array([-1]), "e": np.array([-(2**62)]), "a": np.array([1]), "t": np.array([-1])},
    )
    assert ops(optimized(before)[0]) == ["Conv"]


def test_gather_nd_between_transposes_as_pytorch_writes_it(rng: np.random.Generator) -> None:
    before = model(
        [
            helper.make_node("Transpose", ["x"], ["a"], perm=[1, 0, 2, 3]),
            helper.make_node("GatherND", ["a", "order"], ["g"]),
            helper.make_node("Transpose", ["g"], ["b"], perm=[1, 0, 2, 3]),
            helper.make_node("Conv", ["b", "w"], ["y"], pads=[1, 1, 1, 1]),
        ],
        {"x": [1, 3, 5, 6]},
        {"y": [1, 6, 5, 6]},
        conv_weights(rng, (6, 3, 3, 3)) | {"order": np.array(ORDER).reshape(3, 1)},
    )
    assert ops(optimized(before)[0]) == ["Conv"]


class TestDeclined:
    def before(
        self,
        rng: np.random.Generator,
        *,
        order: list[int] | None = None,
        group: int = 1,
        axis: int = 1,
        op: str = "Relu",
    ) -> onnx.ModelProto:
        nodes, constants = gather(axis, order)
        return model(
            [
                *nodes,
                helper.make_node(op, ["g"], ["r"], name="between"),
                helper.make_node("Conv", ["r", "w"], ["y"], name="first", group=group),
            ],
            {"x": [1, 3, 3, 6]},
            {"y": [1, 6, None, None]},
            conv_weights(rng, (6, 3 // group, 2, 2)) | constants,
        )

    def test_groups(self, rng: np.random.Generator) -> None:
        made, reports = optimized(self.before(rng, group=3), PermutationPass)
        assert "Gather" in ops(made)
        assert declined(reports) == "Gather 'swap': Conv 'first' has 3 groups"

    def test_another_axis(self, rng: np.random.Generator) -> None:
        assert "it does not pass Conv 'first'" in declined(optimized(self.before(rng, axis=2), PermutationPass)[1])

    def test_a_node_that_mixes_channels(self, rng: np.random.Generator) -> None:
        made, reports = optimized(self.before(rng, op="LpNormalization"), PermutationPass)
        assert "Gather" in ops(made)
        assert "it does not pass LpNormalization 'between'" in declined(reports)

    @pytest.mark.parametrize("order", [[0, 0, 1], [2, 1]])
    def test_no_permutation_is_no_match(self, order: list[int], rng: np.random.Generator) -> None:
        nodes, constants = gather(1, order)
        before = model(
            [*nodes, helper.make_node("Conv", ["g", "w"], ["y"])],
            {"x": [1, 3, 5, 6]},
            {"y": [1, 6, 5, 6]},
            conv_weights(rng, (6, len(order), 1, 1)) | constants,
        )
        made, reports = optimized(before)
        assert ops(made) == ["Gather", "Conv"]
        assert declined(reports) == ""

    def test_other_reader(self, rng: np.random.Generator) -> None:
        nodes, constants = gather()
        before = model(
            [*nodes, helper.make_node("Conv", ["g", "w"], ["y"]), helper.make_node("Relu", ["g"], ["z"])],
            {"x": [1, 3, 5, 6]},
            {"y": [1, 6, 5, 6], "z": [1, 3, 5, 6]},
            conv_weights(rng, (6, 3, 1, 1)) | constants,
        )
        made, reports = optimized(before)
        assert "Gather" in ops(made)
        assert "it is read by more than one node" in declined(reports)
