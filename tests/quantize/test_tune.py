from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from fcnopt.graph.passes import optimize
from fcnopt.quantize import CalibrationFrames, tune
from fcnopt.quantize.choose import Judge
from fcnopt.quantize.methods import METHODS
from fcnopt.quantize.tune import PLAIN, Tuned, Tuning
from tests.quantize.nets import CLASSES, Net, Options, fcn, spec, write_images
from tests.quantize.test_refine import joined


@pytest.fixture
def frames(rng: np.random.Generator, tmp_path: Path) -> CalibrationFrames:
    return CalibrationFrames.collect([write_images(rng, tmp_path / "frames", 4)], spec())


def tuned(
    model: onnx.ModelProto, frames: CalibrationFrames, tuning: Tuning | None = None, method: str = "auto", **where: str
) -> Tuned:
    given = {"precision": "int8", "form": "tensorrt", **where}
    return tune.tune(model, frames, given["precision"], given["form"], method, None, lambda *_: None, tuning)


def names(found: Tuned) -> tuple[str, ...]:
    return tuple(entry.name for entry in found.recipe.evidence)


@pytest.mark.parametrize("form", ["tensorrt", "openvino", "onnxruntime"])
def test_every_ingredient_is_judged_and_the_best_is_the_plan(
    rng: np.random.Generator, frames: CalibrationFrames, form: str
) -> None:
    model = joined(rng)
    found = tuned(model, frames, form=form)
    assert names(found) == (*METHODS, "rounded", "refined")
    least = min(entry.divergence for entry in found.recipe.evidence)
    assert found.chosen.divergence == least
    assert found.rule == min(found.recipe.evidence[:4], key=lambda entry: entry.divergence).name
    assert found.recipe.evidence[4].divergence < min(entry.divergence for entry in found.recipe.evidence[:4])
    assert found.plan.rounded
    judge = Judge(found.plan.source, frames, "score")
    assert judge("again", found.plan.graph()).divergence == pytest.approx(least, rel=1e-6)
    assert found.recipe.evidence[5].divergence <= found.recipe.evidence[4].divergence


def test_together_they_bring_the_network_nearer_to_fp32(rng: np.random.Generator, frames: CalibrationFrames) -> None:
    model = fcn(rng)
    plain, whole = tuned(model, frames, PLAIN), tuned(model, frames)
    judge = Judge(model, frames, "logits")
    before, after = (judge("", found.plan.graph()).divergence for found in (plain, whole))
    assert after < 0.8 * before


def test_ingredients_can_be_left_out(rng: np.random.Generator, frames: CalibrationFrames) -> None:
    model = fcn(rng)
    for tuning, expected in (
        (PLAIN, METHODS),
        (Tuning(rounding=False, bias=False), (*METHODS, "refined")),
        (Tuning(refine=False), (*METHODS, "rounded")),
        (Tuning(refine=False, rounding=False), (*METHODS, "rounded")),
    ):
        assert names(tuned(model, frames, tuning)) == expected
    assert names(tuned(model, frames, method="mse")) == ("mse",)
    assert names(tuned(model, frames, Tuning(refine=False), method="mse")) == ("mse", "rounded")
    assert names(tuned(model, frames, precision="fp8")) == ("minmax", "percentile", "mse")
    assert tuned(model, frames, PLAIN).ranges[0].factors
    assert not tuned(model, frames, replace(PLAIN, equalize=False)).ranges[0].factors


def test_ingredient_that_makes_it_worse_is_left_out_again(
    rng: np.random.Generator, frames: CalibrationFrames, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = fcn(rng)
    honest = tune.round_weights

    def careless(*args: object, **options: object) -> object:
        found = honest(*args, **options)
        return {name: replace(entry, values=entry.values // 16 * 16) for name, entry in found.items()}

    monkeypatch.setattr(tune, "round_weights", careless)
    found = tuned(model, frames)
    *methods, rounded, refined = found.recipe.evidence
    assert (rounded.name, refined.name) == ("rounded", "refined")
    assert rounded.divergence > refined.divergence
    assert refined.divergence <= min(entry.divergence for entry in methods)
    assert rounded.divergence > found.chosen.divergence
    assert found.chosen.name != "rounded"
    assert not found.plan.rounded
    assert found.plan.graph().SerializeToString() == replace(found.plan, rounded={}).graph().SerializeToString()


def test_method_that_is_worse_is_not_chosen(
    rng: np.random.Generator, frames: CalibrationFrames, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = tune.grids

    def clipping(placement, ranges, choice, *rest):
        found = honest(placement, ranges, choice, *rest)
        good = set(choice.values()) == {"percentile"}
        return found if good else {name: replace(grid, scale=grid.scale / 64) for name, grid in found.items()}

    monkeypatch.setattr(tune, "grids", clipping)
    found = tuned(fcn(rng), frames, PLAIN)
    assert found.rule == found.chosen.name == "percentile"


def test_original_is_untouched_and_the_result_repeats(rng: np.random.Generator, frames: CalibrationFrames) -> None:
    model = fcn(rng, Options(group=2))
    before = model.SerializeToString()
    first, second = tuned(model, frames), tuned(model, frames)
    assert model.SerializeToString() == before
    assert first.plan.graph().SerializeToString() == second.plan.graph().SerializeToString()


@pytest.mark.parametrize(
    ("form", "tuning", "first"),
    [("openvino", Tuning(), True), ("openvino", PLAIN, False), ("tensorrt", Tuning(), False)],
)
def test_first_layer_is_integer_on_cpus_where_its_weights_are_rounded_together(
    form: str, tuning: Tuning, first: bool, rng: np.random.Generator, frames: CalibrationFrames
) -> None:
    model, _ = optimize(fcn(rng))
    found = tuned(model, frames, replace(tuning, refine=False), form=form)
    assert ("conv1" in found.plan.placement.layers) == first
    assert ("conv1.weight" in {name.removesuffix("_1") for name in found.plan.rounded}) == first
    assert "conv1" not in found.plan.without(frozenset({"conv1"})).placement.layers


def narrow(rng: np.random.Generator) -> onnx.ModelProto:
    """conv1 3->8, which a score reads too, conv2 8->16, conv3 16->16: only an integer conv1 is read quantized."""
    net = Net(rng)
    first = net.relu(net.conv(net.frames(), "conv1", (3, 8)))
    deep = net.relu(net.conv(first, "conv2", (8, 16)))
    score = net.conv(net.relu(net.conv(deep, "conv3", (16, 16))), "score", (16, CLASSES), 1)
    net.labels(net.node("Add", [score, net.conv(first, "score_first", (8, CLASSES), 1)], "logits"))
    model, _ = optimize(net.model())
    return model


def test_ranges_hold_what_a_score_of_the_first_layer_reads_quantized(
    rng: np.random.Generator, frames: CalibrationFrames, tmp_path: Path
) -> None:
    model, file, tuning = narrow(rng), tmp_path / "ranges.json", Tuning(refine=False)
    for form in ("tensorrt", "openvino", "onnxruntime"):  # one file serves them all
        found = tune.tune(model, frames, "int8", form, "auto", file, lambda *_: None, tuning)
        assert "conv1_relu" in found.ranges[0].tensors
        assert ("conv1" in found.plan.placement.layers) == (form != "tensorrt")
        assert ("conv1_relu" in found.plan.placement.tensors) == (form == "onnxruntime")
    assert tuned(model, frames, tuning, form="onnxruntime").plan.graph().SerializeToString() == (
        found.plan.graph().SerializeToString()
    ), "the file changes nothing"
