"""What `streaming.py` found, as pages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def rates_page(found: Mapping[str, Any]) -> str:
    """The rates as a page."""
    lines = [*heading(found), "| part | FPS | ms | CPU ms |", "|---|---|---|---|"]
    lines += [
        f"| {name} | {part['fps']:.1f} | {1e3 / part['fps']:.2f} | {part['cpu_ms']:.2f} |"
        for name, part in found["parts"].items()
    ]
    lines += [
        "",
        "| stream | batch | in flight | FPS | slowest stage alone | of it | bound by CPU time | of the lower |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for mode, row in found["modes"].items():
        lines.append(
            f"| {mode} | {found['batch']} | {row['in_flight']} | {row['fps']:.1f} | {row['slowest_stage']} "
            f"{row['slowest_fps']:.1f} | {100 * row['of_slowest']:.1f} % | {row['cpu_bound_fps']:.1f} | "
            f"{100 * row['of_bound']:.1f} % |"
        )
    if any(row["stages_share_cores"] for row in found["modes"].values()):
        lines += [
            "",
            f"The stages share {found['cores']} cores: all of them together need more CPU time a frame than the "
            "slowest one alone takes on the clock, so that a stream cannot come to its rate.",
        ]
    return "\n".join(lines) + "\n"


def memory_page(found: Mapping[str, Any]) -> str:
    """The memory as a page."""
    verdict = "within 5 %" if found["constant"] else "NOT within 5 %"
    return "\n".join(
        [
            *heading(found),
            "| frames | mode | FPS | MiB first | least | most | last | |",
            "|---|---|---|---|---|---|---|---|",
            f"| {found['frames']} | {found['mode']} | {found['fps']:.1f} | {found['mib_first']:.0f} | "
            f"{found['mib_least']:.0f} | {found['mib_most']:.0f} | {found['mib_last']:.0f} | {verdict} |",
            "",
        ]
    )


def heading(found: Mapping[str, Any]) -> list[str]:
    """What was run on what."""
    machine, (height, width) = found["machine"], found["size"]
    gpus = ", ".join(gpu["name"] for gpu in machine.get("gpus", ()))
    return [
        f"# Streaming {found['bundle']} on {found['clip']}, {width}x{height}",
        "",
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB{', ' + gpus if gpus else ''}; "
        f"decoded by {found['decoder']}.",
        "",
    ]
