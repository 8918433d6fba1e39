"""What a search under an accuracy budget found, for a terminal and as one HTML page: what fallbacks buy and cost.

The input is a recipe's "search": plain data, read back from a bundle or handed over by the build. A candidate is a set
of layers left in the fallback precision. It is judged by the upper end of its drop's 95 % interval, or by the mean if
the budget says so, and is on the Pareto front where none that is as fast loses as little.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from fcnopt.report.page import template
from fcnopt.report.pareto import FOOT, LEFT, SIZE, Row, Search, front, panels
from fcnopt.report.terminal import new_console, new_table
from fcnopt.report.words import interval_text, number, signed

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def print_search(search: Search, *, console: Console | None = None) -> None:
    """Print what a search found: the layers that it went by, the candidates by time, and the outcome in words.

    Args:
        search: A recipe's "search".
        console: Where to; None for standard output.
    """
    console = console or new_console()
    for text in headlines(search):
        console.print(text, highlight=False, soft_wrap=True)
    if search["layers"]:
        console.print(_layer_table(search))
    console.print(_candidate_table(search))
    for text in sentences(search):
        console.print(text, highlight=False, soft_wrap=True)


def render_search(search: Search, name: str) -> str:
    """The page: outcome, Pareto plots, candidates and layers.

    Args:
        search: A recipe's "search".
        name: Of the bundle.

    Returns:
        UTF-8 text of an HTML file that needs nothing else.
    """
    found, (quantized, fallback) = rows(search), _precisions(search)
    return template("search.html").render(
        search=search,
        name=name,
        headlines=headlines(search),
        sentences=sentences(search),
        rows=found,
        panels=panels(search, found),
        layers=[(layer, layer_cells(layer)) for layer in search["layers"]],
        most=max((layer["gain"] for layer in search["layers"]), default=0.0),
        quantized=quantized,
        fallback=fallback,
        size=SIZE,
        left=LEFT,
        foot=SIZE[1] - FOOT,
    )


def rows(search: Search) -> tuple[Row, ...]:
    """The candidates, the fastest first."""
    entries = sorted(search["candidates"], key=lambda entry: (entry["ms"], _lost(search, entry)))
    best = front([_lost(search, entry) for entry in entries])
    return tuple(
        Row(
            number,
            entry,
            _name(entry["floats"]) or f"none (all {_precisions(search)[0]})",
            _lost(search, entry),
            number - 1 in best,
            (*_figures(search, entry), *_bought(entry, before), _verdict(entry)),
        )
        for number, (before, entry) in enumerate(itertools.pairwise([None, *entries]), 1)
    )


def _figures(search: Search, entry: Search) -> Iterator[str]:
    yield number(entry["ms"])
    yield f"{search['cost']['float_ms'] / entry['ms']:.2f}"
    yield signed(entry["miou_drop"])
    yield interval_text(entry["interval"])
    yield "" if entry["worst_class"] is None else signed(entry["worst_class_drop"])
    yield entry["worst_class"] or ""
    yield f"{entry['equal_labels']:.2f}"
    yield f"{100 * entry['macs_share']:.1f}"


def _bought(entry: Search, before: Search | None) -> tuple[str, str, str]:
    if before is None:
        return "", "", ""
    points, labels = before["miou_drop"] - entry["miou_drop"], entry["equal_labels"] - before["equal_labels"]
    return signed(points), signed(labels), _short(entry["ms"] - before["ms"])


def layer_cells(layer: Search) -> tuple[str, ...]:
    """A layer's share of MACs, gain, cost, gain for the cost, where the cost comes from, and what it was left in."""
    share, gain, cost = 100 * layer["macs_share"], round(100 * layer["gain"], 1) + 0.0, layer["cost_ms"]  # never -0.0
    rate = f"{gain / cost:.1f}" if cost > 0 else "free"
    return f"{share:.2f}", f"{gain:.1f}", _short(cost), rate, layer["source"], layer["precision"].upper()


def _candidate_table(search: Search) -> Table:
    quantized, fallback = _precisions(search)
    headers = ("ms\nx all " + fallback, "drop\n95 %", "worst\nclass", "equal\n%", f"{quantized}\n% MACs")
    bought = ("buys pts\nlabels %", "for\nms")
    names = [("#", True), (f"left in {fallback}", False)]
    table = new_table([*names, *((header, True) for header in (*headers, *bought, "kept"))])
    for row in rows(search):
        ms, speedup, drop, interval, worst, name, equal, share, points, labels, paid, verdict = row.cells
        style = "bold" if row.entry["chosen"] else None if row.front else "dim"
        pairs = ((ms, speedup), (drop, interval), (worst, name[:12]))
        cells = ["\n".join(pair).rstrip() for pair in pairs]
        cells += [equal, share, f"{points}\n{labels}".rstrip(), paid, verdict]
        table.add_row(str(row.number), row.name, *cells, style=style)
    return table


def _layer_table(search: Search) -> Table:
    fallback = _precisions(search)[1]
    headers = ("MACs\n%", f"gain in\n{fallback}, %", "cost\nms", "gain %\na ms")
    table = new_table([("layer", False), *((h, True) for h in headers), ("time\nfrom", False), ("left\nin", False)])
    for layer in search["layers"]:
        style = "bold" if layer["precision"] == search["cost"]["fallback"] else None
        table.add_row(layer["node"], *layer_cells(layer), style=style)
    return table


def headlines(search: Search) -> tuple[str, str]:
    """What was looked for, and on which frames it was judged."""
    budget, validation = search["budget"], search["validation"]
    text = f"Looked for the fastest {_precisions(search)[0]} for {search['cost']['target']} that loses at most "
    text += f"{budget['max_miou_drop']:g} points of mIoU"
    if budget["max_class_drop"] is not None:
        text += f" and {budget['max_class_drop']:g} of any class with {budget['min_pixels']:,} pixels or more"
    text += ", on the mean." if budget["on"] == "mean" else ", by the upper end of the 95 % interval."
    truth = "label maps" if validation["truth"] == "labels" else "the FP32 reference's labels"
    return text, f"Judged on {_frames(validation['frames'])} of {validation['clip']}; truth: {truth}."


def sentences(search: Search) -> tuple[str, ...]:
    """The outcome, what it bought, where the times come from, and how many frames it would take to tell."""
    found, (quantized, fallback) = rows(search), _precisions(search)
    chosen = next((row for row in found if row.entry["chosen"]), None)
    row = chosen or min(found, key=lambda row: row.lost)
    floats = ", ".join(row.entry["floats"])
    kind = f"{floats} in {fallback}, the rest {quantized}" if floats else f"all layers {quantized}"
    sure = f" ({row.cells[3]})" if row.cells[3] else ""
    said = ["Chosen: " if chosen else "No candidate keeps the budget. The one that comes closest in mIoU: "]
    said[0] += f"{kind}. {row.cells[0]} ms a frame, {row.cells[1]} times as fast as all {fallback}; "
    said[0] += f"mIoU drop {row.cells[2]}{sure}, {row.cells[6]} % equal labels."
    plain = next((other for other in found if not other.entry["floats"]), row)
    if plain is not row:
        points, labels, paid = _bought(row.entry, plain.entry)
        said.append(
            f"Against all {quantized} it buys {points} points of mIoU and {labels} % of the labels for {paid} ms."
        )
    said += [f"Why: {'; '.join(row.entry['reasons'])}."] if row.entry["reasons"] else []
    if not floats and not search["layers"]:
        said.append("No layer's gain was measured: there was nothing to search.")
    return (*said, _provenance(search), *_needed(search, chosen))


def _provenance(search: Search) -> str:
    table = f"estimates by the table for {search['cost']['family']}"
    measured = "Times are sums of what layers took on the machine that searched"
    words = {"table": f"Times are {table}, not measured.", "measured": f"{measured}."}
    words["mixed"] = f"{measured}; layers that could not be timed are {table}."
    return words[search["cost"]["source"]]


def _needed(search: Search, chosen: Row | None) -> Iterator[str]:
    needed, limit = search["frames_needed"], search["budget"]["max_miou_drop"]
    if needed is not None:
        faster = " with a faster candidate" if chosen else ""
        yield (
            f"About {needed:,} frames like these {search['validation']['frames']:,} would make the interval narrow "
            f"enough to keep the budget{faster}, if the mean drop stays what it is."
        )
    elif chosen is None and all(entry["miou_drop"] > limit for entry in search["candidates"]):
        yield "More frames would not help: every candidate's mean drop is over the budget."


def _lost(search: Search, entry: Search) -> float:
    """A skewed interval can end below the mean: it does not excuse it."""
    ends = entry["interval"] if search["budget"]["on"] == "interval" else None
    return float(max(entry["miou_drop"], *(ends or (-math.inf,))))


def _name(floats: Sequence[str]) -> str:
    return ", ".join(floats) if len(floats) <= 2 else f"{floats[0]} + {len(floats) - 1} more"


def _precisions(search: Search) -> tuple[str, str]:
    return search["cost"]["precision"].upper(), search["cost"]["fallback"].upper()


def _verdict(entry: Search) -> str:
    kept = "yes" if entry["kept"] else "no"
    return "chosen" if entry["chosen"] else kept


def _frames(count: int) -> str:
    return "1 frame" if count == 1 else f"{count:,} frames"


def _short(ms: float) -> str:
    """Three digits that count: what one layer costs can be far below what a frame takes."""
    return f"{ms:.3g}" if abs(ms) < 1000 else f"{ms:.0f}"
