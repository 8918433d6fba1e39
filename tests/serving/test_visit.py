"""A visit to a served bundle, as `benchmarks/vehicle.py` makes it: what is right and what is wrong is told."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from serving import visit

from fcnopt.bundle import load


@pytest.fixture
def asked(small: Path, rng: np.random.Generator, tmp_path: Path) -> NDArray[np.uint8]:
    """Labels of the frames in frames.npy."""
    frames = rng.integers(0, 256, (3, 24, 32, 3), dtype=np.uint8)
    np.save(tmp_path / "frames.npy", frames)
    with load(small) as engine:
        return engine.run(frames).labels


@pytest.mark.usefixtures("triton")
def test_labels_times_and_the_stop_are_told(
    small: Path, asked: NDArray[np.uint8], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked[1] += 1
    np.save(tmp_path / "labels.npy", asked)
    words = [small, tmp_path / "frames.npy", tmp_path / "labels.npy", "--clients", "1,2", "--seconds", 0.3]
    monkeypatch.setattr(sys, "argv", ["visit.py", *map(str, words)])
    monkeypatch.setattr(sys, "stdout", said := io.StringIO())
    visit.main()
    found = json.loads(said.getvalue())
    for protocol in ("http", "grpc"):
        one = found["asked"][protocol]
        assert (one["frames"], one["equal"]) == (3, 2), "the labels of one frame were made wrong"
        assert 0 < one["latency_ms"]["p50"] <= one["latency_ms"]["p99"]
    assert list(found["clients"]) == ["1", "2"]
    for load_ in found["clients"].values():
        assert load_["answered"] == load_["sent"] > 0
        assert load_["wrong"] == 0
    assert found["ready"] == {"health": True, "metrics": True}
    assert (found["exit_code"], found["left"]) == (0, 0)
    assert found["mib"] > 0
