from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from fcnopt.slimming.elimination import Moments, eliminate, low_rank, predictor


def of(x: NDArray[np.float64], curvature: NDArray[np.float64]) -> Moments:
    return Moments(x @ x.T / x.shape[1], curvature)


def test_a_channel_that_others_predict_goes_first_at_no_loss(rng: np.random.Generator) -> None:
    x = rng.normal(size=(5, 400))
    x[3] = 0.5 * x[0] - 2 * x[4]
    found = eliminate(of(x, np.array([5.0, 1.0, 2.0, 9.0, 7.0])))
    assert found.order[0] in (0, 3, 4)
    assert found.loss[1] < 1e-2 * found.loss[2]


def test_losses_are_those_of_the_best_prediction(rng: np.random.Generator) -> None:
    x = rng.normal(size=(6, 6)) @ rng.normal(size=(6, 500))
    curvature = rng.uniform(0.5, 2.0, 6)
    moments = of(x, curvature)
    found = eliminate(moments)
    assert sorted(found.order.tolist()) == list(range(6))
    for width in range(1, 6):
        kept = found.kept(width)
        removed, predicts = predictor(moments, kept)
        residual = x[removed] - predicts @ x[kept]
        want = 0.5 * (curvature[removed] * (residual**2).mean(axis=1)).sum()
        assert found.loss[6 - width] == pytest.approx(want, rel=0.02)
        best = np.linalg.lstsq(x[kept].T, x[removed].T, rcond=None)[0].T
        np.testing.assert_allclose(predicts, best, atol=0.02 * np.abs(best).max())


def test_losses_never_fall_and_no_curvature_is_no_loss(rng: np.random.Generator) -> None:
    x = rng.normal(size=(8, 300))
    assert (np.diff(eliminate(of(x, rng.uniform(0, 1, 8))).loss) >= 0).all()
    silent = eliminate(of(x, np.array([1.0, 0, 1, 0, 1, 0, 1, 0])))
    assert set(silent.order[:4].tolist()) == {1, 3, 5, 7}
    assert silent.loss[4] == 0 < silent.loss[5]


def test_dead_channels_do_no_harm() -> None:
    found = eliminate(Moments(np.zeros((3, 3)), np.zeros(3)))
    assert sorted(found.order.tolist()) == [0, 1, 2]
    assert np.isfinite(found.loss).all()


def test_low_rank_is_exact_where_the_rank_is_low(rng: np.random.Generator) -> None:
    y = rng.normal(size=(7, 3)) @ rng.normal(size=(3, 200))
    factors = low_rank(of(y, rng.uniform(0.5, 3, 7)))
    np.testing.assert_allclose(factors.up[:, :3] @ (factors.down[:3] @ y), y, atol=1e-10)
    assert factors.loss[3] < 1e-9 < factors.loss[2]
    assert (np.diff(factors.loss) <= 1e-12).all()


def test_low_rank_keeps_what_the_loss_hangs_on(rng: np.random.Generator) -> None:
    y = rng.normal(size=(4, 1000))
    factors = low_rank(of(y, np.array([1e-3, 50.0, 1e-3, 1e-3])))
    kept = factors.up[:, :1] @ (factors.down[:1] @ y)
    assert np.abs(kept[1] - y[1]).max() < 0.05 * np.abs(y[1]).max()


def test_moments_must_fit() -> None:
    with pytest.raises(ValueError, match="do not fit 3 channels"):
        Moments(np.eye(4), np.ones(3))
