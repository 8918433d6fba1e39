"""A small network, frames of a rendered drive, and what is measured of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fcnopt.media.synth import SceneOptions, SynthClip
from fcnopt.models.fcn import FCN
from fcnopt.slimming.elimination import Moments
from fcnopt.slimming.statistics import measure
from tests.models.networks import tiny

WIDTHS = {"widths": (6, 8, 8, 10, 12), "fc_widths": (14, 16)}


def pixels(count: int = 1) -> torch.Tensor:
    return torch.randn(count, 3, 33, 47, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def network() -> FCN:
    return tiny(batch_norm=True, **WIDTHS).requires_grad_(False)


@pytest.fixture(scope="session")
def moments(network: FCN) -> dict[str, Moments]:
    return measure(network, [pixels() for _ in range(2)], torch.ones(5))


@pytest.fixture(scope="session")
def drive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images/ and labels/, and net.pth, a network of nine classes."""
    folder = tmp_path_factory.mktemp("drive")
    clip = SynthClip(SceneOptions(seed=7, frames=18, height=64, width=96))
    clip.write_images(folder / "images")
    clip.write_labels(folder / "labels")
    torch.save(
        tiny(batch_norm=True, widths=(16, 16, 16, 24, 24), fc_widths=(32, 32), classes=9).state_dict(),
        folder / "net.pth",
    )
    return folder
