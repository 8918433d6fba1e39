"""What a network loses against the original on the frames held out."""

from __future__ import annotations

import datetime
from dataclasses import dataclass

from fcnopt.evaluate.budget import Budget, Verdict, judge
from fcnopt.evaluate.claims import claim
from fcnopt.evaluate.resample import FEWEST_BLOCKS
from fcnopt.evaluate.result import Truth
from fcnopt.evaluate.scores import Scorer
from fcnopt.manifest import AccuracyClaim
from fcnopt.models.fcn import FCN
from fcnopt.slimming.frames import Frames
from fcnopt.slimming.teacher import predict
from fcnopt.spec import ModelSpec


@dataclass(frozen=True)
class Judged:
    """A network's accuracy.

    Attributes:
        verdict: Its drop, and whether the budget is kept.
        miou: Points; against label maps, or the original's labels.
        reference_miou: The original's.
        equal_labels: Share of all pixels whose label is the original's, 0..100.
    """

    verdict: Verdict
    miou: float
    reference_miou: float
    equal_labels: float


class Judge:
    """The frames held out, with the original's labels on them.

    Args:
        original: In evaluation mode.
        frames: With those held out.
        spec: Of both networks.
        budget: To be kept.
    """

    def __init__(self, original: FCN, frames: Frames, spec: ModelSpec, budget: Budget) -> None:
        self._frames, self._spec, self._budget = frames, spec, budget
        self.truth: Truth = "reference" if frames.labels is None else "labels"
        self._reference = predict(original, frames, frames.held, spec.frame.normalization)

    def judge(self, network: FCN) -> Judged:
        """Run a network in FP32.

        Raises:
            MediaError: The label maps have values that are no class.
        """
        base, scorer = Scorer(self._spec.classes), Scorer(self._spec.classes)
        found = predict(network, self._frames, self._frames.held, self._spec.frame.normalization)
        for place, reference, labels in zip(self._frames.held, self._reference, found, strict=True):
            truth = reference if self._frames.labels is None else self._frames.labels[place]
            base.add(reference, reference, truth)
            scorer.add(labels, reference, truth)
        held = self._frames.held
        stretches = 1 + int((held[1:] - held[:-1] > 1).sum())
        verdict = judge(
            base.truth.frames,
            scorer.truth.frames,
            self._spec.classes,
            self._budget,
            block_frames=max(1, len(held) // max(FEWEST_BLOCKS, stretches)),
        )
        return Judged(verdict, scorer.truth.miou, base.truth.miou, scorer.equal_labels)

    def claim(self, judged: Judged, *, reference: str, clip: str) -> AccuracyClaim:
        """What may be said of a network; `reference` names the original, `clip` the frames."""
        return claim(
            judged.verdict,
            reference=reference,
            clip=f"{clip} (held out)",
            frames_sha256=self._frames.held_sha256,
            truth=self.truth,
            equal_labels=judged.equal_labels,
            date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        )
