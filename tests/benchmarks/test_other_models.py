from __future__ import annotations

import shutil
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("openvino", reason="files are evaluated on OpenVINO")
pytest.importorskip("onnxruntime", reason="ONNX Runtime verifies an export")

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import fit_scores
import networks
import other_models
import trial

from fcnopt import ExportOptions
from fcnopt.backends.machine import describe_machine
from fcnopt.errors import UsageError
from tests.models.networks import tiny


def _silent(_step: str, _fraction: float) -> None:
    """Progress that nobody watches."""


def _frame(rng: np.random.Generator, height: int = 70, width: int = 90) -> np.ndarray:
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def _halves(rng: np.random.Generator, count: int) -> list[fit_scores.Labelled]:
    """Noise that is dark in one half and bright in the other; labels 0 and 1, an unlabelled stripe between."""
    found = []
    for index in range(count):
        labels = np.zeros((64, 96), np.uint8)
        labels[:, 48:] = 1
        image = rng.integers(0, 60, (64, 96, 3)) + 180 * labels[:, :, None]
        labels[:, 40:56] = 9
        found.append((image.astype(np.uint8)[:, :: (-1) ** index], labels[:, :: (-1) ** index].copy()))
    return found


@pytest.mark.parametrize(
    ("stride", "padding", "tail"), [(8, "caffe", networks.CAFFE_8S), (32, "same", networks.SAME_32S)]
)
def test_a_tail_gives_the_networks_own_logits(
    stride: int, padding: str, tail: fit_scores.Tail, rng: np.random.Generator
) -> None:
    net = tiny(stride, padding=padding)
    frame = _frame(rng)
    features = fit_scores.features_of(net, tail, frame)
    assert set(features) == set(tail.scores)
    with torch.no_grad():
        whole = net(fit_scores.to_input(frame))
        found = tail.logits(net, features, (70, 90))
    assert whole.shape == (1, 5, 70, 90)
    torch.testing.assert_close(found, whole, rtol=0, atol=0)


def test_moments_are_those_of_all_values_together(rng: np.random.Generator) -> None:
    values = [rng.normal(3, [[[1.0]], [[5.0]]], (1, 2, height, 7)).astype(np.float32) for height in (4, 9)]
    mean, deviation = fit_scores.moments([torch.from_numpy(value) for value in values])
    flat = np.concatenate([value[0].reshape(2, -1) for value in values], axis=1).astype(np.float64)
    np.testing.assert_allclose(mean.numpy(), flat.mean(1), rtol=1e-6)
    np.testing.assert_allclose(deviation.numpy(), flat.std(1), rtol=1e-6)


def test_a_channel_that_hardly_varies_is_not_blown_up() -> None:
    still = torch.stack([torch.zeros(3, 4), torch.arange(12.0).reshape(3, 4)])[None]
    _, deviation = fit_scores.moments([still])
    assert deviation[0] == pytest.approx(1e-3 * float(deviation[1]) / 2)


def test_only_scores_are_fitted_and_they_tell_the_classes_apart(rng: np.random.Generator) -> None:
    net = tiny(8, padding="caffe", classes=3)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    fit = fit_scores.Fit(epochs=20, rate=0.05)
    fit_scores.fit_scores(net, networks.CAFFE_8S, _halves(rng, 4), 9, fit, _silent)
    changed = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {f"{name}.{part}" for name in networks.CAFFE_8S.scores for part in ("weight", "bias")}
    right = total = 0
    for frame, labels in _halves(np.random.default_rng(1), 4):  # other noise
        with torch.no_grad():
            found = net(fit_scores.to_input(frame)).argmax(1)[0].numpy()
        right += int((found == labels)[labels != 9].sum())
        total += int((labels != 9).sum())
    assert right / total > 0.9


def test_the_same_seed_fits_the_same_scores(rng: np.random.Generator) -> None:
    labelled = _halves(rng, 3)
    found = []
    for seed in (0, 0, 1):
        net = tiny(32, classes=3)
        fit_scores.fit_scores(net, networks.SAME_32S, labelled, 9, fit_scores.Fit(epochs=3, seed=seed), _silent)
        found.append(net.state_dict()["score_fr.weight"].clone())
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_an_fcn32s_takes_everything_but_score_and_upsampling_from_an_fcn8s(tmp_path: Path) -> None:
    trained = tiny(8, batch_norm=True)
    torch.save(trained.state_dict(), tmp_path / "fcn8s.pth")
    net = networks.fcn32s_of(tmp_path / "fcn8s.pth")
    assert net.architecture.finest_stride == 32
    theirs = trained.state_dict()
    own = {name for name in net.state_dict() if name not in theirs}
    assert own == {"upscore.weight"}
    assert all(torch.equal(value, theirs[name]) for name, value in net.state_dict().items() if name not in own)


@pytest.fixture
def tiny_network(tmp_path: Path) -> networks.Network:
    """A narrow FCN-32s in place of the real ones."""
    trained = tiny(8, batch_norm=True, classes=11, widths=(16, 16, 24, 24, 32), fc_widths=(32, 32))
    torch.save(trained.state_dict(), tmp_path / "fcn8s.pth")

    def make(weights: Path, _labelled: object) -> nn.Module:
        return networks.fcn32s_of(weights)

    return networks.Network("tiny", "fcn8s.pth", make, networks.SAME_32S, ExportOptions(size=(64, 96)), 2)


def test_a_fitted_network_is_kept_until_its_inputs_change(
    tiny_network: networks.Network, tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def counted(*_: object) -> None:
        calls.append(1)

    labelled = _halves(rng, 2)
    monkeypatch.setattr(other_models, "spaced", lambda _folder, _limit: labelled)
    monkeypatch.setattr(other_models, "fit_scores", counted)
    work = tmp_path / "work"
    work.mkdir()
    fitted = partial(other_models.fitted, tiny_network, tmp_path, work, _silent)
    path, facts = fitted()
    assert path.exists()
    assert facts["frames"] == 2
    assert fitted() == (path, facts)
    assert len(calls) == 1
    labelled[0] = (labelled[0][0] + 1, labelled[0][1])
    other, _ = fitted()
    assert len(calls) == 2
    assert other != path
    assert not path.exists()


def test_unknown_networks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"unknown networks fcn16s\n.*choose from torchfcn-fcn8s, fcn32s"):
        other_models.Options(tmp_path, tmp_path, only=("fcn16s",))


def test_command_says_what_was_run(tmp_path: Path) -> None:
    options = other_models.Options(tmp_path, tmp_path, ("fcn32s",), trial.Selection(most=4))
    assert options.command() == "python benchmarks/other_models.py ../shared --only fcn32s --max-frames 4"


def test_train_frames_are_spaced_evenly_and_labelled(shared: Path) -> None:
    found = fit_scores.spaced(shared / "data/camvid", 3)
    assert len(found) == 3
    assert all(frame.shape == (360, 480, 3) and labels.shape == (360, 480) for frame, labels in found)
    assert not np.array_equal(found[0][0], found[1][0])


def test_a_network_goes_the_whole_road(tiny_network: networks.Network, street: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="files are built for it, ahead of time")
    camvid = tmp_path / "data" / "camvid"
    for part in ("train", "val"):
        shutil.copytree(street / "images", camvid / part)
        shutil.copytree(street / "labels", camvid / f"{part}annot")
    options = other_models.Options(tmp_path, tmp_path, frames=trial.Selection(most=3))
    found = other_models.measured(tiny_network, options, tmp_path, _silent)
    assert found["evaluation"]["frames"] == 3
    assert found["fit"]["frames"] == 2
    assert [row["method"] for row in found["rows"]] == ["minmax", "mse", "auto"]
    for row in found["rows"]:
        assert 80 < row["equal_labels"] <= 100
        assert row["int8_macs_share"] > 0.8  # the deconvolution, which stays float, counts much in a network so narrow
        assert row["tensorrt"]["target"] == "tensorrt-rtx:sm86"
        assert any("convolutions compute in int8" in note for note in row["tensorrt"]["notes"])
    page = other_models.as_markdown(
        {"machine": describe_machine(), "command": options.command(), "networks": {"tiny": found}}
    )
    assert "evaluated on 3 frames of camvid/val" in page
    assert f"| auto | {found['rows'][2]['miou']:.2f} |" in page
