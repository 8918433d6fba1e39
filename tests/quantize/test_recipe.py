from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fcnopt.errors import CalibrationError
from fcnopt.quantize.choose import Evidence
from fcnopt.quantize.frames import CalibrationFrames
from fcnopt.quantize.qdq import Grid
from fcnopt.quantize.recipe import Counted, Recipe, key_of
from fcnopt.quantize.refine import Move
from fcnopt.version import __version__
from tests.quantize.nets import fcn, spec, write_images

KEY = {
    "weights": "1",
    "graph": "2",
    "frames": "3",
    "precision": "int8",
    "form": "tensorrt",
    "method": "auto",
    "fcnopt": "1.0",
}
DATE = "2026-11-22T09:00:00+00:00"


def full(path: Path) -> Recipe:
    recipe = Recipe(
        KEY,
        rule="mse",
        grids={"x": Grid(0.5, 0, "int8"), "y": Grid(0.25, 0, "int8")},
        moves=(Move("x", 0.8, 2e-4, 1e-4),),
        evidence=(Evidence("mse", 2e-4, 30.0, 0.99), Evidence("refined", 1e-4, 31.0, 0.995)),
        rounded=True,
        sensitivity={"conv": Evidence("conv", 1e-5, 40.0, 0.999)},
        floats=("conv",),
        search={"candidates": []},
        path=path,
    )
    recipe.remember("frames conv", Counted.of(np.arange(2 * 3 * 4, dtype=np.int64).reshape(2, 3, 4), 99.5, DATE))
    return recipe


def test_what_was_saved_is_read_back(tmp_path: Path) -> None:
    recipe = full(tmp_path / "a.recipe.json")
    found = Recipe.open(recipe.path, KEY)
    assert found == recipe
    counted = found.counts["frames conv"]
    np.testing.assert_array_equal(counted.unpacked(), np.arange(24).reshape(2, 3, 4))
    assert (counted.equal_labels, counted.date) == (99.5, DATE)


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
        ({"grids": {"x": {"scale": 1.0, "zero": 0, "kind": "int9"}}}, r"recipe\.grids\.x\.kind: expected one of"),
        ({"rule": "guess"}, r"recipe\.rule: expected one of"),
        ({"evidence": [{"name": "x"}]}, r"recipe\.evidence\[0\]: missing"),
        ({"unknown": 1}, "unknown unknown"),
        ({"key": None}, r"recipe\.key: expected an object"),
        ({"key": KEY | {"precision": "fp8", "form": "openvino"}}, "'fp8' in form 'openvino' is nothing to decide on"),
        ({"evidence": []}, "its evidence is missing"),
        ({"rounded": "yes"}, r"recipe\.rounded: expected boolean"),
        ({"search": [1]}, r"recipe\.search: expected an object"),
        ({"floats": "conv"}, r"recipe\.floats: expected an array"),
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


def put(*where: Any) -> Callable[[dict[str, Any]], None]:
    """Sets the last of `where` at the place that the others lead to."""

    def change(data: dict[str, Any]) -> None:
        *way, last, value = where
        for step in way:
            data = data[step]
        data[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (put("grids", "x", "kind", "uint8"), "of 'x', is not a grid of int8"),
        (put("grids", "x", "zero", 7), "of 'x', is not a grid of int8"),
        (put("grids", "x", "scale", "1"), r"grids\.x\.scale: expected a number"),
        (put("moves", 0, "factor", "x"), r"moves\[0\]\.factor: expected a number"),
        (put("evidence", 0, "divergence", "x"), r"evidence\[0\]\.divergence: expected a number"),
        (put("evidence", 0, "divergence", float("nan")), "NaN is not a number"),
        (put("sensitivity", "conv", "equal_labels", None), r"sensitivity\.conv\.equal_labels: expected a number"),
        (put("counts", "frames conv", "packed", "AAAA"), "counts are damaged"),
        (put("counts", "frames conv", "packed", "!"), "counts are damaged"),
        (put("counts", "frames conv", "shape", [2, 3, 5]), "do not fill the shape"),
        (put("counts", "frames conv", "shape", [1, 3, 4]), "do not fill the shape"),
        (put("counts", "frames conv", "shape", [-2, -3, 4]), "counts are damaged: shape"),
        (put("counts", "frames conv", "shape", [24]), "expected an array of 3"),
        (put("counts", "frames conv", "equal_labels", "x"), "equal_labels: expected a number"),
        (put("counts", "frames conv", "equal_labels", None), "equal_labels: expected a number"),
        (put("counts", "frames conv", "equal_labels", 101), "101.0 is no share of labels"),
        (put("counts", "frames conv", "date", "yesterday"), "isoformat"),
    ],
)
def test_damage_within_is_found_when_the_file_is_read(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], words: str
) -> None:
    path = tmp_path / "a.recipe.json"
    full(path)
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    with pytest.raises(CalibrationError, match=rf"cut off or damaged: .*{words}"):
        Recipe.open(path, KEY)


@pytest.mark.parametrize(("zero", "fits"), [(0, True), (255, True), (256, False), (-1, False)])
def test_grids_for_cpus_have_a_zero_that_a_byte_holds(tmp_path: Path, zero: int, fits: bool) -> None:
    recipe = Recipe(KEY | {"form": "openvino"}, grids={"x": Grid(0.5, zero, "uint8")}, path=tmp_path / "a.recipe.json")
    recipe.save()
    assert recipe.path is not None
    if fits:
        assert Recipe.load(recipe.path) == recipe
    else:
        with pytest.raises(CalibrationError, match="is not a grid of uint8"):
            Recipe.load(recipe.path)


def test_packed_counts_cannot_grow_beyond_their_shape() -> None:
    packed = Counted.of(np.zeros((100, 3, 100), np.int64), 1.0, DATE).packed
    with pytest.raises(ValueError, match="do not fill the shape"):
        Counted((1, 1, 1), packed, 1.0, DATE)


def test_decisions_of_another_version_are_not_taken(rng: np.random.Generator, tmp_path: Path) -> None:
    frames = CalibrationFrames.collect([write_images(rng, tmp_path / "frames", 2)], spec())
    assert key_of(fcn(rng), frames, "int8", "openvino", "auto")["fcnopt"] == __version__
