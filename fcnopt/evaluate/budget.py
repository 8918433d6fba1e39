"""Whether an engine keeps an accuracy budget, and how sure that is.

The mIoU drop of a few frames is a sample of the drop on the road. A budget is therefore kept only where the upper end
of the drop's 95 % interval is within it (`Budget.on` "interval"), not where the mean of these frames happens to be
("mean"). Intervals are those of `bootstrap_drop`: paired, seeded, over blocks of frames. Each stands for itself: with
many classes one of them is over by chance now and then, which errs on the safe side.

From fewer than four blocks there is no interval: Student's quantile, which the interval is widened by, is known from
three degrees of freedom on (`resample.student_t`), and a class that one block holds would get an interval of no width.
The same goes for a class that is in the truth of fewer than four blocks.

A limit for classes is not kept where no class can be judged: that would prove nothing.

The width of an interval goes with one over the root of the number of frames, so that an upper end `high` over a mean
drop `drop` comes within `limit` with `frames * ((high - drop) / (limit - drop)) ** 2` frames.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from fcnopt.errors import MediaError, UsageError
from fcnopt.evaluate.confusion import bootstrap_drop, drop_between
from fcnopt.evaluate.resample import FEWEST_BLOCKS, block_length, blocks_of
from fcnopt.spec import ClassSpec

BudgetOn = Literal["interval", "mean"]

# One pixel of a class of so many moves its IoU by at most 0.01 points, which is what figures are printed to.
MIN_PIXELS = 10_000


@dataclass(frozen=True)
class Budget:
    """What an engine may lose against its FP32 reference, in points (0..100).

    Attributes:
        max_miou_drop: Most points of mIoU.
        max_class_drop: Most points of IoU of any class that can be judged; None sets no limit.
        on: What is held to the limits: the upper end of the drop's 95 % interval, or its mean.
        min_pixels: Fewest pixels of truth from which a class is judged.
    """

    max_miou_drop: float
    max_class_drop: float | None = None
    on: BudgetOn = "interval"
    min_pixels: int = MIN_PIXELS

    def __post_init__(self) -> None:
        _check_limit("max_miou_drop", self.max_miou_drop)
        if self.max_class_drop is not None:
            _check_limit("max_class_drop", self.max_class_drop)
        if self.on not in get_args(BudgetOn):
            raise UsageError(f"budget: on is {self.on!r}", fix=f"use one of {', '.join(get_args(BudgetOn))}")
        if type(self.min_pixels) is not int or self.min_pixels < 1:
            raise UsageError(f"budget: min_pixels is {self.min_pixels!r}, at least 1 is needed", fix="give 1 or more")


@dataclass(frozen=True)
class ClassVerdict:
    """What a class loses.

    Attributes:
        name: Of the class.
        drop: Points of IoU; None where the class is not in the truth.
        interval: 95 % interval (low, high) of the drop; None with fewer than four blocks of frames that show the class.
        pixels: Of truth, over all frames.
        blocks: Blocks of frames that show it.
        judged: Whether it has enough pixels and blocks to hold it to a limit; if not, it decides nothing.
        reason: Why it is not judged; empty where it is.
    """

    name: str
    drop: float | None
    interval: tuple[float, float] | None
    pixels: int
    blocks: int
    judged: bool
    reason: str


@dataclass(frozen=True)
class Verdict:
    """Whether a budget is kept, and why.

    Attributes:
        kept: Whether it is; always where there is none.
        drop: Points of mIoU lost, reference minus engine; negative is a gain.
        interval: 95 % interval (low, high) of `drop`; None with fewer than four blocks of frames.
        classes: One a class, in label order.
        reasons: In words: each limit that is missed, or that all are kept; then each class that could not be judged.
        frames: How many were judged on.
        block_frames: Consecutive frames drawn together.
        frames_needed: About how many frames would bring every upper end within the budget if the mean drops stay what
            they are. None where the budget is kept, where a mean is not below its limit, and where there is no budget.
        budget: What was to be kept; None where nothing was.
    """

    kept: bool
    drop: float
    interval: tuple[float, float] | None
    classes: tuple[ClassVerdict, ...]
    reasons: tuple[str, ...]
    frames: int
    block_frames: int
    frames_needed: int | None
    budget: Budget | None

    @property
    def worst_class(self) -> ClassVerdict | None:
        """The judged class that loses most; None where none is judged."""
        judged = [entry for entry in self.classes if entry.judged]
        return max(judged, key=lambda entry: entry.drop or 0.0, default=None)

    @property
    def provable(self) -> bool:
        """Whether these frames can show that some engine keeps the budget: enough of them, and of some class."""
        budget = self.budget
        return budget is None or (
            (budget.on == "mean" or self.interval is not None)
            and (budget.max_class_drop is None or self.worst_class is not None)
        )


def judge(
    reference_frames: NDArray[np.int64],
    engine_frames: NDArray[np.int64],
    classes: ClassSpec,
    budget: Budget | None,
    *,
    seed: int = 0,
    block_frames: int | None = None,
    samples: int = 2000,
) -> Verdict:
    """Hold an engine to a budget.

    The truth is what both matrices were counted against. Without label maps it is the reference's own labels: then the
    reference's matrix is that of its labels against themselves, its IoU is 100, and a drop is 100 minus the agreement.

    Args:
        reference_frames: `ConfusionMatrix.frames` of the FP32 reference, [F, 3, C].
        engine_frames: The same of the engine, for the same frames and truth.
        classes: Their names, C of them.
        budget: What may be lost; None measures only.
        seed: Of the resampling; the same seed gives the same verdict.
        block_frames: Consecutive frames drawn together; None for `block_length` of frames of unknown rate.
        samples: Resampled clips.

    Raises:
        UsageError: The arrays differ in shape or truth, do not fit `classes`, or hold no frame.
        MediaError: The truth has no pixel of any class.
    """
    # First, because it checks the arrays.
    interval = bootstrap_drop(reference_frames, engine_frames, samples=samples, seed=seed, block_frames=block_frames)
    _check_truth(reference_frames, engine_frames, classes)
    frames = len(reference_frames)
    block = block_length(frames) if block_frames is None else block_frames
    miou, iou = drop_between(reference_frames, engine_frames)
    truth = reference_frames[:, 1]
    pixels, blocks = truth.sum(axis=0), blocks_of(truth, block)
    found = []
    for place, name in enumerate(classes.names):
        shown = int(pixels[place]), int(blocks[place])
        reason = why_unjudged(*shown, budget.min_pixels if budget else MIN_PIXELS)
        sure = interval.iou[place] if blocks[place] >= FEWEST_BLOCKS else None
        lost = float(iou[place]) if pixels[place] else None
        found.append(ClassVerdict(name, lost, sure, *shown, not reason, reason))
    sure = interval.miou if math.ceil(frames / block) >= FEWEST_BLOCKS else None
    return _decided(Verdict(True, miou, sure, tuple(found), (), frames, block, None, budget))


def why_unjudged(pixels: int, blocks: int, min_pixels: int = MIN_PIXELS) -> str:
    """Why the drop of a class says little; empty where it says enough.

    Args:
        pixels: Of the class in the truth.
        blocks: Blocks of frames that show it; four are needed.
        min_pixels: Fewest pixels.
    """
    if not pixels:
        return "not in the truth"
    if pixels < min_pixels:
        return "too few pixels to judge"
    if blocks < FEWEST_BLOCKS:
        return "in too few frames to judge"
    return ""


@dataclass(frozen=True)
class _Limit:
    """A drop and what it is held to."""

    what: str
    drop: float
    interval: tuple[float, float] | None
    limit: float

    def miss(self, on: BudgetOn) -> str:
        """How the limit is missed; empty where it is kept."""
        if self.drop > self.limit:
            return f"{self.what} drop {self.drop:+.3f} points is over the {self.limit:g} allowed"
        if on == "mean":
            return ""
        if self.interval is None:
            return f"{self.what} drop {self.drop:+.3f} points: too few frames for an interval"
        if self.interval[1] > self.limit:
            return (
                f"{self.what} drop {self.drop:+.3f} points, but up to {self.interval[1]:+.3f} by its 95 % interval, "
                f"{self.limit:g} allowed"
            )
        return ""

    def frames_needed(self, frames: int, block: int) -> int | None:
        """How many frames would do where `miss` says that these do not."""
        if self.interval is None:
            return FEWEST_BLOCKS * block if self.drop <= self.limit else None
        room = self.limit - self.drop
        ratio = (self.interval[1] - self.drop) / room if room > 0 else math.inf
        needed = frames * ratio * ratio
        return math.ceil(needed) if math.isfinite(needed) else None


def _limits(verdict: Verdict, budget: Budget) -> Iterator[_Limit]:
    yield _Limit("mIoU", verdict.drop, verdict.interval, budget.max_miou_drop)
    if budget.max_class_drop is None:
        return
    for entry in verdict.classes:
        if entry.judged and entry.drop is not None:
            yield _Limit(f"IoU of {entry.name}:", entry.drop, entry.interval, budget.max_class_drop)


def _decided(measured: Verdict) -> Verdict:
    """`measured` with the decision, the reasons and the frames needed filled in."""
    budget = measured.budget
    if budget is None:
        return measured
    misses: list[str] = []
    needed: list[int | None] = []
    for limit in _limits(measured, budget):
        miss = limit.miss(budget.on)
        if miss:
            misses.append(miss)
            needed.append(limit.frames_needed(measured.frames, measured.block_frames))
    if budget.max_class_drop is not None and measured.worst_class is None:
        misses.append(f"no class has enough pixels and frames to be held to the {budget.max_class_drop:g} allowed")
        needed.append(_frames_to_judge(measured, budget.min_pixels))
    enough = [count for count in needed if count is not None]
    return replace(
        measured,
        kept=not misses,
        reasons=(*(misses or [_kept(measured, budget)]), *_left_out(measured, budget)),
        frames_needed=max(enough) if misses and len(enough) == len(needed) else None,
    )


def _frames_to_judge(measured: Verdict, min_pixels: int) -> int:
    """About how many frames like these it takes to judge the first class; some class is in the truth."""
    shown = [entry for entry in measured.classes if entry.pixels]
    times = min(max(min_pixels / entry.pixels, FEWEST_BLOCKS / entry.blocks) for entry in shown)
    return math.ceil(measured.frames * times)


def _kept(measured: Verdict, budget: Budget) -> str:
    sure = ""
    if measured.interval is not None:
        sure = f" (95 % interval {measured.interval[0]:+.3f} to {measured.interval[1]:+.3f})"
    also = "" if budget.max_class_drop is None else f", no judged class over {budget.max_class_drop:g}"
    return f"mIoU drop {measured.drop:+.3f} points{sure} keeps the {budget.max_miou_drop:g} allowed{also}"


def _left_out(measured: Verdict, budget: Budget) -> Iterator[str]:
    if budget.max_class_drop is not None:
        for entry in measured.classes:
            if not entry.judged:
                yield f"{entry.name} ({entry.pixels:,} pixels) decides nothing: {entry.reason}"


def _check_limit(name: str, limit: Any) -> None:
    number = isinstance(limit, Real) and not isinstance(limit, bool)
    if not (number and math.isfinite(limit) and limit >= 0):
        raise UsageError(f"budget: {name} is {limit!r}, expected 0 points or more", fix=f"give {name} a limit")


def _check_truth(reference_frames: NDArray[np.int64], engine_frames: NDArray[np.int64], classes: ClassSpec) -> None:
    if reference_frames.shape[2] != len(classes):
        raise UsageError(
            f"budget: the counts are of {reference_frames.shape[2]} classes, {len(classes)} are named",
            fix="count with the classes that are named",
        )
    if not np.array_equal(reference_frames[:, 1], engine_frames[:, 1]):
        raise UsageError(
            "budget: reference and engine were counted against different truths",
            fix="count both against the same label maps, or both against the reference's labels",
        )
    if not reference_frames[:, 1].any():
        raise MediaError(
            "the truth has no pixel of any class, only ignored ones", fix="use label maps of the model's classes"
        )
