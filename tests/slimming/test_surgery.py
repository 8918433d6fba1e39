from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fcnopt.models.checkpoint import check_keys, read_architecture
from fcnopt.models.fcn import FCN
from fcnopt.slimming.cost import widths_of
from fcnopt.slimming.elimination import LowRank, Moments, eliminate, low_rank, predictor
from fcnopt.slimming.plan import Plan
from fcnopt.slimming.statistics import FC6_OUT, tensors_of
from fcnopt.slimming.surgery import narrowed, slimmed, with_low_rank
from tests.models.networks import tiny
from tests.slimming.conftest import WIDTHS, pixels

pytest.importorskip("torch_pruning")


def some_kept(network: FCN) -> dict[str, NDArray[np.int64]]:
    rng = np.random.default_rng(3)
    return {
        name: np.sort(rng.permutation(width)[: 1 + at % 3 + width // 2])
        for at, (name, width) in enumerate(widths_of(network.architecture).items())
    }


def masked(
    network: FCN, kept: dict[str, NDArray[np.int64]], takeovers: dict[str, NDArray[np.float64]] | None = None
) -> torch.Tensor:
    """The network's answer with removed channels zero, or made of the kept ones, wherever they are read."""
    hooks = []
    for name, at in tensors_of(network.architecture).items():
        width = widths_of(network.architecture)[name]
        mix = np.zeros((width, width))
        mix[kept[name], kept[name]] = 1
        if takeovers is not None:
            removed = np.setdiff1d(np.arange(width), kept[name])
            mix[np.ix_(removed, kept[name])] = takeovers[name]
        weight = torch.from_numpy(mix).float()

        def mixed(_m: object, _i: object, output: torch.Tensor, weight: torch.Tensor = weight) -> torch.Tensor:
            return torch.einsum("rk,nkhw->nrhw", weight, output)

        hooks.append(network.get_submodule(at).register_forward_hook(mixed))
    with torch.inference_mode():
        answer = network(pixels())
    for hook in hooks:
        hook.remove()
    return answer


@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.parametrize("padding", ["same", "caffe"])
@pytest.mark.parametrize("stride", [8, 32])
def test_a_narrow_network_answers_as_the_masked_one(batch_norm: bool, padding: str, stride: int) -> None:
    network = tiny(stride, batch_norm=batch_norm, padding=padding, **WIDTHS)
    kept = some_kept(network)
    result = narrowed(network, kept)
    want = masked(network, kept)
    with torch.inference_mode():
        whole, found = network(pixels()), result(pixels())
    assert not torch.allclose(whole, want, rtol=0.1)
    torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-5 * float(want.abs().max()))
    assert {name: len(keep) for name, keep in kept.items()} == widths_of(result.architecture)


def test_scaled_skips_stay_scaled() -> None:
    network = tiny(padding="caffe", **WIDTHS)
    network.architecture = replace(network.architecture, skip_scales=(0.01, 0.0001))
    kept = some_kept(network)
    result = narrowed(network, kept)
    want = masked(network, kept)
    with torch.inference_mode():
        torch.testing.assert_close(result(pixels()), want, rtol=1e-5, atol=1e-5 * float(want.abs().max()))


def test_kept_channels_take_over(network: FCN, moments: dict[str, Moments]) -> None:
    kept = {name: eliminate(moments[name]).kept(len(keep)) for name, keep in some_kept(network).items()}
    takeovers = {name: predictor(moments[name], keep)[1] for name, keep in kept.items()}
    want = masked(network, kept, takeovers)
    result = narrowed(network, kept, takeovers)
    with torch.inference_mode():
        whole, found = network(pixels()), result(pixels())
    torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-4 * float(want.abs().max()))
    assert (found - whole).square().mean() < (masked(network, kept) - whole).square().mean()


def test_the_architecture_of_a_narrow_network_is_read_from_its_weights(
    network: FCN, moments: dict[str, Moments]
) -> None:
    factored = with_low_rank(network, low_rank(moments[FC6_OUT]), 5)
    result = narrowed(factored, some_kept(network))
    found = read_architecture(result.state_dict(), "net.pth")  # type: ignore[arg-type]  # named in errors only
    assert found.fc6_rank == 5
    assert str(found) == str(result.architecture) == "FCN-8s VGG16 BN slimmed, 5 classes, padding same"
    check_keys(FCN(found).state_dict(), result.state_dict(), "it", "net.pth", fix="")  # type: ignore[arg-type]


@pytest.mark.parametrize("batch_norm", [True, False])
def test_full_rank_changes_nothing(batch_norm: bool) -> None:
    network = tiny(batch_norm=batch_norm, **WIDTHS)
    rng = np.random.default_rng(0)
    down = np.linalg.qr(rng.normal(size=(14, 14)))[0]
    result = with_low_rank(network, LowRank(down, np.linalg.inv(down), np.zeros(15)), 14)
    assert result.get_submodule("fc6_basis").weight.shape == (14, 12, 7, 7)
    with torch.inference_mode():
        want = network(pixels())
        torch.testing.assert_close(result(pixels()), want, rtol=1e-4, atol=1e-4 * float(want.abs().max()))


def test_a_plan_is_carried_out_and_the_original_left_alone(network: FCN, moments: dict[str, Moments]) -> None:
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    widths = {name: max(2, width // 2) for name, width in widths_of(network.architecture).items()}
    orders = {name: eliminate(moments[name]) for name in widths}
    result = slimmed(network, Plan(widths, 4, 0, 1, 2), orders, moments, low_rank(moments[FC6_OUT]))
    assert widths_of(result.architecture) == widths
    assert result.architecture.fc6_rank == 4
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert not any(parameter.requires_grad for parameter in network.parameters())
