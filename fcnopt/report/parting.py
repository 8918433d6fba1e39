"""Where two precisions part, as a table for a terminal and as one HTML page with a plot: a row a layer."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fcnopt.evaluate.distance import Distance
from fcnopt.evaluate.parting_result import Comparison, LayerParting
from fcnopt.report.charts import Tick
from fcnopt.report.page import template
from fcnopt.report.terminal import new_console, new_table

if TYPE_CHECKING:
    from rich.console import Console

MARKED = 3
"""How many of the worst layers are marked."""

# Beyond this, float32's own rounding: the chart ends there, so that what matters has room.
_MOST_DB = 80.0
_TICK_DB = 10.0


@dataclass(frozen=True)
class Row:
    """A layer as the page shows it; places are in percent of the plot's width.

    Attributes:
        layer: What is shown.
        rank: 1 for the worst layer, up to `MARKED`; None for others.
        at: Where its SQNR lies.
        above: Where the line to it comes in from the row above; None in the first row.
        below: Where the line leaves to the row below; None in the last row.
        own_at: Where the SQNR by its own noise lies; None where the estimate sees none.
    """

    layer: LayerParting
    rank: int | None
    at: float
    above: float | None
    below: float | None
    own_at: float | None


@dataclass(frozen=True)
class Scale:
    """The plot's axis in dB, worse to the left.

    Attributes:
        low: Its left end.
        high: Its right end.
    """

    low: float
    high: float

    @classmethod
    def of(cls, result: Comparison) -> Scale:
        """An axis for every layer's SQNR, from 0 dB or less up to 80 at most."""
        values = [v for layer in result.layers for v in (layer.result.sqnr_db, layer.own_db) if math.isfinite(v)]
        low = min([0.0, *values])
        high = min(_MOST_DB, max([_TICK_DB, *values]))
        return cls(_TICK_DB * math.floor(low / _TICK_DB), _TICK_DB * math.ceil(high / _TICK_DB))

    def place(self, value_db: float) -> float:
        """Where a value lies, in percent; what is beyond an end lies on it."""
        return 100.0 * (min(max(value_db, self.low), self.high) - self.low) / (self.high - self.low)

    def ticks(self) -> tuple[Tick, ...]:
        """Every 10 dB; the last one says where it stands for more."""
        count = round((self.high - self.low) / _TICK_DB)
        values = [self.low + _TICK_DB * index for index in range(count + 1)]
        more = "+" if self.high == _MOST_DB else ""
        return tuple(Tick(self.place(v), f"{v:g}{more if v == self.high else ''}") for v in values)


def print_comparison(result: Comparison, *, top: int | None = None, console: Console | None = None) -> None:
    """Print what a comparison found.

    Args:
        result: The comparison.
        top: Print only this many layers, the worst first; None prints all in the network's order.
        console: Where to; None for standard output.
    """
    console = console or new_console()
    height, width = result.size
    line = f"{result.b} against {result.a} on {result.clip}: {frames_text(result)}, {width}x{height}"
    console.print(line, highlight=False, soft_wrap=True)
    ranks = _ranks(result)
    numbers = ["SQNR\ndB", "drop\ndB", f"{own_word(result)}\ndB", "max\n|a - b|", "cosine"]
    scaled = any(layer.result.factors for layer in result.layers)
    headers = [("worst", True), ("layer", False), ("operator", False), ("result", False)]
    table = new_table([*headers, *((n, True) for n in numbers), *([("scaled", True)] if scaled else [])])
    for layer in result.layers if top is None else result.worst(top):
        rank = ranks.get(layer.tensor)
        cells = [f"{rank}" if rank else "", layer.name, layer.op, layer.tensor, *figures(layer)]
        table.add_row(*cells, *([factors_text(layer.result)] if scaled else []), style="bold" if rank else None)
    console.print(table)
    for text in sentences(result):
        console.print(text, highlight=False, soft_wrap=True)


def render(result: Comparison) -> str:
    """The page: plot and table in one, a row a layer.

    Returns:
        UTF-8 text of an HTML file that needs nothing else.
    """
    scale = Scale.of(result)
    return template("parting.html", {"figures": figures, "factors": factors_text}).render(
        result=result,
        rows=rows(result, scale),
        ticks=scale.ticks(),
        frames=frames_text(result),
        own=own_word(result),
        sentences=sentences(result),
        scaled=any(layer.result.factors for layer in result.layers),
    )


def rows(result: Comparison, scale: Scale) -> tuple[Row, ...]:
    """The page's rows, in the network's order."""
    ranks = _ranks(result)
    places = [scale.place(layer.result.sqnr_db) for layer in result.layers]
    halfway = [(one + two) / 2 for one, two in itertools.pairwise(places)]
    return tuple(
        Row(
            layer,
            ranks.get(layer.tensor),
            place,
            above,
            below,
            None if _adds_none(layer) else scale.place(layer.own_db),
        )
        for layer, place, above, below in zip(result.layers, places, [None, *halfway], [*halfway, None], strict=True)
    )


def frames_text(result: Comparison) -> str:
    """How many frames were compared."""
    return "1 frame" if result.frames == 1 else f"{result.frames} frames"


def own_word(result: Comparison) -> str:
    """What the column of a layer's own noise is called."""
    return "alone" if result.alone else "added"


def figures(layer: LayerParting) -> tuple[str, ...]:
    """SQNR, drop, own noise, largest difference and cosine of a layer."""
    drop = "" if layer.drop_db is None else f"{round(layer.drop_db, 1) + 0.0:.1f}"  # never -0.0
    cosine = min(layer.result.cosine, 0.999999) if layer.result.sqnr_db != math.inf else 1.0
    own = "none" if _adds_none(layer) else _db(layer.own_db)
    return (_db(layer.result.sqnr_db), drop, own, _short(layer.result.max_abs), f"{cosine:.6f}")


def factors_text(found: Distance) -> str:
    """The factor that a tensor was scaled by, or the least and the largest of its channels; "" for none."""
    if found.factors is None:
        return ""
    low, high = (f"{factor:.3g}" for factor in found.factors)
    return f"x {low}" if low == high else f"x {low}..{high}"


def sentences(result: Comparison) -> tuple[str, ...]:
    """What the table says, in words: labels, the worst layers, what could not be compared, notes."""
    found = []
    if result.equal_labels is not None:
        found.append(f"{result.equal_labels:.2f} % of the labels are equal.")
    worst = result.worst(MARKED)
    if worst:
        named = ", ".join(f"{layer.name} ({_db(layer.own_db)}{' dB' * math.isfinite(layer.own_db)})" for layer in worst)
        how = "alone in their precision" if result.alone else "estimated from drops"
        found.append(f"Most noise of their own, {how}: {named}.")
    else:
        found.append("No layer adds any noise: the two compute the same.")
    broken = [layer.name for layer in result.layers if layer.result.non_finite]
    if broken:
        found.append(f"Numbers that are not finite first appear in {broken[0]}.")
    if worst and not result.alone:
        found.append("Run with --alone to measure each layer's own noise.")
    return (*found, *_matching(result), *(f"Note: {note}" for note in result.notes))


def _matching(result: Comparison) -> Sequence[str]:
    total = len(result.layers) + len(result.only_a)
    found = [f"{len(result.layers)} of {total} layers were matched by name."]
    if result.only_a:
        named = "; ".join(f"{entry.name} ({entry.reason})" for entry in result.only_a)
        found.append(f"Not compared, their noise shows in the next layer: {named}.")
    if result.only_b:
        found.append(f"Only in {result.b}: {', '.join(entry.name for entry in result.only_b)}.")
    return found


def _ranks(result: Comparison) -> dict[str, int]:
    return {layer.tensor: rank for rank, layer in enumerate(result.worst(MARKED), 1)}


def _adds_none(layer: LayerParting) -> bool:
    return layer.alone is None and layer.added_db == math.inf


def _db(value: float) -> str:
    if math.isinf(value):
        return "exact" if value > 0 else "broken"
    return f"{value:.1f}"


def _short(value: float) -> str:
    """Three digits that count, and no exponent where whole numbers do."""
    return f"{value:.0f}" if 1000 <= value < 1e6 else f"{value:.3g}"
