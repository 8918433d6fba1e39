"""The streaming benchmark on the tiny network: what it measures is there, and it tells growing memory."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from fcnopt.builder import build
from fcnopt.settings import BuildSettings

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import streaming
from streaming_page import memory_page, rates_page


@pytest.fixture(scope="module")
def bundle(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = BuildSettings(folder=tmp_path_factory.mktemp("built"))
    return build(tiny_model, precision="fp32", target="onnxruntime", settings=settings)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["streaming.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as done:
        streaming.main()
    return int(done.value.code or 0)


def test_every_stage_and_both_modes_are_measured(
    bundle: Path, street: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "found"
    clip = street / "clip.mp4"
    assert run(monkeypatch, clip, bundle, "--size", "128x64", "--rounds", 2, "--round-frames", 12, "--out", out) == 0
    found = json.loads(out.with_suffix(".json").read_text())
    assert found["size"] == [64, 128]
    assert list(found["parts"]) == [
        "decode and resize",
        "infer, latency",
        "infer, throughput",
        "post-process",
        "stream, latency",
        "stream, throughput",
    ]
    assert all(len(part["turns"]) == 2 and part["fps"] > 0 for part in found["parts"].values())
    for mode, in_flight in (("latency", 1), ("throughput", 2)):
        row = found["modes"][mode]
        assert row["in_flight"] == in_flight
        assert row["of_slowest"] == pytest.approx(row["fps"] / row["slowest_fps"])
        stages = [found["parts"][name] for name in ("decode and resize", f"infer, {mode}", "post-process")]
        assert row["slowest_fps"] == min(stage["fps"] for stage in stages)
        bound = 1e3 * found["cores"] / sum(stage["cpu_ms"] for stage in stages)
        assert row["cpu_bound_fps"] == pytest.approx(bound)
    page = out.with_suffix(".md").read_text()
    assert page == rates_page(found)
    assert "| throughput | 1 | 2 |" in page


def test_memory_over_many_frames_is_watched(
    bundle: Path, street: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "found"
    assert run(monkeypatch, street / "clip.mp4", bundle, "--frames", 400, "--out", out) == 0
    found = json.loads(out.with_suffix(".json").read_text())
    assert found["frames"] == 400
    assert found["constant"]
    assert len(found["samples"]) == 200
    assert out.with_suffix(".md").read_text() == memory_page(found)


def test_growing_memory_is_an_exit_code(
    bundle: Path, street: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    growing = iter(range(100, 1000))
    monkeypatch.setattr(streaming, "resident_mib", lambda: float(next(growing)))
    assert run(monkeypatch, street / "clip.mp4", bundle, "--frames", 100, "--out", tmp_path / "found") == 1
    assert "NOT within 5 %" in (tmp_path / "found.md").read_text()
