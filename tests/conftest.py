"""Fixtures that more than one room's tests need."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest


def _shared() -> Path:
    return Path(os.environ.get("FCNOPT_SHARED", Path(__file__).parents[2] / "shared"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with CamVid, dash-camera clips and the trained FCN-8s; the test is skipped where it is missing."""
    folder = _shared()
    if not (folder / "data" / "camvid").is_dir():
        pytest.skip(f"real data is missing: {folder} (set FCNOPT_SHARED)")
    return folder


@pytest.fixture
def rng() -> np.random.Generator:
    """Seeded random numbers."""
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported FCN-8s with random weights: frames of 64 x 96, five classes, convolutions wide enough for int8."""
    import torch

    from fcnopt.exporter import ExportOptions, export
    from tests.models.networks import tiny

    folder = tmp_path_factory.mktemp("tiny")
    network = tiny(batch_norm=True, widths=(16, 16, 24, 24, 32), fc_widths=(32, 32))
    torch.save(network.state_dict(), folder / "tiny.pth")
    return export(folder / "tiny.pth", folder / "tiny.onnx", options=ExportOptions(size=(64, 96))).path


@pytest.fixture(scope="session")
def street(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short rendered clip, as a folder: clip.mp4, labels/, images/."""
    from fcnopt.media.synth import SceneOptions, SynthClip

    folder = tmp_path_factory.mktemp("street")
    clip = SynthClip(SceneOptions(seed=7, frames=6, height=64, width=96))
    clip.write_video(folder / "clip.mp4")
    clip.write_labels(folder / "labels")
    clip.write_images(folder / "images")
    return folder
