"""Whether the calibration frames were enough: ranges are watched while frames come in.

After 4, 8, 16, ... frames every tensor's symmetric int8 interval of least squared error is noted, and its largest
magnitude. At the end each is held against what all frames say, on the distribution that all frames have: the share of
rounding noise that the earlier interval would have added, and by how much the magnitude has grown since. An optimum is
flat, so intervals wander by some per cent for ever; what they cost does not, and tells when there is nothing more to
learn. For this the frames have to come in an order whose every beginning is spread over the clip
(`CalibrationFrames.spread`): a drive's first minutes agree with each other long before they have seen its tunnel.

On the FCN-8s at 360x480 and 64 CamVid frames the watch takes 2 ms a tensor and note.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fcnopt.quantize.histogram import Histogram
from fcnopt.quantize.methods import Rule, squared_error

Watched = Mapping[str, tuple[Histogram, float]]
"""The distribution and the largest magnitude so far, by tensor."""
Measure = Literal["noise", "reach"]

TOLERANCE = 0.02
FIRST = 4
FEWEST = 2 * FIRST  # below it there is nothing to compare: settled means that half the frames would have done
_SHRINKS = np.geomspace(1 / 32, 1.0, 81)
_POINTS_PER_BIN = 2
_NO_NOISE = 1e-12  # of the signal's power: less is not noise, but the histogram's grid


@dataclass(frozen=True)
class Move:
    """How far ranges still were from the final ones.

    Attributes:
        tensor: Where it is most.
        share: How much there: 0.1 is ten per cent.
        within: How many tensors are within the tolerance.
    """

    tensor: str
    share: float
    within: int


@dataclass(frozen=True)
class Step:
    """Ranges after some of the frames, against those of all.

    Attributes:
        frames: How many.
        noise: Rounding noise added by their intervals of least squared error.
        reach: Growth of the largest magnitude since.
    """

    frames: int
    noise: Move
    reach: Move


@dataclass(frozen=True)
class Settled:
    """What watching found; `dataclasses.asdict` of it is ready for JSON.

    Attributes:
        frames: How many came in.
        tensors: How many tensors were watched.
        tolerance: Share within which a range counts as settled.
        steps: One a doubling, from few frames to many.
        settled_after: The fewest frames from which on the noise of every tensor stays within the tolerance; None
            where that is more than half of them.
        reach_settled_after: The same for the largest magnitudes, which minmax uses.
    """

    frames: int
    tensors: int
    tolerance: float
    steps: tuple[Step, ...]
    settled_after: int | None
    reach_settled_after: int | None

    def note(self, rule: Rule = "mse", available: int | None = None) -> str:
        """One line for people.

        Args:
            rule: How ranges are chosen: the largest magnitudes count for minmax, for others the noise.
            available: How many frames the sources have; says where more would come from.
        """
        if not self.steps or self.frames < FEWEST:
            return f"calibration: {self.frames} frames are too few to tell whether ranges have settled: give more"
        after = self.reach_settled_after if rule == "minmax" else self.settled_after
        if after is not None:
            return (
                f"calibration: ranges settled (all {self.tensors} tensors within {self.tolerance:.0%}) "
                f"after {after} of {self.frames} frames"
            )
        step = [step for step in self.steps if _move(step, rule).share > self.tolerance][-1]
        move = _move(step, rule)
        what = _growth(move, step.frames) if rule == "minmax" else _added_noise(move, step.frames)
        more = (
            f"of the {available} there are (--max-frames {2 * self.frames})"
            if available is not None and available > self.frames
            else "of other places, light and weather"
        )
        return (
            f"calibration: ranges still move after {self.frames} frames: {what} ({move.within} of {self.tensors} "
            f"tensors are within {self.tolerance:.0%}): give more frames, {more}"
        )


class Settling:
    """Watches ranges while frames come in; keeps two numbers a tensor and doubling.

    Args:
        tolerance: Share within which a range counts as settled.
    """

    def __init__(self, tolerance: float = TOLERANCE) -> None:
        self._tolerance = tolerance
        self._seen: dict[int, dict[str, tuple[float, float]]] = {}

    @staticmethod
    def due(count: int) -> bool:
        """Whether ranges are to be noted after this many frames: 4, 8, 16, ..."""
        return count >= FIRST and count & (count - 1) == 0

    def update(self, count: int, watched: Watched) -> None:
        """Note the ranges after `count` frames."""
        self._seen[count] = {name: (threshold(*entry), entry[1]) for name, entry in watched.items()}

    def report(self, count: int, watched: Watched) -> Settled:
        """Hold what was noted against the ranges of all `count` frames."""
        final = {name: entry for name, entry in watched.items() if entry[0].limit > 0 and entry[1] > 0}
        best = {name: threshold(*entry) for name, entry in final.items()}
        steps = []
        for frames, seen in sorted(self._seen.items()):
            if frames >= count or not final:
                continue
            noise = {name: _added(final[name][0], seen[name][0], best[name]) for name in final}
            reach = {name: final[name][1] / seen[name][1] - 1 if seen[name][1] else 1.0 for name in final}
            steps.append(Step(frames, self._worst(noise), self._worst(reach)))
        return Settled(
            frames=count,
            tensors=len(final),
            tolerance=self._tolerance,
            steps=tuple(steps),
            settled_after=self._settled_after([(step.frames, step.noise) for step in steps], count),
            reach_settled_after=self._settled_after([(step.frames, step.reach) for step in steps], count),
        )

    def _worst(self, moves: Mapping[str, float]) -> Move:
        tensor = max(moves, key=lambda name: moves[name])
        return Move(tensor, moves[tensor], sum(share <= self._tolerance for share in moves.values()))

    def _settled_after(self, moves: list[tuple[int, Move]], count: int) -> int | None:
        found = None
        for frames, move in reversed(moves):
            if move.share > self._tolerance:
                break
            found = frames
        return found if found is not None and 2 * found <= count else None


def threshold(histogram: Histogram, reach: float) -> float:
    """The symmetric int8 threshold of least squared error, between the points of a coarse search.

    A parabola through the best three in the logarithm of both takes it off the grid: thresholds of two histograms that
    differ little then differ little too.

    Args:
        histogram: The distribution.
        reach: Largest magnitude; the threshold is at most this.

    Returns:
        0.0 for a tensor without a value but zero.
    """
    if histogram.limit == 0.0 or reach == 0.0:
        return 0.0
    values, weights = histogram.points(_POINTS_PER_BIN)
    errors = [squared_error(values, weights, (-reach * shrink, reach * shrink), 127) for shrink in _SHRINKS]
    best = int(np.argmin(errors))
    place = float(best)
    if 0 < best < len(errors) - 1 and min(errors) > 0:
        before, here, after = np.log(errors[best - 1 : best + 2])
        bend = before - 2 * here + after
        place += 0.5 * float((before - after) / bend) if bend > 0 else 0.0
    return reach * float(_SHRINKS[0] ** (1 - place / (len(_SHRINKS) - 1)))


def _added(histogram: Histogram, earlier: float, final: float) -> float:
    """The share of noise that rounding with an earlier threshold has more than with the final one."""
    values, weights = histogram.points(_POINTS_PER_BIN)
    least = squared_error(values, weights, (-final, final), 127)
    found = squared_error(values, weights, (-earlier, earlier), 127)
    floor = _NO_NOISE * float(weights @ values**2 / weights.sum())
    return max(0.0, (found - least) / max(least, floor))


def _growth(move: Move, frames: int) -> str:
    return f"the largest value at {move.tensor!r} has grown by {move.share:.0%} since {frames} of them"


def _added_noise(move: Move, frames: int) -> str:
    if move.share < 1:
        return f"those of {frames} alone would add {move.share:.0%} of rounding noise at {move.tensor!r}"
    return f"those of {frames} alone would make {1 + move.share:.3g} times the rounding noise at {move.tensor!r}"


def _move(step: Step, rule: Rule) -> Move:
    return step.reach if rule == "minmax" else step.noise
