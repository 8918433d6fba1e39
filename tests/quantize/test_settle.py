"""Watching ranges settle: when half the frames would have done, and which tensor says that they would not."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict

import numpy as np
import pytest

from fcnopt.quantize.histogram import Histogram
from fcnopt.quantize.methods import interval
from fcnopt.quantize.settle import Settled, Settling, threshold


class Tensor:
    """A tensor whose values in every frame are given."""

    def __init__(self) -> None:
        self.histogram = Histogram()
        self.reach = 0.0

    def update(self, values: np.ndarray) -> None:
        self.reach = max(self.reach, float(np.abs(values).max()))
        self.histogram.update(values, self.reach)


def watch(frames: int, tensors: Mapping[str, Sequence[np.ndarray]]) -> Settled:
    settling, seen = Settling(), {name: Tensor() for name in tensors}

    def watched() -> dict[str, tuple[Histogram, float]]:
        return {name: (tensor.histogram, tensor.reach) for name, tensor in seen.items()}

    for count in range(1, frames + 1):
        for name, tensor in seen.items():
            tensor.update(tensors[name][count - 1])
        if settling.due(count):
            settling.update(count, watched())
    return settling.report(frames, watched())


def activation(rng: np.random.Generator, frames: int, scale: float = 1.0) -> list[np.ndarray]:
    """Heavy-tailed, as activations are; the largest magnitude is 8 times the scale in every frame."""
    return [np.clip(rng.laplace(0, scale, 50_000), -8 * scale, 8 * scale).astype(np.float32) for _ in range(frames)]


def test_ranges_are_noted_at_every_doubling() -> None:
    assert [count for count in range(70) if Settling.due(count)] == [4, 8, 16, 32, 64]


def test_frames_that_are_alike_settle_at_once(rng: np.random.Generator) -> None:
    found = watch(32, {"a": activation(rng, 32), "b": activation(rng, 32, 7.0)})
    assert [step.frames for step in found.steps] == [4, 8, 16]
    assert (found.settled_after, found.reach_settled_after, found.tensors) == (4, 4, 2)
    expected = "calibration: ranges settled (all 2 tensors within 2%) after 4 of 32 frames"
    assert found.note() == found.note("minmax") == expected


def test_a_tensor_that_comes_alive_late_is_named(rng: np.random.Generator) -> None:
    late = activation(rng, 6) + activation(rng, 26, 3.0)
    found = watch(32, {"calm": activation(rng, 32), "late": late})
    assert found.settled_after in (8, 16), "not after 4, which show nothing of it"
    assert found.steps[0].noise.tensor == found.steps[0].reach.tensor == "late"
    assert found.steps[0].noise.share > 1
    assert found.steps[0].noise.within == 1
    assert found.steps[0].reach.share == pytest.approx(2.0, rel=1e-3)

    late = activation(rng, 20) + activation(rng, 12, 1.15)
    found = watch(32, {"calm": activation(rng, 32), "late": late})
    assert found.settled_after is None
    assert found.steps[-1].noise.tensor == "late"
    assert 0.02 < found.steps[-1].noise.share < 1
    note = found.note(available=500)
    share = f"{found.steps[-1].noise.share:.0%}"
    assert note == (
        f"calibration: ranges still move after 32 frames: those of 16 alone would add {share} of rounding noise at "
        "'late' (1 of 2 tensors are within 2%): give more frames, of the 500 there are (--max-frames 64)"
    )
    assert "the largest value at 'late' has grown by 15% since 16 of them" in found.note("minmax")
    assert found.note(available=32).endswith("give more frames, of other places, light and weather")

    found = watch(32, {"late": activation(rng, 20) + activation(rng, 12, 3.0)})
    assert f"would make {1 + found.steps[-1].noise.share:.3g} times the rounding noise at 'late'" in found.note()


def test_one_outlier_moves_the_reach_and_not_the_noise(rng: np.random.Generator) -> None:
    values = activation(rng, 16)
    values[14][0] = 12.0
    found = watch(16, {"a": values})
    assert found.settled_after is not None
    assert found.reach_settled_after is None
    assert "ranges settled" in found.note("mse")
    assert "still move after 16 frames: the largest value at 'a' has grown by 50%" in found.note("minmax")


def test_settled_means_that_half_the_frames_would_have_done(rng: np.random.Generator) -> None:
    values = activation(rng, 40)
    values[:6] = activation(rng, 6, 0.05)
    values[17:32] = activation(rng, 15, 4.0)
    found = watch(40, {"a": values})
    assert [step.frames for step in found.steps] == [4, 8, 16, 32]
    assert found.steps[-1].noise.share <= 0.02 < found.steps[-2].noise.share
    assert found.settled_after is None
    assert "those of 16 alone" in found.note()


@pytest.mark.parametrize("frames", [1, 3, 7])
def test_few_frames_tell_nothing(rng: np.random.Generator, frames: int) -> None:
    found = watch(frames, {"a": activation(rng, frames)})
    assert found.settled_after is None
    assert f"{frames} frames are too few to tell whether ranges have settled" in found.note()


def test_dead_tensors_are_not_watched(rng: np.random.Generator) -> None:
    silent = [np.zeros(10, np.float32)] * 8
    found = watch(8, {"dead": silent, "alive": activation(rng, 8)})
    assert found.tensors == 1
    assert found.settled_after == 4
    assert watch(8, {"dead": silent}).steps == ()


def test_a_tensor_silent_at_first_has_not_settled(rng: np.random.Generator) -> None:
    found = watch(16, {"a": [np.zeros(20_000, np.float32)] * 9 + activation(rng, 7)})
    assert found.settled_after is None
    assert found.steps[0].noise.share > 1
    assert np.isfinite(found.steps[0].noise.share)


def test_the_report_is_json(rng: np.random.Generator) -> None:
    found = watch(8, {"a": activation(rng, 8)})
    data = json.loads(json.dumps(asdict(found), allow_nan=False))
    assert data["steps"][0]["noise"]["tensor"] == "a"
    assert data["settled_after"] == 4


def test_the_threshold_is_that_of_least_squared_error(rng: np.random.Generator) -> None:
    tensor = Tensor()
    tensor.update(rng.laplace(0, 1, 200_000).astype(np.float32))
    low, high = interval(tensor.histogram, -tensor.reach, tensor.reach, "mse", 127)
    assert -low == high < tensor.reach
    assert threshold(tensor.histogram, tensor.reach) == pytest.approx(high, rel=0.05)
    assert threshold(Histogram(), 0.0) == 0.0


def test_histograms_that_differ_little_have_thresholds_that_do(rng: np.random.Generator) -> None:
    found = []
    for _ in range(8):
        tensor = Tensor()
        values = np.clip(rng.laplace(0, 1, 500_000), -12, 12).astype(np.float32)
        values[0] = 12
        tensor.update(values)
        found.append(threshold(tensor.histogram, tensor.reach))
    assert max(found) / min(found) < 1.1
    assert len(set(found)) == 8, "not rounded to the search's grid"
