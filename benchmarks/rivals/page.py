"""The figures of `benchmarks/accuracy.py` as a page, and what other pages share with it."""

from __future__ import annotations

from typing import Any


def as_markdown(found: dict[str, Any]) -> str:
    """The figures as a page."""
    evaluation, calibration, reference = found["evaluation"], found["calibration"], found["reference"]
    lines = [
        "# INT8 by fcnopt and by others",
        "",
        machine_line(found["machine"]),
        "",
        f"`{found['command']}`: {calibration['frames']} calibration frames of camvid/train; evaluated on "
        f"{evaluation['frames']} frames of {evaluation['title']}, every file by the same code on OpenVINO, with float "
        f"layers in FP32. FP32: {reference['miou']:.2f} mIoU.",
        "",
        "| INT8 by | mIoU | drop (95 %) | worst class (95 %) | equal labels | MACs in INT8 | calibration s | MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [_row(row) for row in found["rows"]]
    lines += [
        "",
        "Drops are points of FP32 less those of the file. MACs count as INT8 where the file has both a layer's data "
        "and its weight dequantized from 8 bits; in NNCF's OpenVINO IR, where the data comes from a FakeQuantize and "
        "the weight from an 8-bit constant. Calibration is the call that calibrates and quantizes, without loading "
        "packages.",
    ]
    if any("versions" in row for row in found["rows"]):
        lines += ["", "Versions: " + "; ".join(_versions(found["rows"])) + "."]
    return "\n".join(lines) + "\n"


def _row(row: dict[str, Any]) -> str:
    if "skipped" in row:
        return f"| {row['title']} | not measured: {cell(row['skipped'])} | | | | | | |"
    return f"| {' | '.join([row['title'], *figures(row)])} |"


def machine_line(machine: dict[str, Any]) -> str:
    """CPU and versions, as `describe_machine` tells them."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    cpu = f"{machine['cpu']}, {machine['cores']} cores ({', '.join(machine['isa'])}), {machine['memory_gib']} GiB"
    return f"{cpu}; {versions}"


def figures(row: dict[str, Any]) -> list[str]:
    """Cells of a file: mIoU, drop, worst class, equal labels, INT8 MACs, seconds and MB."""
    worst = row["worst_class"]
    return [
        f"{row['miou']:.2f}",
        f"{row['drop']:+.2f}" + between(row["drop_interval"]),
        f"{worst['drop']:+.2f} {worst['name']}" + between(worst["interval"]),
        f"{row['equal_labels']:.2f} %",
        f"{row['int8_macs_share']:.1%}",
        f"{row['seconds']:.0f}",
        f"{row['bytes'] / 1e6:.1f}",
    ]


def between(interval: list[float] | None) -> str:
    """An interval in brackets, after a space; nothing where there is none."""
    return "" if interval is None else f" ({interval[0]:+.2f} to {interval[1]:+.2f})"


def cell(text: str) -> str:
    """Text that does not end a cell of the table."""
    return " ".join(text.replace("|", "/").split())


def _versions(rows: list[dict[str, Any]]) -> list[str]:
    found = {f"{name} {version}" for row in rows for name, version in row.get("versions", {}).items()}
    return sorted(found)
