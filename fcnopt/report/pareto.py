"""The Pareto plot of a budget search, as places and labels; `search.html` draws them.

The dot of a candidate is what the budget is held to, its whisker the drop's 95 % interval. A candidate is on the front
where none that is as fast loses as little.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fcnopt.report.charts import Tick, round_up

Search = Mapping[str, Any]
Box = tuple[float, float, float, float]

SIZE = (600.0, 340.0)
"""Width and height of a plot in its drawing units; its text is 13 of them high."""
_LETTER, _LINE, _DOT, _LONGEST = 7.2, 13.0, 7.0, 28
LEFT, FOOT = 52.0, 42.0
# Where a label's anchor lies from its dot, the likeliest first: (across, down, anchor as in SVG).
_PLACES = tuple(
    (11 * side, down, "start" if side > 0 else "end")
    for side, down in ((1, -8), (-1, 17), (1, 4), (-1, 4), (1, 18), (1, 36), (1, -26), (-1, 36), (1, 54))
)


@dataclass(frozen=True)
class Row:
    """A candidate.

    Attributes:
        number: Place in the order of times, from 1.
        entry: What the search says of it.
        name: What is left in the fallback precision, shortened.
        lost: Points of mIoU that the budget is held to.
        front: Whether nothing that is as fast loses as little.
        cells: In words: ms, speed-up over all layers in the fallback precision, drop, its interval, drop of the worst
            class, its name, equal labels and quantized MACs in percent; then over the row before: points bought, equal
            labels bought, ms paid; then whether it was chosen or keeps the budget.
    """

    number: int
    entry: Search
    name: str
    lost: float
    front: bool
    cells: tuple[str, ...]


@dataclass(frozen=True)
class Label:
    """Text in a plot; `anchor` as in SVG."""

    x: float
    y: float
    anchor: str
    text: str


@dataclass(frozen=True)
class Mark:
    """A candidate's dot in a plot; `whisker` is low end, high end and mean of its drop; `label` None if none fits."""

    row: Row
    x: float
    y: float
    whisker: tuple[float, float, float] | None
    label: Label | None = None


@dataclass(frozen=True)
class Panel:
    """A plot over the estimated time; `front` is a path of Pareto-best marks, `limit` the height of the budget."""

    title: str
    marks: tuple[Mark, ...]
    front: str
    limit: float | None
    across: tuple[Tick, ...]
    up: tuple[Tick, ...]


@dataclass(frozen=True)
class _Axis:
    low: float
    high: float
    start: float
    end: float

    def place(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> tuple[Tick, ...]:
        step = round_up((self.high - self.low) / 6)
        inside = range(math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9) + 1)
        digits = max(0, -math.floor(math.log10(step) + 1e-9))
        return tuple(Tick(self.place(count * step), f"{count * step:.{digits}f}") for count in inside)


def panels(search: Search, found: Sequence[Row]) -> tuple[Panel, Panel]:
    """The plots: what the budget is held to, and the labels that differ, both over the estimated time."""
    times, lost = [row.entry["ms"] for row in found], [row.lost for row in found]
    limit, differ = search["budget"]["max_miou_drop"], [100.0 - row.entry["equal_labels"] for row in found]
    margin = 0.1 * (max(times) - min(times) or max(times))
    across = _Axis(min(times) - margin, max(times) + margin, LEFT, SIZE[0] - 10)
    ends = [end for row in found for end in row.entry["interval"] or (row.entry["miou_drop"],)]
    held = "the mean" if search["budget"]["on"] == "mean" else "upper end of the 95 % interval"
    return (
        _panel(f"mIoU drop in points, {held}", found, lost, across, _up([*ends, *lost, limit]), limit),
        _panel("labels that differ from the FP32 reference's, %", found, differ, across, _up(differ), None),
    )


def _panel(
    title: str, found: Sequence[Row], values: Sequence[float], across: _Axis, up: _Axis, limit: float | None
) -> Panel:
    marks = []
    for row, value in zip(found, values, strict=True):
        ends = row.entry["interval"] if limit is not None else None  # of the drop, not of labels
        whisker = (up.place(ends[0]), up.place(ends[1]), up.place(row.entry["miou_drop"])) if ends else None
        marks.append(Mark(row, across.place(row.entry["ms"]), up.place(value), whisker))
    best = [marks[place] for place in front(values)]
    line = f"M{best[0].x:.1f} {up.end:.1f} " + " ".join(f"H{mark.x:.1f} V{mark.y:.1f}" for mark in best)
    height = None if limit is None else up.place(limit)
    return Panel(title, _labelled(marks, height), f"{line} H{across.end:.1f}", height, across.ticks(), up.ticks())


def _labelled(marks: Sequence[Mark], limit: float | None) -> tuple[Mark, ...]:
    """The marks with their names, else numbers, where one fits without touching another, the chosen one's first."""
    taken = [(mark.x - _DOT, mark.y - _DOT, mark.x + _DOT, mark.y + _DOT) for mark in marks]
    if limit is not None:
        taken.append((0.0, limit - 1, SIZE[0], limit + 1))
    labels: dict[int, Label] = {}
    for mark in sorted(marks, key=lambda mark: (not mark.row.entry["chosen"], not mark.row.front)):
        count = str(mark.row.number)
        name = mark.row.name if len(mark.row.name) <= _LONGEST else f"{mark.row.name[:_LONGEST]}…"
        for text, (across, down, anchor) in itertools.product((f"{count} {name}", count), _PLACES):
            x, y, wide = mark.x + across, mark.y + down, len(text) * _LETTER
            left = x - (0 if anchor == "start" else wide)
            box = (left, y - _LINE, left + wide, y + 3)
            inside = box[0] > LEFT and box[2] < SIZE[0] and box[1] > 0 and box[3] < SIZE[1] - FOOT
            if inside and not any(_touch(box, other) for other in taken):
                taken.append(box)
                labels[mark.row.number] = Label(x, y, anchor, text)
                break
    return tuple(replace(mark, label=labels.get(mark.row.number)) for mark in marks)


def _touch(one: Box, two: Box) -> bool:
    return one[0] < two[2] and two[0] < one[2] and one[1] < two[3] and two[1] < one[3]


def _up(values: Sequence[float]) -> _Axis:
    low, high = min([0.0, *values]), max(values)
    margin = 0.08 * (high - low) or 0.1
    return _Axis(low - (margin if low < 0 else 0.0), high + margin, SIZE[1] - FOOT, 10.0)


def front(values: Sequence[float]) -> list[int]:
    """Which of the values, in the order of times, are below all before them."""
    least = list(itertools.accumulate(values, min, initial=math.inf))
    return [place for place, value in enumerate(values) if value < least[place]]
