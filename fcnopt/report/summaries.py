"""What `optimize`, `build`, `inspect` and `doctor` print."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fcnopt.backends.base import EngineLayer
from fcnopt.backends.survey import RuntimeStatus
from fcnopt.bundle import Bundle
from fcnopt.evaluate.budget import Verdict
from fcnopt.graph.passes import PassReport
from fcnopt.graph.stats import GraphStats
from fcnopt.inspection import Inspection
from fcnopt.manifest import AccuracyClaim, Manifest
from fcnopt.report.terminal import new_console, new_table
from fcnopt.report.words import interval_text, signed
from fcnopt.spec import ModelSpec

if TYPE_CHECKING:
    from rich.console import Console

_MOST_REASONS = 4


def print_passes(reports: Sequence[PassReport], *, console: Console | None = None) -> None:
    """Print a table of what each graph pass did, then what was declined and why."""
    console = console or new_console()
    table = new_table(
        [
            ("pass", False),
            ("nodes", True),
            ("parameters", True),
            ("GMACs", True),
            ("max error", True),
            ("changed", True),
        ]
    )
    if reports:
        table.add_row("(as exported)", *_stats(reports[0].before), "", "")
    for report in reports:
        error = f"{report.error:.1e}" if report.changed else ""
        table.add_row(report.name, *_stats(report.after), error, str(len(report.changed) or ""))
    console.print(table)
    for report in reports:
        for reason in report.declined[:_MOST_REASONS]:
            console.print(f"left alone by {report.name}: {reason}", highlight=False, soft_wrap=True)
        more = len(report.declined) - _MOST_REASONS
        if more > 0:
            console.print(f"left alone by {report.name}: {more} more", highlight=False)


def print_built(bundle: Bundle, *, console: Console | None = None) -> None:
    """Print what was built, in a few lines."""
    console = console or new_console()
    manifest = bundle.manifest
    size = sum(path.stat().st_size for path in bundle.path.iterdir())
    lines = [
        f"wrote {bundle.path}/ ({size / 1e6:.1f} MB): {manifest.precision} for {manifest.device}, {manifest.runtime}",
        f"from {manifest.sources['model']}",
        *([f"{_frames_use(manifest)} {manifest.sources['calibration']}"] if "calibration" in manifest.sources else []),
        *([f"accuracy: {claim_text(manifest.accuracy)}"] if manifest.accuracy is not None else []),
        *(f"note: {note}" for note in manifest.notes),
    ]
    if manifest.layers:
        lines.append(f"engine layers: {_precisions(manifest.layers)}")
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)


def print_verdict(verdict: Verdict, *, per_class: bool = False, console: Console | None = None) -> None:
    """Print whether a budget is kept and why, and how many frames it would take to tell.

    Args:
        verdict: Of `fcnopt.evaluate.budget.judge`.
        per_class: Print the drop of every class too.
        console: Where to; None for standard output.
    """
    console = console or new_console()
    if per_class:
        table = new_table([("class", False), ("drop", True), ("95 %", True), ("pixels\nof truth", True), ("", False)])
        for entry in verdict.classes:
            drop = "-" if entry.drop is None else signed(entry.drop)
            table.add_row(entry.name, drop, interval_text(entry.interval), f"{entry.pixels:,}", entry.reason)
        console.print(table)
    lines = list(verdict.reasons)
    if verdict.budget is not None:
        lines[0] = f"budget {'kept' if verdict.kept else 'missed'}: {lines[0]}"
    if verdict.frames_needed is not None:
        lines.append(
            f"{verdict.frames} frames are too few to tell: about {verdict.frames_needed:,} would do if the mean drop "
            "stays what it is"
        )
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)


def print_inspection(found: Inspection, *, console: Console | None = None) -> None:
    """Print spec, statistics, and for a bundle its origin, measurements and layers."""
    console = console or new_console()
    spec, stats, manifest = found.spec, found.stats, found.manifest

    def say(line: str) -> None:
        console.print(line, highlight=False, soft_wrap=True)

    say(str(found.path))
    say(f"  graph      {stats.nodes} nodes, {stats.parameters / 1e6:.1f} M parameters, {_gmacs(stats)} GMACs a frame")
    say(f"  operators  {', '.join(f'{count} {op}' for op, count in stats.ops.items())}")
    say(f"  batch      {_batch(found.batch)}")
    if spec is None:
        say("  spec       none: this file says neither how frames are normalized nor what labels mean")
    else:
        _say_spec(say, spec)
    if manifest is not None:
        say(f"  signature  {_signature(found)}")
        _say_manifest(say, manifest)
        if manifest.layers:
            console.print(layer_table(manifest.layers))


def print_doctor(machine: dict[str, Any], found: Sequence[RuntimeStatus], *, console: Console | None = None) -> None:
    """Print what this machine can build and run, and what to install for the rest."""
    console = console or new_console()
    gpus = ", ".join(f"{gpu['name']} ({gpu['compute_capability']})" for gpu in machine["gpus"]) or "no NVIDIA GPU"
    isa = ", ".join(machine["isa"])
    console.print(
        f"{machine['cpu']}, {machine['cores']} cores ({isa}), {machine['memory_gib']} GiB; {gpus}",
        highlight=False,
        soft_wrap=True,
    )
    table = new_table(
        [("runtime", False), ("version", False), ("builds", False), ("runs", False), ("devices", False), ("", False)]
    )
    for status in found:
        table.add_row(
            status.name,
            status.version or "-",
            "yes" if status.builds else "no",
            "yes" if status.runs else "no",
            ", ".join(status.devices) or "-",
            status.note,
        )
    console.print(table)
    for status in found:
        if status.fix:
            console.print(f"{status.name}: {status.fix}", highlight=False, soft_wrap=True)


def claim_text(claim: AccuracyClaim) -> str:
    """A bundle's claim of accuracy in one line: drop, worst class, equal labels, on what, and within which budget."""
    parts = [f"mIoU drop {signed(claim.miou_drop)}"]
    if claim.miou_drop_interval is not None:
        parts[0] += f" ({interval_text(claim.miou_drop_interval)})"
    if claim.worst_class is not None and claim.worst_class_drop is not None:
        parts.append(f"worst class {claim.worst_class} {signed(claim.worst_class_drop)}")
    parts.append(f"{claim.equal_labels:.2f} % equal labels")
    truth = "label maps" if claim.truth == "labels" else "the FP32 reference's labels"
    frames = f"{claim.frames} frame{'s' if claim.frames != 1 else ''} of {claim.clip}"
    text = f"{', '.join(parts)}; against {truth} on {frames}, {claim.date[:10]}"
    if claim.budget is not None and claim.budget.get("max_miou_drop") is not None:
        text += f"; budget {claim.budget['max_miou_drop']:g}"
        limit = claim.budget.get("max_class_drop")
        text += f", {limit:g} a class" if limit is not None else ""
        text += f" on the {claim.budget.get('on', 'interval')}"
    return text


def layer_table(layers: Sequence[EngineLayer]) -> Any:
    """A table of an engine's layers: what each computes in, and which ONNX nodes were fused into it."""
    table = new_table([("layer", False), ("precision", False), ("fused from", False)])
    for layer in layers:
        table.add_row(layer.kind, layer.precision, ", ".join(layer.nodes) or layer.name)
    return table


def _say_spec(say: Any, spec: ModelSpec) -> None:
    frame, norm = spec.frame, spec.frame.normalization
    say(f"  network    {spec.architecture or 'unknown'}")
    size = f"{frame.height or 'H'}, {frame.width or 'W'}"
    say(f"  frames     uint8 [N, {size}, 3] {frame.color}, other sizes: {frame.resize}")
    values = f"mean {_triple(norm.mean)}, std {_triple(norm.std)}"
    say(f"  inside     (x * {norm.scale:.6g} - mean) / std in {norm.color}, {values}")
    say(f"  outputs    {', '.join(spec.outputs)}")
    say(f"  classes    {', '.join(f'{i} {name}' for i, name in enumerate(spec.classes.names))}")


def _say_manifest(say: Any, manifest: Manifest) -> None:
    say(f"  engine     {manifest.precision} for {manifest.target} ({manifest.device}), {manifest.runtime}")
    say(f"  built      {manifest.created} by fcnopt {manifest.fcnopt} from {manifest.sources.get('model')}")
    if "calibration" in manifest.sources:
        say(f"  {_frames_use(manifest)} {manifest.sources['calibration']}")
    for note in manifest.notes:
        say(f"  note       {note}")
    if manifest.accuracy is not None:
        say(f"  claims     {claim_text(manifest.accuracy)}")
    for measured in manifest.measurements:
        interval = measured.get("miou_drop_interval")
        sure = f" ({interval[0]:+.2f} to {interval[1]:+.2f})" if interval else ""
        say(
            f"  measured   {measured['clip']}, {measured['frames']} frames: {measured['fps']:.1f} FPS, mIoU drop "
            f"{measured['miou_drop']:+.2f}{sure}, {measured['equal_labels']:.2f} % equal labels, {measured['cpu']}"
        )
    if manifest.layers:
        say(f"  layers     {_precisions(manifest.layers)}")


def _frames_use(manifest: Manifest) -> str:
    """What the frames that a build was given were used for: half precision has no ranges to calibrate."""
    quantized = manifest.precision in ("int8", "fp8")
    return "calibrated on" if quantized else "which nodes stay FP32 was judged on"


def _signature(found: Inspection) -> str:
    if found.signer is None:
        return "none"
    known = "which FCNOPT_TRUSTED_KEYS names" if found.trusted else "whoever that is: FCNOPT_TRUSTED_KEYS names no key"
    return f"by key {found.signer}, {known}"


def _batch(batch: int | None) -> str:
    if batch is None:
        return "any number of frames at once"
    return f"{batch} frame{'s' if batch > 1 else ''} at once"


def _precisions(layers: Sequence[EngineLayer]) -> str:
    return ", ".join(
        f"{count} {precision}" for precision, count in Counter(x.precision or "shapes" for x in layers).most_common()
    )


def _stats(stats: GraphStats) -> tuple[str, str, str]:
    return str(stats.nodes), f"{stats.parameters:,}", _gmacs(stats)


def _gmacs(stats: GraphStats) -> str:
    return "?" if stats.macs is None else f"{stats.macs / 1e9:.2f}"


def _triple(values: Sequence[float]) -> str:
    return "/".join(f"{value:g}" for value in values)
