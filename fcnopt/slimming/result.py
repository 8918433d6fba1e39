"""What a slimming made, and how it is told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fcnopt.manifest import AccuracyClaim
from fcnopt.slimming.judging import Judged
from fcnopt.slimming.recovery import Recovered


@dataclass(frozen=True)
class SlimResult:
    """What `slim` made; it can be used as the path.

    Attributes:
        path: The checkpoint.
        architecture: For people.
        widths: Output channels before and after, by convolution.
        rank: Of fc6, where it was factored.
        parameters: Before and after.
        speedup: Of the INT8 network on the target.
        measured: Whether `speedup` was measured here, or estimated.
        before: Accuracy before recovery.
        after: And after; as `before`, and the network too, where recovery made it worse.
        recovered: How the recovery went.
        claim: What the checkpoint says of its accuracy.
    """

    path: Path
    architecture: str
    widths: Mapping[str, tuple[int, int]]
    rank: int | None
    parameters: tuple[int, int]
    speedup: float
    measured: bool
    before: Judged
    after: Judged
    recovered: Recovered
    claim: AccuracyClaim

    def __fspath__(self) -> str:
        return str(self.path)

    @property
    def kept(self) -> bool:
        """Whether the budget is."""
        return self.after.verdict.kept

    def describe(self) -> str:
        """Some lines for the console."""
        old, new = self.parameters
        size = self.path.stat().st_size / 1e6
        how = "measured" if self.measured else "estimated"
        narrow = ", ".join(f"{name} {a}>{b}" for name, (a, b) in self.widths.items() if a != b)
        truth = "label maps" if self.claim.truth == "labels" else "the original's labels"
        lines = [
            f"wrote {self.path} ({size:.1f} MB): {self.architecture}",
            f"{old / 1e6:.1f} to {new / 1e6:.1f} million weights, INT8 {self.speedup:.2f} times as fast ({how})",
            f"channels: {narrow}" + (f"; fc6 of rank {self.rank}" if self.rank else ""),
            f"on {self.claim.frames} frames held out, against {truth}: mIoU drop {self.before.verdict.drop:+.2f} "
            f"before recovery, {self.after.verdict.drop:+.2f} after {self.recovered.steps} steps "
            f"in {self.recovered.seconds / 60:.1f} minutes",
            *(["recovery made it worse and was left out"] if self.after is self.before else []),
            *self.after.verdict.reasons,
        ]
        if not self.kept:
            lines.append("fix: train for more --minutes, or on a GPU; ask for less --speedup; or give more --frames")
        return "\n".join(lines)
