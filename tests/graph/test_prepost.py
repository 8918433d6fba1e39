from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from fcnopt.errors import FcnoptError, GraphError, UsageError
from fcnopt.graph import io
from fcnopt.graph.passes import WHOLE_FRAMES, optimize
from fcnopt.graph.prepost import attach, batch_of, offset_and_factor
from fcnopt.spec import NORMALIZATIONS, ClassSpec, FrameSpec, ModelSpec, Normalization

CLASSES = 4
RNG = np.random.default_rng(0)
WEIGHT = RNG.standard_normal((CLASSES, 3, 3, 3)).astype(np.float32)
BIAS = RNG.standard_normal(CLASSES).astype(np.float32)
CAFFE = NORMALIZATIONS["caffe"]


def network(
    shape: Any = (1, 3, 5, 7),
    *,
    opset: int = 20,
    names: tuple[str, str] = ("x", "y"),
    dtype: int = TensorProto.FLOAT,
    stride: int = 1,
) -> onnx.ModelProto:
    """A convolution from 3 channels to 4."""
    source, result = names
    conv = helper.make_node("Conv", [source, "w", "b"], [result], "conv", pads=[1] * 4, strides=[stride] * 2)
    out = [shape[0], CLASSES, *("HW" if stride > 1 else shape[2:])]
    kind = np.float16 if dtype == TensorProto.FLOAT16 else np.float32
    graph = helper.make_graph(
        [conv],
        "network",
        [helper.make_tensor_value_info(source, dtype, shape)],
        [helper.make_tensor_value_info(result, dtype, out)],
        [numpy_helper.from_array(WEIGHT.astype(kind), "w"), numpy_helper.from_array(BIAS.astype(kind), "b")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def spec(size: Any = (5, 7), *, classes: int = CLASSES, outputs: Any = ("labels",), **frame: Any) -> ModelSpec:
    return ModelSpec(FrameSpec(*size, **frame), ClassSpec.of_count(classes), outputs)


def run(model: onnx.ModelProto, frames: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
    onnx.checker.check_model(model, full_check=True)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    assert [value.name for value in session.get_inputs()] == ["frames"]
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(None, {"frames": frames}), strict=True))


def expected(model: onnx.ModelProto, frames: NDArray[np.uint8], norm: Normalization, color: str) -> NDArray[np.float32]:
    """Logits of the bare network for pixels normalized by hand."""
    ordered = frames if color == norm.color else frames[..., ::-1]
    pixels = (ordered.astype(np.float64) * norm.scale - norm.mean) / norm.std
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    logits: NDArray[np.float32] = session.run(None, {"x": pixels.astype(np.float32).transpose(0, 3, 1, 2)})[0]
    return logits


def frames_of(*shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(1).integers(0, 256, (*shape, 3), np.uint8)


@pytest.mark.parametrize("opset", [9, 11, 12, 13, 17, 18, 20, 22])
def test_every_opset_gives_labels_confidence_and_logits(opset: int) -> None:
    model = attach(network(opset=opset), spec(outputs=("labels", "confidence", "logits")))
    assert [entry.version for entry in model.opset_import] == [opset]
    frames = frames_of(1, 5, 7)
    out = run(model, frames)
    want = expected(network(opset=opset), frames, Normalization(), "BGR")
    assert list(out) == ["labels", "confidence", "logits"]
    assert {name: array.dtype for name, array in out.items()} == {
        "labels": np.uint8,
        "confidence": np.float32,
        "logits": np.float32,
    }
    np.testing.assert_allclose(out["logits"], want, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(out["labels"], want.argmax(1))
    exponentials = np.exp(want - want.max(1, keepdims=True))
    np.testing.assert_allclose(out["confidence"], 1 / exponentials.sum(1), rtol=1e-5)


@pytest.mark.parametrize("color", ["BGR", "RGB"])
@pytest.mark.parametrize("name", list(NORMALIZATIONS))
def test_normalization_and_colour_order_are_inside(name: str, color: Any) -> None:
    norm = NORMALIZATIONS[name]
    frames = frames_of(1, 5, 7)
    out = run(attach(network(), spec(outputs=("labels", "logits"), color=color, normalization=norm)), frames)
    want = expected(network(), frames, norm, color)
    np.testing.assert_allclose(out["logits"], want, rtol=1e-5, atol=1e-5 * np.abs(want).max())


def test_steps_that_do_nothing_are_left_out() -> None:
    plain = attach(network(), spec(color="RGB", normalization=NORMALIZATIONS["none"]))
    assert [node.op_type for node in plain.graph.node] == ["Cast", "Transpose", "Conv", "ArgMax", "Cast"]
    caffe = attach(network(), spec(color="BGR", normalization=CAFFE))
    assert [node.op_type for node in caffe.graph.node] == ["Cast", "Transpose", "Sub", "Conv", "ArgMax", "Cast"]
    full = attach(network(), spec())
    assert [node.op_type for node in full.graph.node] == [
        *("Cast", "Transpose", "Gather", "Sub", "Mul", "Conv", "ArgMax", "Cast")
    ]


def test_outputs_come_in_the_order_of_the_spec() -> None:
    model = attach(network(), spec(outputs=("logits", "labels")))
    assert [value.name for value in model.graph.output] == ["logits", "labels"]


def test_the_cast_to_uint8_is_the_last_word_on_the_labels() -> None:
    model = attach(network(), spec(outputs=("labels", "confidence", "logits")))
    maker = next(node for node in model.graph.node if "labels" in node.output)
    assert maker.op_type == "Cast"
    assert not any("labels" in node.input for node in model.graph.node)


def test_the_spec_is_in_the_file() -> None:
    want = spec(outputs=("labels", "confidence"))
    model = onnx.load_from_string(attach(network(), want).SerializeToString())
    assert io.read_spec(model) == want


def test_the_network_handed_in_is_unchanged() -> None:
    model = network()
    before = model.SerializeToString()
    attach(model, spec())
    assert model.SerializeToString() == before


def test_every_tensor_gets_its_type_and_shape() -> None:
    model = attach(network((2, 3, "H", "W")), spec((5, 7)))
    shapes = {
        value.name: [dim.dim_value or dim.dim_param for dim in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output, *model.graph.value_info)
    }
    assert shapes["frames"] == [2, 5, 7, 3]
    assert shapes["normalized"] == [2, 3, 5, 7]
    assert shapes["logits"] == [2, CLASSES, 5, 7]
    assert shapes["labels"] == [2, 5, 7]
    made = {name for node in model.graph.node for name in node.output}
    assert made <= set(shapes)


def test_open_axes_stay_open() -> None:
    bare = network(("batch", 3, "height", "width"))
    model = attach(bare, spec((None, None), outputs=("labels", "logits")))
    for shape in ((1, 5, 7), (3, 8, 2)):
        frames = frames_of(*shape)
        want = expected(bare, frames, Normalization(), "BGR")
        np.testing.assert_allclose(run(model, frames)["logits"], want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("batch", "size", "expected"),
    [("batch", (5, 7), 1), ("batch", (None, None), None), (1, (5, 7), 1), (2, (5, 7), 2), (2, (None, None), 2)],
)
def test_a_fixed_size_takes_one_frame_at_a_time_where_the_network_takes_any_number(
    batch: int | str, size: Any, expected: int | None
) -> None:
    model = attach(network((batch, 3, "H", "W")), spec(size, outputs=("labels", "logits")))
    assert batch_of(model) == expected
    firsts = {value.type.tensor_type.shape.dim[0].dim_value for value in (*model.graph.input, *model.graph.output)}
    assert firsts == {expected or 0}


def test_passes_for_cpus_rewrite_a_network_of_any_number_of_frames() -> None:
    model, _ = optimize(attach(network(("N", 3, "H", "W")), spec()))
    _, (report, *_) = optimize(model, passes=WHOLE_FRAMES)
    assert report.changed
    assert not report.declined


@pytest.mark.parametrize("names", [("frames", "labels"), ("normalized", "logits"), ("logits", "normalized")])
def test_names_of_the_network_do_not_get_in_the_way(names: tuple[str, str]) -> None:
    frames = frames_of(1, 5, 7)
    model = attach(network(names=names), spec(outputs=("labels", "logits")))
    out = run(model, frames)
    want = expected(network(), frames, Normalization(), "BGR")
    np.testing.assert_allclose(out["logits"], want, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(out["labels"], want.argmax(1))


def test_inner_tensors_with_reserved_names_are_renamed() -> None:
    bare = network(names=("x", "labels"))
    bare.graph.node.append(helper.make_node("Relu", ["labels"], ["y"], "relu"))
    bare.graph.output[0].name = "y"
    frames = frames_of(1, 5, 7)
    out = run(attach(bare, spec(outputs=("labels", "logits"))), frames)
    want = expected(bare, frames, Normalization(), "BGR")
    np.testing.assert_allclose(out["logits"], want, rtol=1e-5, atol=1e-5)


def test_the_output_called_out_is_taken_among_several() -> None:
    bare = network(names=("x", "out"))
    bare.graph.node.append(helper.make_node("Relu", ["out"], ["aux"], "aux"))
    bare.graph.output.append(helper.make_tensor_value_info("aux", TensorProto.FLOAT, (1, CLASSES, 5, 7)))
    model = attach(bare, spec())
    assert Counter(node.op_type for node in model.graph.node)["Relu"] == 0
    frames = frames_of(1, 5, 7)
    np.testing.assert_array_equal(
        run(model, frames)["labels"], expected(network(), frames, Normalization(), "BGR").argmax(1)
    )


def test_a_second_time_is_refused() -> None:
    with pytest.raises(GraphError, match="has pre- and post-processing already"):
        attach(attach(network(), spec()), spec())


def two_inputs() -> onnx.ModelProto:
    model = network()
    model.graph.input.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [1]))
    return model


def two_outputs() -> onnx.ModelProto:
    model = network()
    model.graph.node.append(helper.make_node("Relu", ["y"], ["z"]))
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, (1, CLASSES, 5, 7)))
    return model


def own_argmax() -> onnx.ModelProto:
    model = network()
    model.graph.node.append(helper.make_node("ArgMax", ["y"], ["z"], axis=1, keepdims=0))
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.INT64, (1, 5, 7)))
    return model


@pytest.mark.parametrize(
    ("bare", "wanted", "kind", "message"),
    [
        (two_inputs(), spec(), GraphError, "expected one input float32.*found 2: 'x'.*'z'"),
        (two_outputs(), spec(), GraphError, "expected one output, or one called logits, found 'y'.*'z'"),
        (own_argmax(), spec(), GraphError, "expected logits float32.*found 'z' int64"),
        (network(dtype=TensorProto.FLOAT16), spec(), GraphError, "expected an input float32.*float16"),
        (network(), spec((6, 7)), UsageError, "frames of 6 x 7 .*do not fit the network, which takes 5 x 7"),
        (network(), spec(classes=5), UsageError, "tells 4 classes apart, but 5 class names"),
        (network((1, 3, 5, "W"), stride=2), spec((5, 7)), GraphError, "logits are 3 x 4 for frames of 5 x 7"),
    ],
)
def test_a_network_that_does_not_fit_is_refused(
    bare: onnx.ModelProto, wanted: ModelSpec, kind: type[FcnoptError], message: str
) -> None:
    with pytest.raises(kind, match=message):
        attach(bare, wanted)


def test_offset_and_factor_equal_the_textbooks_formula() -> None:
    norm = Normalization("BGR", 1 / 255, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    offset, factor = offset_and_factor(norm)
    pixels = np.arange(256.0)[:, None]
    want = (pixels * norm.scale - norm.mean) / norm.std
    np.testing.assert_allclose((pixels - offset.ravel()) * factor.ravel(), want, rtol=0, atol=1e-6)
