from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from fcnopt.graph.passes.pad import PadPass
from tests.graph.build import attribute, changed, conv_weights, declined, model, node, ops, optimized

AMOUNTS = [0, 0, 1, 2, 0, 0, 3, 0]


def padded(
    rng: np.random.Generator,
    user: str,
    *,
    value: float | None = None,
    amounts: list[int] | None = None,
    opset: int = 17,
    axes: list[int] | None = None,
    relu: bool = False,
    mode: str | None = None,
    **attrs: Any,
) -> onnx.ModelProto:
    """[Relu,] Pad, then a convolution or pooling."""
    amounts = AMOUNTS if amounts is None else amounts
    options: dict[str, Any] = {} if mode is None else {"mode": mode}
    constants: dict[str, Any] = conv_weights(rng, (5, 4, 3, 3)) if user == "Conv" else {}
    inputs = ["r" if relu else "x"]
    if opset < 11:
        options |= {"pads": amounts} | ({} if value is None else {"value": value})
    else:
        inputs += ["amounts", "value" if value is not None else "", *(["axes"] if axes else [])]
        constants["amounts"] = np.array(amounts)
        constants |= {} if value is None else {"value": np.array(value, np.float32)}
        constants |= {} if axes is None else {"axes": np.array(axes)}
    nodes = [helper.make_node("Relu", ["x"], ["r"])] if relu else []
    nodes.append(helper.make_node("Pad", inputs, ["p"], name="pad", **options))
    nodes.append(helper.make_node(user, ["p", *(["w"] if user == "Conv" else [])], ["y"], name="user", **attrs))
    return model(nodes, {"x": [1, 4, 6, 7]}, {"y": [None] * 4}, constants, opset=opset)


@pytest.mark.parametrize("opset", [9, 11, 13, 18, 21])
def test_into_convolution(opset: int, rng: np.random.Generator) -> None:
    made, reports = optimized(padded(rng, "Conv", opset=opset, pads=[1, 0, 0, 1]), PadPass)
    assert ops(made) == ["Conv"]
    assert attribute(node(made, "Conv"), "pads") == [2, 2, 3, 1]
    assert changed(reports) == ["Pad 'pad' into Conv 'user'"]


def test_axes(rng: np.random.Generator) -> None:
    made, _ = optimized(padded(rng, "Conv", opset=18, amounts=[1, 2, 3, 4], axes=[-1, 2]), PadPass)
    assert attribute(node(made, "Conv"), "pads") == [2, 1, 4, 3]


def test_hundred_on_each_side(rng: np.random.Generator) -> None:
    made, _ = optimized(padded(rng, "Conv", amounts=[0, 0, 100, 100] * 2, pads=[1, 1, 1, 1]), PadPass)
    assert attribute(node(made, "Conv"), "pads") == [101] * 4


def test_into_valid(rng: np.random.Generator) -> None:
    made, _ = optimized(padded(rng, "Conv", auto_pad="VALID"), PadPass)
    assert attribute(node(made, "Conv"), "auto_pad") is None


POOL = {"kernel_shape": [4, 4], "strides": [2, 2]}


def test_minus_infinity_into_max_pool(rng: np.random.Generator) -> None:
    assert ops(optimized(padded(rng, "MaxPool", value=-np.inf, **POOL), PadPass)[0]) == ["MaxPool"]


def test_zero_after_relu_into_max_pool(rng: np.random.Generator) -> None:
    assert ops(optimized(padded(rng, "MaxPool", value=0, relu=True, **POOL), PadPass)[0]) == ["Relu", "MaxPool"]


def test_into_average_pool(rng: np.random.Generator) -> None:
    made, _ = optimized(padded(rng, "AveragePool", **POOL), PadPass)
    assert ops(made) == ["AveragePool"]
    assert attribute(node(made, "AveragePool"), "count_include_pad") == 1


@pytest.mark.parametrize(
    ("user", "options", "reason"),
    [
        ("Conv", {"value": 1.0}, "it pads by 1, a convolution by 0"),
        ("Conv", {"mode": "reflect"}, "it pads by reflect, not by a constant"),
        ("Conv", {"amounts": [0, 0, -1, 0, 0, 0, 0, 0]}, "it crops"),
        ("Conv", {"amounts": [1, 0, 0, 0, 0, 0, 0, 0]}, "it pads batch or channels"),
        ("Conv", {"auto_pad": "SAME_UPPER"}, "Conv 'user' derives its padding from its output's shape"),
        ("MaxPool", {"value": 0.0, **POOL}, "it pads by 0, MaxPool by -inf"),
        (
            "MaxPool",
            {"value": -np.inf, "kernel_shape": [2, 3]},
            r"padding of [1, 2, 3, 0] is not below the kernel [2, 3]",
        ),
        ("MaxPool", {"value": -np.inf, **POOL, "ceil_mode": 1}, "rounds its output's shape up"),
        ("AveragePool", {"value": 1.0, **POOL}, "it pads by 1, AveragePool by 0"),
        ("AveragePool", {**POOL, "pads": [1, 1, 0, 0]}, "does not count its own padding"),
    ],
)
def test_declined(user: str, options: dict[str, Any], reason: str, rng: np.random.Generator) -> None:
    made, reports = optimized(padded(rng, user, **options))
    assert ops(made) == ["Pad", user]
    assert reason in declined(reports)


def test_computed_amounts_are_declined(rng: np.random.Generator) -> None:
    before = model(
        [
            helper.make_node("Shape", ["x"], ["s"]),
            helper.make_node("Concat", ["s", "s"], ["p"], axis=0),
            helper.make_node("Mul", ["p", "spatial"], ["q"]),
            helper.make_node("Pad", ["x", "q"], ["padded"], name="pad"),
            helper.make_node("Conv", ["padded", "w"], ["y"]),
        ],
        {"x": [1, 4, "H", "W"]},
        {"y": [1, 5, None, None]},
        conv_weights(rng, (5, 4, 3, 3)) | {"spatial": np.array([0, 0, 1, 1] * 2)},
    )
    made, reports = optimized(before)
    assert "Pad" in ops(made)
    assert "is not a constant" in declined(reports)


def test_a_dilated_window_may_meet_nothing_but_padding(rng: np.random.Generator) -> None:
    options = {"kernel_shape": [2, 2], "dilations": [3, 3], "amounts": [0, 0, 1, 1] * 2}
    made, reports = optimized(padded(rng, "MaxPool", relu=True, **options), PadPass)
    assert ops(made) == ["Relu", "Pad", "MaxPool"]
    assert "MaxPool 'user', which is dilated, may meet nothing but padding" in declined(reports)


def test_a_pool_that_tells_places_keeps_its_pad() -> None:
    before = model(
        [
            helper.make_node("Relu", ["x"], ["r"]),
            helper.make_node("Pad", ["r", "amounts"], ["p"], name="pad"),
            helper.make_node("MaxPool", ["p"], ["pooled", "y"], name="pool", kernel_shape=[2, 2], strides=[2, 2]),
        ],
        {"x": [1, 2, 7, 7]},
        {"y": [1, 2, 4, 4]},
        {"amounts": np.array([0, 0, 0, 0, 0, 0, 1, 1])},
        output_type=onnx.TensorProto.INT64,
    )
    made, reports = optimized(before, PadPass)
    assert ops(made) == ["Relu", "Pad", "MaxPool"]
    assert "MaxPool 'pool' tells places in what it pads" in declined(reports)
