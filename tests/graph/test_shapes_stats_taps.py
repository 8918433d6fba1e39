from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from fcnopt.errors import GraphError
from fcnopt.graph.checks import without_weights
from fcnopt.graph.shapes import input_shapes, is_dynamic, tensor_types
from fcnopt.graph.stats import macs_by_node, stats_of
from fcnopt.graph.taps import decisive, expose, logits_name
from tests.graph.build import model


def dynamic_crop(rng: np.random.Generator) -> onnx.ModelProto:
    """Stride 2 down, stride 2 up, cropped to (height of the input + 2) / 2 by arithmetic on shapes."""
    return model(
        [
            helper.make_node("Conv", ["x", "w"], ["down"], name="down", strides=[2, 2], pads=[1, 1, 1, 1]),
            helper.make_node("ConvTranspose", ["down", "v"], ["up"], name="up", strides=[2, 2]),
            helper.make_node("Shape", ["x"], ["height"], start=2, end=3),
            helper.make_node("Add", ["height", "two"], ["more"]),
            helper.make_node("Div", ["more", "two"], ["half"]),
            helper.make_node("Slice", ["up", "zero", "half", "axis"], ["y"], name="crop"),
        ],
        {"x": ["N", 3, "H", "W"]},
        {"y": ["N", 2, None, None]},
        {
            "w": rng.standard_normal((4, 3, 3, 3), np.float32),
            "v": rng.standard_normal((4, 2, 4, 4), np.float32),
            "two": np.array([2]),
            "zero": np.array([0]),
            "axis": np.array([2]),
        },
    )


def test_shape_arithmetic_is_evaluated_at_a_size(rng: np.random.Generator) -> None:
    made = dynamic_crop(rng)
    assert tensor_types(made)["y"].static is None
    assert tensor_types(made, (20, 31))["y"].static == (1, 2, 11, 34)


def test_inputs_are_bound_by_their_layout() -> None:
    copy = helper.make_node("Identity", ["x"], ["y"])
    first = model([copy], {"x": ["N", 3, "H", "W"]}, {"y": ["N", 3, "H", "W"]})
    last = model([copy], {"x": ["N", "H", "W", 3]}, {"y": ["N", "H", "W", 3]})
    fixed = model([copy], {"x": [2, 3, 8, 9]}, {"y": [2, 3, 8, 9]})
    assert input_shapes(first, (5, 7)) == {"x": (1, 3, 5, 7)}
    assert input_shapes(last, (5, 7)) == {"x": (1, 5, 7, 3)}
    assert input_shapes(fixed, (5, 7)) == {"x": (2, 3, 8, 9)}
    assert input_shapes(first, (5, 7), batch=2) == {"x": (2, 3, 5, 7)}
    assert input_shapes(last, (5, 7), batch=2) == {"x": (2, 5, 7, 3)}
    rows = model([copy], {"x": ["N", 4]}, {"y": ["N", 4]})
    row = model([copy], {"x": ["K"]}, {"y": ["K"]})
    assert [input_shapes(m, (5, 7), batch=2)["x"] for m in (rows, row)] == [(2, 4), (1,)]
    assert [is_dynamic(m) for m in (first, last, fixed)] == [True, True, False]


def test_light_copy_has_no_large_weights_and_still_checks(rng: np.random.Generator) -> None:
    made = model(
        [helper.make_node("Conv", ["x", "w"], ["y"])],
        {"x": [1, 16, 4, 4]},
        {"y": [1, 64, 4, 4]},
        {"w": rng.standard_normal((64, 16, 1, 1), np.float32)},
    )
    light = without_weights(made)
    onnx.checker.check_model(light, full_check=True)
    assert light.ByteSize() < 500 < made.ByteSize()
    assert tensor_types(made)["w"].static == (64, 16, 1, 1)


class TestMacs:
    def test_grouped_convolution(self, rng: np.random.Generator) -> None:
        made = model(
            [helper.make_node("Conv", ["x", "w"], ["y"], name="conv", group=2, strides=[2, 1], pads=[1, 1, 1, 1])],
            {"x": [1, 4, 8, 9]},
            {"y": [1, 6, 4, 9]},
            {"w": rng.standard_normal((6, 2, 3, 3), np.float32)},
        )
        # 6 output channels at 4 x 9 places, each from 2 input channels at 3 x 3 taps
        assert macs_by_node(made) == {"conv": 6 * 4 * 9 * 2 * 3 * 3}

    def test_grouped_transposed_convolution(self, rng: np.random.Generator) -> None:
        made = model(
            [helper.make_node("ConvTranspose", ["x", "w"], ["y"], name="up", group=2, strides=[2, 2])],
            {"x": [1, 4, 5, 6]},
            {"y": [1, 6, 12, 14]},
            {"w": rng.standard_normal((4, 3, 4, 4), np.float32)},
        )
        # each of 4 x 5 x 6 inputs goes to the 3 output channels of its group at 4 x 4 taps
        assert macs_by_node(made) == {"up": 4 * 5 * 6 * 3 * 4 * 4}

    @pytest.mark.parametrize(("op", "attrs"), [("MatMul", {}), ("Gemm", {}), ("Gemm", {"transA": 1})])
    def test_matrix_product(self, op: str, attrs: dict[str, int], rng: np.random.Generator) -> None:
        shape = [5, 7][:: -1 if attrs else 1]
        made = model(
            [helper.make_node(op, ["x", "w"], ["y"], **attrs)],
            {"x": shape},
            {"y": [5, 3]},
            {"w": rng.standard_normal((7, 3), np.float32)},
        )
        assert macs_by_node(made) == {"y": 5 * 7 * 3}

    def test_dynamic_needs_a_size(self, rng: np.random.Generator) -> None:
        made = dynamic_crop(rng)
        assert stats_of(made).macs is None
        assert stats_of(made).activation_bytes is None
        assert stats_of(made, (20, 31)).macs == 4 * 10 * 16 * 3 * 9 + 4 * 10 * 16 * 2 * 16
        assert set(macs_by_node(made, (20, 31))) == {"down", "up"}


def test_counts(rng: np.random.Generator) -> None:
    made = model(
        [
            helper.make_node("Conv", ["x", "w", "b"], ["c"]),
            helper.make_node("Relu", ["c"], ["r"]),
            helper.make_node("Slice", ["r", "start", "end", "axis"], ["y"]),
        ],
        {"x": [1, 3, 4, 4]},
        {"y": [1, 5, 2, 4]},
        {
            "w": rng.standard_normal((5, 3, 1, 1), np.float32),
            "b": rng.standard_normal(5, np.float32),
            "start": np.array([0]),
            "end": np.array([2]),
            "axis": np.array([2]),
        },
        as_nodes=True,
    )
    stats = stats_of(made)
    assert (stats.nodes, stats.ops) == (3, {"Conv": 1, "Relu": 1, "Slice": 1})
    assert (stats.parameters, stats.parameter_bytes) == (20, 20 * 4 + 3 * 8)
    assert stats.activation_bytes == 4 * (80 + 80 + 40)


class TestTaps:
    def scores(self, argmax: int = 1) -> onnx.ModelProto:
        nodes = [helper.make_node("Relu", ["x"], ["scores"], name="r")]
        nodes += [helper.make_node("ArgMax", ["scores"], [f"y{i}"], axis=1, keepdims=0) for i in range(argmax)]
        outputs = {f"y{i}": [1, 6, 7] for i in range(argmax)} or {"scores": [1, 5, 6, 7]}
        kind = TensorProto.INT64 if argmax else TensorProto.FLOAT
        return model(nodes, {"x": [1, 5, 6, 7]}, outputs, output_type=kind)

    def test_what_argmax_reads(self) -> None:
        assert logits_name(self.scores()) == "scores"

    def test_the_float_output_where_there_is_no_argmax(self) -> None:
        assert logits_name(self.scores(argmax=0)) == "scores"

    def test_none(self) -> None:
        flat = model([helper.make_node("Relu", ["x"], ["y"])], {"x": [1, 5]}, {"y": [1, 5]})
        with pytest.raises(GraphError, match=r"expected one tensor of class scores .*, found none"):
            logits_name(flat)

    def test_two(self) -> None:
        two = self.scores(argmax=2)
        two.graph.node[2].input[0] = "x"
        with pytest.raises(GraphError, match="found scores, x"):
            logits_name(two)

    def test_exposed_tensors_are_typed_outputs_of_a_copy(self) -> None:
        before = self.scores()
        after = expose(before, ["scores", "scores", "y0"])
        onnx.checker.check_model(after, full_check=True)
        assert [value.name for value in after.graph.output] == ["y0", "scores"]
        assert after.graph.output[1].type.tensor_type.elem_type == TensorProto.FLOAT
        assert [value.name for value in before.graph.output] == ["y0"]

    def test_exposing_nothing_known(self) -> None:
        with pytest.raises(GraphError, match="no tensor 'typo' of known type"):
            expose(self.scores(), ["typo"])


class TestDecisive:
    def test_the_one_argmax_reads_the_logits(self) -> None:
        assert decisive(TestTaps().scores()) == {"logits": "scores"}

    def test_two_are_counted_from_the_outputs_up(self) -> None:
        made = TestTaps().scores(argmax=2)
        assert decisive(made) == {"input of ArgMax 1": "scores", "input of ArgMax 2": "scores"}

    def test_lengths_constants_masks_and_quantized_floats_decide_nothing(self) -> None:
        nodes = [
            helper.make_node("Dropout", ["x"], ["d", "mask"]),
            helper.make_node("QuantizeLinear", ["d", "scale"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "scale"], ["r"]),
            helper.make_node("Shape", ["r"], ["s"]),
            helper.make_node("Cast", ["s"], ["f"], to=TensorProto.FLOAT),
            helper.make_node("Cast", ["f"], ["t"], to=TensorProto.INT64),
            helper.make_node("Cast", ["scale"], ["i"], to=TensorProto.INT64),
            helper.make_node("Mul", ["t", "i"], ["u"]),
            helper.make_node("Reshape", ["r", "u"], ["y"]),
        ]
        made = model(nodes, {"x": [1, 2, 3, 3]}, {"y": [None] * 4}, {"scale": np.array(1.0, np.float32)})
        assert decisive(made) == {}

    def test_quantized_output_is_decided_by_what_is_quantized(self) -> None:
        nodes = [helper.make_node("Relu", ["x"], ["r"]), helper.make_node("QuantizeLinear", ["r", "scale"], ["y"])]
        scale = {"scale": np.array(1.0, np.float32)}
        made = model(nodes, {"x": [1, 2]}, {"y": [1, 2]}, scale, output_type=TensorProto.UINT8)
        assert decisive(made) == {"input of QuantizeLinear 1": "r"}
