from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from fcnopt.backends.layertimes import LayerTimer, layer_timer
from fcnopt.backends.targets import Target
from fcnopt.builder import build
from fcnopt.bundle import MODEL
from fcnopt.errors import UsageError
from fcnopt.graph import io
from fcnopt.models.fcn import Architecture
from fcnopt.quantize.rates import GPUS, Rates, rates_of
from fcnopt.settings import BuildSettings
from fcnopt.slimming.cost import CostModel, cost_model, measured_ms, measured_speedup, table, widths_of
from fcnopt.slimming.plan import Plan, fit_plan, make_plan
from fcnopt.spec import ClassSpec, FrameSpec, ModelSpec
from tests.models.networks import tiny

ARCHITECTURE = Architecture(8, 5, widths=(64, 96, 128, 128, 128), fc_widths=(256, 256), batch_norm=True)
SIZE = (96, 128)


@pytest.fixture
def cost() -> CostModel:
    return replace(table(ARCHITECTURE, SIZE, GPUS[86]), fixed_ms=0.001)


def even_losses(cost: CostModel) -> dict[str, NDArray[np.float64]]:
    """Every channel of every layer costs the same, the more the fewer are left."""
    return {name: np.arange(width) ** 2.0 for name, width in cost.widths.items()}


def test_time_grows_with_every_width_and_with_the_rank(cost: CostModel) -> None:
    whole = cost.total_ms(cost.widths)
    for name, width in cost.widths.items():
        times = [cost.total_ms({**cost.widths, name: narrower}) for narrower in range(1, width + 1)]
        assert (np.diff(times) > 0).all(), name
        assert times[-1] == whole
    ranks = [cost.total_ms(cost.widths, rank) for rank in range(1, 240)]
    assert (np.diff(ranks) > 0).all()
    assert cost.total_ms(cost.widths, 256) == whole


def test_layers_are_counted_where_they_run(cost: CostModel) -> None:
    layers = cost.layers
    assert (layers["conv1_1"].source, layers["conv2_1"].source, layers["fc7"].source) == ("", "conv1_2", "fc6")
    assert layers["conv1_2"].positions == 96 * 128
    assert (layers["conv2_1"].positions, layers["conv2_1"].inputs) == (48 * 64, 48 * 64)
    assert (layers["fc6"].taps, layers["fc6"].positions) == (49, 3 * 4)
    caffe = table(replace(ARCHITECTURE, padding="caffe", batch_norm=False), SIZE, GPUS[86])
    assert caffe.layers["conv1_2"].positions == (96 + 198) * (128 + 198)
    assert (caffe.layers["fc6"].positions, caffe.layers["fc6"].inputs) == (4 * 5, 10 * 11)


def test_full_resolution_costs_most_a_channel(cost: CostModel) -> None:
    def saved(name: str) -> float:
        return cost.total_ms(cost.widths) - cost.total_ms({**cost.widths, name: cost.widths[name] - 1})

    assert saved("conv1_2") > saved("conv3_2") > saved("conv5_2") > saved("fc7")


@pytest.mark.parametrize("speedup", [1.5, 2.0, 3.5])
def test_a_plan_meets_the_time_in_multiples(cost: CostModel, speedup: float) -> None:
    plan = make_plan(cost, even_losses(cost), np.linspace(5, 0, 257), speedup=speedup, multiple=16)
    assert plan.speedup >= speedup
    assert plan.ms == cost.total_ms(plan.widths, plan.rank)
    assert plan.original_ms == cost.total_ms(cost.widths)
    for name, width in plan.widths.items():
        assert width == cost.widths[name] or width % 16 == 0
    assert plan.rank is None or plan.rank % 16 == 0


def test_more_speed_costs_more(cost: CostModel) -> None:
    plans = [make_plan(cost, even_losses(cost), np.zeros(257), speedup=s, multiple=16) for s in (1.2, 1.6, 2.5, 3.5)]
    assert (np.diff([plan.loss for plan in plans]) > 0).all()


def test_what_costs_no_loss_goes_first(cost: CostModel) -> None:
    losses = {name: np.arange(width) * 1e3 for name, width in cost.widths.items()}
    losses["conv2_2"] = np.zeros(96)
    plan = make_plan(cost, losses, np.full(257, 1e6), speedup=1.05, multiple=16)
    assert {name for name, width in plan.widths.items() if width < cost.widths[name]} == {"conv2_2"}
    assert plan.loss == 0


def test_fc6_is_factored_where_its_rank_is_low(cost: CostModel) -> None:
    rank_loss = np.zeros(257)
    rank_loss[:64] = 1e6
    dear = {name: np.arange(width) * 1e3 for name, width in cost.widths.items()}
    plan = make_plan(cost, dear, rank_loss, speedup=1.005, multiple=16)
    assert plan.rank is not None
    assert plan.rank >= 64
    assert dict(plan.widths) == dict(cost.widths)


def test_a_rank_that_later_moves_made_useless_is_dropped(cost: CostModel) -> None:
    losses = {name: np.arange(width) * 1e6 for name, width in cost.widths.items()}
    losses["fc6"] = np.full(256, 0.0)
    plan = make_plan(cost, losses, np.linspace(1e-6, 0, 257), speedup=1.02, multiple=16)
    assert plan.rank is None or plan.rank < plan.widths["fc6"]


def test_a_speedup_out_of_reach_says_what_is_possible(cost: CostModel) -> None:
    slow = replace(cost, fixed_ms=cost.total_ms(cost.widths))
    with pytest.raises(UsageError, match="speedup 3 cannot be met: with every layer at 16 channels") as error:
        make_plan(slow, even_losses(slow), np.zeros(257), speedup=3, multiple=16)
    assert "ask for less than" in error.value.fix


def test_a_target_without_int8_is_refused() -> None:
    with pytest.raises(UsageError, match="old does not compute in int8"):
        table(ARCHITECTURE, SIZE, Rates("old", {"fp32": 1.0}, 1.0))


def test_widths_are_named_in_order() -> None:
    assert list(widths_of(ARCHITECTURE))[:2] == ["conv1_1", "conv1_2"]
    assert list(widths_of(ARCHITECTURE).items())[-2:] == [("fc6", 256), ("fc7", 256)]


def test_layers_are_timed_where_the_target_runs() -> None:
    pytest.importorskip("openvino")
    network = tiny(batch_norm=True, widths=(16, 32, 32, 32, 32), fc_widths=(32, 32))
    spec = ModelSpec(FrameSpec(64, 96), ClassSpec.of_count(5))
    found = cost_model(network, spec, Target.parse("openvino"))
    assert found.measured
    known = table(network.architecture, (64, 96), rates_of(Target.parse("openvino")))
    assert found.layers["conv1_2"].factor != 1.0
    timed = replace(found, layers={**found.layers, "conv1_2": known.layers["conv1_2"]})
    ratio = found.layer_ms("conv1_2", found.widths) / timed.layer_ms("conv1_2", found.widths)
    assert ratio == pytest.approx(found.layers["conv1_2"].factor)
    assert found.total_ms({**found.widths, "conv1_2": 8}) < found.total_ms(found.widths)
    assert measured_speedup(network, network, spec, Target.parse("openvino")) > 0


class Clock(LayerTimer):
    """A runtime that spends time in convolutions alone: as told by the weight's name up to its dot, else a second."""

    def __init__(self, model: onnx.ModelProto, told: dict[str, float]) -> None:
        super().__init__()
        self._nodes, self._told = model.graph.node, told

    def run(self, _frame: NDArray[np.uint8]) -> None:
        stored = {node.output[0]: node.input[0] for node in self._nodes if node.op_type == "DequantizeLinear"}
        for node in self._nodes:
            if node.op_type == "Conv":
                weight = stored.get(node.input[1], node.input[1])
                self._add((node.name,), self._told.get(weight.split(".")[0], 1000.0))

    def close(self) -> None:
        pass


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., LayerTimer]], list[onnx.ModelProto]]:
    """Lets graphs be timed by another timer, and gives the list of those that are."""

    def by(timer: Callable[..., LayerTimer]) -> list[onnx.ModelProto]:
        found: list[onnx.ModelProto] = []

        def noted(model: onnx.ModelProto, *rest: Any) -> LayerTimer:
            found.append(model)
            return timer(model, *rest)

        for room in ("slimming", "quantize"):
            monkeypatch.setattr(f"fcnopt.{room}.cost.layer_timer", noted)
        return found

    return by


def test_what_is_timed_is_the_graph_that_is_built(
    tiny_model: Path, street: Path, tmp_path: Path, timed: Callable[..., list[onnx.ModelProto]]
) -> None:
    for runtime in ("openvino", "onnxruntime"):
        pytest.importorskip(runtime)
    settings = BuildSettings(folder=tmp_path, calib=tmp_path / "calib", max_frames=2)
    path = build(tiny_model, precision="int8", target="openvino", calibration=street / "images", settings=settings)
    built = io.load(path / MODEL)
    spec = io.read_spec(built)
    assert spec is not None
    work = sorted(node.op_type for node in built.graph.node)
    assert "DepthToSpace" in work
    graphs = timed(lambda model, *_: Clock(model, {}))
    network = tiny(batch_norm=True, widths=(16, 16, 24, 24, 32), fc_widths=(32, 32))
    assert measured_speedup(network, network, spec, Target.parse("openvino")) == 1.0
    measured_ms(network, spec, Target.parse("openvino"))
    before, after, whole, plain = ([node.op_type for node in graph.graph.node] for graph in graphs)
    assert sorted(before) == sorted(after) == sorted(whole) == work
    assert "QuantizeLinear" not in plain
    assert plain[-7:] == whole[-7:]
    assert "DepthToSpace" in plain[-7:]


@pytest.mark.parametrize("padding", ["same", "caffe"])
@pytest.mark.parametrize("target", ["openvino", "onnxruntime"])
def test_every_layer_is_given_its_own_time(
    timed: Callable[..., list[onnx.ModelProto]], target: str, padding: str
) -> None:
    pytest.importorskip(target)
    network = tiny(padding=padding, widths=(16, 32, 32, 32, 32), fc_widths=(32, 32))
    spec = ModelSpec(FrameSpec(96, 128), ClassSpec.of_count(5))
    told = {name: float(index) for index, name in enumerate(widths_of(network.architecture), 1)}
    graphs = timed(lambda model, *_: Clock(model, told))
    found, total = measured_ms(network, spec, Target.parse(target))
    assert found == told
    assert total == sum(told.values()) + 4 * 1000.0, "three scores and the last upsampling"
    assert any(".wide" in node.name for node in graphs[0].graph.node) == (padding == "caffe"), "borders are constant"

    graphs = timed(layer_timer)
    found, total = measured_ms(network, spec, Target.parse(target))
    assert len(graphs) == 2
    assert found is not None
    assert found.keys() == told.keys()
    assert 0 < sum(found.values()) < total


def test_a_target_that_does_not_run_here_is_estimated() -> None:
    network = tiny(batch_norm=True, widths=(16, 32, 32, 32, 32), fc_widths=(32, 32))
    found = cost_model(network, ModelSpec(FrameSpec(64, 96), ClassSpec.of_count(5)), Target.parse("tensorrt-rtx:sm86"))
    assert not found.measured
    assert {layer.factor for layer in found.layers.values()} == {1.0}


def test_a_size_is_needed() -> None:
    with pytest.raises(UsageError, match="slimming needs a frame size"):
        cost_model(tiny(batch_norm=True), ModelSpec(FrameSpec(), ClassSpec.of_count(5)), Target.parse("openvino"))


def plan_of(speedup: float) -> Plan:
    """A plan that the model believes to be so much faster."""
    return Plan({}, None, loss=speedup, ms=1 / speedup, original_ms=1.0)


@pytest.mark.parametrize("bend", [0.6, 0.9, 1.0, 1.1, 1.7])
@pytest.mark.parametrize("wanted", [1.2, 2.0, 4.0])
def test_what_is_asked_of_the_model_is_fitted_to_what_is_measured(wanted: float, bend: float) -> None:
    tried = []

    def measure(plan: Plan) -> float:
        tried.append(plan)
        return plan.speedup**bend  # the model is wrong by more, the narrower the network

    plan, speedup = fit_plan(wanted, plan_of, measure)
    assert 0.99 * wanted <= speedup <= 1.06 * wanted
    assert speedup == plan.speedup**bend
    assert bend != 1.0 or len(tried) == 1


def test_a_measurement_that_was_disturbed_does_not_make_the_network_narrower() -> None:
    measured = []

    def measure(plan: Plan) -> float:
        measured.append(plan.speedup)
        return plan.speedup * (0.6 if len(measured) == 1 else 1.0)

    _, speedup = fit_plan(1.5, plan_of, measure)
    assert measured[1] > 1.5 * 1.5  # misled by the first
    assert 0.99 * 1.5 <= speedup <= 1.15 * 1.5


def test_the_fastest_plan_is_taken_where_none_is_fast_enough(cost: CostModel) -> None:
    plan, speedup = fit_plan(3.0, lambda asked: plan_of(min(asked, 2.0)), lambda plan: plan.speedup)
    assert speedup == plan.speedup == pytest.approx(2.0)

    def plan_for(speedup: float) -> Plan:
        return make_plan(cost, even_losses(cost), np.zeros(257), speedup=speedup, multiple=16)

    with pytest.raises(UsageError, match="cannot be met"):
        fit_plan(1e9, plan_for, lambda plan: plan.speedup)
