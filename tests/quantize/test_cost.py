from __future__ import annotations

import itertools

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from fcnopt.backends.layertimes import LayerTimer
from fcnopt.backends.targets import Target
from fcnopt.errors import GraphError, UsageError
from fcnopt.graph.io import import_graph
from fcnopt.graph.passes import CPU_PASSES, optimize
from fcnopt.quantize.cost import Costs, layer_costs
from fcnopt.quantize.placement import place
from fcnopt.quantize.qdq import Grid, insert
from fcnopt.quantize.rates import GPUS
from fcnopt.quantize.roofline import Border
from tests.quantize.nets import CLASSES, SIZE, Net, Options, fcn, images, ops, pooled

RTX = Target.parse("tensorrt-rtx:sm86")


def costs(model: onnx.ModelProto, target: str = "tensorrt-rtx:sm86", frame: NDArray | None = None, **kind) -> Costs:
    layers = place(import_graph(model), "logits", **kind).layers
    return layer_costs(model, layers, Target.parse(target), size=SIZE, frame=frame, **kind)


def chain(rng: np.random.Generator, channels: tuple[int, ...], kernel: int = 3) -> onnx.ModelProto:
    """A stem, layers c0, c1, ... of these widths, and the scores, which are the logits."""
    net = Net(rng)
    x = net.relu(net.conv(net.frames(), "stem", (3, channels[0])))
    for index, pair in enumerate(itertools.pairwise(channels)):
        x = net.relu(net.conv(x, f"c{index}", pair, kernel))
    net.labels(net.conv(x, "logits", (channels[-1], CLASSES), 1))
    return net.model()


def test_time_is_the_longer_of_multiplying_and_moving(rng: np.random.Generator) -> None:
    found = costs(chain(rng, (16, 32, 1024, 1024)))
    rates, pixels = GPUS[86], SIZE[0] * SIZE[1]
    narrow, wide = found.layers["c0"], found.layers["c2"]
    assert wide.macs == pixels * 1024 * 1024 * 9
    assert wide.ms["int8"] == pytest.approx(wide.macs / (250e12 / 2) * 1e3)
    assert wide.ms["fp16"] == pytest.approx(wide.macs / (125e12 / 2) * 1e3)
    moved = 16 * pixels + 16 * 32 * 9 + 32 * pixels
    assert narrow.ms["int8"] == pytest.approx(moved / 600e9 * 1e3)
    assert narrow.ms["int8"] > narrow.macs / rates.gmacs["int8"] / 1e6
    assert {cost.source for cost in found.layers.values()} == {"table"}
    assert found.whole_ms == {}


@pytest.mark.parametrize("target", ["tensorrt-rtx:sm80", "tensorrt-rtx:sm120", "openvino", "onnxruntime"])
def test_times_grow_with_the_macs_and_quantized_is_never_slower(rng: np.random.Generator, target: str) -> None:
    found = costs(chain(rng, (16, 16, 32, 64, 128, 256)), target)
    by_macs = sorted(found.layers.values(), key=lambda cost: cost.macs)
    assert len(by_macs) == 5
    for kind in (found.precision, found.fallback):
        times = [cost.ms[kind] for cost in by_macs]
        assert times == sorted(times)
        assert times[0] < times[-1]
    assert all(cost.ms[found.precision] < cost.ms[found.fallback] for cost in by_macs)


def test_fallback_is_fp16_for_gpus_and_fp32_for_onnx_runtime(rng: np.random.Generator) -> None:
    model = fcn(rng)
    assert costs(model).fallback == "fp16"
    assert costs(model, "onnxruntime").fallback == "fp32"
    assert costs(model, "openvino").fallback in ("bf16", "fp32")
    fp8 = costs(model, "tensorrt-rtx:sm89,sm120", precision="fp8")
    assert fp8.precision == "fp8"
    assert fp8.family.startswith("sm89")


def test_fp8_is_refused_where_the_family_lacks_it(rng: np.random.Generator) -> None:
    with pytest.raises(UsageError, match=r"sm86 \(NVIDIA A10 data sheet\) does not compute in fp8"):
        costs(fcn(rng), precision="fp8")


def test_whole_graph_is_layers_rest_and_borders(rng: np.random.Generator) -> None:
    model = chain(rng, (16, 64, 64, 64))
    found = costs(model)
    assert found.total_ms() == found.base_ms
    none = layer_costs(model, (), RTX, size=SIZE)
    assert none.layers == {}
    assert found.total_ms(found.layers) == pytest.approx(none.base_ms)
    quantized = sum(cost.ms["int8"] for cost in found.layers.values())
    half = sum(cost.ms["fp16"] for cost in found.layers.values())
    assert found.base_ms - quantized - found.borders_ms() == pytest.approx(none.base_ms - half)


def test_float_layer_between_quantized_ones_pays_for_wider_tensors(rng: np.random.Generator) -> None:
    found = costs(chain(rng, (16, 32, 32, 32)))
    pixels = SIZE[0] * SIZE[1]
    slower = found.layers["c1"].ms["fp16"] - found.layers["c1"].ms["int8"]
    # What it reads is written in half instead of int8; its result is read and written again, as int8.
    wider = 32 * pixels * (1 + 3) / 600e9 * 1e3
    assert found.fallback_ms("c1") == pytest.approx(slower + wider)
    # With its neighbour in half already, what lies between them is not converted.
    again = found.layers["c2"].ms["fp16"] - found.layers["c2"].ms["int8"] - 32 * pixels * 3 / 600e9 * 1e3
    assert found.fallback_ms("c2", ["c1"]) == pytest.approx(again)
    with pytest.raises(KeyError):
        found.total_ms(["stem"])


def test_borders_follow_pools_and_skip_branches(rng: np.random.Generator) -> None:
    found = {border.tensor: border for border in costs(pooled(rng)).borders}
    pixels = SIZE[0] * SIZE[1]
    assert found["conv1_relu"] == Border("conv1_relu", None, ("conv2",), read_float=False, elements=16 * pixels)
    assert found["conv2_relu"] == Border("conv2_relu", ("conv2",), ("conv3",), read_float=False, elements=32 * pixels)
    behind = costs(pooled(rng), "tensorrt-rtx:sm89", precision="fp8").borders[1]
    assert behind == Border("conv2_relu_pool", None, ("conv3",), read_float=False, elements=8 * pixels)
    skip = costs(fcn(rng)).borders[1]
    assert skip == Border("conv2_relu_pool", ("conv2",), ("conv3",), read_float=True, elements=8 * pixels)


@pytest.mark.parametrize(
    ("writers", "read_float", "floats", "moved"),
    [
        (None, False, (), 3),  # float to int8: read two bytes, write one
        (None, False, ("r",), 0),
        (("w",), False, (), 0),
        (("w",), False, ("r",), 1),  # written in half instead of int8
        (("w",), False, ("w",), 3),
        (("w",), False, ("w", "r"), 0),
        (("w",), True, (), 2),  # written twice
        (("w",), True, ("r",), 1),
        (("w", "v"), False, ("v",), 3),
    ],
)
def test_bytes_moved_where_precisions_meet(
    writers: tuple[str, ...] | None, read_float: bool, floats: tuple[str, ...], moved: int
) -> None:
    border = Border("t", writers, ("r",), read_float, 10)
    assert border.moved_bytes(floats, 2) == 10 * moved


def test_layers_that_cannot_be_quantized_are_refused(rng: np.random.Generator) -> None:
    with pytest.raises(GraphError, match="layer 'conv1' cannot be quantized"):
        layer_costs(fcn(rng), ["conv1", "conv2"], RTX, size=SIZE)


def test_missing_and_repeated_node_names_do_not_matter(rng: np.random.Generator) -> None:
    model = fcn(rng)
    want = costs(model)
    for index, node in enumerate(model.graph.node):
        node.name = "" if index % 2 else "same"
    before = model.SerializeToString()
    assert costs(model) == want
    assert model.SerializeToString() == before


@pytest.mark.parametrize("target", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("options", [Options(), Options(group=2), Options(bias=False)])
def test_measured_times_of_every_layer_replace_the_table(
    rng: np.random.Generator, target: str, options: Options
) -> None:
    model, frame = fcn(rng, options), images(rng, 1)[0]
    found = costs(model, target, frame)
    table = costs(model, target)
    assert set(found.layers) == {"conv2", "conv3"}
    for name, cost in found.layers.items():
        assert cost.source == "measured"
        assert cost.macs == table.layers[name].macs
        assert set(cost.ms) == {"int8", found.fallback}
        assert all(ms > 0 for ms in cost.ms.values())
        assert cost.ms != table.layers[name].ms
    assert found.total_ms() == found.whole_ms["int8"]
    for kind, whole in found.whole_ms.items():
        assert sum(cost.ms[kind] for cost in found.layers.values()) < whole
    assert found.borders == table.borders


@pytest.mark.parametrize("target", ["openvino", "onnxruntime"])
def test_graphs_are_timed_as_they_are_built(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    model, form = fcn(rng), Target.parse(target).form
    timed = {}

    def timer(graph: onnx.ModelProto, _target: Target, precision: str) -> Clock:
        timed[precision] = graph
        return Clock({("x",): 1.0})

    monkeypatch.setattr("fcnopt.quantize.cost.layer_timer", timer)
    kinds = costs(model, target, images(rng, 1)[0])
    placement = place(import_graph(model), "logits", form=form)
    quantized = insert(model, placement, dict.fromkeys(placement.tensors, Grid(0.1, 0, "uint8")), form)
    for kind, graph in ((kinds.precision, quantized), (kinds.fallback, model)):
        built, reports = optimize(graph, passes=CPU_PASSES, strict=True)
        assert any(report.changed for report in reports)
        assert sorted(ops(timed[kind])) == sorted(ops(built))


class Clock(LayerTimer):
    """A runtime that takes the times it is told."""

    def __init__(self, told: dict[tuple[str, ...], float]) -> None:
        super().__init__()
        self._told = told

    def run(self, frame: NDArray[np.uint8]) -> None:
        assert frame.shape == (1, *SIZE, 3)
        for names, ms in self._told.items():
            self._add(names, ms)

    def close(self) -> None:
        pass


def clocks(monkeypatch: pytest.MonkeyPatch, int8: dict, plain: dict) -> None:
    def timer(model: onnx.ModelProto, _target: Target, precision: str) -> Clock:
        quantized = any(node.op_type == "QuantizeLinear" for node in model.graph.node)
        assert quantized == (precision == "int8")
        return Clock(int8 if quantized else plain)

    monkeypatch.setattr("fcnopt.quantize.cost.layer_timer", timer)


def test_all_that_a_runtime_does_for_a_layer_counts_for_it(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    int8 = {("conv2/x", "conv2"): 1.0, ("conv3_relu",): 2.0, ("conv3.weight_dequantize",): 0.5, ("other",): 4.0}
    clocks(monkeypatch, int8, {("conv2",): 3.0, ("conv3", "conv3_relu"): 6.0, ("other",): 3.0})
    found = costs(pooled(rng), "onnxruntime", images(rng, 1)[0])
    assert found.layers["conv2"].ms == {"int8": 1.0, "fp32": 3.0}
    assert found.layers["conv3"].ms == {"int8": 2.5, "fp32": 6.0}
    assert found.whole_ms == {"int8": 7.5, "fp32": 12.0}
    assert found.total_ms() == 7.5
    # conv1's result need not be made uint8, and conv2's now must.
    pixels = SIZE[0] * SIZE[1]
    borders = (32 - 16) * pixels * (4 + 1) / found.gbytes / 1e6
    assert found.fallback_ms("conv2") == pytest.approx(2.0 + borders)


def test_layer_that_the_runtime_does_not_name_is_estimated_from_the_others(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, frame = fcn(rng), images(rng, 1)[0]
    table = costs(model, "onnxruntime")
    clocks(monkeypatch, {("conv2",): 1.0, ("conv3",): 1.0}, {("conv2",): 3.0, ("mystery",): 6.0})
    found = costs(model, "onnxruntime", frame)
    assert (found.layers["conv2"].source, found.layers["conv3"].source) == ("measured", "table")
    for kind, ms in (("int8", 1.0), ("fp32", 3.0)):
        ratio = table.layers["conv3"].ms[kind] / table.layers["conv2"].ms[kind]
        assert found.layers["conv3"].ms[kind] == pytest.approx(ms * ratio)
    clocks(monkeypatch, {("x",): 1.0}, {("y",): 3.0})
    assert costs(model, "onnxruntime", frame) == table


def test_gpu_targets_are_not_measured(rng: np.random.Generator) -> None:
    model, frame = fcn(rng), images(rng, 1)[0]
    assert costs(model, "tensorrt-rtx:sm86", frame) == costs(model, "tensorrt-rtx:sm86")


def test_weights_do_not_change_the_table(rng: np.random.Generator) -> None:
    model = fcn(rng)
    want = costs(model)
    for tensor in model.graph.initializer:
        if tensor.name.endswith("weight"):
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * 0, tensor.name))
    assert costs(model) == want
