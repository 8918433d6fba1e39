"""The accuracy that a bundle claims, and whether a benchmark on other frames bears it out.

A claim is of the frames that it was measured on. A clip falls outside it where

- both have an interval of the mIoU drop, and the clip's lies wholly above the claim's; or one of them has none, and the
  clip's mean drop is over the claimed one by more than 0.1 points;
- more than twice as many labels differ from the reference's as is claimed, and at least 0.1 points of all labels more.

A drop against label maps says nothing of one against the reference's labels: where the truths are of different kinds
only the labels that differ are compared. A clip on which the bundle does better than it claims is not outside.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

from fcnopt.evaluate.budget import Verdict
from fcnopt.evaluate.result import BenchResult, EngineResult, Truth
from fcnopt.manifest import AccuracyClaim

_MEAN_TOLERANCE = 0.1  # points; the mean of a few frames moves by as much
_DIFFERING_TIMES = 2.0
_DIFFERING_POINTS = 0.1  # a share near nothing doubles by chance


def claim(
    verdict: Verdict,
    *,
    reference: str,
    clip: str,
    frames_sha256: str,
    truth: Truth,
    equal_labels: float,
    date: str,
) -> AccuracyClaim:
    """What a bundle may claim after `judge`, for `Manifest.accuracy`.

    Args:
        verdict: Of the engine that the bundle holds; with its budget, where it had one.
        reference: The FP32 model that it was compared with.
        clip: The frames: name or path.
        frames_sha256: As `CalibrationFrames.hash` and `FrameHasher` give it.
        truth: What the drop was measured against.
        equal_labels: Share of all pixels whose label is the reference's, 0..100.
        date: ISO 8601.
    """
    worst = verdict.worst_class
    return AccuracyClaim(
        reference=reference,
        clip=clip,
        frames=verdict.frames,
        frames_sha256=frames_sha256,
        truth=truth,
        miou_drop=verdict.drop,
        miou_drop_interval=verdict.interval,
        worst_class=worst.name if worst else None,
        worst_class_drop=worst.drop if worst else None,
        equal_labels=equal_labels,
        date=date,
        budget=asdict(verdict.budget) if verdict.budget else None,
    )


def claim_notes(claim: AccuracyClaim, result: BenchResult, engine: EngineResult) -> tuple[str, ...]:
    """What a reader of a benchmark should know of an engine's claim; nothing where the clip bears it out.

    Args:
        claim: Of the engine's bundle, which was compared with the reference of `result`.
        result: The benchmark.
        engine: One of its engines.
    """
    notes = []
    if claim.frames_sha256 == result.frames_sha256:
        notes.append(f"{engine.name}: its claimed accuracy was measured on these very frames.")
    faults = tuple(_faults(claim, result, engine))
    if faults:
        notes.append(
            f"{engine.name} falls outside the accuracy that its build claims on {claim.clip} ({claim.frames} frames): "
            f"{'; '.join(faults)}. Build it with calibration and validation frames like these."
        )
    return tuple(notes)


def _faults(claim: AccuracyClaim, result: BenchResult, engine: EngineResult) -> Iterator[str]:
    ours, theirs = engine.drop.miou_interval, claim.miou_drop_interval
    if result.truth != claim.truth:
        pass
    elif ours is not None and theirs is not None:
        if ours[0] > theirs[1]:
            yield (
                f"mIoU drop {engine.drop.miou:+.2f} ({ours[0]:+.2f} to {ours[1]:+.2f}), claimed "
                f"{claim.miou_drop:+.2f} ({theirs[0]:+.2f} to {theirs[1]:+.2f})"
            )
    elif engine.drop.miou > claim.miou_drop + _MEAN_TOLERANCE:
        yield f"mIoU drop {engine.drop.miou:+.2f}, claimed {claim.miou_drop:+.2f}"
    differing, claimed = 100 - engine.equal_labels, 100 - claim.equal_labels
    if differing > max(_DIFFERING_TIMES * claimed, claimed + _DIFFERING_POINTS):
        yield f"{engine.equal_labels:.2f} % equal labels, claimed {claim.equal_labels:.2f} %"
