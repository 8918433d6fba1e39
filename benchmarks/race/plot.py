"""The figures of `benchmarks/peers.py` as a picture: time a frame, and what accuracy it costs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fcnopt.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_OURS, _THEIRS, _NETWORK = "#1b7837", "#9aa5b1", "#1f2933"
_ROW_INCH = 0.34


def draw(found: dict[str, Any], path: Path) -> None:
    """Draw the figures into a PNG.

    Raises:
        UsageError: matplotlib is not installed.
    """
    rows = sorted((row for row in found["rows"] if "skipped" not in row), key=lambda row: row["fps"], reverse=True)
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise UsageError("matplotlib, which draws the picture, is missing", fix="pip install matplotlib") from error
    figure = Figure(figsize=(11, 1.6 + _ROW_INCH * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    speed, loss = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    _speed(speed, rows)
    _loss(loss, rows)
    machine = found["machine"]
    where = machine["gpus"][0]["name"] if machine["gpus"] else f"{machine['cpu']}, {machine['cores']} cores"
    figure.suptitle(f"{found['clip']}, {found['frames']} frames, {where}", fontsize=11)
    figure.savefig(path, dpi=150)


def _speed(axes: Axes, rows: list[dict[str, Any]]) -> None:
    from matplotlib.ticker import LogLocator

    places = range(len(rows))
    times = [1e3 / row["fps"] for row in rows]
    alone = [row["network_ms"] for row in rows]
    colors = [_OURS if row["ours"] else _THEIRS for row in rows]
    axes.hlines(places, alone, times, color=colors, linewidth=2)
    axes.scatter(times, places, color=colors, s=42, zorder=3)
    axes.scatter(alone, places, marker="|", s=90, color=_NETWORK, zorder=4, label="network alone")
    for place, (ms, network, row) in enumerate(zip(times, alone, rows, strict=True)):
        axes.annotate(
            f"{ms:.1f} ms, {row['x']:.1f}x",
            (max(ms, network), place),
            xytext=(7, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    axes.set_xscale("log")
    axes.set_xlim(min(*times, *alone) / 1.3, max(*times, *alone) * 2.5)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")
    axes.tick_params(axis="x", which="both", labelsize=7)
    axes.set_yticks(places, [row["title"] for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("ms a frame, end to end (log scale)", fontsize=9)
    axes.legend(fontsize=8, loc="lower left", frameon=False)
    axes.grid(axis="x", linewidth=0.4)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _loss(axes: Axes, rows: list[dict[str, Any]]) -> None:
    for place, row in enumerate(rows):
        low, high = row["drop_interval"] or (row["drop"], row["drop"])
        color = _OURS if row["ours"] else _THEIRS
        axes.plot([low, high], [place, place], color=color, linewidth=2)
        axes.plot(row["drop"], place, "o", color=color, markersize=5)
    axes.axvline(0, color=_NETWORK, linewidth=0.8)
    axes.set_xlabel("mIoU lost against PyTorch FP32,\npoints (95 % interval)", fontsize=9)
    axes.tick_params(axis="x", labelsize=8)
    axes.grid(axis="x", linewidth=0.4)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
