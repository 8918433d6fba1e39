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
from click.testing import CliRunner

from fcnopt.benchmark import BenchFiles, bench
from fcnopt.builder import build
from fcnopt.bundle import MANIFEST, Bundle, write_text
from fcnopt.cli import main
from fcnopt.errors import UsageError
from fcnopt.evaluate.result import BenchResult
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


def test_both_modes_are_benched_side_by_side_and_recorded_apart(built: Path, street: Path, tmp_path: Path) -> None:
    place = Path(shutil.copytree(built, tmp_path / "net"))
    files = BenchFiles(json=tmp_path / "r.json", record=True)
    result = bench(street / "clip.mp4", engines=place, modes=("latency", "throughput"), files=files)
    name = Bundle.read(place).manifest.name
    assert [(row.name, row.mode, row.in_flight) for row in result.engines] == [
        (name, "latency", 1),
        (f"{name}, throughput", "throughput", 2),
    ]
    assert result.reference.mode == "latency"
    assert [row.equal_labels for row in result.engines] == [100.0, 100.0]
    written = json.loads((tmp_path / "r.json").read_text())["engines"]
    assert "mode" not in written[0]
    assert (written[1]["mode"], written[1]["in_flight"]) == ("throughput", 2)
    recorded = Bundle.read(place).manifest.measurements
    assert [entry["mode"] for entry in recorded] == ["latency", "throughput"]


def test_modes_that_there_are_not_are_refused(built: Path, street: Path) -> None:
    for modes, says in (((), "no mode was given"), (("fast",), "mode 'fast' is unknown")):
        with pytest.raises(UsageError, match=says) as caught:
            bench(street / "clip.mp4", engines=built, modes=modes)  # type: ignore[arg-type]
        assert "latency or throughput" in caught.value.fix


def test_the_command_benches_in_the_modes_named(built: Path, street: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.json"
    arguments = [street / "clip.mp4", "--engine", built, "--mode", "throughput", "--mode", "latency", "--json", out]
    result = CliRunner().invoke(main, ["bench", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    name = Bundle.read(built).manifest.name
    found = BenchResult.from_json(out.read_text())
    assert [row.name for row in found.engines] == [f"{name}, throughput", name]
    assert found.reference.mode == "throughput"
    refused = CliRunner().invoke(main, ["bench", str(street / "clip.mp4"), "--mode", "fast"])
    assert refused.exit_code == 2
    assert "'fast' is not one of 'latency', 'throughput'" in refused.output
