from __future__ import annotations

import numpy as np
import onnx

from fcnopt.graph.io import import_graph
from fcnopt.graph.taps import logits_name
from fcnopt.quantize.placement import place
from fcnopt.quantize.plan import Plan
from fcnopt.quantize.qdq import Rounded, grids, quantize_weight
from fcnopt.quantize.ranges import observe
from tests.quantize.nets import CLASSES, Net, fcn, images, ops, residual, run


def planned(model: onnx.ModelProto, frames: list[np.ndarray], form: str = "tensorrt", precision: str = "int8") -> Plan:
    logits = logits_name(model)
    placement = place(import_graph(model), logits, None, precision)
    ranges = observe(model, frames, tensors=placement.tensors, quantized=placement.tensors)
    found = grids(placement, ranges, dict.fromkeys(placement.tensors, "mse"), form, precision)
    return Plan(model, logits, precision, form, placement, found, {})


def test_layers_left_float_take_the_points_along_that_nobody_reads_then(rng: np.random.Generator) -> None:
    plan = planned(fcn(rng), images(rng, 2))
    assert plan.without(frozenset()) is plan
    for floats, layers, points in (
        ({"conv3"}, ("conv2",), ("conv1_relu",)),
        ({"conv2"}, ("conv3",), ("conv2_relu_pool",)),
        ({"conv2", "conv3"}, (), ()),
    ):
        less = plan.without(floats)
        assert (less.placement.layers, less.placement.tensors) == (layers, points)
        graph = less.graph()
        onnx.checker.check_model(graph, full_check=True)
        assert ops(graph).count("QuantizeLinear") == len(points)
        assert ops(graph).count("DequantizeLinear") == len(points) + len(layers)
    everything = plan.without({"conv2", "conv3"}).graph()
    frame = images(rng, 1)[0]
    np.testing.assert_array_equal(run(everything, frame)[0], run(plan.source, frame)[0])


def test_point_that_another_layer_reads_stays(rng: np.random.Generator) -> None:
    net = Net(rng)
    x = net.relu(net.conv(net.frames(), "stem", (3, 16)))
    y = net.node("Add", [net.conv(x, "a", (16, 16)), net.conv(x, "b", (16, 16))], "sum")
    net.labels(net.conv(net.relu(y), "score", (16, CLASSES), 1))
    plan = planned(net.model(), images(rng, 2))
    less = plan.without({"a"})
    assert less.placement.layers == ("b",)
    assert less.placement.tensors == ("stem_relu",)
    kept = {reader.node for reader in less.placement.points[0].readers}
    assert "b" in kept


def test_layers_that_had_to_stay_float_still_do(rng: np.random.Generator) -> None:
    model = residual(rng, 1.0)
    plan = planned(model, images(rng, 2))

    def unfit(tensor: str, _node: object) -> str | None:
        return "no scale" if tensor == "sum_relu" else None

    limited = Plan(plan.source, plan.logits, "int8", "tensorrt", plan.placement, plan.grids, {}, unfit)
    assert plan.without({"a"}).placement.layers == ("b", "c")
    assert limited.without({"a"}).placement.layers == ("b",)


def test_rounded_weights_are_in_the_graph_and_go_with_their_layer(rng: np.random.Generator) -> None:
    plan = planned(fcn(rng), images(rng, 2))
    weight = next(n for n in import_graph(plan.source).nodes if n.name == "node_conv2").inputs[1].values
    values, scales = quantize_weight(weight, 0, "tensorrt")
    plan = Plan(
        plan.source, plan.logits, "int8", "tensorrt", plan.placement, plan.grids,
        {"conv2.weight": Rounded(np.roll(values, 1, 0), scales)},
    )  # fmt: skip
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in plan.graph().graph.initializer}
    np.testing.assert_array_equal(stored["conv2.weight_int8"], np.roll(values, 1, 0))
    names = {t.name for t in plan.without({"conv2"}).graph().graph.initializer}
    assert "conv2.weight" in names
    assert "conv2.weight_int8" not in names
