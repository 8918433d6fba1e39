from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper

from fcnopt.graph.passes import optimize
from fcnopt.graph.passes.scale_shift import ScaleShiftPass
from tests.graph.build import changed, constant, conv_weights, declined, model, ops, optimized


def channels(rng: np.random.Generator, count: int) -> NDArray[np.float32]:
    return rng.uniform(0.5, 2.0, (count, 1, 1)).astype(np.float32)


def arithmetic(op: str, tensor: str, result: str, *, first: bool = True, name: str = "op") -> onnx.NodeProto:
    return helper.make_node(op, [tensor, "k"] if first else ["k", tensor], [result], name=name)


@pytest.mark.parametrize("shape", [(), (1,), (6, 1, 1), (1, 6, 1, 1)])
@pytest.mark.parametrize(
    ("op", "first"), [("Mul", True), ("Mul", False), ("Div", True), ("Add", False), ("Sub", True), ("Sub", False)]
)
@pytest.mark.parametrize("kind", ["Conv", "ConvTranspose"])
def test_after(kind: str, op: str, first: bool, shape: tuple[int, ...], rng: np.random.Generator) -> None:
    weight = (6, 2, 3, 3) if kind == "Conv" else (4, 3, 3, 3)
    before = model(
        [
            helper.make_node(kind, ["x", "w", "b"], ["c"], name="linear", group=2, pads=[1, 1, 1, 1]),
            arithmetic(op, "c", "y", first=first),
        ],
        {"x": [2, 4, 5, 6]},
        {"y": [2, 6, 5, 6]},
        conv_weights(rng, weight, bias=6) | {"k": np.asarray(rng.uniform(0.5, 2, shape), np.float32)},
    )
    made, reports = optimized(before, ScaleShiftPass)
    assert ops(made) == [kind]
    assert changed(reports) == [f"{op} 'op' into {kind} 'linear' before it"]


@pytest.mark.parametrize(("op", "first"), [("Mul", True), ("Div", True), ("Add", False), ("Sub", True), ("Sub", False)])
@pytest.mark.parametrize("group", [1, 2])
def test_before_unpadded(op: str, first: bool, group: int, rng: np.random.Generator) -> None:
    before = model(
        [arithmetic(op, "x", "s", first=first), helper.make_node("Conv", ["s", "w"], ["y"], name="c", group=group)],
        {"x": [2, 4, 5, 6]},
        {"y": [2, 6, 3, 4]},
        conv_weights(rng, (6, 4 // group, 3, 3)) | {"k": channels(rng, 4)},
    )
    assert ops(optimized(before, ScaleShiftPass)[0]) == ["Conv"]


@pytest.mark.parametrize("kind", ["Conv", "ConvTranspose"])
def test_scale_passes_padding(kind: str, rng: np.random.Generator) -> None:
    weight = (6, 4, 3, 3) if kind == "Conv" else (4, 6, 3, 3)
    before = model(
        [arithmetic("Div", "x", "s"), helper.make_node(kind, ["s", "w"], ["y"], pads=[1, 1, 1, 1], strides=[2, 2])],
        {"x": [2, 4, 5, 6]},
        {"y": [2, 6, None, None]},
        conv_weights(rng, weight) | {"k": channels(rng, 4)},
    )
    assert ops(optimized(before, ScaleShiftPass)[0]) == [kind]


@pytest.mark.parametrize("op", ["Add", "Sub"])
def test_shift_does_not_pass_padding(op: str, rng: np.random.Generator) -> None:
    before = model(
        [arithmetic(op, "x", "s"), helper.make_node("Conv", ["s", "w"], ["y"], name="c", pads=[0, 1, 0, 0])],
        {"x": [2, 4, 5, 6]},
        {"y": [2, 6, 3, 5]},
        conv_weights(rng, (6, 4, 3, 3)) | {"k": channels(rng, 4)},
    )
    made, reports = optimized(before, ScaleShiftPass)
    assert ops(made) == [op, "Conv"]
    assert declined(reports) == f"{op} 'op': a shift does not pass the zero padding of Conv 'c'"


@pytest.mark.parametrize("scale_first", [True, False])
@pytest.mark.parametrize("shift_op", [("Sub", True), ("Add", True), ("Sub", False)])
def test_normalization_leaves_one_shift(
    scale_first: bool, shift_op: tuple[str, bool], rng: np.random.Generator
) -> None:
    op, first = shift_op
    mean = ["s", "mean"] if first else ["mean", "s"]
    if scale_first:
        nodes = [helper.make_node("Mul", ["x", "scale"], ["s"]), helper.make_node(op, mean, ["m"])]
    else:
        nodes = [helper.make_node("Identity", ["x"], ["s"]), helper.make_node(op, mean, ["m"])]
    nodes += [
        helper.make_node("Div", ["m", "std"], ["n"]),
        helper.make_node("Conv", ["n", "w"], ["y"], pads=[1, 1, 1, 1]),
    ]
    before = model(
        nodes,
        {"x": [1, 3, 8, 9]},
        {"y": [1, 6, 8, 9]},
        conv_weights(rng, (6, 3, 3, 3))
        | {"scale": np.array(1 / 255, np.float32), "mean": channels(rng, 3), "std": channels(rng, 3)},
    )
    made, _ = optimized(before)
    assert ops(made) == [op, "Conv"]


def test_gemm(rng: np.random.Generator) -> None:
    before = model(
        [
            helper.make_node("Sub", ["x", "m"], ["s"]),
            helper.make_node("Gemm", ["s", "w", "b"], ["g"], alpha=2.0, beta=0.5, transB=1),
            helper.make_node("Mul", ["g", "k"], ["y"]),
        ],
        {"x": [3, 4]},
        {"y": [3, 6]},
        conv_weights(rng, (6, 4), bias=6)
        | {"m": rng.standard_normal((1, 4), np.float32), "k": rng.standard_normal(6, np.float32)},
    )
    assert ops(optimized(before, ScaleShiftPass)[0]) == ["Gemm"]


class TestDeclined:
    def after(
        self, rng: np.random.Generator, shape: tuple[int, ...], out: list[int], op: str = "Mul"
    ) -> onnx.ModelProto:
        return model(
            [helper.make_node("Conv", ["x", "w"], ["c"], name="conv"), arithmetic(op, "c", "y")],
            {"x": [1, 4, 5, 6]},
            {"y": out},
            conv_weights(rng, (1 if out[1] == 3 else 6, 4, 1, 1))
            | {"k": np.asarray(rng.uniform(1, 2, shape), np.float32)},
        )

    @pytest.mark.parametrize(
        ("shape", "out"),
        [
            ((5, 6), [1, 6, 5, 6]),
            ((6,), [1, 6, 5, 6]),
            ((2, 1, 1, 1), [2, 6, 5, 6]),
            ((3, 1, 1), [1, 3, 5, 6]),
            ((1, 1, 1, 1, 1), [1, 1, 6, 5, 6]),
        ],
    )
    def test_constant_that_is_not_one_a_channel(
        self, shape: tuple[int, ...], out: list[int], rng: np.random.Generator
    ) -> None:
        made, reports = optimized(self.after(rng, shape, out), ScaleShiftPass)
        assert ops(made) == ["Conv", "Mul"]
        assert f"its constant of shape {list(shape)} is not one value or one a channel" in declined(reports)

    def test_shared_weight(self, rng: np.random.Generator) -> None:
        before = model(
            [
                helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
                arithmetic("Mul", "c", "y"),
                helper.make_node("Conv", ["x", "w"], ["z"], name="other"),
            ],
            {"x": [1, 4, 5, 6]},
            {"y": [1, 6, 5, 6], "z": [1, 6, 5, 6]},
            conv_weights(rng, (6, 4, 1, 1)) | {"k": np.array(2, np.float32)},
        )
        made, reports = optimized(before)
        assert ops(made) == ops(before)
        assert "weight 'w' of Conv 'conv' is shared with Conv 'other'" in declined(reports)

    def test_output_in_the_middle(self, rng: np.random.Generator) -> None:
        before = model(
            [helper.make_node("Conv", ["x", "w"], ["c"], name="conv"), arithmetic("Mul", "c", "y")],
            {"x": [1, 4, 5, 6]},
            {"y": [1, 6, 5, 6], "c": [1, 6, 5, 6]},
            conv_weights(rng, (6, 4, 1, 1)) | {"k": np.array(2, np.float32)},
        )
        made, reports = optimized(before)
        assert ops(made) == ["Conv", "Mul"]
        assert "the result of Conv 'conv' is read by others too" in declined(reports)

    def test_bias_that_is_a_column(self, rng: np.random.Generator) -> None:
        before = model(
            [helper.make_node("Gemm", ["x", "w", "b"], ["g"], name="gemm"), arithmetic("Mul", "g", "y")],
            {"x": [3, 4]},
            {"y": [3, 3]},
            {
                "w": rng.standard_normal((4, 3), np.float32),
                "b": rng.standard_normal((3, 1), np.float32),
                "k": rng.standard_normal(3, np.float32),
            },
        )
        made, reports = optimized(before)
        assert ops(made) == ["Gemm", "Mul"]
        assert "the bias of Gemm 'gemm' varies along the batch" in declined(reports)

    def test_weights_that_would_overflow(self, rng: np.random.Generator) -> None:
        before = model(
            [helper.make_node("Conv", ["x", "w"], ["c"], name="conv"), arithmetic("Mul", "c", "y")],
            {"x": [1, 4, 5, 5]},
            {"y": [1, 4, 5, 5]},
            {"w": rng.standard_normal((4, 4, 1, 1), np.float32) * np.float32(1e20), "k": np.array(1e20, np.float32)},
        )
        made, reports = optimize(before, verify=False)
        assert ops(made) == ["Conv", "Mul"]
        assert "the weights of Conv 'conv' would overflow float32" in declined(reports)

    def test_shift_that_would_overflow(self, rng: np.random.Generator) -> None:
        before = model(
            [
                helper.make_node("Mul", ["x", "small"], ["s"], name="scale"),
                helper.make_node("Sub", ["s", "large"], ["n"], name="shift"),
                helper.make_node("Conv", ["n", "w"], ["y"], name="conv", pads=[1, 1, 1, 1]),
            ],
            {"x": [1, 4, 5, 5]},
            {"y": [1, 4, 5, 5]},
            conv_weights(rng, (4, 4, 3, 3))
            | {"small": np.array(1e-20, np.float32), "large": np.array(1e20, np.float32)},
        )
        made, reports = optimized(before)
        assert ops(made) == ["Mul", "Sub", "Conv"]
        assert "the constant of Sub 'shift' would overflow" in declined(reports)

    def test_scaled_weight_is_no_scaled_input(self) -> None:
        before = model(
            [arithmetic("Mul", "v", "w"), helper.make_node("Conv", ["x", "w"], ["y"], name="conv")],
            {"x": [1, 4, 5, 6], "v": [6, 4, 1, 1]},
            {"y": [1, 6, 5, 6]},
            {"k": np.array(2, np.float32)},
        )
        assert ops(optimized(before)[0]) == ["Mul", "Conv"]


def test_a_scale_of_zero_folds_but_passes_no_shift(rng: np.random.Generator) -> None:
    scale: NDArray[Any] = np.array([1, 0, 2], np.float32).reshape(3, 1, 1)
    before = model(
        [
            helper.make_node("Mul", ["x", "k"], ["s"], name="scale"),
            helper.make_node("Add", ["s", "m"], ["m1"], name="shift"),
            helper.make_node("Conv", ["m1", "w"], ["y"], name="conv", pads=[1, 1, 1, 1]),
        ],
        {"x": [1, 3, 5, 6]},
        {"y": [1, 6, 5, 6]},
        conv_weights(rng, (6, 3, 3, 3)) | {"k": scale, "m": channels(rng, 3)},
    )
    made, reports = optimized(before, ScaleShiftPass)
    assert ops(made) == ["Mul", "Add", "Conv"]
    assert "a scale is zero" in declined(reports)


def test_weights_keep_their_names(rng: np.random.Generator) -> None:
    before = model(
        [helper.make_node("Conv", ["x", "w"], ["c"], name="conv"), arithmetic("Add", "c", "y")],
        {"x": [1, 4, 5, 6]},
        {"y": [1, 6, 5, 6]},
        conv_weights(rng, (6, 4, 1, 1)) | {"k": channels(rng, 6)},
    )
    made, _ = optimized(before, ScaleShiftPass)
    assert [tensor.name for tensor in made.graph.initializer] == ["w", "w.bias"]
    np.testing.assert_array_equal(constant(made, "w.bias"), constant(before, "k").reshape(-1))


@pytest.mark.parametrize("scales", [1, 3])
def test_a_constant_that_makes_three_channels_of_a_grey_frame_stays(scales: int, rng: np.random.Generator) -> None:
    before = model(
        [
            helper.make_node("Mul", ["x", "s"], ["a"], name="scale"),
            helper.make_node("Sub", ["a", "m"], ["b"], name="mean"),
            helper.make_node("Conv", ["b", "w"], ["y"], name="conv"),
        ],
        {"x": [1, 1, 6, 7]},
        {"y": [1, 4, 4, 5]},
        conv_weights(rng, (4, 3, 3, 3)) | {"s": channels(rng, scales), "m": channels(rng, 3)},
    )
    made, reports = optimized(before, ScaleShiftPass)
    stays, name = ("Sub", "mean") if scales == 1 else ("Mul", "scale")
    assert ops(made) == [stays, "Conv"], "the other one is taken in"
    assert f"{stays} '{name}': it spreads one channel over the 3 of Conv 'conv'" in declined(reports)
