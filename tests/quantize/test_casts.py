from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from fcnopt.errors import GraphError
from fcnopt.graph.io import import_graph
from fcnopt.graph.shapes import tensor_types
from fcnopt.graph.taps import expose
from fcnopt.quantize.casts import CastReport, to_half
from fcnopt.quantize.judge import observable
from fcnopt.quantize.placement import place
from fcnopt.quantize.qdq import grids, insert
from fcnopt.quantize.ranges import Ranges, TensorRange, observe
from tests.quantize.nets import CLASSES, SIZE, Net, Options, exact, fcn, images, ops, producer, readers, run

FLOAT, HALF, BRAIN = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16


def evidence_of(model: onnx.ModelProto, frames, quantized=()) -> Ranges:
    types = {name: kind.elem_type for name, kind in tensor_types(model).items()}
    names = tuple(dict.fromkeys((*observable(import_graph(model), types), *quantized)))
    return observe(model, frames, tensors=names, quantized=quantized)


def halved(model: onnx.ModelProto, frames, dtype="fp16") -> tuple[onnx.ModelProto, CastReport]:
    result, report = to_half(model, evidence_of(model, frames).tensors, dtype)
    onnx.checker.check_model(result, full_check=True)
    return result, report


def types_of(model: onnx.ModelProto) -> dict[str, int]:
    return {name: kind.elem_type for name, kind in tensor_types(model).items()}


def kept(report: CastReport) -> dict[str, str]:
    return {entry.node: entry.reason for entry in report.kept}


def test_everything_is_half_but_inputs_and_outputs(rng: np.random.Generator) -> None:
    model, frames = fcn(rng), images(rng, 3)
    result, report = halved(model, frames)
    assert report.kept == ()
    assert (report.casts, report.unknown) == (0, 0)
    assert Counter(ops(result)) == Counter(ops(model))
    types = types_of(result)
    assert FLOAT not in types.values()
    assert (types["frames"], types["labels"]) == (TensorProto.UINT8, TensorProto.UINT8)
    assert types["logits"] == HALF
    assert np.mean(exact(result, frames[0]) == run(model, frames[0])[0]) > 0.98


def test_float_outputs_stay_float_with_one_cast(rng: np.random.Generator) -> None:
    model, frames = fcn(rng, Options(logits_too=True)), images(rng, 3)
    result, report = halved(model, frames)
    types = types_of(result)
    assert types["logits"] == FLOAT
    assert report.casts == 1
    assert producer(result, "logits").op_type == "Cast"
    inner = producer(result, "logits").input[0]
    assert types[inner] == HALF
    assert {node.op_type for node in readers(result, inner)} == {"Cast", "ArgMax"}
    assert [v.name for v in result.graph.output] == ["labels", "logits"]


def test_layer_that_overflows_stays_float_and_labels_stay_equal(rng: np.random.Generator) -> None:
    model, frames = fcn(rng, Options(gain=4e4)), images(rng, 4)
    ranges = evidence_of(model, frames)
    assert ranges.tensors["conv2_relu"].maximum > 65504
    naive, _ = to_half(model, {}, "fp16")
    result, report = to_half(model, ranges.tensors, "fp16")
    onnx.checker.check_model(result, full_check=True)
    for name in ("node_conv2", "node_conv2_relu", "node_conv2_relu_pool", "node_conv3", "node_score_pool"):
        assert "overflows: reaches" in kept(report)[name]
    assert kept(report)["node_conv3_relu"] == "fuses into the convolution before it, which is FP32"
    assert "node_conv1" not in kept(report)
    assert types_of(result)["conv1"] == HALF
    assert types_of(result)["conv2"] == FLOAT
    want = run(model, frames[0])[0]
    assert len(np.unique(want)) > 1
    assert np.mean(want == exact(result, frames[0])) > 0.98
    # The evidence is what saved it: without, the logits are not numbers.
    assert not np.isfinite(exact(expose(naive, ["logits"]), frames[0], "logits")).any()


def test_casts_stand_at_the_border_only_and_once(rng: np.random.Generator) -> None:
    model, frames = fcn(rng, Options(gain=2e5)), images(rng, 3)
    result, report = halved(model, frames)
    border = [node for node in result.graph.node if node.name.endswith("_cast")]
    # into conv2; out of conv3 (its ReLU) and of score_pool
    assert Counter(node.input[0] for node in border) == {"conv1_relu": 1, "conv3_relu": 1, "score_pool": 1}
    assert report.casts == 3
    types = types_of(result)
    for node in border:
        assert types[node.input[0]] != types[node.output[0]]


def test_weight_that_float16_cannot_hold_keeps_its_layer_float(rng: np.random.Generator) -> None:
    model, frames = fcn(rng), images(rng, 2)
    for tensor in model.graph.initializer:
        if tensor.name == "conv3.weight":
            values = numpy_helper.to_array(tensor) * np.float32(1e-7)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    _, report = halved(model, frames)
    assert "'conv3.weight' loses precision" in kept(report)["node_conv3"]
    _, report = halved(model, frames, "bf16")
    assert "node_conv3" not in kept(report)  # bfloat16 has float32's range


def test_activations_that_vanish_in_float16_stay_float(rng: np.random.Generator) -> None:
    net = Net(rng)
    x = net.node("Mul", [net.frames(), net.const("tiny", np.array(1e-3, np.float32))], "small")
    x = net.node("Mul", [x, net.const("tinier", np.array(1e-3, np.float32))], "vanishing")
    x = net.node("Mul", [x, net.const("large", np.array(1e4, np.float32))], "back")
    net.labels(net.conv(net.relu(net.conv(x, "a", (3, 16))), "score", (16, CLASSES), 1))
    _, report = halved(net.model(), images(rng, 2))
    assert "'vanishing' loses precision" in kept(report)["node_vanishing"]
    assert "'vanishing' loses precision" in kept(report)["node_back"]
    assert "node_a" not in kept(report)


def test_difference_of_large_numbers_stays_float(rng: np.random.Generator) -> None:
    net = Net(rng)
    x = net.node("Add", [net.frames(), net.const("offset", np.array(3000.1, np.float32))], "high")
    x = net.node("Sub", [x, net.const("again", np.array(3000.1, np.float32))], "low")
    net.labels(net.conv(net.relu(net.conv(x, "a", (3, 16))), "score", (16, CLASSES), 1))
    _, report = halved(net.model(), images(rng, 2))
    assert kept(report)["node_low"].startswith("cancels: ")


def test_cheap_node_between_float_nodes_stays_float(rng: np.random.Generator) -> None:
    net = Net(rng)
    x = net.relu(net.conv(net.frames(), "a", (3, 16)))
    x = net.node("Mul", [x, net.const("up", np.array(1e6, np.float32))], "hot")
    x = net.node("Mul", [x, net.const("down", np.array(1e-6, np.float32))], "cool")  # 1e-6 is subnormal in float16
    x = net.pool(x)
    x = net.node("Mul", [x, net.const("up2", np.array(1e6, np.float32))], "hot2")
    x = net.node("Mul", [x, net.const("down2", np.array(1e-6, np.float32))], "cool2")
    net.labels(net.conv(x, "score", (16, CLASSES), 1))
    model = net.model([("labels", TensorProto.UINT8, [1, "h", "w"])])
    _, report = halved(model, images(rng, 2))
    assert kept(report)["node_cool_pool"] == "stands between FP32 nodes: casts would cost more"


def test_bfloat16_keeps_deconvolution_float(rng: np.random.Generator) -> None:
    model, frames = fcn(rng), images(rng, 2)
    result, report = halved(model, frames, "bf16")
    assert set(kept(report)) >= {"node_logits"}
    assert "TensorRT has no bf16 kernel" in kept(report)["node_logits"]
    types = types_of(result)
    assert (types["conv2"], types["logits"]) == (BRAIN, FLOAT)
    stored = next(t for t in result.graph.initializer if t.name.startswith("conv2.weight"))
    assert stored.data_type == BRAIN
    original = numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == "conv2.weight"))
    rounded = numpy_helper.to_array(stored).astype(np.float32)
    assert 0 < np.abs(rounded / original - 1).max() <= 2**-8
    want = run(model, frames[0])[0]
    assert np.mean(want == exact(result, frames[0])) > 0.93


def test_quantized_graph_becomes_half_around_its_integers(rng: np.random.Generator) -> None:
    model, frames = fcn(rng), images(rng, 3)
    placement = place(import_graph(model), "logits")
    ranges = evidence_of(model, frames, placement.tensors)
    found = grids(placement, ranges, dict.fromkeys(placement.tensors, "mse"), "tensorrt")
    whole = insert(model, placement, found, "tensorrt")
    result, report = to_half(whole, ranges.tensors, "fp16")
    onnx.checker.check_model(result, full_check=True)
    assert report.kept == ()
    assert (report.casts, report.unknown) == (0, 0)
    constants = {t.name: t for t in result.graph.initializer}
    assert FLOAT not in {t.data_type for t in constants.values()}
    before = {t.name: numpy_helper.to_array(t) for t in whole.graph.initializer}
    scales = [name for name in before if name.endswith("_scale")]
    assert len(scales) == 4
    for name in scales:  # not a bit of a scale is lost
        np.testing.assert_array_equal(numpy_helper.to_array(constants[f"{name}_fp16"]), before[name])
    np.testing.assert_array_equal(numpy_helper.to_array(constants["conv2.weight_int8"]), before["conv2.weight_int8"])
    assert np.mean(run(result, frames[0])[0] == run(whole, frames[0])[0]) > 0.97


def test_resize_keeps_its_scales_float(rng: np.random.Generator) -> None:
    net = Net(rng)
    x = net.pool(net.relu(net.conv(net.frames(), "a", (3, 16))))
    scales = net.const("scales", np.array([1, 1, 2, 2], np.float32))
    x = net.node("Resize", [x, "", scales], "wide", mode="nearest")
    net.labels(net.conv(x, "score", (16, CLASSES), 1))
    result, report = halved(net.model(), images(rng, 1))
    assert report.kept == ()
    assert types_of(result)["wide"] == HALF
    assert producer(result, "wide").input[2] == "scales"
    assert types_of(result)["scales"] == FLOAT


def test_numbers_computed_from_shapes_stay_exact(rng: np.random.Generator) -> None:
    net = Net(rng)
    x = net.relu(net.conv(net.frames(), "a", (3, 16)))
    shape = net.node("Cast", [net.node("Shape", ["frames"], "shape")], "float_shape", to=FLOAT)
    share = net.node("Mul", [shape, net.const("share", np.array(0.5, np.float32))], "half_shape")
    size = net.node("Cast", [share], "whole", to=TensorProto.INT64)
    ends = net.node("Slice", [size, net.const("one", np.array([1])), net.const("three", np.array([3]))], "ends")
    starts = net.const("starts", np.array([0, 0]))
    x = net.node("Slice", [x, starts, ends, net.const("axes", np.array([2, 3]))], "crop")
    net.labels(net.conv(x, "score", (16, CLASSES), 1))
    model = net.model([("labels", TensorProto.UINT8, [1, "h", "w"])])
    result, report = halved(model, images(rng, 1))
    assert kept(report)["node_half_shape"] == "computed from shapes: must be exact"
    assert types_of(result)["half_shape"] == FLOAT
    assert types_of(result)["crop"] == HALF
    assert run(result, images(rng, 1)[0])[0].shape == (1, SIZE[0] // 2, SIZE[1] // 2)


def test_without_evidence_weights_alone_are_judged(rng: np.random.Generator) -> None:
    _, report = to_half(fcn(rng), {}, "fp16")
    assert report.kept == ()
    assert report.unknown > 10


def test_tensors_fused_into_relu_are_not_observed(rng: np.random.Generator) -> None:
    model = fcn(rng)
    names = observable(import_graph(model), types_of(model))
    assert "conv1_relu" in names
    assert "conv1" not in names
    assert "score" in names
    assert "labels" not in names


def test_control_flow_is_refused(rng: np.random.Generator) -> None:
    net = Net(rng)
    branch = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["normal"], ["inner"])],
        "branch",
        [],
        [onnx.helper.make_tensor_value_info("inner", FLOAT, [1, 3, *SIZE])],
    )
    net.frames()
    yes = net.const("yes", np.array(True))
    x = net.node("If", [yes], "chosen", then_branch=branch, else_branch=branch)
    net.labels(net.conv(x, "score", (3, CLASSES), 1))
    with pytest.raises(GraphError, match=r"node 'node_chosen' \(If\) has a subgraph"):
        to_half(net.model(), {}, "fp16")


@pytest.mark.parametrize(("reach", "stays"), [(40000.0, False), (43000.0, False), (44000.0, True), (50000.0, True)])
def test_activations_need_headroom_for_frames_not_seen(rng: np.random.Generator, reach: float, stays: bool) -> None:
    model = fcn(rng)
    hot = TensorRange(0.0, reach, 1.0, dict.fromkeys(("fp16", "bf16"), 70.0))
    result, report = to_half(model, {"conv2_relu": hot}, "fp16")
    assert ("node_conv2" in kept(report)) == stays
    assert types_of(result)["conv2_relu"] == (FLOAT if stays else HALF)
    if stays:
        assert f"overflows: reaches {reach:g}, with headroom 1.5" in kept(report)["node_conv2"]


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_constant_that_is_not_finite_is_no_evidence(rng: np.random.Generator, value: float) -> None:
    model = fcn(rng)
    for tensor in model.graph.initializer:
        if tensor.name == "conv3.bias":
            values = numpy_helper.to_array(tensor).copy()
            values[5] = value
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    _, report = to_half(model, {}, "fp16")
    assert kept(report)["node_conv3"] == "'conv3.bias' is not finite in 1 of 48 values"


def test_infinite_bound_of_clip_is_half(rng: np.random.Generator) -> None:
    net = Net(rng)
    zero, top = net.const("zero", np.array(0, np.float32)), net.const("top", np.array(np.inf, np.float32))
    x = net.node("Clip", [net.conv(net.frames(), "a", (3, 16)), zero, top], "clipped")
    net.labels(net.conv(x, "score", (16, CLASSES), 1))
    _, report = to_half(net.model(), {}, "fp16")
    assert report.kept == ()
