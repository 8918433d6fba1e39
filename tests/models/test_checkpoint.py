from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fcnopt.errors import CheckpointError, UsageError
from fcnopt.models.checkpoint import load
from tests.models.networks import tiny


def saved(tensors: Any, folder: Path) -> Path:
    path = folder / "net.pth"
    torch.save(tensors, path)
    return path


@pytest.mark.parametrize("stride", [8, 16, 32])
@pytest.mark.parametrize(
    "others",
    [
        {"batch_norm": True},
        {"padding": "caffe"},
        {"padding": "same", "widths": (2, 3, 4, 5, 6), "fc_widths": (7, 8), "classes": 2, "layers": (1, 2, 1, 2, 1)},
        {"batch_norm": True, "widths": (4, 5, 6, 7, 8, 9, 10, 8, 7, 6, 5, 4, 3), "fc6_rank": 6},
        {"padding": "caffe", "fc6_rank": 3},
        {"batch_norm": True, "fc_batch_norm": False},
        {"batch_norm": True, "biases": frozenset({"conv1_1", "conv3_2", "fc7"})},
    ],
)
def test_the_architecture_is_read_back(tmp_path: Path, stride: int, others: dict[str, Any]) -> None:
    network = tiny(stride, **others)
    loaded = load(saved(network.state_dict(), tmp_path), padding=others.get("padding"))
    assert str(loaded.architecture) == str(network.architecture) == loaded.description
    assert loaded.architecture is not None
    for name in ("widths", "fc_widths", "layers", "classes", "batch_norm", "normalizes_fc", "padding", "fc6_rank"):
        assert getattr(loaded.architecture, name) == getattr(network.architecture, name)
    x = torch.randn(1, 3, 33, 47, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        assert torch.equal(loaded.module(x), network(x))
    assert not loaded.module.training
    assert not any(parameter.requires_grad for parameter in loaded.module.parameters())


def test_batch_norm_implies_same_padding_and_says_so(tmp_path: Path) -> None:
    loaded = load(saved(tiny(batch_norm=True).state_dict(), tmp_path))
    assert loaded.architecture is not None
    assert loaded.architecture.padding == "same"
    assert "padding same, since the network has batch norm" in loaded.notes


def test_without_batch_norm_the_padding_must_be_said(tmp_path: Path) -> None:
    path = saved(tiny().state_dict(), tmp_path)
    with pytest.raises(UsageError, match="does not show in the file, since keys and shapes are the same") as error:
        load(path)
    assert "--padding caffe" in error.value.fix
    assert "--padding same" in error.value.fix
    with torch.inference_mode():
        same, caffe = (load(path, padding=p).module(torch.ones(1, 3, 40, 40)) for p in ("same", "caffe"))
    assert same.shape == caffe.shape
    assert not torch.allclose(same, caffe)


def test_at_once_is_a_matter_of_the_user_too(tmp_path: Path) -> None:
    path = saved(tiny().state_dict(), tmp_path)
    assert "at once" in load(path, padding="caffe", at_once=True).description
    with pytest.raises(UsageError, match="at once was asked for a FCN-32s"):
        load(saved(tiny(32).state_dict(), tmp_path), padding="caffe", at_once=True)


def test_half_precision_in_a_wrapper_is_loaded(tmp_path: Path) -> None:
    network = tiny(batch_norm=True)
    halves = {f"module.{k}": v.half() if v.is_floating_point() else v for k, v in network.state_dict().items()}
    loaded = load(saved({"epoch": 1, "state_dict": halves}, tmp_path))
    for name, tensor in loaded.module.state_dict().items():
        want = network.state_dict()[name]
        assert tensor.dtype == want.dtype
        assert torch.equal(tensor, want.half().float() if want.is_floating_point() else want)


def test_batch_norms_without_a_step_counter_are_complete(tmp_path: Path) -> None:
    state = {k: v for k, v in tiny(batch_norm=True).state_dict().items() if not k.endswith("num_batches_tracked")}
    assert load(saved(state, tmp_path)).description.startswith("FCN-8s VGG16 BN")


def test_wrong_keys_are_shown_with_the_nearest(tmp_path: Path) -> None:
    state = tiny().state_dict()
    state["score_pool_4.weight"] = state.pop("score_pool4.weight")
    with pytest.raises(CheckpointError) as error:
        load(saved(state, tmp_path), padding="same")
    message = error.value.message
    assert "1 keys missing and 1 unexpected for FCN-8s VGG16" in message
    assert "missing score_pool4.weight (nearest: score_pool_4.weight)" in message
    assert "unexpected score_pool_4.weight (nearest: score_pool4.weight)" in message


def test_a_missing_layer_in_the_middle_is_named(tmp_path: Path) -> None:
    state = tiny(batch_norm=True).state_dict()
    del state["conv3_2.weight"]
    with pytest.raises(CheckpointError, match=r"1 keys missing.*missing conv3_2\.weight"):
        load(saved(state, tmp_path))


def test_many_wrong_keys_are_counted_but_not_all_listed(tmp_path: Path) -> None:
    state = {k.replace("conv", "convolution"): v for k, v in tiny().state_dict().items()}
    with pytest.raises(CheckpointError, match="13 keys missing and 26 unexpected") as error:
        load(saved(state, tmp_path), padding="same")
    assert len(error.value.message) < 1000
    assert "--module" in error.value.fix


def test_a_wrong_shape_is_named(tmp_path: Path) -> None:
    state = tiny().state_dict()
    state["fc6.weight"] = state["fc6.weight"][..., :3, :3]
    with pytest.raises(CheckpointError, match=r"fc6\.weight has shape \[14, 12, 3, 3\], expected \[14, 12, 7, 7\]"):
        load(saved(state, tmp_path), padding="same")


@pytest.mark.parametrize("name", ["score_fr.weight", "score_pool4.weight", "upscore8.weight"])
def test_scores_that_disagree_on_the_classes_are_refused(tmp_path: Path, name: str) -> None:
    state = tiny(classes=5).state_dict()
    state[name] = state[name][:4]
    layer = name.removesuffix(".weight")
    with pytest.raises(CheckpointError, match=f"disagree on the number of classes: .*{layer} 4"):
        load(saved(state, tmp_path), padding="same")


def test_an_encoder_alone_is_told_from_a_network(tmp_path: Path) -> None:
    features = {f"features.{i}.weight": torch.ones(2, 2, 3, 3) for i in (0, 2, 5)}
    with pytest.raises(CheckpointError, match=r"an encoder only: 3 convolutions \(features\.0\.weight"):
        load(saved(features, tmp_path))
    own = {k: v for k, v in tiny().state_dict().items() if k.startswith("conv")}
    with pytest.raises(CheckpointError, match="an encoder only: 13 convolutions"):
        load(saved(own, tmp_path))


def test_another_network_is_told_in_one_line(tmp_path: Path) -> None:
    other = {"backbone.conv1.weight": torch.ones(2, 3, 7, 7), "classifier.0.weight": torch.ones(2, 2, 3, 3)}
    with pytest.raises(CheckpointError, match=r"not an FCN in a known naming.*backbone\.conv1\.weight") as error:
        load(saved(other, tmp_path))
    assert "--module package.module:Class" in error.value.fix


def test_nan_weights_are_refused(tmp_path: Path) -> None:
    state = tiny(batch_norm=True).state_dict()
    state["bn4_2.running_var"][1] = float("nan")
    with pytest.raises(CheckpointError, match=r"bn4_2\.running_var has 1 of 10 values NaN"):
        load(saved(state, tmp_path))


@pytest.mark.shared
def test_the_real_checkpoint_needs_no_word(shared: Path) -> None:
    loaded = load(shared / "models" / "fcn8s_vgg16bn_camvid.pth")
    assert loaded.description == "FCN-8s VGG16 BN, 11 classes, padding same"
    assert loaded.architecture is not None
    assert loaded.architecture.fc_widths == (1024, 1024)
    assert sum(p.numel() for p in loaded.module.parameters()) == pytest.approx(41.5e6, rel=0.01)


@pytest.mark.shared
def test_the_real_encoder_is_refused(shared: Path) -> None:
    with pytest.raises(CheckpointError, match="an encoder only: 13 convolutions"):
        load(shared / "models" / "vgg16_imagenet_features.safetensors")
