from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fcnopt.errors import CalibrationError
from fcnopt.quantize.choose import Evidence
from fcnopt.quantize.qdq import Grid
from fcnopt.quantize.recipe import Recipe
from fcnopt.quantize.refine import Move

KEY = {"weights": "1", "graph": "2", "frames": "3", "precision": "int8", "form": "tensorrt", "method": "auto"}


def full(path: Path) -> Recipe:
    recipe = Recipe(
        KEY,
        rule="mse",
        grids={"x": Grid(0.5, 0, "int8"), "y": Grid(0.25, 7, "uint8")},
        moves=(Move("x", 0.8, 2e-4, 1e-4),),
        evidence=(Evidence("mse", 2e-4, 30.0, 0.99), Evidence("refined", 1e-4, 31.0, 0.995)),
        rounded=True,
        sensitivity={"conv": Evidence("conv", 1e-5, 40.0, 0.999)},
        floats=("conv",),
        search={"candidates": []},
        path=path,
    )
    recipe.remember("frames conv", np.arange(2 * 3 * 4, dtype=np.int64).reshape(2, 3, 4), 99.5)
    return recipe


def test_what_was_saved_is_read_back(tmp_path: Path) -> None:
    recipe = full(tmp_path / "a.recipe.json")
    found = Recipe.open(recipe.path, KEY)
    assert found == recipe
    counts = found.remembered("frames conv")
    assert counts is not None
    np.testing.assert_array_equal(counts[0], np.arange(24).reshape(2, 3, 4))
    assert counts[1] == 99.5
    assert found.remembered("other frames conv") is None


@pytest.mark.parametrize("name", sorted(KEY))
def test_decisions_for_anything_else_are_not_taken(tmp_path: Path, name: str) -> None:
    recipe = full(tmp_path / "a.recipe.json")
    found = Recipe.open(recipe.path, KEY | {name: "other"})
    assert found.grids == {}
    assert found.rule is None
    assert found.path == recipe.path


def test_without_a_place_nothing_is_written(tmp_path: Path) -> None:
    Recipe.open(None, KEY).save()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": 99}, "schema version 99"),
        ({"grids": {"x": {"scale": -1.0, "zero": 0, "kind": "int8"}}}, "not a scale"),
        ({"grids": {"x": {"scale": 1.0, "zero": 0, "kind": "int9"}}}, "not a grid"),
        ({"rule": "guess"}, "not a calibration method"),
        ({"evidence": [{"name": "x"}]}, "damaged"),
        ({"counts": {"a": {"shape": [1, 2], "packed": "", "equal_labels": 1}}}, "counts are damaged"),
        ({"unknown": 1}, "damaged"),
    ],
)
def test_damage_is_named_with_the_file(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    path = tmp_path / "a.recipe.json"
    full(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CalibrationError, match=words) as error:
        Recipe.load(path)
    assert str(path) in error.value.message
    assert str(path) in str(error.value.fix)


def test_a_file_that_was_cut_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.recipe.json"
    full(path)
    path.write_text(path.read_text()[:-40])
    with pytest.raises(CalibrationError, match="cut off or damaged"):
        Recipe.load(path)


def test_packed_counts_cannot_grow_beyond_their_shape(tmp_path: Path) -> None:
    recipe = full(tmp_path / "a.recipe.json")
    recipe.remember("bomb", np.zeros((100, 3, 100), np.int64), 1.0)
    recipe.counts["bomb"]["shape"] = [1, 1, 1]
    found = recipe.remembered("bomb")
    assert found is not None
    assert found[0].shape == (1, 1, 1)
