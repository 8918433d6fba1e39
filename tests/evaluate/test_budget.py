"""Budgets: kept only where the frames prove it, and said in words where they do not."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fcnopt.errors import MediaError, UsageError
from fcnopt.evaluate.budget import MIN_PIXELS, Budget, Verdict, judge, why_unjudged
from fcnopt.evaluate.confusion import ConfusionMatrix, bootstrap_drop
from fcnopt.evaluate.resample import block_length, blocks_of
from fcnopt.spec import ClassSpec

THREE = ClassSpec(("road", "car", "pole"), ((0, 0, 0),) * 3)
Counts = NDArray[np.int64]


def counted(truth: Any, lost: Any = 0) -> Counts:
    """Frames [F, 3, C] of an engine that misses `lost` of the `truth` pixels [F, C] and invents none of a class."""
    pixels = np.asarray(truth, np.int64)
    gone = np.minimum(np.broadcast_to(np.asarray(lost, np.int64), pixels.shape), pixels)
    return np.stack([pixels - gone, pixels, pixels - gone], axis=1)


def even(frames: int, pixels: int = 20_000) -> Counts:
    return counted(np.full((frames, 3), pixels))


def uneven_loss(frames: int, scale: int = 400, seed: int = 3) -> Counts:
    """An engine whose loss changes from frame to frame, in every class."""
    lost = np.random.default_rng(seed).integers(0, scale, (frames, 3))
    return counted(np.full((frames, 3), 20_000), lost)


@st.composite
def clips(draw: st.DrawFn, least: int = 1) -> tuple[Counts, Counts]:
    """Pixels of truth and of loss, [F, 3] each; a class may be absent."""
    frames = draw(st.integers(least, 24))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    truth = rng.integers(1, 30_000, (frames, 3))
    truth[:, 1:] *= np.array(draw(st.tuples(st.booleans(), st.booleans())))
    return truth, np.minimum(rng.integers(0, 3_000, (frames, 3)), truth)


@given(clips(), st.integers(1, 4), st.sampled_from(["interval", "mean"]), st.floats(0, 3), st.floats(0, 3))
@settings(max_examples=60, deadline=None)
def test_who_loses_more_keeps_no_smaller_budget(
    clip: tuple[Counts, Counts], more: int, on: Any, tight: float, extra: float
) -> None:
    truth, lost = clip
    reference, budget = counted(truth), Budget(tight, tight, on)

    def verdict(times: int, budget: Budget) -> Verdict:
        return judge(reference, counted(truth, times * lost), THREE, budget, samples=100)

    less, worse = verdict(1, budget), verdict(1 + more, budget)
    assert worse.drop >= less.drop - 1e-9
    # By the interval a loss that is the same in all blocks can be proven where a smaller one that varies is not.
    assert on == "interval" or less.kept or not worse.kept
    for found in (less, worse):
        assert found.interval is None or found.interval[0] - 1e-9 <= found.drop <= found.interval[1] + 1e-9
    assert verdict(1, Budget(tight + extra, tight + extra, on)).kept or not less.kept


@given(clips(least=4))
@settings(max_examples=40, deadline=None)
def test_an_engine_equal_to_its_reference_keeps_a_budget_of_nothing(clip: tuple[Counts, Counts]) -> None:
    reference = counted(clip[0])
    verdict = judge(reference, reference.copy(), THREE, Budget(0.0, 0.0, min_pixels=1), samples=50, block_frames=1)
    assert verdict.kept
    assert (verdict.drop, verdict.interval, verdict.frames_needed) == (0.0, (0.0, 0.0), None)
    assert {entry.drop for entry in verdict.classes} <= {0.0, None}


@given(clips(least=4), st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_a_budget_kept_by_the_interval_is_kept_by_the_mean(clip: tuple[Counts, Counts], seed: int) -> None:
    truth, lost = clip
    reference, engine = counted(truth), counted(truth, lost)
    once = judge(reference, engine, THREE, Budget(2.0, 4.0), seed=seed, samples=100)
    assert once == judge(reference, engine, THREE, Budget(2.0, 4.0), seed=seed, samples=100)
    on_mean = judge(reference, engine, THREE, Budget(2.0, 4.0, "mean"), seed=seed, samples=100)
    assert on_mean.kept or not once.kept
    assert (once.drop, once.interval, once.classes) == (on_mean.drop, on_mean.interval, on_mean.classes)


def test_the_upper_end_decides_unless_the_mean_is_asked_for() -> None:
    reference, engine = even(40), uneven_loss(40)
    measured = judge(reference, engine, THREE, None)
    assert measured.kept
    assert measured.reasons == ()
    assert measured.interval is not None
    assert measured.drop < measured.interval[1]
    between = (measured.drop + measured.interval[1]) / 2
    for budget, kept in (
        (Budget(between), False),
        (Budget(between, on="mean"), True),
        (Budget(measured.interval[1]), True),
        (Budget(measured.drop - 1e-6, on="mean"), False),
    ):
        assert judge(reference, engine, THREE, budget).kept is kept, budget
    missed = judge(reference, engine, THREE, Budget(between)).reasons
    assert len(missed) == 1
    assert missed[0].startswith(f"mIoU drop {measured.drop:+.3f} points, but up to {measured.interval[1]:+.3f} by")


def test_figures_are_those_of_the_matrices_and_of_the_bootstrap(rng: np.random.Generator) -> None:
    reference, engine = ConfusionMatrix(THREE), ConfusionMatrix(THREE)
    for _ in range(12):
        truth = rng.integers(0, 3, (30, 40), dtype=np.uint8)
        reference.add(truth, truth)
        engine.add(np.where(rng.random(truth.shape) < 0.1, 0, truth).astype(np.uint8), truth)
    verdict = judge(reference.frames, engine.frames, THREE, Budget(50, min_pixels=1), seed=5, block_frames=2)
    interval = bootstrap_drop(reference.frames, engine.frames, seed=5, block_frames=2)
    assert verdict.drop == pytest.approx(reference.miou - engine.miou, abs=1e-9)
    assert verdict.interval == interval.miou
    assert verdict.block_frames == 2
    for place, entry in enumerate(verdict.classes):
        assert entry.drop == pytest.approx(100 * (reference.iou - engine.iou)[place], abs=1e-9)
        assert entry.interval == interval.iou[place]
        assert entry.pixels == reference.counts[place].sum()
    assert judge(reference.frames, engine.frames, THREE, None).block_frames == block_length(12)


def test_the_references_own_labels_serve_as_truth(rng: np.random.Generator) -> None:
    reference, engine = ConfusionMatrix(THREE), ConfusionMatrix(THREE)
    for _ in range(8):
        labels = rng.integers(0, 3, (30, 40), dtype=np.uint8)
        reference.add(labels, labels)
        engine.add(np.where(rng.random(labels.shape) < 0.02, 1, labels).astype(np.uint8), labels)
    verdict = judge(reference.frames, engine.frames, THREE, Budget(10, min_pixels=1))
    assert verdict.drop == pytest.approx(100 - engine.miou)
    assert 0 < verdict.drop < 10
    assert verdict.kept


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_few_frames_prove_nothing_by_interval_and_say_how_many_would(frames: int) -> None:
    reference = even(frames)
    verdict = judge(reference, reference, THREE, Budget(0.5))
    assert not verdict.kept
    assert verdict.interval is None
    assert verdict.frames_needed == 4
    assert verdict.reasons == ("mIoU drop +0.000 points: too few frames for an interval",)
    assert judge(reference, reference, THREE, Budget(0.5, on="mean")).kept
    blocked = judge(even(9), even(9), THREE, Budget(0.5), block_frames=3)
    assert (blocked.kept, blocked.frames_needed) == (False, 12)


def test_a_mean_over_the_budget_is_not_mended_by_more_frames() -> None:
    reference = even(3)
    engine = counted(np.full((3, 3), 20_000), 2_000)
    verdict = judge(reference, engine, THREE, Budget(1.0))
    assert verdict.drop == pytest.approx(10.0)
    assert (verdict.kept, verdict.frames_needed) == (False, None)
    assert verdict.reasons == ("mIoU drop +10.000 points is over the 1 allowed",)
    assert judge(even(40), uneven_loss(40), THREE, Budget(0.0)).frames_needed is None


def test_the_frames_needed_are_enough() -> None:
    """The clip made as long as was said, of the same frames: half the width takes four times the frames."""
    reference, engine = even(40), uneven_loss(40)
    measured = judge(reference, engine, THREE, None, block_frames=2)
    assert measured.interval is not None
    limit = measured.drop + (measured.interval[1] - measured.drop) / 2
    verdict = judge(reference, engine, THREE, Budget(limit), block_frames=2)
    assert not verdict.kept
    assert verdict.frames_needed == 160
    times = math.ceil(verdict.frames_needed / 40)
    longer = [np.tile(frames, (times, 1, 1)) for frames in (reference, engine)]
    again = judge(longer[0], longer[1], THREE, Budget(limit), block_frames=2)
    assert again.interval is not None
    assert again.drop == pytest.approx(measured.drop)
    assert again.interval[1] == pytest.approx(limit, abs=0.15 * (limit - measured.drop))


def test_the_worst_class_decides_where_it_is_limited() -> None:
    reference = even(20)
    engine = counted(np.full((20, 3), 20_000), [0, 0, 600])
    alone = judge(reference, engine, THREE, Budget(1.5))
    assert alone.kept
    assert alone.worst_class is not None
    assert alone.worst_class.name == "pole"
    assert alone.worst_class.drop == pytest.approx(3.0)
    limited = judge(reference, engine, THREE, Budget(1.5, 2.0))
    assert not limited.kept
    assert limited.reasons == ("IoU of pole: drop +3.000 points is over the 2 allowed",)
    assert limited.frames_needed is None
    assert judge(reference, engine, THREE, Budget(1.5, 3.1)).reasons == (
        "mIoU drop +1.000 points (95 % interval +1.000 to +1.000) keeps the 1.5 allowed, no judged class over 3.1",
    )


def test_the_class_that_needs_most_frames_is_the_one_told() -> None:
    swings = np.outer(np.repeat([1, -1], 20), [40, 80, 160])  # of one mean and three widths
    reference, engine = even(40), counted(np.full((40, 3), 20_000), 400 + swings)
    measured = judge(reference, engine, THREE, None)
    ends = [(entry.drop or 0.0, (entry.interval or (0.0, 0.0))[1]) for entry in measured.classes]
    limit = max(drop for drop, _ in ends) + 0.01
    assert all(high > limit for _, high in ends)
    assert ends[0][1] < ends[1][1] < ends[2][1]
    verdict = judge(reference, engine, THREE, Budget(99, limit))
    assert len(verdict.reasons) == 3
    assert verdict.frames_needed == max(math.ceil(40 * ((high - drop) / (limit - drop)) ** 2) for drop, high in ends)
    assert judge(reference, engine, THREE, Budget(0.0, limit)).frames_needed is None, "no frames mend the mIoU's mean"


def test_a_class_that_cannot_be_judged_says_so_and_decides_nothing() -> None:
    truth = np.full((20, 3), 20_000)
    truth[:, 1] = 400  # 8000 pixels in all
    truth[:, 2] = 0
    truth[:3, 2] = 20_000  # pixels enough, but in the first frames only
    lost = np.zeros_like(truth)
    lost[:, 1:] = truth[:, 1:] // 2
    verdict = judge(counted(truth), counted(truth, lost), THREE, Budget(50, 0.0), block_frames=1)
    assert verdict.kept
    road, car, pole = verdict.classes
    assert (road.judged, road.reason) == (True, "")
    assert (car.judged, car.reason) == (False, "too few pixels to judge")
    assert (pole.judged, pole.reason) == (False, "in too few frames to judge")
    assert car.interval is not None
    assert pole.interval is None
    assert car.drop == pole.drop == pytest.approx(50)
    assert verdict.reasons[1:] == (
        "car (8,000 pixels) decides nothing: too few pixels to judge",
        "pole (60,000 pixels) decides nothing: in too few frames to judge",
    )
    assert verdict.worst_class is road
    judged = judge(counted(truth), counted(truth, lost), THREE, Budget(50, 0.0, min_pixels=8000), block_frames=1)
    assert not judged.kept
    assert judged.worst_class is not None
    assert judged.worst_class.name == "car"


@pytest.mark.parametrize(
    ("pixels", "frames", "needed"),
    [
        (500, 8, 20),  # 4000 pixels
        (20_000, 2, 4),  # in two blocks
        (2_000, 2, 5),
    ],
)
@pytest.mark.parametrize("on", ["interval", "mean"])
def test_a_limit_for_classes_is_not_kept_where_none_can_be_judged(
    pixels: int, frames: int, needed: int, on: Any
) -> None:
    truth = np.full((frames, 3), pixels)
    truth[:, 1] //= 2  # the class that needs fewest frames is the one told
    truth[:, 2] = 0
    verdict = judge(counted(truth), counted(truth), THREE, Budget(50, 1.0, on), block_frames=1)
    assert (verdict.kept, verdict.worst_class, verdict.provable) == (False, None, False)
    assert "no class has enough pixels and frames to be held to the 1 allowed" in verdict.reasons
    assert verdict.frames_needed == needed
    assert judge(counted(truth), counted(truth), THREE, Budget(50, on="mean"), block_frames=1).kept


def test_frames_that_prove_something_are_told_from_those_that_cannot() -> None:
    over = counted(np.full((8, 3), 20_000), 9_000)
    for frames, budget, provable in (
        (8, Budget(0.0), True),
        (8, Budget(0.0, 0.0), True),
        (3, Budget(99.0), False),
        (3, Budget(99.0, on="mean"), True),
        (3, None, True),
    ):
        assert judge(even(frames), over[:frames], THREE, budget).provable is provable, (frames, budget)


def test_an_absent_class_has_no_drop() -> None:
    truth = np.full((8, 3), 20_000)
    truth[:, 2] = 0
    invented = counted(truth, 100)
    invented[:, 2, 2] = 100  # the engine sees poles where none are
    verdict = judge(counted(truth), invented, THREE, Budget(9, 9))
    pole = verdict.classes[2]
    assert (pole.drop, pole.interval, pole.pixels, pole.judged) == (None, None, 0, False)
    assert verdict.reasons[-1] == "pole (0 pixels) decides nothing: not in the truth"
    assert verdict.drop == pytest.approx(0.5)


def test_blocks_that_show_a_class_are_counted() -> None:
    pixels = np.array([[1, 0], [1, 0], [1, 5], [1, 0], [1, 7]])
    np.testing.assert_array_equal(blocks_of(pixels, 2), [3, 2])
    np.testing.assert_array_equal(blocks_of(pixels, 1), [5, 2])
    np.testing.assert_array_equal(blocks_of(pixels, 5), [1, 1])


@pytest.mark.parametrize(
    ("pixels", "blocks", "said"),
    [
        (0, 0, "not in the truth"),
        (MIN_PIXELS - 1, 9, "too few pixels to judge"),
        (MIN_PIXELS, 3, "in too few frames to judge"),
    ],
)
def test_why_a_class_is_not_judged(pixels: int, blocks: int, said: str) -> None:
    assert why_unjudged(pixels, blocks) == said
    assert why_unjudged(MIN_PIXELS, 4) == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_miou_drop": -0.1}, "max_miou_drop is -0.1"),
        ({"max_miou_drop": math.nan}, "max_miou_drop is nan"),
        ({"max_miou_drop": math.inf}, "max_miou_drop is inf"),
        ({"max_miou_drop": 0.1, "max_class_drop": -1.0}, "max_class_drop is -1"),
        ({"max_miou_drop": "abc"}, "max_miou_drop is 'abc'"),
        ({"max_miou_drop": True}, "max_miou_drop is True"),
        ({"max_miou_drop": None}, "max_miou_drop is None"),
        ({"max_miou_drop": 0.1, "max_class_drop": "1"}, "max_class_drop is '1'"),
        ({"max_miou_drop": 0.1, "on": "median"}, "on is 'median'"),
        ({"max_miou_drop": 0.1, "min_pixels": "9"}, "min_pixels is '9'"),
        ({"max_miou_drop": 0.1, "min_pixels": 0}, "min_pixels is 0"),
    ],
)
def test_a_budget_that_cannot_be_meant_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Budget(**options)


def test_counts_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(UsageError, match="expected two arrays"):
        judge(even(4), even(5), THREE, None)
    with pytest.raises(UsageError, match="3 classes, 2 are named"):
        judge(even(4), even(4), ClassSpec(("a", "b"), ((0, 0, 0),) * 2), None)
    with pytest.raises(UsageError, match="different truths"):
        judge(even(4), even(4, pixels=10), THREE, None)
    with pytest.raises(MediaError, match="no pixel of any class"):
        judge(even(4, pixels=0), even(4, pixels=0), THREE, None)
    with pytest.raises(UsageError, match="blocks of 9 frames"):
        judge(even(4), even(4), THREE, None, block_frames=9)
