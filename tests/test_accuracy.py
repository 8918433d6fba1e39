"""Accuracy as an input of the build: search, claim, recipe, and what happens when it is cut or cannot be kept."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import numpy_helper

from fcnopt import accuracy
from fcnopt.accuracy import ValidationSource
from fcnopt.builder import build
from fcnopt.bundle import Bundle, load
from fcnopt.errors import BundleError, CalibrationError, GateError, MediaError, UsageError
from fcnopt.evaluate.budget import Budget
from fcnopt.evaluate.validation import Measured, Validation
from fcnopt.graph import io
from fcnopt.locate import read_search
from fcnopt.media.synth import SceneOptions, SynthClip
from fcnopt.quantize import choose, cost
from fcnopt.quantize.recipe import Counted, Recipe
from fcnopt.settings import BuildSettings


@pytest.fixture(scope="module")
def drive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another rendered street, as a folder of images."""
    folder = tmp_path_factory.mktemp("drive")
    SynthClip(SceneOptions(seed=8, frames=8, height=64, width=96)).write_images(folder / "images")
    return folder / "images"


@pytest.fixture(scope="module")
def decided(tiny_model: Path, street: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ranges and recipe of the network for ONNX Runtime, before any of it is left float: most of a build's time."""
    folder = tmp_path_factory.mktemp("decided")
    run(tiny_model, street / "images", folder, None, None)
    return folder / "calib"


@pytest.fixture(autouse=True)
def _begun(decided: Path, tmp_path: Path) -> None:
    """What is decided already is at hand, as after an earlier build."""
    shutil.copytree(decided, tmp_path / "calib")


def run(
    model: Path, frames: Path, folder: Path, clip: Path | None, budget: Budget | None, target: str = "onnxruntime"
) -> Path:
    settings = BuildSettings(
        folder=folder / "engines",
        calib=folder / "calib",
        validation=None if clip is None else ValidationSource(clip, None, budget),
    )
    return build(model, precision="int8", target=target, calibration=frames, settings=settings)


def weights_of(bundle: Path, layers: list[str]) -> set[str]:
    """Names of the weights that layers read through a DequantizeLinear."""
    graph = io.load(bundle / "model.onnx").graph
    made = {name: node for node in graph.node for name in node.output}
    found = {made[node.input[1]].input[0] for node in graph.node if node.name in layers}
    return {name.removesuffix("_int8") for name in found}


def test_a_loose_budget_leaves_all_layers_quantized_and_is_claimed(
    tiny_model: Path, street: Path, drive: Path, tmp_path: Path
) -> None:
    path = run(tiny_model, street / "images", tmp_path, drive, Budget(100.0))
    search = read_search(path)
    assert search is not None
    assert search["layers"] == []
    (only,) = search["candidates"]
    assert (only["floats"], only["kept"], only["chosen"]) == ([], True, True)
    claim = Bundle.read(path).manifest.accuracy
    assert claim is not None
    assert (claim.frames, claim.truth, claim.miou_drop) == (8, "reference", only["miou_drop"])
    assert claim.equal_labels == only["equal_labels"] < 100
    with load(path):  # the recipe is one of the files whose hashes are checked
        assert "recipe.json" in Bundle.read(path).manifest.files


def test_a_tight_budget_leaves_layers_float_until_it_is_kept(
    tiny_model: Path, street: Path, drive: Path, tmp_path: Path
) -> None:
    whole = read_search(run(tiny_model, street / "images", tmp_path, drive, Budget(100.0)))
    assert whole is not None
    limit = whole["candidates"][0]["miou_drop"] / 2
    assert limit > 0
    path = run(tiny_model, street / "images", tmp_path, drive, Budget(limit, on="mean"))
    search = read_search(path)
    assert search is not None
    (chosen,) = [entry for entry in search["candidates"] if entry["chosen"]]
    assert chosen["kept"]
    assert chosen["floats"]
    assert chosen["miou_drop"] <= limit
    assert [entry["kept"] for entry in search["candidates"] if not entry["floats"]] == [False]
    manifest = Bundle.read(path).manifest
    assert not set(chosen["floats"]) & set(manifest.quantization["layers"])
    kept = [entry for entry in manifest.quantization["declined"] if entry["reason"] == "kept float for accuracy"]
    assert sorted(entry["node"] for entry in kept) == chosen["floats"]
    assert {layer["node"] for layer in search["layers"] if layer["precision"] != "int8"} == set(chosen["floats"])
    assert set(manifest.quantization["rounded"]) == weights_of(path, manifest.quantization["layers"])
    groups = set(manifest.quantization["tensors"])
    assert {move["tensor"] for move in manifest.quantization["refined"]} <= groups
    assert manifest.accuracy is not None
    assert manifest.accuracy.budget is not None
    assert manifest.accuracy.budget["max_miou_drop"] == limit


def test_a_search_that_was_cut_goes_on_where_it_stopped(
    tiny_model: Path, street: Path, drive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured, costs = Validation.measure, accuracy.layer_costs
    calls: list[int] = []
    # measured times differ from run to run, and with them the order of layers
    monkeypatch.setattr(accuracy, "layer_costs", lambda *args, **others: costs(*args, **{**others, "frame": None}))

    def cut(self: Validation, *args: Any) -> Measured:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return measured(self, *args)

    monkeypatch.setattr(Validation, "measure", cut)
    budget = Budget(0.0, on="mean")
    with pytest.raises(KeyboardInterrupt):
        run(tiny_model, street / "images", tmp_path, drive, budget)
    assert list((tmp_path / "engines").glob("*")) == []
    calls[:] = [1] * 10
    judged = accuracy.sensitivities
    monkeypatch.setattr(
        accuracy,
        "sensitivities",
        lambda tuned, costs, known, *rest: judged(tuned, costs, _complete(known, tuned), *rest),
    )
    path = run(tiny_model, street / "images", tmp_path, drive, budget)
    search = read_search(path)
    assert search is not None
    assert len(calls) - 10 == len(search["candidates"]) - 2, "two assignments were measured before"


def _complete(known: dict[str, Any], tuned: Any) -> dict[str, Any]:
    assert set(known) == set(tuned.plan.placement.layers), "every layer's sensitivity was measured before"
    return known


def test_a_budget_that_cannot_be_kept_says_so_and_leaves_no_bundle(
    tiny_model: Path, street: Path, drive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accuracy, "shortest", lambda _order, keeps, _cost: keeps(frozenset()) or None)
    with pytest.raises(GateError, match="no assignment of precisions keeps the budget on") as error:
        run(tiny_model, street / "images", tmp_path, drive, Budget(0.0))
    assert error.value.exit_code == 1
    assert "allow a larger drop" in str(error.value.fix)
    assert not list((tmp_path / "engines").glob("tiny*"))
    recipe = json.loads((tmp_path / "calib/tiny-int8-onnxruntime.recipe.json").read_text())
    assert recipe["floats"] is None
    assert not any(entry["chosen"] for entry in recipe["search"]["candidates"])


def test_frames_that_can_prove_nothing_end_the_search_before_it_begins(
    tiny_model: Path, street: Path, drive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accuracy, "sensitivities", lambda *_: pytest.fail("layers were measured"))
    with pytest.raises(GateError, match="cannot show whether the budget is kept: no class has enough") as error:
        run(tiny_model, street / "images", tmp_path, drive, Budget(100.0, 100.0, "mean", min_pixels=10**9))
    assert "leave --max-class-drop out" in str(error.value.fix)
    assert "--budget-on" not in str(error.value.fix)
    (tmp_path / "short").mkdir()
    shutil.copy(next(drive.iterdir()), tmp_path / "short")
    with pytest.raises(GateError, match="too few frames for an interval") as error:
        run(tiny_model, street / "images", tmp_path, tmp_path / "short", Budget(100.0))
    assert "validate on about 4 frames, or judge the mean alone" in str(error.value.fix)


def test_the_mean_is_not_advised_where_it_is_judged_already(
    tiny_model: Path, street: Path, drive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accuracy, "shortest", lambda *_: None)
    with pytest.raises(GateError) as error:
        run(tiny_model, street / "images", tmp_path, drive, Budget(0.0, on="mean"))
    assert str(error.value.fix) == "allow a larger drop"


class Opened:
    """Stands for `open_onnx`: runs everything by ONNX Runtime, and notes for what it was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[tuple[str, str | None]] = []
        self._open = accuracy.open_onnx
        monkeypatch.setattr(accuracy, "open_onnx", self)

    def __call__(self, path: Path, spec: Any, precision: Any = "fp32", runtime: Any = None) -> Any:
        self.asked.append((precision, runtime))
        return self._open(path, spec, precision, runtime)

    def taken(self) -> list[tuple[str, str | None]]:
        found, self.asked = self.asked, []
        return found


def test_a_claim_is_of_the_runtime_and_precision_of_its_engine(
    tiny_model: Path, street: Path, drive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recipe and counts are kept for both CPU runtimes in one file; what one measured is nothing to the other."""
    opened = Opened(monkeypatch)
    for runtime in ("openvino", "onnxruntime"):
        run(tiny_model, street / "images", tmp_path, drive, None, target=runtime)
        assert opened.taken() == [("fp32", runtime), ("int8", runtime)]
    run(tiny_model, street / "images", tmp_path, drive, None, target="openvino")
    assert opened.taken() == [("fp32", "openvino")], "its own counts are remembered"
    monkeypatch.setattr(accuracy, "version_of", lambda _: "9.9")
    run(tiny_model, street / "images", tmp_path, drive, None, target="openvino")
    assert opened.taken() == [("fp32", "openvino"), ("int8", "openvino")], "of another version, they are not"


def test_counts_of_another_graph_or_of_other_frames_are_measured_anew(
    tiny_model: Path, street: Path, drive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Opened(monkeypatch)
    run(tiny_model, street / "images", tmp_path, drive, None)
    opened.taken()
    made = accuracy.candidate

    def changed(*args: Any) -> Any:
        graph = made(*args)
        scale = next(t for t in graph.graph.initializer if t.name.endswith("_scale") and not t.dims)
        scale.CopyFrom(numpy_helper.from_array(np.array(0.5, np.float32), scale.name))
        return graph

    with monkeypatch.context() as patch:
        patch.setattr(accuracy, "candidate", changed)
        run(tiny_model, street / "images", tmp_path, drive, None)
    assert len(opened.taken()) == 2
    path = tmp_path / "calib/tiny-int8-onnxruntime.recipe.json"
    recipe = Recipe.load(path)
    for name, counted in recipe.counts.items():
        counts = counted.unpacked()
        counts[:, 1] += 1
        recipe.counts[name] = Counted.of(counts, counted.equal_labels, counted.date)
    recipe.save()
    run(tiny_model, street / "images", tmp_path, drive, None)
    assert len(opened.taken()) == 2


def test_the_date_of_a_claim_is_that_of_the_measurement(
    tiny_model: Path, street: Path, drive: Path, tmp_path: Path
) -> None:
    run(tiny_model, street / "images", tmp_path, drive, None)
    recipe = Recipe.load(tmp_path / "calib/tiny-int8-onnxruntime.recipe.json")
    ((name, counted),) = recipe.counts.items()
    recipe.counts[name] = replace(counted, date="2020-02-02T02:02:02+00:00")
    recipe.save()
    claim = Bundle.read(run(tiny_model, street / "images", tmp_path, drive, None)).manifest.accuracy
    assert claim is not None
    assert claim.date == "2020-02-02T02:02:02+00:00"


def test_a_search_leaves_layers_float_where_int8_breaks_the_network(
    tiny_model: Path, street: Path, drive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A graph that changes most labels of calibration frames is not kept; the one chosen is still checked."""
    monkeypatch.setattr(choose, "USABLE_LABELS", 0.999)  # all in INT8 keep 99.85 %
    monkeypatch.setattr(cost, "_measurable", lambda _target: False)  # times of this machine would decide what is kept
    with pytest.raises(CalibrationError, match="are the least"):
        run(tiny_model, street / "images", tmp_path, drive, None)
    budget = Budget(0.0, on="mean")
    search = read_search(run(tiny_model, street / "images", tmp_path, drive, budget))
    assert search is not None
    (chosen,) = [entry for entry in search["candidates"] if entry["chosen"]]
    assert chosen["floats"]


def test_frames_that_were_calibrated_on_are_refused(tiny_model: Path, street: Path, tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="6 of 6 validation frames were calibrated on"):
        run(tiny_model, street / "images", tmp_path, street / "images", Budget(1.0))


def test_without_a_budget_accuracy_is_measured_and_claimed(
    tiny_model: Path, street: Path, drive: Path, tmp_path: Path
) -> None:
    path = run(tiny_model, street / "images", tmp_path, drive, None)
    claim = Bundle.read(path).manifest.accuracy
    assert claim is not None
    assert claim.budget is None
    assert read_search(path) is None


def test_a_search_of_an_earlier_build_is_not_shown_as_that_of_a_build_without_a_budget(
    tiny_model: Path, street: Path, drive: Path, tmp_path: Path
) -> None:
    tight = Budget(0.0, on="mean")
    search = read_search(run(tiny_model, street / "images", tmp_path, drive, tight))
    assert search is not None
    assert any(entry["chosen"] and entry["floats"] for entry in search["candidates"])
    kept = (tmp_path / "calib/tiny-int8-onnxruntime.recipe.json").read_bytes()
    for clip in (drive, None):
        path = run(tiny_model, street / "images", tmp_path, clip, None)
        assert read_search(path) is None
        assert json.loads((path / "recipe.json").read_text())["floats"] is None
        assert (tmp_path / "calib/tiny-int8-onnxruntime.recipe.json").read_bytes() == kept


def test_a_damaged_recipe_of_a_bundle_is_named(tiny_model: Path, street: Path, drive: Path, tmp_path: Path) -> None:
    path = run(tiny_model, street / "images", tmp_path, drive, Budget(100.0))
    for text in ("{", "[]", '{"search": [1]}', "{}"):
        (path / "recipe.json").write_text(text)
        with pytest.raises(BundleError, match=r"recipe\.json: the recipe is cut off or damaged"):
            read_search(path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"max_miou_drop": 0.1}, "--max-miou-drop was given without frames"),
        ({"labels": Path("x")}, "--labels was given without frames"),
        ({"budget_on": "mean"}, "--budget-on was given without frames"),
        ({"budget_on": "mean", "validation": Path()}, "--budget-on mean was given without a budget"),
        ({"validation": Path("missing")}, "--validation missing: no such file"),
        ({"validation": Path(), "max_miou_drop": -1.0}, "max_miou_drop is -1"),
        ({"html": Path("x.html")}, "--html x.html was given without a budget"),
        ({"html": Path("x.html"), "validation": Path()}, "--html x.html was given without a budget"),
    ],
)
def test_budgets_that_make_no_sense_are_refused(words: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        BuildSettings.parse(**words)


def test_other_precisions_have_nothing_to_search(tiny_model: Path, drive: Path, tmp_path: Path) -> None:
    settings = BuildSettings(folder=tmp_path, validation=ValidationSource(drive))
    with pytest.raises(UsageError, match="fp32 leaves nothing to search"):
        build(tiny_model, precision="fp32", target="onnxruntime", settings=settings)
