from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs the export extra")

from fcnopt.media.synth import FIRST_TRAINING_SEED, SynthClip  # noqa: E402
from fcnopt.models.fcn import FCN  # noqa: E402

ROOT = Path(__file__).parents[2]
ASSET = ROOT / "fcnopt" / "assets" / "demo_fcn8s.pth"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_demo", ROOT / "benchmarks" / "train_demo.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["train_demo"] = module
    spec.loader.exec_module(module)
    return module


def test_embedded_network_fits_its_script_and_knows_the_demo_scene(script: ModuleType) -> None:
    assert ASSET.stat().st_size <= 4 << 20
    saved = torch.load(ASSET, weights_only=True)
    assert saved["state_dict"]["conv1_1.weight"].dtype == torch.float16
    model = FCN(script.ARCHITECTURE)
    model.load_state_dict(saved["state_dict"])
    clip = SynthClip()
    ious = script.score(model, [clip.frame(index) for index in range(0, len(clip), 10)])
    assert ious.shape == (9,)
    assert ious.mean() > 75
    assert ious.min() > 35


def test_training_uses_no_street_of_the_demo(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = []
    monkeypatch.setattr(script, "SynthClip", lambda options: seeds.append(options.seed) or SynthClip(options))
    pairs = script.render(replace(script.Options(), clips=2, frames=2))
    assert seeds == [FIRST_TRAINING_SEED, FIRST_TRAINING_SEED + 1]
    assert FIRST_TRAINING_SEED >= 1000
    assert len(pairs) == 4


def test_training_is_reproducible(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = replace(script.Options(), steps=5, clips=1, frames=3, batch=2, crop=(64, 96))
    frames = script.render(options)
    states = []
    for _ in range(2):
        torch.manual_seed(options.seed)
        model = FCN(script.ARCHITECTURE, dropout=0.1)
        start = model.conv1_1.weight.detach().clone()
        script.train(model, frames, options)
        states.append(model.state_dict())
        assert not torch.equal(start, model.conv1_1.weight)
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert script.save(model, tmp_path / "out.pth") < 2_000_000
    capsys.readouterr()


def test_augmentation_keeps_picture_and_labels_together(script: ModuleType) -> None:
    labels = np.zeros((64, 96), np.uint8)
    labels[20:44, 30:70] = 1
    image = np.repeat(np.where(labels, 250, 5)[..., None], 3, 2).astype(np.uint8)
    for seed in range(6):
        lit, truth = script.augment(np.random.default_rng(seed), image, labels, (48, 80))
        assert lit.shape == (48, 80, 3)
        inside, outside = lit[truth == 1], lit[truth == 0]
        assert inside.size > 1000
        assert np.median(inside) > 150
        assert np.median(outside) < 30
