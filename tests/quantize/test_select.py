"""Frames that cover a clip: the choice itself, the features that it is made by, and what it is worth."""

from __future__ import annotations

import itertools
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fcnopt.errors import CalibrationError
from fcnopt.media.synth import SceneOptions, SynthClip
from fcnopt.media.writer import write_image
from fcnopt.quantize import select
from fcnopt.quantize.frames import CalibrationFrames
from fcnopt.quantize.select import (
    collect_diverse,
    cover_radius,
    diverse,
    feature_tensor,
    features,
    k_center,
    standardized,
)
from fcnopt.quantize.sessions import Session
from tests.quantize.nets import CLASSES, SIZE, Net, fcn, spec, write_images

CLOUDS = hnp.arrays(np.float64, st.tuples(st.integers(1, 9), st.integers(1, 3)), elements=st.integers(-20, 20))


@given(CLOUDS, st.data())
def test_the_choice_is_at_most_twice_as_far_as_the_best_one(points: np.ndarray, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(points)))
    picked = k_center(points, count)
    assert len(set(picked)) == count
    best = min(cover_radius(points, some) for some in itertools.combinations(range(len(points)), count))
    assert cover_radius(points, picked) <= 2 * best + 1e-9


@given(CLOUDS)
def test_every_beginning_is_the_choice_of_fewer(points: np.ndarray) -> None:
    whole = k_center(points, len(points))
    assert sorted(whole) == list(range(len(points)))
    for count in range(1, len(points)):
        assert k_center(points, count) == whole[:count]
    centre = points.mean(axis=0)
    assert np.linalg.norm(points[whole[0]] - centre) == min(np.linalg.norm(points - centre, axis=1))


def test_far_points_come_first() -> None:
    points = np.array([[0.0], [0.1], [9.0], [0.2], [-6.0], [0.3]])
    assert k_center(points, 3) == (5, 2, 4)  # 0.3 is next to the mean of 0.6
    assert cover_radius(points, (5, 2, 4)) == pytest.approx(0.3)


def test_features_are_standardized_and_flat_ones_do_not_count() -> None:
    points = np.array([[1.0, 5.0, 1e6], [3.0, 5.0, 1e6 + 1e-4], [5.0, 5.0, 1e6]])
    found = standardized(points)
    np.testing.assert_allclose(found[:, 0], [-(1.5**0.5), 0, 1.5**0.5])
    assert (found[:, 1:] == 0).all()


def side_branch(rng: np.random.Generator) -> onnx.ModelProto:
    """Three layers in a row, and a shallow one that stands behind them in the file."""
    net = Net(rng)
    x = net.relu(net.conv(net.frames(), "first", (3, 16)))
    y = x
    for name in ("one", "two", "three"):
        y = net.relu(net.conv(y, name, (16, 16)))
    side = net.relu(net.conv(x, "aside", (16, 16)))
    net.labels(net.conv(net.node("Add", [y, side], "joined"), "score", (16, CLASSES), 1))
    return net.model()


def shallow(rng: np.random.Generator) -> onnx.ModelProto:
    """Nothing between the first layer and the scores."""
    net = Net(rng)
    net.labels(net.conv(net.relu(net.conv(net.frames(), "first", (3, 8))), "score", (8, CLASSES), 1))
    return net.model()


def test_features_come_from_the_deepest_layer_before_the_scores(rng: np.random.Generator) -> None:
    assert feature_tensor(fcn(rng)) == "conv3"
    assert feature_tensor(side_branch(rng)) == "three"
    assert feature_tensor(shallow(rng)) == "score", "the logits, where int8 has no layer"


def test_features_are_mean_and_deviation_of_every_channel(rng: np.random.Generator, tmp_path: Path) -> None:
    model = fcn(rng)
    frames = CalibrationFrames.collect([write_images(rng, tmp_path, 3)], spec())
    done: list[float] = []
    found = features(model, frames, done.append)
    assert found.shape == (3, 2 * 48)
    assert done == pytest.approx([1 / 3, 2 / 3, 1])
    with Session(model, ("conv3",)) as session:
        values = np.stack([session.run(frame)[0][0] for frame in frames])  # [3, 48, H, W]
    np.testing.assert_allclose(found[:, :48], values.mean(axis=(2, 3)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found[:, 48:], values.std(axis=(2, 3)), rtol=1e-4, atol=1e-5)


def test_a_network_that_overflows_is_named(rng: np.random.Generator, tmp_path: Path) -> None:
    net = Net(rng)
    x = net.relu(net.conv(net.frames(), "first", (3, 16), gain=1e30))
    x = net.relu(net.conv(x, "hot", (16, 16), gain=1e30))
    net.labels(net.conv(x, "score", (16, CLASSES), 1))
    frames = CalibrationFrames.collect([write_images(rng, tmp_path, 2)], spec())
    with pytest.raises(CalibrationError, match="calibration frame 0, tensor 'hot': values are not finite"):
        features(net.model(), frames)


@pytest.fixture
def parked(tmp_path: Path) -> Path:
    """A car that stands for 37 of 40 frames: two others come from another street, one from the dark."""
    still = next(iter(SynthClip(SceneOptions(seed=7, frames=1, height=48, width=64)))).image
    others = [frame.image for frame in SynthClip(SceneOptions(seed=9, frames=2, height=48, width=64))]
    rng = np.random.default_rng(1)
    for index in range(40):
        image = np.clip(still + rng.normal(0, 2, still.shape), 0, 255).astype(np.uint8)
        if index in (13, 26):
            image = others[index == 26]
        elif index == 31:
            image = still // 8
        write_image(tmp_path / f"{index:03d}.png", image)
    return tmp_path


def places(folder: Path, frames: CalibrationFrames) -> list[int]:
    every = [frame.tobytes() for frame in CalibrationFrames.collect([folder], spec())]
    return [every.index(frame.tobytes()) for frame in frames]


def test_diverse_finds_the_frames_that_even_spacing_misses(rng: np.random.Generator, parked: Path) -> None:
    model = fcn(rng)
    even = CalibrationFrames.collect([parked], spec(), limit=5)
    assert places(parked, even) == [0, 8, 16, 24, 32], "even spacing sees the parked car alone"
    found = collect_diverse([parked], spec(), model, limit=5)
    odd = {13, 26, 31}
    assert odd <= set(places(parked, found))
    assert places(parked, found) == sorted(places(parked, found))
    assert (found.count, found.available) == (5, 40)
    assert found.cover is not None
    assert found.cover.candidates == 40
    assert found.cover.distance < 0.5 * found.cover.even
    assert "picked from 40 to cover them" in found.describe()
    first = places(parked, found.spread())
    assert set(first[1:4]) == odd, "the odd frames are the first that are added"


def test_the_choice_is_the_same_every_time(rng: np.random.Generator, parked: Path) -> None:
    model = fcn(rng)
    assert len({collect_diverse([parked], spec(), model, limit=4).hash for _ in range(2)}) == 1


def test_without_a_choice_all_frames_are_taken_and_the_network_does_not_run(
    rng: np.random.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(select, "features", lambda *_: pytest.fail("the network ran"))
    folder = write_images(rng, tmp_path, 3)
    frames = collect_diverse([folder], spec(), fcn(rng), limit=3)
    assert (frames.count, frames.cover) == (3, None)


@pytest.mark.parametrize(("limit", "candidates"), [(1, 8), (3, 20), (6, 20), (15, 30)])
def test_candidates_are_bounded(
    rng: np.random.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int, candidates: int
) -> None:
    monkeypatch.setattr(select, "MOST_CANDIDATES", 20)
    frames = collect_diverse([write_images(rng, tmp_path, 40)], spec(), fcn(rng), limit=limit)
    assert frames.cover is not None
    assert (frames.count, frames.cover.candidates, frames.available) == (limit, candidates, 40)


def test_frames_that_are_all_alike_are_taken_once_each(rng: np.random.Generator, tmp_path: Path) -> None:
    for index in range(6):
        cv2.imwrite(str(tmp_path / f"{index}.png"), np.full((*SIZE, 3), 99, np.uint8))
    frames = diverse(CalibrationFrames.collect([tmp_path], spec()), fcn(rng), 4)
    assert frames.count == len(list(frames)) == 4
    assert frames.cover is not None
    assert frames.cover.distance == frames.cover.even == 0


@pytest.mark.parametrize("limit", [0, -3])
def test_asking_for_no_frames_is_refused(rng: np.random.Generator, tmp_path: Path, limit: int) -> None:
    with pytest.raises(CalibrationError, match=f"{limit} frames were asked for"):
        collect_diverse([write_images(rng, tmp_path, 2)], spec(), fcn(rng), limit=limit)
