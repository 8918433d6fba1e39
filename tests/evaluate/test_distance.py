from __future__ import annotations

import json
import math

import numpy as np
import pytest
from numpy.typing import NDArray

from fcnopt.evaluate import distance
from fcnopt.evaluate.distance import Distance, Meter, Scaling

SHAPE = (1, 8, 30, 40)


def measured(pairs: list[tuple[NDArray, NDArray]], factors: NDArray | None = None, axis: int = 1) -> Distance:
    meter = Meter(axis, factors)
    for a, b in pairs:
        meter.add(a, b)
    return meter.result()


def factors_of(a: NDArray, b: NDArray, axis: int = 1) -> NDArray | None:
    scaling = Scaling(axis)
    scaling.add(a, b)
    return scaling.factors()


def rounded(a: NDArray, step: float) -> NDArray:
    return np.round(a / step) * step


def activations(rng: np.random.Generator) -> NDArray[np.float32]:
    """Non-negative, channels of different size."""
    gains = np.geomspace(0.5, 8, SHAPE[1])[:, None, None]
    return (np.maximum(rng.normal(size=SHAPE), 0) * gains).astype(np.float32)


def test_the_figures_are_those_of_the_formulas_over_all_frames(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distance, "_CHUNK", 3 * 30 * 40)  # so that channels come in several chunks
    a = [activations(rng).astype(np.float64) for _ in range(3)]
    b = [value + rng.normal(0, 0.1, SHAPE) for value in a]
    found = measured(list(zip(a, b, strict=True)))
    one, two = np.stack(a), np.stack(b)
    expected = 10 * math.log10((one**2).sum() / ((one - two) ** 2).sum())
    assert found.sqnr_db == pytest.approx(expected, abs=1e-9)
    assert found.noise == pytest.approx(10 ** (-expected / 10))
    assert found.max_abs == pytest.approx(np.abs(one - two).max())
    assert found.cosine == pytest.approx((one * two).sum() / np.sqrt((one**2).sum() * (two**2).sum()))
    assert (found.non_finite, found.factors) == (0, None)


def test_the_same_is_exact_also_where_it_is_zero(rng: np.random.Generator) -> None:
    a = activations(rng)
    assert measured([(a, a.copy())]) == Distance(math.inf, 0.0, 1.0)
    assert measured([(0 * a, 0 * a)]) == Distance(math.inf, 0.0, 1.0)
    assert measured([(0 * a, a)]).sqnr_db == -math.inf


def test_half_precision_is_measured_in_double(rng: np.random.Generator) -> None:
    a = activations(rng) * 1000
    found = measured([(a, a.astype(np.float16))])
    assert 65 < found.sqnr_db < 80  # rounding to 11 bits, uniform: 20 log10(2 ** 11 * sqrt(12) / 1.4) and thereabouts


def test_what_overflows_is_broken_and_counted(rng: np.random.Generator) -> None:
    a = activations(rng)
    b = a.copy()
    b[0, 2, 3, 4:7] = [np.inf, -np.inf, np.nan]
    found = measured([(a, b)])
    assert (found.sqnr_db, found.non_finite, found.max_abs) == (-math.inf, 3, 0.0)
    data = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert (data["sqnr_db"], data["state"], data["non_finite"]) == (None, "broken", 3)
    assert Distance(math.inf, 0.0, 1.0).to_dict()["state"] == "exact"
    assert Distance(20.0, 0.0, 1.0).to_dict()["sqnr_db"] == 20.0


def test_a_common_power_of_two_is_found_exactly_through_quantization_noise(rng: np.random.Generator) -> None:
    a = activations(rng)
    factors = factors_of(a, rounded(a, 0.2) / 16)
    assert factors is not None
    np.testing.assert_array_equal(factors, np.full(8, 1 / 16))
    plain, scaled = measured([(a, rounded(a, 0.2))]), measured([(a, rounded(a, 0.2) / 16)], factors)
    assert scaled.sqnr_db == pytest.approx(plain.sqnr_db)
    assert scaled.max_abs == pytest.approx(plain.max_abs)
    assert scaled.factors == (1 / 16, 1 / 16)


def test_factors_of_each_channel_are_found_and_silent_channels_get_the_median(rng: np.random.Generator) -> None:
    a = activations(rng)
    a[:, 5] = 0
    true = np.array([0.3, 0.5, 0.8, 1.0, 1.5, 9.0, 2.5, 4.0], np.float32)
    b = rounded(a, 0.01) * true[:, None, None]
    factors = factors_of(a, b)
    assert factors is not None
    np.testing.assert_allclose(np.delete(factors, 5), np.delete(true, 5), rtol=1e-3)
    assert factors[5] == pytest.approx(1.0, rel=1e-3)  # the median of the others
    assert measured([(a, b)], factors).sqnr_db > 40
    assert measured([(a, b)]).sqnr_db < 10


@pytest.mark.parametrize("step", [1e-6, 0.05, 0.2])
def test_a_mild_equalization_is_found_through_quantization_noise(step: float, rng: np.random.Generator) -> None:
    a = np.maximum(rng.normal(size=(1, 64, 30, 40)), 0)
    true = np.exp(rng.normal(0, 0.1, 64))
    b = rounded(a, step) * true[:, None, None]
    factors = factors_of(a, b)
    assert factors is not None
    np.testing.assert_allclose(factors, true, rtol=0.02)
    plain = measured([(a, rounded(a, step))])
    assert measured([(a, b)], factors).sqnr_db == pytest.approx(plain.sqnr_db, abs=0.2)


@pytest.mark.parametrize("damage", ["coarse", "clipped", "shrunk a little", "one channel lost", "unrelated"])
def test_damage_is_not_mistaken_for_a_factor(damage: str, rng: np.random.Generator) -> None:
    a = activations(rng)
    b = {
        "coarse": rounded(a, 2.0),
        "clipped": np.minimum(a, 1.0),
        "shrunk a little": 0.97 * a,
        "one channel lost": a * (np.arange(8) != 3)[:, None, None],
        "unrelated": activations(np.random.default_rng(5)),
    }[damage]
    assert measured([(a, b)]).sqnr_db < 31
    assert factors_of(a, b) is None


def test_no_factor_is_learnt_from_what_is_not_finite(rng: np.random.Generator) -> None:
    a = activations(rng)
    assert factors_of(a, np.full_like(a, np.inf)) is None
    assert factors_of(a, -a) is None
    assert Scaling().factors() is None


def test_channels_may_be_the_last_axis(rng: np.random.Generator) -> None:
    a = rng.normal(size=(2, 50, 4))
    true = np.array([0.25, 0.5, 2.0, 3.0])
    factors = factors_of(a, a * true, axis=-1)
    assert factors is not None
    np.testing.assert_allclose(factors, true)
    assert measured([(a, a * true)], factors, axis=-1).sqnr_db > 200
