"""Geometry of the report's charts, in percent of their width, so that the page can draw them at any size."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fcnopt.evaluate.latency import Histogram
from fcnopt.evaluate.result import BenchResult, EngineResult

# How far the scale of losses reaches at least, in points: differences below it should look small.
_LEAST_DROP = 1.0
# Of the losses' scale, kept free to the left of zero where nothing worth an axis is gained.
_MARGIN = 0.04
_STEPS = (1.0, 2.0, 5.0)
_FINE_STEPS = (1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0)


@dataclass(frozen=True)
class Bar:
    """A bar from `left` over `width`, with its value in words; `low` to `high` is the whisker of its interval."""

    left: float
    width: float
    text: str
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Tick:
    """A mark on an axis."""

    at: float
    text: str


@dataclass(frozen=True)
class LatencyAxis:
    """A logarithmic axis of milliseconds, common to all engines: a tenfold speed-up is a tenth, wherever it starts.

    Attributes:
        low_ms: Its left end.
        high_ms: Its right end.
    """

    low_ms: float
    high_ms: float

    @classmethod
    def of(cls, result: BenchResult) -> LatencyAxis:
        """An axis that holds every engine's histogram, with a margin."""
        edges = [edge for row in result.rows for edge in row.latency.histogram.edges_ms]
        positive = [edge for edge in edges if edge > 0] or [1.0]
        return cls(min(positive) / 1.15, max(positive) * 1.15)

    def place(self, value_ms: float) -> float:
        """Where a time lies, in percent."""
        span = math.log(self.high_ms / self.low_ms)
        return 100.0 * min(max(math.log(max(value_ms, self.low_ms) / self.low_ms) / span, 0.0), 1.0)

    def ticks(self) -> tuple[Tick, ...]:
        """Round times: 1, 2, 5, 10, ..., closer where the axis is short."""
        decades = range(math.floor(math.log10(self.low_ms)), math.ceil(math.log10(self.high_ms)) + 1)
        for steps in (_STEPS, _FINE_STEPS):
            values = [step * 10.0**decade for decade in decades for step in steps]
            inside = [v for v in values if self.low_ms <= v <= self.high_ms]
            if len(inside) >= 3:
                break
        return tuple(Tick(self.place(v), f"{v:g}") for v in inside)

    def bars(self, histogram: Histogram) -> tuple[tuple[float, float, float], ...]:
        """(left, width, height) of each bin that has frames, in percent; the fullest bin is 100 high."""
        fullest = max(histogram.counts)
        edges = zip(histogram.edges_ms, histogram.edges_ms[1:], strict=False)
        placed = [(self.place(a), self.place(b)) for a, b in edges]
        return tuple(
            (left, max(right - left, 0.15), 100.0 * count / fullest)
            for (left, right), count in zip(placed, histogram.counts, strict=True)
            if count
        )


@dataclass(frozen=True)
class DropScale:
    """The axis of the drop chart: to the right what is lost, to the left what is gained.

    Attributes:
        gain: Points to its left end, 0 where nothing is gained.
        loss: Points to its right end.
    """

    gain: float
    loss: float

    @classmethod
    def of(cls, result: BenchResult) -> DropScale:
        """A scale that holds every class's drop and interval of every engine, and never less than a point."""
        points = [drop for engine in result.engines for drop in engine.drop.iou if drop is not None]
        points += [end for engine in result.engines for ends in engine.drop.iou_intervals if ends for end in ends]
        gain = -min(points, default=0.0)
        loss = round_up(max([_LEAST_DROP, *points]))
        return cls(round_up(gain) if gain > _MARGIN * loss else 0.0, loss)

    def place(self, points: float) -> float:
        """Where a drop lies, in percent; a little is left of zero even where nothing is gained."""
        low, high = -max(self.gain, _MARGIN * self.loss), self.loss
        return 100.0 * (points - low) / (high - low)

    def bar(self, engine: EngineResult, which: int) -> Bar | None:
        """The bar of one class of an engine, or None where the class is not in the truth."""
        drop, interval = engine.drop.iou[which], engine.drop.iou_intervals[which]
        if drop is None:
            return None
        left, right = sorted((self.place(0.0), self.place(drop)))
        ends = (self.place(interval[0]), self.place(interval[1])) if interval else (None, None)
        return Bar(left, right - left, f"{drop:+.2f}", *ends)


def round_up(value: float) -> float:
    """The next number of 1, 2, 3, 5, 10, 20, ... that is not smaller than a positive value."""
    decade = 10.0 ** math.floor(math.log10(value))
    return next(step * decade for step in (1.0, 2.0, 3.0, 5.0, 10.0) if step * decade >= value * (1 - 1e-9))
