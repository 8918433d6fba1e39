"""A bundle's claim of accuracy: made of a verdict, and held against what a benchmark finds."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest

from fcnopt.evaluate.bench import BenchResult, bench
from fcnopt.evaluate.budget import Budget, judge
from fcnopt.evaluate.claims import claim, claim_notes
from fcnopt.manifest import AccuracyClaim
from tests.evaluate.fakes import CLASSES, SMALL, FakeClip, FakeRunner, wrong_corner

CLAIM = AccuracyClaim(
    reference="fcn8s.onnx",
    clip="camvid/train",
    frames=40,
    frames_sha256="0" * 64,
    truth="labels",
    miou_drop=0.05,
    miou_drop_interval=(-0.10, 0.20),
    worst_class="pole",
    worst_class_drop=0.2,
    equal_labels=99.8,
    date="2026-11-22T09:00:00+00:00",
)


@pytest.fixture(scope="module")
def result() -> BenchResult:
    return bench(FakeClip(), [FakeRunner("openvino int8", wrong_corner)], FakeRunner(), SMALL)


def found(
    result: BenchResult,
    drop: float = 0.05,
    interval: tuple[float, float] | None = None,
    equal: float = 99.8,
    **changes: Any,
) -> tuple[str, ...]:
    """The notes where the engine was measured so, and the claim is `CLAIM` with `changes`."""
    engine = result.engines[0]
    engine = replace(engine, equal_labels=equal, drop=replace(engine.drop, miou=drop, miou_interval=interval))
    return claim_notes(replace(CLAIM, **changes), result, engine)


@pytest.mark.parametrize("budget", [None, Budget(1.0, 2.0)])
def test_a_claim_says_what_was_judged(budget: Budget | None) -> None:
    reference = np.zeros((8, 3, 4), np.int64)
    reference[:, :, :3] = 20_000
    reference[:, :, 3] = 100  # too few to judge, and it loses most
    engine = reference.copy()
    engine[:, [0, 2], 1] -= 200
    engine[:, [0, 2], 3] -= 50
    verdict = judge(reference, engine, CLASSES, budget)
    made = claim(
        verdict,
        reference="fcn8s.onnx",
        clip="drive.mp4",
        frames_sha256="f" * 64,
        truth="reference",
        equal_labels=99.5,
        date="2026-11-22",
    )
    assert asdict(made) == {
        "reference": "fcn8s.onnx",
        "clip": "drive.mp4",
        "frames": 8,
        "frames_sha256": "f" * 64,
        "truth": "reference",
        "miou_drop": verdict.drop,
        "miou_drop_interval": verdict.interval,
        "worst_class": "car",
        "worst_class_drop": pytest.approx(1.0),
        "equal_labels": 99.5,
        "date": "2026-11-22",
        "budget": None
        if budget is None
        else {"max_miou_drop": 1.0, "max_class_drop": 2.0, "on": "interval", "min_pixels": 10_000},
    }


def test_without_a_class_to_judge_there_is_no_worst_one() -> None:
    few = np.ones((8, 3, 4), np.int64)
    made = claim(
        judge(few, few, CLASSES, None),
        reference="",
        clip="",
        frames_sha256="",
        truth="labels",
        equal_labels=100,
        date="",
    )
    assert (made.worst_class, made.worst_class_drop) == (None, None)


@pytest.mark.parametrize(
    ("drop", "interval", "outside"),
    [
        (0.05, (-0.1, 0.2), False),
        (0.50, (0.19, 0.9), False),  # the intervals touch
        (0.50, (0.21, 0.9), True),
        (-3.0, (-4.0, -2.0), False),  # better than claimed
        (0.14, None, False),
        (0.16, None, True),  # over the claimed mean by more than 0.1
    ],
)
def test_a_drop_falls_outside_where_its_interval_lies_above(
    result: BenchResult, drop: float, interval: tuple[float, float] | None, outside: bool
) -> None:
    notes = found(result, drop, interval)
    assert bool(notes) is outside
    if outside:
        (note,) = notes
        assert note.startswith(
            "openvino int8 falls outside the accuracy that its build claims on camvid/train (40 frames): "
        )
        assert f"mIoU drop {drop:+.2f}" in note
        assert "claimed +0.05" in note
        assert "equal labels" not in note


def test_without_a_claimed_interval_means_are_compared(result: BenchResult) -> None:
    assert found(result, 0.3, (0.1, 0.5), miou_drop_interval=None)
    assert not found(result, 0.1, (0.08, 0.5), miou_drop_interval=None, miou_drop=0.05)


@pytest.mark.parametrize(
    ("claimed", "equal", "outside"),
    [
        (99.8, 99.9, False),
        (99.8, 99.61, False),
        (99.8, 99.59, True),  # over twice as many labels differ
        (99.99, 99.90, False),  # nine times as many, but hardly any
        (99.99, 99.88, True),
        (95.0, 91.0, False),
        (95.0, 89.9, True),
    ],
)
def test_equal_labels_fall_outside_where_twice_as_many_differ(
    result: BenchResult, claimed: float, equal: float, outside: bool
) -> None:
    notes = found(result, equal=equal, equal_labels=claimed)
    assert bool(notes) is outside
    if outside:
        assert f"{equal:.2f} % equal labels, claimed {claimed:.2f} %" in notes[0]
        assert "mIoU drop" not in notes[0]


def test_drops_by_other_truths_are_not_compared_but_equal_labels_are(result: BenchResult) -> None:
    assert not found(result, 9.0, (8.0, 10.0), truth="reference")
    (note,) = found(result, 9.0, (8.0, 10.0), equal=90.0, truth="reference")
    assert "mIoU drop" not in note
    assert "90.00 % equal labels" in note


def test_the_very_frames_of_the_claim_are_recognized(result: BenchResult) -> None:
    assert found(result, frames_sha256=result.frames_sha256) == (
        "openvino int8: its claimed accuracy was measured on these very frames.",
    )
    assert len(found(result, 5.0, (4.0, 6.0), frames_sha256=result.frames_sha256)) == 2
    other = bench(FakeClip(frames=11), [], FakeRunner(), SMALL)
    assert other.frames_sha256 != result.frames_sha256
