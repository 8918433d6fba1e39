"""The figures of `benchmarks/growth.py` as a page."""

from __future__ import annotations

from typing import Any

from rivals.page import machine_line

_AXES = {"size": "Frame size", "batch": "Batch", "classes": "Classes"}
_HEAD = ("", "precision", "ms", "ms a frame", "GMACs", "of the GEMM peak", "roofline ms", "of the roofline", "peak MiB")


def as_markdown(found: dict[str, Any]) -> str:
    """The figures as a page."""
    peaks = found["peaks"]
    rates = ", ".join(f"{kind} {rate:.0f} GMAC/s" for kind, rate in peaks["gmacs"].items())
    lines = [
        "# How time and memory grow",
        "",
        machine_line(found["machine"]),
        "",
        f"`{found['command']}`: target {found['target']}, the network alone, one batch at a time, each engine in a "
        "process of its own. Measured peaks of this machine: matrix products "
        f"{rates}; copies {peaks['gbytes']:.1f} GB/s, reading and writing.",
    ]
    for axis, title in _AXES.items():
        points = [point for point in found["points"] if point["axis"] == axis]
        if points:
            lines += ["", f"## {title}", "", *_table(points), "", *_slopes(axis, found["slopes"])]
    skipped = [f"- {point['text']} {point['precision']}: {point['skipped']}" for point in found["skipped"]]
    if skipped:
        lines += ["", "Not measured:", "", *skipped]
    lines += [
        "",
        "The roofline sums, over convolutions, the longer of computing at the measured rate of matrix products and "
        "moving input, weights and output at the measured rate of copies; its share can pass 100 % where tensors stay "
        "in the caches. Peak memory is the process's, loading the engine included.",
    ]
    return "\n".join(lines) + "\n"


def _table(points: list[dict[str, Any]]) -> list[str]:
    lines = [f"| {' | '.join(_HEAD)} |", "|---" * len(_HEAD) + "|"]
    for point in points:
        cells = [
            point["text"],
            point["precision"],
            f"{point['ms']:.1f}",
            f"{point['ms'] / point['batch']:.1f}",
            f"{point['gmacs']:.1f}",
            f"{point['of_gemm']:.0%}",
            f"{point['roofline_ms']:.1f}",
            f"{point['of_roofline']:.0%}",
            f"{point['peak_mib']:.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _slopes(axis: str, slopes: list[dict[str, Any]]) -> list[str]:
    return [
        f"{one['precision'].upper()}: time grows as {_unit(axis)} to the power {one['ms']:.2f}, memory "
        f"{one['peak_mib']:.2f}, multiply-accumulates {one['gmacs']:.2f}."
        for one in slopes
        if one["axis"] == axis
    ]


def _unit(axis: str) -> str:
    return "pixels" if axis == "size" else axis
