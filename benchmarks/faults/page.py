"""What `reliability.py` found, as a page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def as_markdown(found: Mapping[str, Any]) -> str:
    """The table, the faults, and what was promised."""
    machine = found["machine"]
    lines = [
        f"# Reliability of {found['bundle']}",
        "",
        f"Command: `{found['command']}`  ",
        f"Machine: {machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, {machine['os']}",
        "",
        "| family | what was done | times | outcomes | worst MiB | worst s | verdict |",
        "|---|---|---|---|---|---|---|",
        *map(_row, found["rows"]),
        "",
        f"{found['seconds'] / 60:.1f} minutes. Memory is what one took on top of what the process had before; times "
        "are of this machine as it was, other work included.",
    ]
    faults = [f"- {row['family']}, {row['what']}: {fault}" for row in found["rows"] for fault in row["faults"]]
    lines += ["", "## Faults", *faults] if faults else []
    lines += ["", "## What had to hold"]
    lines += [f"- {what}: {promise}" for what, promise in _promises(found["rows"]).items()]
    notes = [f"- {row['family']}, {row['what']}: {note}" for row in found["rows"] for note in row["notes"]]
    lines += ["", "## Notes", *notes] if notes else []
    return "\n".join(lines) + "\n"


def _row(row: Mapping[str, Any]) -> str:
    outcomes = ", ".join(f"{count} {name}" for name, count in row["outcomes"].items())
    mib = "" if row["worst_mib"] is None else f"{row['worst_mib']:.0f}"
    seconds = f"{row['worst_s']:.2f}" if row["runs"] else ""
    cells = (row["family"], row["what"], str(row["runs"]), outcomes, mib, seconds, row["verdict"])
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _promises(rows: list[Mapping[str, Any]]) -> dict[str, str]:
    """One line a family and promise, in the table's order."""
    found: dict[str, str] = {}
    for row in rows:
        if row["promise"] not in found.values():
            found[f"{row['family']}, {row['what']}"] = row["promise"]
    return found
