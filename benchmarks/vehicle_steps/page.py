"""What `vehicle.py` found, as a page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rivals.page import machine_line


def as_markdown(found: Mapping[str, Any]) -> str:
    """The table."""
    rows = found["rows"]
    wrong, left_out = (sum(1 for row in rows if row[name]) for name in ("fault", "reason"))
    return "\n".join(
        [
            f"# The way of {found['bundle']} into a car",
            "",
            f"Command: `{found['command']}`  ",
            f"Engine: {found['engine']}  ",
            f"Clip: {found['clip']}, {found['frames']} frames of {found['size'][1]}x{found['size'][0]}  ",
            f"Machine: {machine_line(found['machine'])}",
            "",
            f"{len(rows)} rows: {wrong} wrong, {left_out} not run. Times are of this machine as it was, other work "
            "included.",
            "",
            "| step | what was done | checked by | result | figures |",
            "|---|---|---|---|---|",
            *map(_row, rows),
            "",
            f"{found['seconds'] / 60:.1f} minutes.",
            "",
        ]
    )


def _row(row: Mapping[str, Any]) -> str:
    figures = "; ".join(f"{name}: {_written(value)}" for name, value in row["figures"].items() if name != "fix")
    cells = (row["step"], row["what"], row["checked"], row["result"], figures)
    return f"| {' | '.join(' '.join(cell.split()).replace('|', '/') for cell in cells)} |"


def _written(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_written(each)}" for name, each in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_written, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
