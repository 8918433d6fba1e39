"""The figures of `benchmarks/peers.py` as a page."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from rivals.page import between, cell, machine_line

_HEAD = (
    "contender",
    "frames/s",
    "x",
    "latency p50 ms",
    "p99 ms",
    "network ms",
    "mIoU",
    "drop (95 %)",
    "worst class",
    "equal labels",
    "build s",
    "start s",
    "peak MiB",
)


def as_markdown(found: dict[str, Any]) -> str:
    """The figures as a page."""
    rows = [row for row in found["rows"] if "skipped" not in row]
    lines = [
        "# fcnopt and its peers on one clip",
        "",
        machine_line(found["machine"]),
        "",
        f"`{found['command']}`: {found['frames']} frames of {found['clip']}, {found['size'][1]}x{found['size'][0]}, "
        f"accuracy by {found['truth']}; {found['calibration']} calibration frames for every quantizer.",
        "",
        f"| {' | '.join(_HEAD)} |",
        "|---" * len(_HEAD) + "|",
        *(_row(row) for row in sorted(rows, key=lambda row: row["fps"])),
        "",
        *_claims(rows),
        *_notes(),
    ]
    lines += ["", found["picture"]] if "picture" in found else []
    skipped = [row for row in found["rows"] if "skipped" in row]
    if skipped:
        lines += [
            "",
            "Not measured:",
            "",
            *(f"- {row['title']}: {' '.join(row['skipped'].split())}" for row in skipped),
        ]
    versions = {f"{name} {version}" for row in rows for name, version in row.get("versions", {}).items()}
    if versions:
        lines += ["", f"Files made by {', '.join(sorted(versions))}."]
    return "\n".join(lines) + "\n"


def _row(row: dict[str, Any]) -> str:
    worst = row["worst_class"]
    cells = [
        cell(f"**{row['title']}**" if row["ours"] else row["title"]),
        f"{row['fps']:.2f}",
        f"{row['x']:.2f}",
        f"{row['latency_p50_ms']:.1f}",
        f"{row['latency_p99_ms']:.1f}",
        f"{row['network_ms']:.1f}",
        f"{row['miou']:.2f}",
        f"{row['drop']:+.2f}" + between(row["drop_interval"]),
        f"{worst['drop']:+.2f} {worst['name']}",
        f"{row['equal_labels']:.2f} %",
        f"{row['build_s']:.0f}" if row["build_s"] else "",
        f"{row['start_s']:.1f}",
        f"{row['peak_mib']:.0f}" if row["peak_mib"] else "",
    ]
    return f"| {' | '.join(cells)} |"


def _claims(rows: list[dict[str, Any]]) -> list[str]:
    """How fcnopt's rows stand against each of NNCF's."""
    peers = [row for row in rows if row["name"].startswith("nncf")]
    ours = [row for row in rows if row["ours"]]
    if not peers or not ours:
        return []
    lines = [
        f"| fcnopt against | {' | '.join(cell(peer['title']) for peer in peers)} |",
        "|---" * (len(peers) + 1) + "|",
    ]
    for row in ours:
        ratios = [
            f"{_ratio(row['rounds_fps'], peer['rounds_fps'])}; "
            f"{_ratio(peer['rounds_latency_ms'], row['rounds_latency_ms'])}"
            for peer in peers
        ]
        lines.append(f"| {cell(row['title'])} | {' | '.join(ratios)} |")
    what = "Frames a second; and latency: how many times better, in the median round (lowest to highest round):"
    return [what, "", *lines, ""]


def _ratio(above: Sequence[float], below: Sequence[float]) -> str:
    """How two rows compare, round by round: what slows the machine down in a round meets both."""
    found = [a / b for a, b in zip(above, below, strict=True)]
    return f"{statistics.median(found):.2f} ({min(found):.2f} to {max(found):.2f})"


def _notes() -> list[str]:
    return [
        "Frames/s is end to end, from the encoded clip to uint8 labels of the frames' size, decoding included, over "
        "whole turns: filling and draining a pipeline counts. x is against PyTorch eager. Latency is from the decoded "
        "frame to its labels, as of a camera: what a frame that was decoded ahead waits for those before it is not in "
        "it. The network alone runs on one frame that is ready for it; fcnopt's has normalization and argmax in it, "
        "and so have the rows with ends in graph, by OpenVINO's PrePostProcessor. Everyone runs in a process of its "
        "own, by turns on the same frames; peak memory is this process's, loading and compiling included. Build is "
        "what it takes to make the file from the trained network's FP32 export, for Model Optimizer its command with "
        "all that it loads; start is from starting the process to its first frames done.",
    ]
