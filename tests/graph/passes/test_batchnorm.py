from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper

from fcnopt.graph.passes import optimize
from fcnopt.graph.passes.batchnorm import BatchNormPass
from tests.graph.build import changed, constant, conv_weights, declined, model, norm_constants, ops, optimized

NORM = ["gamma", "beta", "mean", "var"]


def norm(source: str, result: str, **attrs: Any) -> onnx.NodeProto:
    return helper.make_node("BatchNormalization", [source, *NORM], [result], name="bn", **attrs)


def after(
    op: str,
    weights: dict[str, NDArray[np.float32]],
    shapes: tuple[list[int], list[int]],
    rng: np.random.Generator,
    opset: int = 17,
    as_inputs: bool = False,
    as_nodes: bool = False,
    **attrs: Any,
) -> onnx.ModelProto:
    """A weighted node, then a normalization."""
    return model(
        [helper.make_node(op, ["x", *weights], ["c"], name="linear", **attrs), norm("c", "y")],
        {"x": shapes[0]},
        {"y": shapes[1]},
        weights | norm_constants(rng, shapes[1][1]),
        opset=opset,
        as_inputs=as_inputs,
        as_nodes=as_nodes,
    )


@pytest.mark.parametrize("bias", [None, 6])
@pytest.mark.parametrize("group", [1, 2])
def test_after_convolution(bias: int | None, group: int, rng: np.random.Generator) -> None:
    weights = conv_weights(rng, (6, 4 // group, 3, 3), bias=bias)
    attrs = {"group": group, "pads": [1, 1, 1, 1], "strides": [2, 2], "dilations": [1, 2]}
    before = after("Conv", weights, ([2, 4, 9, 9], [2, 6, 5, 4]), rng, **attrs)
    made, reports = optimized(before, BatchNormPass)
    assert ops(made) == ["Conv"]
    assert changed(reports) == ["BatchNormalization 'bn' into Conv 'linear' before it"]
    assert constant(made, "w").shape == (6, 4 // group, 3, 3)


@pytest.mark.parametrize("bias", [None, 6])
@pytest.mark.parametrize("group", [1, 2])
def test_after_transposed_convolution(bias: int | None, group: int, rng: np.random.Generator) -> None:
    weights = conv_weights(rng, (4, 6 // group, 4, 3), bias=bias)
    before = after(
        "ConvTranspose",
        weights,
        ([2, 4, 5, 5], [2, 6, 11, 12]),
        rng,
        group=group,
        strides=[2, 2],
        output_padding=[0, 1],
        pads=[0, 0, 1, 0],
    )
    made, _ = optimized(before, BatchNormPass)
    assert ops(made) == ["ConvTranspose"]
    assert constant(made, "w").shape == (4, 6 // group, 4, 3)


@pytest.mark.parametrize("bias", [None, (6,), (1, 6), (1,), ()])
@pytest.mark.parametrize("transposed", [0, 1])
def test_after_gemm(bias: tuple[int, ...] | None, transposed: int, rng: np.random.Generator) -> None:
    weights = {"w": rng.standard_normal((6, 4) if transposed else (4, 6), np.float32)}
    if bias is not None:
        weights["b"] = np.asarray(rng.standard_normal(bias), np.float32)
    before = after("Gemm", weights, ([5, 4], [5, 6]), rng, transB=transposed, alpha=0.5, beta=3.0)
    made, _ = optimized(before, BatchNormPass)
    assert ops(made) == ["Gemm"]


@pytest.mark.parametrize("opset", [9, 13, 15, 20, onnx.defs.onnx_opset_version()])
def test_every_opset(opset: int, rng: np.random.Generator) -> None:
    before = after("Conv", conv_weights(rng, (5, 3, 1, 1)), ([1, 3, 4, 4], [1, 5, 4, 4]), rng, opset=opset)
    assert ops(optimized(before, BatchNormPass)[0]) == ["Conv"]


def test_initializers_that_are_inputs(rng: np.random.Generator) -> None:
    shapes = ([1, 3, 4, 4], [1, 5, 4, 4])
    before = after("Conv", conv_weights(rng, (5, 3, 1, 1)), shapes, rng, opset=9, as_inputs=True)
    made, _ = optimized(before, BatchNormPass)
    assert ops(made) == ["Conv"]
    assert [value.name for value in made.graph.input] == ["x"]


def test_weights_as_constant_nodes(rng: np.random.Generator) -> None:
    before = after("Conv", conv_weights(rng, (5, 3, 1, 1)), ([1, 3, 4, 4], [1, 5, 4, 4]), rng, as_nodes=True)
    made, _ = optimized(before)
    assert [node.op_type for node in made.graph.node] == ["Conv"]


def chain(
    op: str, rng: np.random.Generator, weight: tuple[int, ...], *, shift: bool = True, **attrs: Any
) -> onnx.ModelProto:
    """A ReLU and a normalization, then a weighted node."""
    statistics = norm_constants(rng, 4)
    if not shift:
        statistics["beta"], statistics["mean"] = np.zeros(4, np.float32), np.zeros(4, np.float32)
    flat = op == "Gemm"
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        norm("r", "n"),
        helper.make_node(op, ["n", "w"], ["y"], name="linear", **attrs),
    ]
    shape = [2, 4] if flat else [2, 4, 6, 7]
    return model(
        nodes,
        {"x": shape},
        {"y": [2, None] if flat else [2, None, None, None]},
        {"w": rng.standard_normal(weight, np.float32)} | statistics,
    )


@pytest.mark.parametrize("group", [1, 2])
def test_before_unpadded_convolution(group: int, rng: np.random.Generator) -> None:
    made, reports = optimized(chain("Conv", rng, (6, 4 // group, 3, 2), group=group, strides=[1, 2]), BatchNormPass)
    assert ops(made) == ["Relu", "Conv"]
    assert changed(reports) == ["BatchNormalization 'bn' into Conv 'linear' after it"]


def test_before_gemm(rng: np.random.Generator) -> None:
    assert ops(optimized(chain("Gemm", rng, (4, 5), alpha=0.3), BatchNormPass)[0]) == ["Relu", "Gemm"]


def test_before_padded_convolution_without_shift(rng: np.random.Generator) -> None:
    made, _ = optimized(chain("Conv", rng, (6, 4, 3, 3), shift=False, pads=[1, 1, 1, 1]), BatchNormPass)
    assert ops(made) == ["Relu", "Conv"]


@pytest.mark.parametrize("group", [1, 2])
def test_before_transposed_convolution_without_shift(group: int, rng: np.random.Generator) -> None:
    before = chain("ConvTranspose", rng, (4, 6 // group, 3, 3), shift=False, group=group, strides=[2, 2])
    assert ops(optimized(before, BatchNormPass)[0]) == ["Relu", "ConvTranspose"]


@pytest.mark.parametrize("attrs", [{"pads": [0, 0, 0, 1]}, {"auto_pad": "SAME_UPPER"}])
def test_shift_before_zero_padding_is_declined(attrs: dict[str, Any], rng: np.random.Generator) -> None:
    made, reports = optimized(chain("Conv", rng, (6, 4, 3, 3), **attrs), BatchNormPass)
    assert ops(made) == ["Relu", "BatchNormalization", "Conv"]
    assert declined(reports) == ("BatchNormalization 'bn': a shift does not pass the zero padding of Conv 'linear'")


def test_shift_before_transposed_convolution_is_declined(rng: np.random.Generator) -> None:
    made, reports = optimized(chain("ConvTranspose", rng, (4, 6, 3, 3)), BatchNormPass)
    assert "BatchNormalization" in ops(made)
    assert "varying number of taps" in declined(reports)


class TestDeclined:
    def conv_norm(
        self, rng: np.random.Generator, extra: list[onnx.NodeProto], outputs: dict[str, list[int]]
    ) -> onnx.ModelProto:
        return model(
            [helper.make_node("Conv", ["x", "w"], ["c"], name="conv"), norm("c", "y"), *extra],
            {"x": [1, 4, 5, 5]},
            outputs,
            conv_weights(rng, (4, 4, 1, 1)) | norm_constants(rng, 4),
        )

    def test_shared_weight(self, rng: np.random.Generator) -> None:
        other = helper.make_node("Conv", ["x", "w"], ["z"], name="other")
        before = self.conv_norm(rng, [other], {"y": [1, 4, 5, 5], "z": [1, 4, 5, 5]})
        made, reports = optimized(before)
        assert ops(made) == ops(before)
        assert "weight 'w' of Conv 'conv' is shared with Conv 'other'" in declined(reports)
        np.testing.assert_array_equal(constant(made, "w"), constant(before, "w"))

    def test_result_with_another_reader(self, rng: np.random.Generator) -> None:
        relu = helper.make_node("Relu", ["c"], ["z"])
        made, reports = optimized(self.conv_norm(rng, [relu], {"y": [1, 4, 5, 5], "z": [1, 4, 5, 5]}))
        assert "BatchNormalization" in ops(made)
        assert "the result of Conv 'conv' is read by others too" in declined(reports)

    def test_result_that_is_an_output(self, rng: np.random.Generator) -> None:
        made, reports = optimized(self.conv_norm(rng, [], {"y": [1, 4, 5, 5], "c": [1, 4, 5, 5]}))
        assert "BatchNormalization" in ops(made)
        assert [value.name for value in made.graph.output] == ["y", "c"]
        assert "is read by others too" in declined(reports)

    def test_training_mode(self, rng: np.random.Generator) -> None:
        before = self.conv_norm(rng, [], {"y": [1, 4, 5, 5]})
        before.graph.node[1].attribute.append(helper.make_attribute("training_mode", 1))
        before.graph.node[1].output.extend(["running_mean", "running_var"])
        made, reports = optimize(before)
        assert "BatchNormalization" in ops(made)
        assert "it runs in training mode" in declined(reports)

    def test_no_weights_beside_it(self, rng: np.random.Generator) -> None:
        before = model([norm("x", "y")], {"x": [1, 4, 5, 5]}, {"y": [1, 4, 5, 5]}, norm_constants(rng, 4))
        assert "no convolution or Gemm feeds it, and none is its one reader" in declined(optimized(before)[1])

    def test_weights_that_are_an_input(self, rng: np.random.Generator) -> None:
        before = model(
            [helper.make_node("Conv", ["x", "k"], ["c"], name="conv"), norm("c", "y")],
            {"x": [1, 4, 5, 5], "k": [4, 4, 1, 1]},
            {"y": [1, 4, 5, 5]},
            norm_constants(rng, 4),
        )
        assert "the weight of Conv 'conv' is not a constant" in declined(optimized(before)[1])

    def test_half_precision_weights(self, rng: np.random.Generator) -> None:
        arrays = conv_weights(rng, (4, 4, 1, 1)) | norm_constants(rng, 4)
        before = model(
            [helper.make_node("Conv", ["x", "w"], ["c"], name="conv"), norm("c", "y")],
            {"x": [1, 4, 5, 5]},
            {"y": [1, 4, 5, 5]},
            {name: value.astype(np.float16) for name, value in arrays.items()},
            elem_type=onnx.TensorProto.FLOAT16,
        )
        assert "float16: folding would round them again" in declined(optimized(before)[1])

    @pytest.mark.parametrize("large", ["w", "mean"], ids=["kernel", "bias"])
    def test_weights_that_would_overflow(self, large: str, rng: np.random.Generator) -> None:
        arrays = conv_weights(rng, (4, 4, 1, 1)) | norm_constants(rng, 4)
        arrays["gamma"] = np.full(4, 1e20, np.float32)
        arrays[large] *= np.float32(1e25)
        before = model(
            [helper.make_node("Conv", ["x", "w"], ["c"], name="conv"), norm("c", "y")],
            {"x": [1, 4, 5, 5]},
            {"y": [1, 4, 5, 5]},
            arrays,
        )
        made, reports = optimize(before, verify=False)
        assert "BatchNormalization" in ops(made)
        assert "the weights of Conv 'conv' would overflow float32" in declined(reports)


def test_shared_bias_is_not_changed_for_the_other(rng: np.random.Generator) -> None:
    arrays = conv_weights(rng, (4, 4, 1, 1), bias=4) | norm_constants(rng, 4) | {"v": np.ones((4, 4, 1, 1), np.float32)}
    before = model(
        [
            helper.make_node("Conv", ["x", "w", "b"], ["c"], name="conv"),
            norm("c", "y"),
            helper.make_node("Conv", ["x", "v", "b"], ["z"], name="other"),
        ],
        {"x": [1, 4, 5, 5]},
        {"y": [1, 4, 5, 5], "z": [1, 4, 5, 5]},
        arrays,
    )
    made, _ = optimized(before, BatchNormPass)
    assert ops(made) == ["Conv", "Conv"]
    np.testing.assert_array_equal(constant(made, "b"), arrays["b"])


def test_normalization_between_two_convolutions_goes_into_the_first(rng: np.random.Generator) -> None:
    before = model(
        [
            helper.make_node("Conv", ["x", "w"], ["c"], name="first"),
            norm("c", "n"),
            helper.make_node("Conv", ["n", "v"], ["y"], name="second", pads=[1, 1, 1, 1]),
        ],
        {"x": [1, 3, 5, 5]},
        {"y": [1, 2, 5, 5]},
        conv_weights(rng, (4, 3, 1, 1)) | norm_constants(rng, 4) | {"v": rng.standard_normal((2, 4, 3, 3), np.float32)},
    )
    made, reports = optimized(before, BatchNormPass)
    assert ops(made) == ["Conv", "Conv"]
    assert changed(reports) == ["BatchNormalization 'bn' into Conv 'first' before it"]
