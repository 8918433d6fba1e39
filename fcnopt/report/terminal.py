"""A benchmark for people at a terminal: one table of engines, and one of classes on request.

Written to be read at 100 columns. Where the output is not a terminal the tables are plain text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from fcnopt.evaluate.result import BenchResult, EngineResult
from fcnopt.report.words import interval_note, interval_text, number, signed, unjudged_note, verdicts

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

# Off a terminal nobody wraps lines: as wide as the tables want to be, up to this.
_PLAIN_WIDTH = 160


def print_bench(result: BenchResult, *, per_class: bool = False, console: Console | None = None) -> None:
    """Print what a benchmark found.

    Args:
        result: The benchmark.
        per_class: Print IoU and drop of every class too.
        console: Where to; None for standard output.
    """
    console = console or new_console()
    height, width = result.size
    truth = f"labels of {result.truth_frames} frames" if result.truth == "labels" else "the reference's labels"
    console.print(f"{result.clip}: {result.frames} frames, {width}x{height}; truth: {truth}", highlight=False)
    console.print(_engines(result))
    if per_class:
        console.print(_classes(result))
    notes = [note for note in (interval_note(result), unjudged_note(result), *result.notes) if note]
    for line in (*verdicts(result), *(f"note: {note}" for note in notes)):
        console.print(line, highlight=False, soft_wrap=True)


def new_console() -> Console:
    """A console on standard output; wide and plain where that is not a terminal."""
    from rich.console import Console

    console = Console(markup=False)  # names may hold square brackets
    return console if console.is_terminal else Console(width=_PLAIN_WIDTH, markup=False)


def new_table(columns: Iterable[tuple[str, bool]]) -> Table:
    """An empty table; a column is (header, whether it holds numbers)."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), header_style="bold")
    for header, is_number in columns:
        table.add_column(header, justify="right" if is_number else "left", no_wrap=is_number, overflow="fold")
    return table


def _engines(result: BenchResult) -> Table:
    headers = (
        "FPS",
        "x ref",
        "FPS\ninfer",
        "ms p50\np99",
        "mIoU",
        "drop\n95 %",
        "worst\nclass",
        "equal\n%",
        "process\nMiB",
    )
    named = all(e.precision in e.name.lower() for e in result.rows)  # a column would only repeat the names
    first = ["engine"] if named else ["engine", "precision"]
    table = new_table([*((h, False) for h in first), *((h, True) for h in headers)])
    for engine in result.rows:
        name = f"{engine.name}\n(reference)" if engine is result.reference else engine.name
        cells = [name] if named else [name, engine.precision]
        table.add_row(*cells, *_figures(result, engine), style="dim" if engine is result.reference else None)
    return table


def _figures(result: BenchResult, engine: EngineResult) -> Sequence[str]:
    reference = engine is result.reference
    worst = None if reference else result.worst_class(engine)
    drop = f"{signed(engine.drop.miou)}\n{interval_text(engine.drop.miou_interval)}".rstrip()
    return (
        number(engine.fps),
        f"{engine.speedup:.2f}",
        number(engine.fps_inference),
        f"{number(engine.latency.p50_ms)}\n{number(engine.latency.p99_ms)}",
        f"{engine.accuracy.miou:.2f}",
        "" if reference else drop,
        _worst(worst),
        "" if reference else f"{engine.equal_labels:.2f}",
        number(engine.memory.process_peak_mib, digits=0),
    )


def _worst(worst: tuple[str, float] | None) -> str:
    if worst is None:
        return ""
    name, drop = worst
    return f"{signed(drop)}\n{name:.12}" if drop >= 0.005 else signed(drop)


def _classes(result: BenchResult) -> Table:
    pixels, remarks = result.truth_pixels, result.unjudged
    headers = [("class", False), *((_class_header(result, e), True) for e in result.rows)]
    headers += [("pixels\nof truth", True)] if pixels is not None else []
    headers += [("", False)] if any(remarks) else []
    table = new_table(headers)
    for place, name in enumerate(result.classes):
        cells = []
        for engine in result.rows:
            iou, drop = engine.accuracy.iou[place], engine.drop.iou[place]
            text = "-" if iou is None else f"{iou:.2f}"
            if engine is not result.reference and drop is not None:
                text += f"{signed(drop):>8}"
            cells.append(text)
        cells += [f"{pixels[place]:,}"] if pixels is not None else []
        table.add_row(name, *cells, *([remarks[place]] if any(remarks) else []))
    return table


def _class_header(result: BenchResult, engine: EngineResult) -> str:
    return f"{engine.name}\n{'IoU' if engine is result.reference else 'IoU    drop'}"
