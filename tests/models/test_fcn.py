from __future__ import annotations

import itertools
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from fcnopt.errors import UsageError
from fcnopt.models.fcn import AT_ONCE_SCALES, FCN, Architecture
from tests.models.networks import tiny

CONVS = [f"conv{b}_{n}" for b, count in enumerate((2, 2, 3, 3, 3), 1) for n in range(1, count + 1)]
UPSCORES = {32: ["upscore"], 16: ["upscore2", "upscore16"], 8: ["upscore2", "upscore_pool4", "upscore8"]}
SCORES = {32: ["score_fr"], 16: ["score_fr", "score_pool4"], 8: ["score_fr", "score_pool3", "score_pool4"]}


def reference(w: dict[str, torch.Tensor], x: torch.Tensor, stride: int, padding: str) -> torch.Tensor:
    """The forward pass of FCN without batch norm, written down from the papers and torch's functions alone."""
    caffe = padding == "caffe"
    h, pools = x, {}
    for name in CONVS:
        pad = 100 if caffe and name == "conv1_1" else 1
        h = F.relu(F.conv2d(h, w[f"{name}.weight"], w[f"{name}.bias"], padding=pad))
        if name in ("conv1_2", "conv2_2", "conv3_3", "conv4_3", "conv5_3"):
            h = pools[int(name[4])] = F.max_pool2d(h, 2, 2, ceil_mode=True)
    h = F.relu(F.conv2d(h, w["fc6.weight"], w["fc6.bias"], padding=0 if caffe else 3))
    h = F.relu(F.conv2d(h, w["fc7.weight"], w["fc7.bias"]))
    h = F.conv2d(h, w["score_fr.weight"], w["score_fr.bias"])

    def up(name: str, by: int, h: torch.Tensor) -> torch.Tensor:
        return F.conv_transpose2d(h, w[f"{name}.weight"], stride=by, padding=0 if caffe else by // 2)

    def join(h: torch.Tensor, block: int, offset: int) -> torch.Tensor:
        skip = F.conv2d(pools[block], w[f"score_pool{block}.weight"], w[f"score_pool{block}.bias"])
        if caffe:
            return h + skip[:, :, offset : offset + h.shape[2], offset : offset + h.shape[3]]
        return h[:, :, : skip.shape[2], : skip.shape[3]] + skip

    if stride < 32:
        h = join(up("upscore2", 2, h), 4, 5)
    if stride < 16:
        h = join(up("upscore_pool4", 2, h), 3, 9)
    h = up({32: "upscore", 16: "upscore16", 8: "upscore8"}[stride], stride, h)
    at = {32: 19, 16: 27, 8: 31}[stride] if caffe else 0
    return h[:, :, at : at + x.shape[2], at : at + x.shape[3]]


@pytest.mark.parametrize("stride", [8, 16, 32])
def test_the_keys_are_those_of_pytorch_fcn(stride: Any) -> None:
    keys = set(FCN(Architecture(stride, 2, (1,) * 5, (1, 1))).state_dict())
    biased = [*CONVS, "fc6", "fc7", *SCORES[stride]]
    assert keys == {f"{n}.{p}" for n in biased for p in ("weight", "bias")} | {f"{n}.weight" for n in UPSCORES[stride]}


def test_batch_norm_adds_its_keys_and_takes_the_biases_before_it() -> None:
    keys = set(FCN(Architecture(8, 2, (1,) * 5, (1, 1), batch_norm=True)).state_dict())
    norms = {key.partition(".")[0] for key in keys if key.startswith("bn")}
    assert norms == {name.replace("conv", "bn") for name in CONVS} | {"bn6", "bn7"}
    assert {key for key in keys if key.endswith(".bias") and not key.startswith("bn")} == {
        f"{name}.bias" for name in SCORES[8]
    }


@pytest.mark.parametrize(
    ("stride", "padding", "size"),
    [*itertools.product((8, 16, 32), ("same", "caffe"), [(33, 47)]), (8, "same", (64, 96)), (8, "caffe", (1, 70))],
)
def test_forward_agrees_with_the_definition(stride: int, padding: str, size: tuple[int, int]) -> None:
    network = tiny(stride, padding=padding)
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        found, want = network(x), reference(network.state_dict(), x, stride, padding)
    assert found.shape == (2, 5, *size)
    assert want.abs().max() > 0.1
    torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["FCN32s", "FCN16s", "FCN8s", "FCN8sAtOnce"])
def test_caffe_padding_agrees_with_torchfcn(name: str, torchfcn_models: ModuleType) -> None:
    at_once = AT_ONCE_SCALES if name.endswith("AtOnce") else (1.0, 1.0)
    network = FCN(Architecture(int(name[3:].split("s")[0]), 4, padding="caffe", skip_scales=at_once)).eval()  # type: ignore[arg-type]
    other = getattr(torchfcn_models, name)(n_class=4).eval()
    other.load_state_dict(network.state_dict(), strict=True)
    x = torch.randn(1, 3, 33, 47, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        torch.testing.assert_close(network(x), other(x), rtol=1e-5, atol=1e-6)


def test_scaling_a_skip_equals_scaling_its_score_weights() -> None:
    plain, at_once = tiny(8), tiny(8, skip_scales=AT_ONCE_SCALES)
    x = torch.randn(1, 3, 40, 40, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        different = plain(x)
        plain.score_pool4.weight *= 0.01
        plain.score_pool3.weight *= 0.0001
        found, want = at_once(x), plain(x)
    torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-6)
    assert (found - different).abs().max() > 0.01


@pytest.mark.parametrize("stride", [2, 8])
def test_deconvolutions_start_bilinear(stride: int) -> None:
    network = FCN(Architecture(8, 3, (1,) * 5, (1, 1)))
    deconv = network.upscore2 if stride == 2 else network.upscore8
    ramp = torch.arange(6.0).repeat(1, 3, 6, 1)
    with torch.inference_mode():
        found = deconv(ramp)  # type: ignore[operator]  # a module
    want = F.interpolate(ramp, scale_factor=stride, mode="bilinear", align_corners=False)
    inner = slice(stride, -stride)  # at the border the deconvolution sees zeros
    torch.testing.assert_close(found[..., inner, inner], want[..., inner, inner], rtol=0, atol=1e-5)


def test_dropout_acts_in_training_only() -> None:
    network = tiny()
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(network(x), network(x))
        network.train()
        assert not torch.equal(network(x), network(x))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"finest_stride": 4}, "finest stride 4"),
        ({"padding": "valid"}, "padding 'valid'"),
        ({"widths": (1, 1)}, "2 widths"),
        ({"widths": (1,) * 12}, "12 widths"),
        ({"fc6_rank": 0}, "below 1"),
        ({"classes": 0}, "below 1"),
    ],
)
def test_an_impossible_architecture_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Architecture(**{"finest_stride": 8, "classes": 2, **changes})


def test_an_architecture_is_readable() -> None:
    assert str(Architecture(8, 11, batch_norm=True)) == "FCN-8s VGG16 BN, 11 classes, padding same"
    assert (
        str(Architecture(16, 2, layers=(2, 2, 4, 4, 4), padding="caffe")) == "FCN-16s VGG19, 2 classes, padding caffe"
    )
    assert str(Architecture(8, 2, fc6_rank=4)) == "FCN-8s VGG16 slimmed, 2 classes, padding same"


def test_widths_are_told_by_block_or_by_convolution() -> None:
    blocks = Architecture(8, 2, widths=(1, 2, 3, 4, 5))
    assert list(blocks.conv_widths) == CONVS
    assert list(blocks.conv_widths.values()) == [1, 1, 2, 2, 3, 3, 3, 4, 4, 4, 5, 5, 5]
    each = Architecture(8, 2, widths=tuple(range(1, 14)))
    assert list(each.conv_widths.values()) == list(range(1, 14))
    assert each.pool_widths == (2, 4, 7, 10, 13)


@pytest.mark.parametrize("padding", ["same", "caffe"])
def test_fc6_of_low_rank_is_its_product(padding: Any) -> None:
    """A 7x7 convolution to r channels and a 1x1 one are the 7x7 one of the product of their weights."""
    factored = tiny(padding=padding, fc6_rank=5)
    product = tiny(padding=padding)
    state = dict(factored.state_dict())
    state["fc6.weight"] = torch.einsum("or,rihw->oihw", state["fc6.weight"][:, :, 0, 0], state["fc6_basis.weight"])
    del state["fc6_basis.weight"]
    product.load_state_dict(state)
    x = torch.randn(1, 3, 40, 56, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        torch.testing.assert_close(factored(x), product(x), rtol=1e-4, atol=1e-4)
