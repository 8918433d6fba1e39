from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from fcnopt.errors import CalibrationError
from fcnopt.graph.io import import_graph, read_spec, write_spec
from fcnopt.graph.optimizers import has_wide_weights
from fcnopt.graph.passes import WHOLE_FRAMES, optimize
from fcnopt.graph.taps import expose, logits_name
from fcnopt.quantize.placement import place
from fcnopt.quantize.qdq import Grid, grids, insert, quantize_weight
from fcnopt.quantize.ranges import Ranges, observe
from tests.quantize.nets import CLASSES, Net, Options, fcn, images, ops, producer, readers, run, spec

FORMS = ["tensorrt", "openvino", "onnxruntime"]


def quantized(model: onnx.ModelProto, frames, form: str, rule: str = "minmax"):
    placement = place(import_graph(model), logits_name(model))
    ranges = observe(model, frames, tensors=placement.tensors, quantized=placement.tensors)
    found = grids(placement, ranges, dict.fromkeys(placement.tensors, rule), form)
    result = insert(model, placement, found, form)
    onnx.checker.check_model(result, full_check=True)
    return result, found


@pytest.mark.parametrize("form", FORMS)
def test_nodes_stand_exactly_where_they_should(rng: np.random.Generator, form: str) -> None:
    result, _ = quantized(fcn(rng), images(rng, 3), form)
    assert ops(result).count("QuantizeLinear") == 2
    assert ops(result).count("DequantizeLinear") == 4  # two activations, two weights
    for conv in ("conv1", "conv2", "conv3"):
        (relu,) = readers(result, conv)
        assert relu.op_type == "Relu"
        behind = {node.op_type for node in readers(result, relu.output[0])}
        expected = {"conv1": "QuantizeLinear", "conv2": "MaxPool", "conv3": "Conv"}  # conv3 feeds a score layer
        assert behind == {expected[conv]}
    (pool,) = [node for node in result.graph.node if node.op_type == "MaxPool"]
    behind = {(node.op_type, node.name) for node in readers(result, pool.output[0])}
    assert behind == {("QuantizeLinear", f"{pool.output[0]}_quantize"), ("Conv", "node_score_pool")}
    assert producer(result, "conv3").input[0] == f"{pool.output[0]}_dequantized"
    for name in ("score", "score_pool", "logits"):
        assert producer(result, producer(result, name).input[0]).op_type != "DequantizeLinear"
        assert producer(result, name).input[1] == f"{name}.weight"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("options", [Options(), Options(group=2), Options(bias=False)])
def test_weights_are_int8_and_biases_float(rng: np.random.Generator, form: str, options: Options) -> None:
    model = fcn(rng, options)
    result, _ = quantized(model, images(rng, 2), form)
    constants = {tensor.name: tensor for tensor in result.graph.initializer}
    assert "conv2.weight" not in constants
    stored = numpy_helper.to_array(constants["conv2.weight_int8"])
    scales = numpy_helper.to_array(constants["conv2.weight_scale"])
    original = numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == "conv2.weight"))
    assert stored.dtype == np.int8
    assert scales.shape == (32,)
    assert np.abs(stored).max() == 127
    step = scales.reshape(-1, 1, 1, 1)
    # Half a step from rounding; the scale's own rounding to float16 moves the ends by a further 2 ** -11 of 127 steps.
    assert (np.abs(stored * step - original) <= step * (0.5 + 127 / 2048)).all()
    assert len(producer(result, "conv2").input) == 2 + options.bias
    if options.bias:
        assert constants["conv2.bias"].data_type == TensorProto.FLOAT


def test_tensorrt_form_is_symmetric_int8_with_scales_that_float16_holds(rng: np.random.Generator) -> None:
    result, found = quantized(fcn(rng), images(rng, 2), "tensorrt")
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in result.graph.initializer}
    scales = [values for name, values in constants.items() if name.endswith("_scale")]
    zeros = [values for name, values in constants.items() if name.endswith("_zero")]
    assert len(scales) == len(zeros) == 4
    for values in scales:
        np.testing.assert_array_equal(values.astype(np.float16).astype(np.float32), values)
    for values in zeros:
        assert values.dtype == np.int8
        assert not values.any()
    assert all(grid.kind == "int8" and grid.zero == 0 for grid in found.values())


def test_cpu_form_is_uint8_over_the_range_in_use(rng: np.random.Generator) -> None:
    net = Net(rng)
    x = net.relu(net.conv(net.frames(), "stem", (3, 16)))
    x = net.conv(x, "linear", (16, 16))  # two-sided
    x = net.relu(net.conv(x, "last", (16, 16)))
    net.labels(net.conv(x, "score", (16, CLASSES), 1))
    model, frames = net.model(), images(rng, 3)
    _, found = quantized(model, frames, "openvino")
    assert found["stem_relu"].zero == 0
    assert 0 < found["linear"].zero < 255
    values = np.concatenate([run(expose(model, ["linear"]), frame, ["linear"])[0] for frame in frames])
    grid = found["linear"]
    for extreme in (values.min(), values.max()):
        whole = np.clip(np.round(extreme / grid.scale) + grid.zero, 0, 255)
        assert abs((whole - grid.zero) * grid.scale - extreme) <= grid.scale


@pytest.mark.parametrize("form", FORMS)
def test_error_of_an_activation_is_at_most_half_a_step(rng: np.random.Generator, form: str) -> None:
    result, found = quantized(fcn(rng), images(rng, 3), form)
    frame = images(np.random.default_rng(0), 4)[1]
    before, after = run(expose(result, ["conv1_relu", "conv1_relu_dequantized"]), frame)[1:]
    grid = found["conv1_relu"]
    top = (127 if form == "tensorrt" else 255) * grid.scale
    inside = before <= top
    assert inside.mean() > 0.99
    assert before.std() > 0
    assert np.abs(before - after)[inside].max() <= grid.scale / 2 * (1 + 1e-5)
    assert (after[~inside] == np.float32(top)).all()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("options", [Options(), Options(group=2), Options(bias=False)])
def test_logits_stay_close_and_runtime_agrees_with_exact_arithmetic(
    rng: np.random.Generator, form: str, options: Options
) -> None:
    model, frames = fcn(rng, options), images(rng, 4)
    result, _ = quantized(model, frames, form)
    want = run(expose(model, ["logits"]), frames[1], ["logits"])[0]
    have = run(expose(result, ["logits"]), frames[1], ["logits"])[0]
    exact = onnx.reference.ReferenceEvaluator(expose(result, ["logits"])).run(["logits"], {"frames": frames[1]})[0]
    size = np.sqrt(np.mean(want**2))
    assert 1e-5 < np.sqrt(np.mean((have - want) ** 2)) / size < 0.03  # quantized, and well
    assert np.abs(have - exact).max() / size < 0.02  # a value on the edge of two levels may round either way


def test_shared_weight_is_stored_once(rng: np.random.Generator) -> None:
    net = Net(rng)
    x = net.relu(net.conv(net.frames(), "stem", (3, 16)))
    x = net.relu(net.conv(x, "a", (16, 16)))
    x = net.relu(net.node("Conv", [x, "a.weight"], "b", kernel_shape=[3, 3], pads=[1] * 4))
    net.labels(net.conv(x, "score", (16, CLASSES), 1))
    result, found = quantized(net.model(), images(rng, 2), "tensorrt")
    assert set(found) == {"stem_relu", "a_relu"}
    assert producer(result, "a").input[1] == producer(result, "b").input[1] == "a.weight_dequantized"
    assert [t.name for t in result.graph.initializer].count("a.weight_int8") == 1


@pytest.mark.parametrize("trans_b", [0, 1])
def test_gemm_weight_is_scaled_by_output_column(rng: np.random.Generator, trans_b: int) -> None:
    net = Net(rng)
    x = net.relu(net.conv(net.frames(), "stem", (3, 16)))
    x = net.node("Reshape", [x, net.const("rows", np.array([-1, 32], np.int64))], "flat")
    weight = (rng.normal(size=(32, 24)) * np.geomspace(0.01, 10, 24)).astype(np.float32)
    x = net.node("Gemm", [x, net.const("w", weight.T.copy() if trans_b else weight)], "fc", transB=trans_b)
    x = net.node("Reshape", [net.relu(x), net.const("shape", np.array([1, 16, -1, 24], np.int64))], "image")
    logits = net.conv(x, "score", (16, CLASSES), 1)
    model = net.model([(logits, TensorProto.FLOAT, [1, CLASSES, 24, 24])])
    frames = images(rng, 2)
    result, _ = quantized(model, frames, "tensorrt")
    (node,) = [n for n in result.graph.node if n.output[0] == "w_dequantized"]
    assert onnx.helper.get_node_attr_value(node, "axis") == 1 - trans_b
    want, have = run(model, frames[0])[0], run(result, frames[0])[0]
    assert np.abs(want - have).max() / np.abs(want).max() < 0.05


def test_channel_of_zeros_and_tiny_channel_survive() -> None:
    weight = np.zeros((3, 2, 1, 1), np.float32)
    weight[1] = 1e-9
    weight[2] = [[[0.5]], [[-0.25]]]
    values, scales = quantize_weight(weight, 0, "tensorrt")
    assert scales[0] == 1.0
    assert scales[1] == np.finfo(np.float16).smallest_subnormal
    assert values[:2].any() == np.False_
    np.testing.assert_allclose(values[2].ravel() * scales[2], [0.5, -0.25], rtol=0.01)


def test_group_takes_the_widest_interval(rng: np.random.Generator) -> None:
    net = Net(rng)
    x = net.relu(net.conv(net.frames(), "stem", (3, 16)))
    y = net.relu(net.conv(x, "a", (16, 16), gain=20.0))
    joined = net.node("Concat", [x, y], "joined", axis=1)
    both = net.node("Add", [net.conv(y, "b", (16, 16)), net.conv(joined, "c", (32, 16))], "both")
    net.labels(net.conv(net.relu(both), "score", (16, CLASSES), 1))
    model, frames = net.model(), images(rng, 2)
    _, found = quantized(model, frames, "openvino")
    top = {name: max(run(expose(model, [name]), f, [name])[0].max() for f in frames) for name in found}
    assert top["a_relu"] > 3 * top["stem_relu"]
    assert found["stem_relu"] == found["a_relu"] == found["joined"]
    assert found["stem_relu"].scale == pytest.approx(top["a_relu"] / 255)


def test_dead_tensor_gets_a_usable_scale() -> None:
    assert Grid.over((0.0, 0.0), "int8") == Grid(1.0, 0, "int8")
    assert Grid.over((0.0, 0.0), "uint8") == Grid(1.0, 0, "uint8")


@pytest.mark.parametrize("kind", ["int8", "uint8", "fp8"])
def test_tensor_below_float32_normals_counts_as_dead(kind: str) -> None:
    assert Grid.over((0.0, 1e-44), kind).scale == 1.0


def test_spec_and_names_survive_and_the_original_is_untouched(rng: np.random.Generator) -> None:
    model = fcn(rng)
    write_spec(model, spec())
    before = model.SerializeToString()
    result, _ = quantized(model, images(rng, 2), "openvino")
    assert model.SerializeToString() == before
    assert [(e.key, e.value) for e in result.metadata_props] == [(e.key, e.value) for e in model.metadata_props]
    assert [v.name for v in (*result.graph.input, *result.graph.output)] == ["frames", "labels"]


def test_old_opset_is_raised(rng: np.random.Generator) -> None:
    model = fcn(rng, Options(opset=13))
    write_spec(model, spec())
    result, _ = quantized(model, images(rng, 2), "tensorrt")
    assert read_spec(result) == spec()
    assert model.opset_import[0].version == 13
    assert result.opset_import[0].version >= 19


def test_missing_range_names_the_tensor(rng: np.random.Generator) -> None:
    placement = place(import_graph(fcn(rng)), "logits")
    with pytest.raises(CalibrationError, match="tensor 'conv1_relu' is to be quantized, but the ranges do not have it"):
        grids(placement, Ranges({}, 1), dict.fromkeys(placement.tensors, "minmax"), "openvino")


def test_whole_frames_lose_nothing_but_their_weight_s_rounding(rng: np.random.Generator) -> None:
    model = optimize(optimize(fcn(rng))[0], passes=WHOLE_FRAMES, strict=True)[0]
    frame = images(rng, 1)[0]
    placement = place(import_graph(model), logits_name(model), form="openvino")
    found = {name: Grid(0.05, 0, "uint8") for name in placement.tensors}
    result = insert(model, placement, found, "openvino")
    onnx.checker.check_model(result, full_check=True)
    read = producer(result, producer(result, "conv1").input[0])
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in result.graph.initializer}
    assert read.op_type == "DequantizeLinear"
    assert [constants[name] for name in read.input[1:]] == [1, 0]
    want, have = (run(expose(one, ["conv1"]), frame, ["conv1"])[0] for one in (model, result))
    scales = constants[producer(result, "conv1").input[1].replace("_dequantized", "_scale")]
    # half a step a weight, times what it meets: 9 taps of three channels and the constant one, 255 at most
    bound = scales.max() / 2 * 9 * (frame.reshape(-1, 3).max(axis=0).astype(float).sum() + 255)
    assert 0 < np.abs(have - want).max() < bound


@pytest.mark.parametrize(("form", "most"), [("tensorrt", 127), ("openvino", 64), ("onnxruntime", 64)])
def test_for_a_cpu_whose_sums_saturate_weights_are_half_as_large(
    rng: np.random.Generator, saturates: list[bool], form: str, most: int
) -> None:
    """Two products with uint8 then fit into 16 bits; TensorRT's engines run elsewhere."""
    saturates[0] = True
    model, frames = fcn(rng), images(rng, 2)
    result, _ = quantized(model, frames, form)
    stored = [numpy_helper.to_array(t) for t in result.graph.initializer if t.name.endswith("weight_int8")]
    assert len(stored) == 2
    assert [int(np.abs(weight.astype(np.int16)).max()) for weight in stored] == [most] * 2
    assert has_wide_weights(result) is (most == 127)
    want, have = (run(expose(each, ["logits"]), frames[0], ["logits"])[0] for each in (model, result))
    assert np.abs(want - have).max() / np.abs(want).max() < 0.1
