from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from fcnopt.graph.io import import_graph
from fcnopt.graph.taps import logits_name
from fcnopt.quantize.choose import Evidence, Judge
from fcnopt.quantize.placement import Placement, place
from fcnopt.quantize.qdq import Grid, grids, insert
from fcnopt.quantize.ranges import observe
from fcnopt.quantize.refine import STEP, refine, times
from tests.quantize.nets import CLASSES, Net, fcn, images

FORMS = ["tensorrt", "openvino", "onnxruntime"]


def joined(rng: np.random.Generator) -> onnx.ModelProto:
    """Two tensors that meet in a Concat, so that three share one scale."""
    net = Net(rng)
    x = net.relu(net.conv(net.frames(), "stem", (3, 16)))
    y = net.relu(net.conv(x, "a", (16, 16)))
    both = net.node("Concat", [x, y], "joined", axis=1)
    z = net.node("Add", [net.conv(y, "b", (16, 16)), net.conv(both, "c", (32, 16))], "sum")
    net.labels(net.conv(net.relu(net.conv(net.relu(z), "d", (16, 32))), "score", (32, CLASSES), 1))
    return net.model()


def start(
    model: onnx.ModelProto, frames: list[np.ndarray], form: str, gain: float = 1.0
) -> tuple[Placement, dict[str, Grid], onnx.ModelProto, Judge]:
    """Grids by minmax, `gain` times too wide."""
    logits = logits_name(model)
    placement = place(import_graph(model), logits)
    ranges = observe(model, frames, tensors=placement.tensors, quantized=placement.tensors)
    found = grids(placement, ranges, dict.fromkeys(placement.tensors, "minmax"), form)
    found = {name: times(grid, gain) for name, grid in found.items()}
    return placement, found, insert(model, placement, found, form), Judge(model, frames, logits)


class FakeJudge:
    """Divergence as a function of the scales in a graph."""

    def __init__(self, loss: Callable[[dict[str, float]], float]) -> None:
        self.loss = loss
        self.runs = 0

    def __call__(self, name: str, candidate: onnx.ModelProto) -> Evidence:
        self.runs += 1
        return Evidence(name, self.loss(scales_of(candidate)), 30.0, 1.0)


def scales_of(model: onnx.ModelProto) -> dict[str, float]:
    return {
        tensor.name.removesuffix("_scale"): float(numpy_helper.to_array(tensor))
        for tensor in model.graph.initializer
        if tensor.name.endswith("_scale") and not tensor.dims
    }


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("gain", [8.0, 1.0, 1 / 6])
@pytest.mark.parametrize("net", [fcn, joined])
def test_divergence_never_grows_and_evidence_is_that_of_the_result(
    rng: np.random.Generator, form: str, gain: float, net: Callable[[np.random.Generator], onnx.ModelProto]
) -> None:
    model, frames = net(rng), images(rng, 2)
    placement, found, graph, judge = start(model, frames, form, gain)
    before = judge("start", graph)
    refined, evidence, moves = refine(graph, placement, found, judge, lambda _: None)
    assert evidence.name == "refined"
    assert evidence.divergence <= before.divergence
    fresh = insert(model, placement, refined, form)
    assert scales_of(graph) == scales_of(fresh)
    assert judge("refined", fresh) == evidence
    if gain != 1.0:
        assert moves
        assert all((move.factor < 1) == (gain > 1) for move in moves)
        assert evidence.divergence < before.divergence / 2
    for move in moves:
        assert move.after < move.before
        assert refined[move.tensor].scale == pytest.approx(found[move.tensor].scale * move.factor, rel=2e-3)
    assert [move.after for move in moves[:-1]] == [move.before for move in moves[1:]]
    still = set(found) - {p.tensor for p in placement.points if p.group in {move.tensor for move in moves}}
    assert all(refined[name] == found[name] for name in still)


@pytest.mark.parametrize("form", FORMS)
def test_tensors_of_one_group_move_together(rng: np.random.Generator, form: str) -> None:
    model, frames = joined(rng), images(rng, 2)
    placement, found, graph, judge = start(model, frames, form, 6.0)
    group = [point.tensor for point in placement.points if point.group == "joined"]
    assert sorted(group) == ["a_relu", "joined", "stem_relu"]
    refined, _, moves = refine(graph, placement, found, judge, lambda _: None)
    assert "joined" in {move.tensor for move in moves}
    assert len({refined[name] for name in group}) == 1
    assert refined["joined"].scale < found["joined"].scale
    assert len({scales_of(graph)[name] for name in group}) == 1


def test_scales_of_tensorrt_stay_float16_values_and_grids_keep_their_kind(rng: np.random.Generator) -> None:
    model, frames = fcn(rng), images(rng, 2)
    for form, kind in (("tensorrt", "int8"), ("openvino", "uint8")):
        placement, found, graph, judge = start(model, frames, form, 5.0)
        refined, _, moves = refine(graph, placement, found, judge, lambda _: None)
        assert moves
        for name, grid in refined.items():
            assert (grid.kind, grid.zero) == (kind, found[name].zero)
            if form == "tensorrt":
                assert float(np.float16(grid.scale)) == grid.scale
        onnx.checker.check_model(graph, full_check=True)
        constants = [t for t in graph.graph.initializer if t.name.endswith("_scale")]
        assert all(tensor.data_type == TensorProto.FLOAT for tensor in constants)


def test_search_walks_while_it_gains_and_takes_the_better_side(rng: np.random.Generator) -> None:
    placement, found, graph, _ = start(fcn(rng), images(rng, 2), "openvino")
    first, second = placement.tensors
    # the best scales: two steps down for one, three steps up for the other
    goal = {first: found[first].scale / STEP**2, second: found[second].scale * STEP**3}

    def loss(scales: dict[str, float]) -> float:
        return 1 + sum(np.log(scales[name] / goal[name]) ** 2 for name in goal)

    refined, evidence, moves = refine(graph, placement, found, FakeJudge(loss), lambda _: None)
    assert {move.tensor: move.factor for move in moves} == pytest.approx({first: STEP**-2, second: STEP**3})
    assert {name: grid.scale for name, grid in refined.items()} == pytest.approx(goal, rel=1e-6)
    assert evidence.divergence == pytest.approx(1.0)


def test_search_is_bounded_and_reports_progress(rng: np.random.Generator) -> None:
    placement, found, graph, _ = start(fcn(rng), images(rng, 2), "tensorrt")
    judge, steps = FakeJudge(lambda scales: sum(scales.values())), []  # ever narrower
    refined, _, moves = refine(graph, placement, found, judge, steps.append)
    assert [move.factor for move in moves] == pytest.approx([STEP**-6] * 2)
    assert judge.runs == 1 + 2 * 6
    assert steps == [0.5, 1.0]
    assert set(refined) == set(found)


def test_gain_by_chance_is_no_reason_to_move(rng: np.random.Generator) -> None:
    placement, found, graph, _ = start(fcn(rng), images(rng, 2), "tensorrt")
    before = graph.SerializeToString()
    runs = iter(np.geomspace(1, 0.99, 100))
    refined, evidence, moves = refine(graph, placement, found, FakeJudge(lambda _: next(runs)), lambda _: None)
    assert (refined, moves, evidence.divergence) == (found, (), 1.0)
    assert graph.SerializeToString() == before


@pytest.mark.parametrize("kind", ["int8", "uint8"])
def test_scales_end_where_their_type_does(kind: str) -> None:
    smallest, largest = (6.2e-5, 65000.0) if kind == "int8" else (1.2e-38, 3.3e38)
    assert times(Grid(largest, 0, kind), 3.0).scale == np.finfo(np.float16 if kind == "int8" else np.float32).max
    assert 0 < times(Grid(smallest, 0, kind), 0.3).scale <= smallest
    wide = times(Grid(1.0, 7, kind), 1.25)
    assert (wide.scale, wide.zero, wide.kind) == (1.25, 7, kind)
    assert times(Grid(0.1, 0, "int8"), 1.0).scale >= 0.1  # rounded up: no value is clipped by it
