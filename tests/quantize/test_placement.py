from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto

from fcnopt.graph.io import import_graph
from fcnopt.graph.passes import WHOLE_FRAMES, optimize
from fcnopt.graph.taps import logits_name
from fcnopt.quantize.placement import KEPT_FLOAT, Placement, place
from tests.quantize.nets import CLASSES, SIZE, Net, Options, fcn


def placed(model) -> Placement:
    return place(import_graph(model), logits_name(model))


def reasons(placement: Placement) -> dict[str, str]:
    return {entry.node: entry.reason for entry in placement.declined}


def finished(net: Net, x: str, channels: int) -> Placement:
    """The network with a score layer behind `x`."""
    logits = net.conv(x, "score", (channels, CLASSES), 1)
    net.labels(logits)
    return placed(net.model([("labels", TensorProto.UINT8, [1, "height", "width"])]))


def test_fcn_is_quantized_but_for_first_scores_and_deconvolution(rng: np.random.Generator) -> None:
    placement = placed(fcn(rng))
    assert placement.layers == ("conv2", "conv3")
    found = reasons(placement)
    assert set(found) == {"node_conv1", "node_score", "node_score_pool", "node_logits"}
    assert found["node_conv1"].startswith("first layer")
    assert found["node_score"].startswith("score layer")
    assert found["node_score_pool"].startswith("score layer")
    assert found["node_logits"].startswith("ConvTranspose")


def test_quantization_goes_above_the_pool_once_for_all_readers(rng: np.random.Generator) -> None:
    net = Net(rng)
    x = net.pool(net.relu(net.conv(net.frames(), "stem", (3, 16))))
    y = net.node("Add", [net.conv(x, "a", (16, 16)), net.conv(x, "b", (16, 16))], "sum")
    placement = finished(net, net.relu(y), 16)
    assert placement.layers == ("a", "b")
    assert [(p.tensor, [(r.node, r.index) for r in p.readers]) for p in placement.points] == [
        ("stem_relu", [("stem_relu_pool", 0)])
    ]


def test_score_layer_reads_the_float_pool_that_others_read_quantized(rng: np.random.Generator) -> None:
    points = {point.tensor: point for point in placed(fcn(rng)).points}
    assert set(points) == {"conv1_relu", "conv2_relu_pool"}
    assert [(r.node, r.index) for r in points["conv2_relu_pool"].readers] == [("conv3", 0)]
    assert [(r.node, r.index) for r in points["conv1_relu"].readers] == [("conv2", 0)]


def test_for_onnx_runtime_score_layers_read_quantized_tensors_too(rng: np.random.Generator) -> None:
    points = {point.tensor: point for point in place(import_graph(fcn(rng)), "logits", form="onnxruntime").points}
    assert {name: [r.node for r in point.readers] for name, point in points.items()} == {
        "conv1_relu": ["conv2"],
        "conv2_relu": ["conv2_relu_pool"],
        "conv3_relu": ["score"],
    }


def test_for_onnx_runtime_a_score_of_a_float_layer_reads_the_float_tensor(rng: np.random.Generator) -> None:
    found = place(import_graph(fcn(rng)), "logits", floats={"conv3"}, form="onnxruntime")
    assert found.tensors == ("conv1_relu", "conv2_relu"), "nothing writes conv3_relu in integers"


def test_point_moves_below_no_pool_but_the_one_that_a_score_reads(rng: np.random.Generator) -> None:
    net = Net(rng)
    x = net.relu(net.conv(net.frames(), "stem", (3, 16)))
    low = net.pool(x)
    deep = net.relu(net.conv(net.pool(low), "a", (16, 16)))
    score = net.upscore(net.upscore(net.conv(deep, "score", (16, CLASSES), 1), "up"), "up_again")
    net.labels(net.node("Add", [score, net.upscore(net.conv(low, "score_low", (16, CLASSES), 1), "up_low")], "logits"))
    placement = placed(net.model())
    assert [(p.tensor, [r.node for r in p.readers]) for p in placement.points] == [
        ("stem_relu_pool", ["stem_relu_pool_pool"])
    ]


def test_layers_named_stay_float(rng: np.random.Generator) -> None:
    placement = place(import_graph(fcn(rng)), "logits", floats={"conv2"})
    assert placement.layers == ("conv3",)
    assert placement.tensors == ("conv2_relu_pool",)
    assert reasons(placement)["node_conv2"] == "kept float for accuracy"


def test_score_layers_are_found_by_structure_not_by_name(rng: np.random.Generator) -> None:
    net = Net(rng)
    x = net.relu(net.conv(net.frames(), "score", (3, 16)))
    x = net.relu(net.conv(x, "score_fr", (16, 16)))
    x = net.conv(x, "backbone", (16, CLASSES), 1)
    net.labels(net.node("Mul", [x, net.const("half", np.array(0.5, np.float32))], "logits"))
    placement = placed(net.model())
    assert placement.layers == ("score_fr",)
    assert reasons(placement)["node_backbone"].startswith("score layer")


def test_linear_convolution_before_the_score_layer_is_quantized(rng: np.random.Generator) -> None:
    net = Net(rng)
    x = net.relu(net.conv(net.frames(), "a", (3, 16)))
    assert finished(net, net.conv(x, "b", (16, 32)), 32).layers == ("b",)


@pytest.mark.parametrize(("group", "quantized"), [(1, True), (2, True), (4, False), (32, False)])
def test_channels_count_by_group(rng: np.random.Generator, group: int, quantized: bool) -> None:
    placement = placed(fcn(rng, Options(group=group))) if group != 32 else depthwise(rng)
    assert ("conv3" in placement.layers) == quantized
    if not quantized:
        assert reasons(placement)["node_conv3"] == f"{32 // group} input channels a group; INT8 kernels want 16"


def depthwise(rng: np.random.Generator) -> Placement:
    net = Net(rng)
    x = net.relu(net.conv(net.frames(), "a", (3, 32)))
    return finished(net, net.relu(net.conv(x, "conv3", (32, 32), group=32)), 32)


def test_residual_add_reads_its_identity_branch_quantized_only(rng: np.random.Generator) -> None:
    net = Net(rng)
    x = net.relu(net.conv(net.frames(), "stem", (3, 16)))
    y = net.relu(net.conv(x, "a", (16, 16)))
    y = net.conv(y, "b", (16, 16))
    x = net.relu(net.node("Add", [y, x], "sum"))
    placement = finished(net, net.relu(net.conv(x, "c", (16, 16))), 16)
    points = {point.tensor: {(r.node, r.index) for r in point.readers} for point in placement.points}
    assert placement.layers == ("a", "b", "c")
    assert points == {
        "stem_relu": {("a", 0), ("sum", 1)},
        "a_relu": {("b", 0)},
        "sum_relu": {("c", 0)},
    }


def test_add_of_two_quantized_tensors_reads_the_older_one(rng: np.random.Generator) -> None:
    net = Net(rng)
    x = net.relu(net.conv(net.frames(), "stem", (3, 16)))
    y = net.relu(net.conv(x, "a", (16, 16)))  # x and y are both quantized, for a and for b
    z = net.relu(net.conv(y, "b", (16, 16)))
    total = net.node("Add", [y, x], "sum")
    placement = finished(net, net.node("Add", [total, z], "total"), 16)
    points = {point.tensor: {r.node for r in point.readers} for point in placement.points}
    assert points == {"stem_relu": {"a", "sum"}, "a_relu": {"b"}}


def test_relu_keeps_reading_its_convolution(rng: np.random.Generator) -> None:
    net = Net(rng)
    x = net.relu(net.conv(net.frames(), "stem", (3, 16)))
    before = net.conv(x, "a", (16, 16))  # read by b, and by a ReLU that fuses into a
    y = net.conv(before, "b", (16, 16))
    placement = finished(net, net.node("Add", [net.relu(before), net.relu(y)], "sum"), 16)
    points = {point.tensor: {r.node for r in point.readers} for point in placement.points}
    assert placement.layers == ("a", "b")
    assert points == {"stem_relu": {"a"}, "a": {"b"}}


def test_concat_of_quantized_tensors_shares_one_scale(rng: np.random.Generator) -> None:
    net = Net(rng)
    x = net.relu(net.conv(net.frames(), "stem", (3, 16)))
    y = net.relu(net.conv(x, "a", (16, 16)))
    joined = net.node("Concat", [x, y], "joined", axis=1)
    both = net.node("Add", [net.conv(y, "b", (16, 16)), net.conv(joined, "c", (32, 16))], "both")
    groups = {point.tensor: point.group for point in finished(net, net.relu(both), 16).points}
    assert set(groups) == {"stem_relu", "a_relu", "joined"}
    assert groups["a_relu"] == groups["stem_relu"] == groups["joined"]


def test_concat_with_a_float_tensor_leaves_the_others_their_scales(rng: np.random.Generator) -> None:
    net = Net(rng)
    x = net.relu(net.conv(net.frames(), "stem", (3, 16)))
    y = net.relu(net.conv(x, "a", (16, 16)))
    z = net.relu(net.conv(y, "b", (16, 16)))
    joined = net.node("Concat", [y, z], "joined", axis=1)
    placement = finished(net, net.relu(net.conv(joined, "c", (32, 16))), 16)
    groups = {point.tensor: point.group for point in placement.points}
    assert groups == {"stem_relu": "stem_relu", "a_relu": "a_relu", "joined": "joined"}


def test_layer_that_ranges_decline_takes_its_tensor_along(rng: np.random.Generator) -> None:
    graph = import_graph(fcn(rng))
    asked: list[tuple[str, str]] = []

    def unfit(tensor: str, node) -> str | None:
        asked.append((tensor, node.name))
        return "too hot" if tensor == "conv2_relu" else None

    placement = place(graph, logits_name(fcn(rng)), unfit)
    assert asked == [("conv1_relu", "node_conv2"), ("conv2_relu", "node_conv3")]  # above the pool
    assert placement.layers == ("conv2",)
    assert placement.tensors == ("conv1_relu",)
    assert reasons(placement)["node_conv3"] == "too hot"


def test_pools_in_a_row_are_passed(rng: np.random.Generator) -> None:
    net = Net(rng)
    x = net.relu(net.conv(net.frames(), "stem", (3, 16)))
    placement = finished(net, net.relu(net.conv(net.pool(net.pool(x)), "a", (16, 16))), 16)
    assert placement.tensors == ("stem_relu",)
    assert [r.node for r in placement.points[0].readers] == ["stem_relu_pool"]


def test_gemm_is_quantized_and_transa_declined(rng: np.random.Generator) -> None:
    for attributes, layers in (({}, ("fc",)), ({"transA": 1}, ())):
        net = Net(rng)
        x = net.relu(net.conv(net.frames(), "stem", (3, 16)))
        x = net.node("Reshape", [x, net.const("rows", np.array([-1, 32], np.int64))], "flat")
        rows = 16 * SIZE[0]
        weight = rng.normal(size=(32 if not attributes else rows, 32)).astype(np.float32)
        x = net.relu(net.node("Gemm", [x, net.const("fc.weight", weight)], "fc", **attributes))
        x = net.node("Reshape", [x, net.const("shape", np.array([1, 16, -1, 32], np.int64))], "image")
        logits = net.conv(x, "score", (16, CLASSES), 1)
        placement = placed(net.model([(logits, TensorProto.FLOAT, [1, CLASSES, "h", 32])]))
        assert placement.layers == layers
        if attributes:
            assert "transA" in reasons(placement)["node_fc"]


def test_weight_that_is_computed_is_declined(rng: np.random.Generator) -> None:
    net = Net(rng)
    x = net.relu(net.conv(net.frames(), "stem", (3, 16)))
    weight = net.node(
        "Mul", [net.const("w", np.ones((16, 16, 1, 1), np.float32)), net.const("k", np.float32([2]))], "wk"
    )
    x = net.relu(net.node("Conv", [x, weight], "dynamic", kernel_shape=[1, 1]))
    assert reasons(finished(net, x, 16))["node_dynamic"] == "its weight is not a float32 constant"


def test_first_layer_is_quantized_where_it_reads_whole_frames(rng: np.random.Generator) -> None:
    model = optimize(optimize(fcn(rng))[0], passes=WHOLE_FRAMES, strict=True)[0]
    graph, logits = import_graph(model), logits_name(model)
    placement = place(graph, logits, form="openvino")
    assert placement.layers == ("conv1", "conv2", "conv3")
    assert placement.tensors == place(graph, logits).tensors, "whole numbers need no point"
    assert place(graph, logits).layers == ("conv2", "conv3")
    assert place(graph, logits, precision="fp8", form="openvino").layers == ("conv2", "conv3")
    kept = place(graph, logits, floats=frozenset({"conv1"}), form="openvino")
    assert reasons(kept)["node_conv1"] == KEPT_FLOAT
