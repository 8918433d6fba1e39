"""Accuracy as an input of the build: search, claim, recipe, and what happens when it is cut or cannot be kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fcnopt import accuracy
from fcnopt.accuracy import ValidationSource
from fcnopt.builder import build
from fcnopt.bundle import Bundle, load
from fcnopt.errors import GateError, MediaError, UsageError
from fcnopt.evaluate.budget import Budget
from fcnopt.evaluate.validation import Measured, Validation
from fcnopt.locate import read_search
from fcnopt.media.synth import SceneOptions, SynthClip
from fcnopt.settings import BuildSettings


@pytest.fixture(scope="module")
def drive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another rendered street, as a folder of images."""
    folder = tmp_path_factory.mktemp("drive")
    SynthClip(SceneOptions(seed=8, frames=8, height=64, width=96)).write_images(folder / "images")
    return folder / "images"


@pytest.fixture
def calib(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("calib")


def run(model: Path, frames: Path, folder: Path, clip: Path, budget: Budget | None, **others: Any) -> Path:
    settings = BuildSettings(
        folder=folder / "engines", calib=folder / "calib", validation=ValidationSource(clip, None, budget), **others
    )
    return build(model, precision="int8", target="onnxruntime", calibration=frames, settings=settings)


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
    recipe = json.loads((tmp_path / "calib/tiny-int8-cpu.recipe.json").read_text())
    assert recipe["floats"] is None
    assert not any(entry["chosen"] for entry in recipe["search"]["candidates"])


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


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"max_miou_drop": 0.1}, "--max-miou-drop was given without frames"),
        ({"labels": Path("x")}, "--labels was given without frames"),
        ({"validation": Path("missing")}, "--validation missing: no such file"),
        ({"validation": Path(), "max_miou_drop": -1.0}, "max_miou_drop is -1"),
    ],
)
def test_budgets_that_make_no_sense_are_refused(words: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        BuildSettings.parse(**words)


def test_other_precisions_have_nothing_to_search(tiny_model: Path, drive: Path, tmp_path: Path) -> None:
    settings = BuildSettings(folder=tmp_path, validation=ValidationSource(drive))
    with pytest.raises(UsageError, match="fp32 leaves nothing to search"):
        build(tiny_model, precision="fp32", target="onnxruntime", settings=settings)
