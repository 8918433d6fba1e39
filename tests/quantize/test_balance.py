from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import check_grad

from fcnopt.graph.taps import expose
from fcnopt.quantize.balance import LARGEST, Channels, _Noise, _of_frame, balanced, observe_channels
from tests.quantize.nets import fcn, images, run


def channels_of(reach: np.ndarray) -> Channels:
    reach = np.asarray(reach, np.float64)
    return Channels(reach, reach**2 / 9, np.where(reach > 0, 0.5, 0.0))


def noise(channels: Channels, weight: np.ndarray, factors: np.ndarray) -> float:
    """A + B / 10 of the module, word by word, with hard maxima; the weight is (out, channels, taps)."""
    step = (channels.reach / factors).max() / 127
    rounding = (channels.active * (step * factors) ** 2 * (weight**2).sum(axis=(0, 2))).sum()
    steps = (np.abs(weight).max(axis=2) * factors).max(axis=1) / 127
    return rounding + 0.1 * (steps**2).sum() * weight.shape[2] * (channels.power / factors**2).sum()


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    reach=st.lists(st.just(0.0) | st.floats(2.0**-100, 2.0**100), min_size=1, max_size=24),
    seed=st.integers(0, 99),
    readers=st.integers(0, 2),
)
def test_factors_are_positive_bounded_and_balanced(reach: list[float], seed: int, readers: int) -> None:
    rng = np.random.default_rng(seed)
    weights = [rng.normal(size=(5, len(reach), 9)).astype(np.float32) for _ in range(readers)]
    factors = balanced(channels_of(np.array(reach)), [(slice(0, len(reach)), weight) for weight in weights])
    assert (factors.dtype, factors.shape) == (np.float32, (len(reach),))
    assert (factors > 0).all()
    assert np.log(factors.astype(np.float64)).mean() == pytest.approx(0, abs=1e-5)
    assert factors.max() / factors.min() <= LARGEST**2 * 1.001
    if not readers or max(reach) == 0:
        np.testing.assert_array_equal(factors, 1)


@pytest.mark.parametrize("seed", range(5))
def test_noise_falls_far_below_that_of_uneven_channels(seed: int) -> None:
    rng = np.random.default_rng(seed)
    channels = channels_of(rng.permutation(np.geomspace(0.05, 5, 24)))
    weight = rng.normal(size=(32, 24, 9)).astype(np.float32)
    factors = balanced(channels, [(slice(0, 24), weight)]).astype(np.float64)
    found = noise(channels, weight, factors)
    assert found < 0.5 * noise(channels, weight, np.ones(24))
    for _ in range(50):  # nothing near is much better
        assert found < 1.1 * noise(channels, weight, factors * np.exp(rng.normal(0, 0.2, 24)))


def test_even_channels_are_left_nearly_even() -> None:
    weight = np.ones((8, 12, 9), np.float32)
    np.testing.assert_allclose(balanced(channels_of(np.ones(12)), [(slice(0, 12), weight)]), 1, rtol=1e-3)


def test_gradient_is_that_of_the_objective(rng: np.random.Generator) -> None:
    channels = channels_of(rng.uniform(0.1, 3, 8))
    parts = [(slice(0, 4), rng.normal(size=(3, 4, 9))), (slice(4, 8), rng.normal(size=(3, 4, 1)))]
    given_ = [(place, weight.astype(np.float32)) for place, weight in parts]
    objective = _Noise(np.log(channels.reach), channels.power, channels.active, given_)
    for _ in range(3):
        assert check_grad(lambda x: objective(x)[0], lambda x: objective(x)[1], rng.normal(0, 0.5, 8)) < 1e-5


def test_channels_are_measured_over_frames(rng: np.random.Generator) -> None:
    model, frames, steps = fcn(rng), images(rng, 3), []

    class Frames(list):
        count = 3

    found = observe_channels(model, ("conv2", "conv1_relu"), Frames(frames), steps.append)
    assert set(found) == {"conv2", "conv1_relu"}
    assert steps == pytest.approx([1 / 3, 2 / 3, 1])
    for name, channels in found.items():
        values = np.concatenate([run(expose(model, [name]), f, [name])[0] for f in frames]).transpose(1, 0, 2, 3)
        np.testing.assert_allclose(channels.power, np.mean(values.astype(np.float64) ** 2, axis=(1, 2, 3)), rtol=1e-5)
        np.testing.assert_allclose(channels.active, np.mean(values != 0, axis=(1, 2, 3)))
        np.testing.assert_allclose(channels.reach, np.abs(values).max(axis=(1, 2, 3)), rtol=1e-6)  # 768 < 1 / 0.0001


def test_one_value_in_ten_thousand_does_not_count_as_reach(rng: np.random.Generator) -> None:
    magnitudes = rng.uniform(0, 1, (2, 30000)).astype(np.float32)
    magnitudes[0, :2] = 50
    magnitudes[1, :5] = 50
    reach = _of_frame(magnitudes)[0]
    assert reach[0] == pytest.approx(1, abs=0.01)
    assert reach[1] == 50


def test_values_that_are_not_finite_leave_the_channels_alone(rng: np.random.Generator) -> None:
    weight = rng.normal(size=(8, 3, 9)).astype(np.float32)
    for broken in (np.inf, np.nan):
        reach = np.array([1.0, 2.0, broken])
        channels = Channels(reach, reach, np.ones(3))
        np.testing.assert_array_equal(balanced(channels, [(slice(0, 3), weight)]), 1)
