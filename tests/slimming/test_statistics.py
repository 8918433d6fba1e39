from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from fcnopt.models.fcn import FCN
from fcnopt.slimming import statistics
from fcnopt.slimming.elimination import Moments
from fcnopt.slimming.statistics import FC6_OUT, measure, tensors_of
from tests.models.networks import tiny
from tests.slimming.conftest import WIDTHS, pixels


def test_moments_are_those_of_what_readers_read(network: FCN, moments: dict[str, Moments]) -> None:
    seen: dict[str, torch.Tensor] = {}
    names = {**tensors_of(network.architecture), FC6_OUT: "fc6"}
    hooks = [
        network.get_submodule(at).register_forward_hook(lambda _m, _i, out, name=name: seen.update({name: out}))
        for name, at in names.items()
    ]
    with torch.inference_mode():
        network(pixels())
    for hook in hooks:
        hook.remove()
    assert set(seen) == set(moments)
    for name, output in seen.items():
        x = output[0].flatten(1).double().numpy()
        np.testing.assert_allclose(moments[name].second, x @ x.T / x.shape[1], rtol=1e-4, atol=1e-5)
    assert seen["conv3_3"].shape[2:] == (5, 6)  # after the pool


@pytest.mark.parametrize("layer", ["conv3_2", "conv4_3", "fc6"])
def test_curvature_foretells_the_divergence(layer: str) -> None:
    """Noise of variance v in one channel costs 1/2 G v nats a pixel."""
    network = tiny(batch_norm=True, **WIDTHS).requires_grad_(False)
    found = measure(network, [pixels() for _ in range(200)], torch.ones(5))[layer].curvature
    channel, size = int(np.argmax(found)), 0.03
    at = network.get_submodule(tensors_of(network.architecture)[layer])
    with torch.inference_mode():
        want = network(pixels()).log_softmax(1)
        generator, total = torch.Generator().manual_seed(0), 0.0
        for _ in range(100):

            def noisy(_m: object, _i: object, out: torch.Tensor) -> torch.Tensor:
                noise = torch.zeros_like(out)
                noise[:, channel] = size * torch.randn(out[:, channel].shape, generator=generator)
                return out + noise

            hook = at.register_forward_hook(noisy)
            total += float((want.exp() * (want - network(pixels()).log_softmax(1))).sum(1).mean()) / 100
            hook.remove()
    assert total == pytest.approx(0.5 * found[channel] * size**2, rel=0.25)


def test_pixels_count_by_their_class(network: FCN) -> None:
    even, double = (measure(network, [pixels()], torch.full((5,), w))["fc7"].curvature for w in (1.0, 2.0))
    np.testing.assert_allclose(double, 2 * even, rtol=1e-4)
    assert even.max() > 0


def test_the_same_seed_draws_the_same_and_frames_are_counted(network: FCN) -> None:
    seen: list[int] = []
    first = measure(network, [pixels(2), pixels(1)], torch.ones(5), seed=4, progress=seen.append)
    again = measure(network, [pixels(2), pixels(1)], torch.ones(5), seed=4)
    other = measure(network, [pixels(2), pixels(1)], torch.ones(5), seed=5)
    assert seen == [2, 3]
    np.testing.assert_array_equal(first["conv2_1"].curvature, again["conv2_1"].curvature)
    assert not np.array_equal(first["conv2_1"].curvature, other["conv2_1"].curvature)


def test_a_measurement_goes_on_from_what_it_kept(network: FCN, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "_KEEP_S", 0.0)
    frames = [pixels(2), pixels(1), pixels(3), pixels(1)]
    whole = measure(network, frames, torch.ones(5), seed=4)
    kept: list[dict[str, Any]] = []

    def stop(state: dict[str, Any]) -> None:
        kept.append(state)
        if len(kept) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(network, frames, torch.ones(5), seed=4, keep=stop)
    seen: list[int] = []
    again = measure(network, frames, torch.ones(5), seed=4, kept=kept[-1], progress=seen.append)
    assert seen == [6, 7]
    for name, entry in whole.items():
        np.testing.assert_array_equal(again[name].second, entry.second)
        np.testing.assert_array_equal(again[name].curvature, entry.curvature)


def test_the_bias_of_fc6_is_no_part_of_what_is_factored() -> None:
    network = tiny(batch_norm=False, **WIDTHS).requires_grad_(False)
    before = measure(network, [pixels()], torch.ones(5))[FC6_OUT].second
    bias = network.get_submodule("fc6").bias
    assert isinstance(bias, torch.Tensor)
    bias.data += 3
    after = measure(network, [pixels()], torch.ones(5))[FC6_OUT].second
    np.testing.assert_allclose(after, before, rtol=1e-3, atol=1e-4)
