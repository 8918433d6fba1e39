from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from fcnopt.graph.passes.crop import CropPass
from fcnopt.graph.stats import stats_of
from tests.graph.build import attribute, changed, conv_weights, declined, model, node, ops, optimized

Cut = dict[int, tuple[int, int]]
END = 2**63 - 1


def slice_node(source: str, result: str, cut: Cut, opset: int = 17) -> tuple[onnx.NodeProto, dict[str, Any]]:
    """A Slice named after its result, and the constants it reads."""
    starts, ends = ([pair[i] for pair in cut.values()] for i in (0, 1))
    if opset < 10:
        return helper.make_node("Slice", [source], [result], name=result, axes=list(cut), starts=starts, ends=ends), {}
    names = [f"{result}.{part}" for part in ("s", "e", "a")]
    values = (np.array(part, np.int64) for part in (starts, ends, list(cut)))
    return helper.make_node("Slice", [source, *names], [result], name=result), dict(zip(names, values, strict=True))


def crops(
    *cuts: Cut, shape: list[Any] | None = None, opset: int = 17, outputs: tuple[str, ...] = ()
) -> onnx.ModelProto:
    """Slices one after another, c0, c1, ..., of a Relu's result."""
    nodes, constants, tensor = [helper.make_node("Relu", ["x"], ["r"])], {}, "r"
    for i, cut in enumerate(cuts):
        made, values = slice_node(tensor, f"c{i}", cut, opset)
        nodes.append(made)
        constants |= values
        tensor = f"c{i}"
    return model(
        nodes, {"x": shape or [1, 3, 20, 30]}, {name: [None] * 4 for name in (tensor, *outputs)}, constants, opset=opset
    )


class TestMerge:
    @pytest.mark.parametrize("opset", [9, 10, 13, 21])
    def test_different_axes(self, opset: int) -> None:
        made, reports = optimized(crops({2: (0, 11)}, {3: (5, 26)}, opset=opset), CropPass)
        assert ops(made) == ["Relu", "Slice"]
        assert changed(reports) == ["merged Slice 'c1' and Slice 'c0'"]

    @pytest.mark.parametrize("shape", [[1, 3, 20, 30], ["N", 3, "H", "W"]])
    def test_same_axis(self, shape: list[Any]) -> None:
        made, _ = optimized(
            crops({2: (3, 17), 3: (2, END)}, {2: (2, 9), 3: (1, 20)}, {2: (1, END)}, shape=shape), CropPass
        )
        assert ops(made) == ["Relu", "Slice"]

    def test_from_the_end_of_a_known_axis(self) -> None:
        made, _ = optimized(crops({2: (-17, -2)}, {-2: (1, -1)}), CropPass)
        assert ops(made) == ["Relu", "Slice"]

    def test_from_the_end_of_an_unknown_axis_is_declined(self) -> None:
        made, reports = optimized(crops({2: (3, -2)}, {2: (1, -1)}, shape=["N", 3, "H", "W"]), CropPass)
        assert ops(made) == ["Relu", "Slice", "Slice"]
        assert "it cuts an axis that Slice 'c0' cuts too" in declined(reports)

    def test_output_in_the_middle_is_kept(self) -> None:
        assert ops(optimized(crops({2: (0, 11)}, {3: (5, 26)}, outputs=("c0",)))[0]) == ["Relu", "Slice", "Slice"]

    def test_steps_on_another_axis(self) -> None:
        before = crops({2: (0, 11)}, {3: (5, 26)})
        before.graph.initializer.append(onnx.numpy_helper.from_array(np.array([2]), "steps"))
        before.graph.node[1].input.append("steps")
        made, _ = optimized(before, CropPass)
        assert ops(made) == ["Relu", "Slice"]

    @pytest.mark.parametrize("dtype", [np.int64, np.int32])
    def test_computed_bounds_side_by_side(self, dtype: type[np.integer[Any]]) -> None:
        before = model(
            [
                helper.make_node("Shape", ["x"], ["h64"], start=2, end=3),
                helper.make_node("Cast", ["h64"], ["h"], to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype))),
                helper.make_node("Sub", ["h", "three"], ["most"]),
                helper.make_node("Slice", ["x", "one", "most", "two"], ["c0"]),
                helper.make_node("Slice", ["c0", "one", "five", "three"], ["y"]),
            ],
            {"x": ["N", 3, "H", "W"]},
            {"y": [None] * 4},
            {name: np.array([value], dtype) for name, value in (("one", 1), ("two", 2), ("three", 3), ("five", 5))},
        )
        made, _ = optimized(before, CropPass)
        assert ops(made).count("Slice") == 1
        assert ops(made).count("Concat") == 1


class TestPush:
    def network(
        self, rng: np.random.Generator, *between: onnx.NodeProto, cut: Cut, first: str = "Conv"
    ) -> onnx.ModelProto:
        """A 3x3 convolution and ReLU, then `between` from r to s, then a crop."""
        made, values = slice_node("s", "y", cut)
        nodes = [
            helper.make_node(first, ["x", "w"], ["c"], name="first", pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["c"], ["r"], name="relu"),
            *between,
            made,
        ]
        constants = conv_weights(rng, (4, 4, 3, 3), bias=5) | {
            "v": rng.standard_normal((5, 4, 1, 1), np.float32),
            "k": rng.standard_normal((5, 1, 1), np.float32),
        }
        return model(nodes, {"x": [1, 4, 9, 10]}, {"y": [None] * 4}, constants | values)

    def test_above_a_1x1_convolution(self, rng: np.random.Generator) -> None:
        score = [
            helper.make_node("Conv", ["r", "v", "b"], ["t"], name="score"),
            helper.make_node("Mul", ["t", "k"], ["u"], name="scale"),
            helper.make_node("LeakyRelu", ["u"], ["s"], name="leaky"),
        ]
        before = self.network(rng, *score, cut={2: (1, 6), 3: (2, 9)})
        made, reports = optimized(before, CropPass)
        assert ops(made) == ["Conv", "Relu", "Slice", "Conv", "Mul", "LeakyRelu"]
        assert changed(reports) == ["pushed Slice 'y' above LeakyRelu 'leaky', Mul 'scale', Conv 'score'"]
        assert (stats_of(before).macs or 0) - (stats_of(made).macs or 0) == (90 - 35) * 20

    def test_not_between_a_convolution_and_its_relu(self, rng: np.random.Generator) -> None:
        same = helper.make_node("Abs", ["r"], ["s"])
        assert ops(optimized(self.network(rng, same, cut={2: (1, 6)}))[0]) == ["Conv", "Relu", "Abs", "Slice"]

    @pytest.mark.parametrize(
        "attrs", [{"strides": [2, 2]}, {"pads": [1, 1, 1, 1]}, {"auto_pad": "SAME_LOWER"}], ids=str
    )
    def test_not_above_a_convolution_that_moves_pixels(self, attrs: dict[str, Any], rng: np.random.Generator) -> None:
        score = helper.make_node("Conv", ["r", "v"], ["s"], name="score", **attrs)
        assert ops(optimized(self.network(rng, score, cut={2: (1, 4)}))[0]) == ["Conv", "Relu", "Conv", "Slice"]

    def test_not_above_a_convolution_if_it_cuts_channels(self, rng: np.random.Generator) -> None:
        score = helper.make_node("Conv", ["r", "v"], ["s"], name="score")
        assert ops(optimized(self.network(rng, score, cut={1: (1, 4)}))[0]) == ["Conv", "Relu", "Conv", "Slice"]

    def test_not_above_a_node_with_another_reader(self, rng: np.random.Generator) -> None:
        before = self.network(rng, helper.make_node("Conv", ["r", "v"], ["s"], name="score"), cut={2: (1, 4)})
        before.graph.output.append(helper.make_tensor_value_info("s", onnx.TensorProto.FLOAT, [1, 5, 9, 10]))
        assert ops(optimized(before)[0]) == ["Conv", "Relu", "Conv", "Slice"]

    def test_up_to_another_crop(self) -> None:
        first, one = slice_node("x", "c", {2: (1, 12)})
        second, two = slice_node("r", "y", {3: (2, 20)})
        before = model(
            [first, helper.make_node("Relu", ["c"], ["r"], name="relu"), second],
            {"x": [1, 3, 20, 30]},
            {"y": [None] * 4},
            one | two,
        )
        assert ops(optimized(before, CropPass)[0]) == ["Slice", "Relu"]

    def test_computed_crop_above_a_1x1_convolution(self, rng: np.random.Generator) -> None:
        before = model(
            [
                helper.make_node("Shape", ["x"], ["h"], start=2, end=3),
                helper.make_node("Div", ["h", "two"], ["half"]),
                helper.make_node("Conv", ["x", "w"], ["c"]),
                helper.make_node("Slice", ["c", "one", "half", "two"], ["y"]),
            ],
            {"x": ["N", 3, "H", "W"]},
            {"y": [None] * 4},
            conv_weights(rng, (5, 3, 1, 1)) | {"one": np.array([1]), "two": np.array([2])},
        )
        assert ops(optimized(before, CropPass)[0]) == ["Shape", "Div", "Slice", "Conv"]


class TestTransposedConvolution:
    def up(
        self,
        rng: np.random.Generator,
        cut: Cut,
        *,
        shape: list[Any] | None = None,
        kernel: int = 4,
        opset: int = 17,
        **attrs: Any,
    ) -> onnx.ModelProto:
        made, values = slice_node("u", "y", cut, opset)
        return model(
            [helper.make_node("ConvTranspose", ["x", "w", "b"], ["u"], name="up", **attrs), made],
            {"x": shape or [1, 4, 5, 6]},
            {"y": [None] * 4},
            conv_weights(rng, (4, 3, kernel, kernel), bias=3) | values,
            opset=opset,
        )

    @pytest.mark.parametrize("opset", [9, 17])
    def test_top_left_crop_is_padding_at_the_end(self, opset: int, rng: np.random.Generator) -> None:
        before = self.up(rng, {2: (0, 9), 3: (0, 11)}, strides=[2, 2], pads=[1, 1, 1, 1], opset=opset)
        made, reports = optimized(before, CropPass)
        assert ops(made) == ["ConvTranspose"]
        assert attribute(node(made, "ConvTranspose"), "pads") == [1, 1, 2, 2]
        assert changed(reports) == ["took Slice 'y' into the padding of ConvTranspose 'up'"]

    @pytest.mark.parametrize(
        "cut", [{2: (1, 10)}, {2: (2, 12), 3: (3, 13)}, {3: (0, 1)}, {2: (7, 8), 3: (5, 6)}, {2: (11, 12)}], ids=str
    )
    def test_any_window(self, cut: Cut, rng: np.random.Generator) -> None:
        made, _ = optimized(self.up(rng, cut, strides=[2, 2]), CropPass)
        assert set(ops(made)) <= {"Slice", "ConvTranspose"}
        assert ops(made)[-1] == "ConvTranspose"

    def test_deep_crop_drops_inputs_that_are_not_needed(self, rng: np.random.Generator) -> None:
        # as FCN-8s with padding 100 crops: 31 at each side of a 16-tap, stride-8 deconvolution
        before = self.up(rng, {2: (31, 71), 3: (31, 95)}, shape=[1, 4, 13, 16], kernel=16, strides=[8, 8])
        made, _ = optimized(before, CropPass)
        assert ops(made) == ["Slice", "ConvTranspose"]
        assert attribute(node(made, "ConvTranspose"), "pads") == [15, 15, 9, 9]
        assert (stats_of(made).macs or 0) < 0.6 * (stats_of(before).macs or 0)

    def test_output_padding_is_cut_first(self, rng: np.random.Generator) -> None:
        before = self.up(rng, {2: (0, 12), 3: (0, 13)}, strides=[2, 2], output_padding=[1, 1])
        made, _ = optimized(before, CropPass)
        up = node(made, "ConvTranspose")
        assert ops(made) == ["ConvTranspose"]
        assert (attribute(up, "pads"), attribute(up, "output_padding")) == ([0, 0, 0, 1], None)

    def test_dilated(self, rng: np.random.Generator) -> None:
        made, _ = optimized(self.up(rng, {2: (2, 12), 3: (6, 14)}, dilations=[2, 3], strides=[2, 1]), CropPass)
        assert ops(made)[-1] == "ConvTranspose"

    def test_through_a_constant_bias(self, rng: np.random.Generator) -> None:
        made, values = slice_node("z", "y", {2: (1, 9)})
        before = model(
            [
                helper.make_node("ConvTranspose", ["x", "w"], ["u"], strides=[2, 2]),
                helper.make_node("Relu", ["u"], ["z"]),
                made,
            ],
            {"x": [1, 4, 5, 6]},
            {"y": [None] * 4},
            conv_weights(rng, (4, 3, 4, 4)) | values,
        )
        assert ops(optimized(before, CropPass)[0]) == ["ConvTranspose", "Relu"]

    def test_open_end_of_a_dynamic_axis(self, rng: np.random.Generator) -> None:
        made, _ = optimized(
            self.up(rng, {2: (1, END), 3: (3, END)}, shape=["N", 4, "H", "W"], strides=[2, 2]), CropPass
        )
        assert ops(made) == ["ConvTranspose"]
        assert attribute(node(made, "ConvTranspose"), "pads") == [1, 3, 0, 0]

    @pytest.mark.parametrize(
        ("cut", "options", "reason"),
        [
            ({2: (0, 9)}, {"shape": ["N", 4, "H", "W"]}, "how much it cuts off the end depends on the input's size"),
            ({2: (0, -1)}, {"shape": ["N", 4, "H", "W"]}, "its bounds depend on the input's size"),
            ({1: (0, 2)}, {}, "it cuts batch or channels"),
            ({2: (1, 9)}, {"auto_pad": "SAME_UPPER"}, "derives its padding from its output's shape"),
            ({2: (4, 9)}, {"strides": [6, 6]}, "begins or ends between its taps"),
        ],
    )
    def test_declined(self, cut: Cut, options: dict[str, Any], reason: str, rng: np.random.Generator) -> None:
        made, reports = optimized(self.up(rng, cut, **options), CropPass)
        assert ops(made) == ["ConvTranspose", "Slice"]
        assert reason in declined(reports)

    def test_result_with_another_reader_is_left(self, rng: np.random.Generator) -> None:
        before = self.up(rng, {2: (0, 5)})
        before.graph.output.append(helper.make_tensor_value_info("u", onnx.TensorProto.FLOAT, [1, 3, 8, 9]))
        assert ops(optimized(before)[0]) == ["ConvTranspose", "Slice"]


def test_a_cast_to_integers_is_not_passed() -> None:
    cut, constants = slice_node("i", "y", {2: (1, 3)})
    first, more = slice_node("x", "c", {2: (1, 7)})
    before = model(
        [first, helper.make_node("Cast", ["c"], ["i"], to=onnx.TensorProto.INT64), cut],
        {"x": [1, 3, 8, 8]},
        {"y": [None] * 4},
        constants | more,
        output_type=onnx.TensorProto.INT64,
    )
    assert ops(optimized(before)[0]) == ["Slice", "Cast", "Slice"]
