"""Hostile input: thousands of files to every reader, generated, damaged or made to do harm."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from faults.documents import KINDS
from faults.outcome import Progress, Tally, not_run
from faults.probing import Cases, probe
from faults.recordings import LOGS

FAMILY = "hostile input"
_SMALL_MIB = 64
"""Bound for what is text, and for what a file of a few KiB is read into."""
_PICTURE_MIB = 1088
"""Bound for pictures: 2^27 pixels of 3 bytes, once as the decoder's and once as a copy, and a chunk of a log."""


@dataclass(frozen=True)
class Row:
    """Inputs for one kind of reader.

    Attributes:
        what: For the table.
        target: See `Cases`.
        share: Of all inputs, in percent.
        bound_mib: Most memory that one may take.
    """

    what: str
    target: str
    share: int
    bound_mib: float = _SMALL_MIB


ROWS = (
    Row(f"JSON by hypothesis: {', '.join(KINDS)}", "faults.documents:cases", 56),
    Row("checkpoints: code, cycles, bombs, damage", "faults.checkpoints:cases", 12),
    Row("ONNX: data outside, sizes, cycles, depth, damage", "faults.graphs:cases", 12, 256),
    Row("selftest.npz: bombs, sizes, code, damage", "faults.archives:cases", 8, _PICTURE_MIB),
    Row("pictures and label maps: sizes, bombs, damage", "faults.recordings:pictures", 10, _PICTURE_MIB),
    Row("robot logs: damage", "faults.recordings:clips", 2, _PICTURE_MIB),
)


def promise_of(row: Row) -> str:
    """What has to hold of a row."""
    return (
        "read, or refused by an error of fcnopt's that says why and how to go on; at most "
        f"{row.bound_mib:g} MiB and 20 s each; no code run, no file opened outside the folder"
    )


def hostile(seeds: Path, count: int = 10_000, seed: int = 0, progress: Progress | None = None) -> list[Tally]:
    """About `count` inputs in all, each row its share of them.

    Args:
        seeds: What `make_seeds` made.
        count: In all.
        seed: Of what is drawn.
        progress: Called as the inputs go by.
    """
    return [_row(row, seeds, max(1, count * row.share // 100), seed, progress) for row in ROWS]


def _row(row: Row, seeds: Path, count: int, seed: int, progress: Progress | None) -> Tally:
    arguments: dict[str, object] = {"seeds": str(seeds), "count": count, "seed": seed}
    if row.target.endswith(":clips"):
        there = [str(seeds / name) for name in LOGS if (seeds / name).exists()]
        if not there:
            return not_run(FAMILY, row.what, promise_of(row), "the packages of the extra `logs` are missing")
        arguments = {"paths": there, "count": max(1, count // len(there)), "seed": seed, "streamed": False}
    tally = Tally(
        FAMILY, row.what, promise_of(row), needed=("refused",) if row.target.endswith(":clips") else ("read", "refused")
    )
    return probe(Cases(row.target, arguments, count, bound_mib=row.bound_mib), tally, progress)
