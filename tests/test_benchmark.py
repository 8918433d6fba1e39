"""Bundles with a claim of accuracy, benched."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fcnopt.benchmark import BenchFiles, bench
from fcnopt.builder import build
from fcnopt.bundle import MANIFEST, Bundle, write_text
from fcnopt.inspection import inspect
from fcnopt.manifest import AccuracyClaim
from fcnopt.quantize.frames import CalibrationFrames
from fcnopt.settings import BuildSettings
from tests.test_manifest import CLAIM

Claimed = Callable[..., Path]


@pytest.fixture(scope="module")
def built(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("claimed")
    return build(tiny_model, precision="fp32", target="onnxruntime", settings=BuildSettings(folder=folder))


@pytest.fixture
def claimed(built: Path, tmp_path: Path) -> Claimed:
    """Makes a bundle that claims what is given, and for the rest what is borne out by its FP32 engine."""

    def make(**changes: Any) -> Path:
        place = Path(shutil.copytree(built, tmp_path / "net", dirs_exist_ok=True))
        claim = replace(CLAIM, truth="reference", equal_labels=99.9, **changes)
        write_text(place / MANIFEST, replace(Bundle.read(place).manifest, accuracy=claim).to_json())
        return place

    return make


def of_claims(notes: tuple[str, ...]) -> list[str]:
    return [note for note in notes if "claim" in note]


def test_a_clip_within_the_claim_is_passed_over(claimed: Claimed, street: Path) -> None:
    assert of_claims(bench(street / "clip.mp4", engines=claimed()).notes) == []


def test_a_clip_outside_the_claim_is_noted_in_the_result_and_in_the_page(
    claimed: Claimed, street: Path, tmp_path: Path
) -> None:
    place = claimed(miou_drop=-5.0, miou_drop_interval=(-6.0, -4.0))  # an engine equal to FP32 does worse
    files = BenchFiles(json=tmp_path / "r.json", html=tmp_path / "r.html")
    (note,) = of_claims(bench(street / "clip.mp4", engines=place, files=files).notes)
    assert "falls outside the accuracy that its build claims on camvid/val (101 frames): mIoU drop " in note
    assert "claimed -5.00 (-6.00 to -4.00). Build it with" in note
    assert note in json.loads((tmp_path / "r.json").read_text())["notes"]
    assert "falls outside the accuracy that its build claims" in (tmp_path / "r.html").read_text()


def test_a_claim_is_held_against_its_own_reference_only(claimed: Claimed, street: Path, tiny_model: Path) -> None:
    place = claimed(miou_drop=-5.0, miou_drop_interval=(-6.0, -4.0))
    assert of_claims(bench(street / "clip.mp4", engines=place, reference=tiny_model).notes)
    other = tiny_model.with_suffix(".pth")
    assert of_claims(bench(street / "clip.mp4", engines=place, reference=other).notes) == []


def test_the_clip_of_the_claim_is_known_by_its_frames(claimed: Claimed, built: Path, street: Path) -> None:
    """The hash of validation frames, as a build reads them, is that of the bench of the same frames."""
    frames = CalibrationFrames.collect([street / "images"], Bundle.read(built).manifest.spec)
    place = claimed(frames_sha256=frames.hash)
    name = bench(street / "images", engines=place).engines[0].name
    expected = [f"{name}: its claimed accuracy was measured on these very frames."]
    assert of_claims(bench(street / "images", engines=place).notes) == expected
    assert of_claims(bench(street / "images", engines=place, max_frames=5).notes) == []


def test_a_recorded_measurement_names_its_frames(claimed: Claimed, street: Path) -> None:
    place = claimed()
    result = bench(street / "clip.mp4", engines=place, files=BenchFiles(record=True))
    manifest = Bundle.read(place).manifest
    assert manifest.measurements[0]["frames_sha256"] == result.frames_sha256
    assert isinstance(manifest.accuracy, AccuracyClaim), "recording keeps the claim"
    assert np.isfinite(manifest.measurements[0]["miou_drop"])


def test_inspection_has_the_claim(claimed: Claimed) -> None:
    found = inspect(claimed())
    assert json.loads(found.to_json())["manifest"]["accuracy"]["clip"] == "camvid/val"
