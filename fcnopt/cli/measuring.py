"""The commands that measure what was made: a benchmark, and where precisions part."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fcnopt.cli.console import BUNDLE_OR_MODEL, CLIP, LABELS, PATH, Command, chosen, decoder_option, progress
from fcnopt.cli.signing import trusted_key_option
from fcnopt.errors import UsageError

if TYPE_CHECKING:
    from fcnopt.backends.base import Mode
    from fcnopt.media.base import Decoder
    from fcnopt.models.fcn import Padding


@click.command(cls=Command)
@click.argument("clip", type=CLIP)
@click.option("--engine", "engines", type=PATH, multiple=True, help="Bundle, ONNX file or checkpoint; repeatable.")
@click.option("--labels", type=LABELS, help="Folder of label maps [default: beside CLIP in a known layout, else none]")
@click.option("--reference", default="fp32", show_default=True, help="fp32, or an ONNX file or checkpoint.")
@click.option("--padding", type=click.Choice(["same", "caffe"]), help="For a checkpoint without BatchNorm.")
@click.option(
    "--mode",
    "modes",
    type=click.Choice(["latency", "throughput"]),
    multiple=True,
    default=("latency",),
    show_default=True,
    help="One batch in flight, or several; repeat it for both, side by side.",
)
@decoder_option
@trusted_key_option
@click.option("--topic", help="Of a robot log [default: the only one with images]")
@click.option("--max-frames", type=int, help="Bench this many frames at most, the clip's first.")
@click.option("--json", type=PATH, help="Write the result as data.")
@click.option("--html", type=PATH, help="Write a page with tables, charts and frames.")
@click.option("--overlay", type=PATH, help="Write a video (.mp4) with the first engine's labels.")
@click.option("--record", is_flag=True, help="Keep the figures in the bundles' manifests.")
@click.option("--per-class", is_flag=True, help="Print IoU and drop of every class too.")
@click.option("--max-miou-drop", type=float, help="Gate, in points: exit 1 if an engine loses more.")
@click.option("--max-class-drop", type=float, help="Gate, in points, for the worst class.")
@click.option("--min-fps", type=float, help="Gate: exit 1 if an engine is slower end to end.")
def bench(
    clip: Path,
    engines: tuple[Path, ...],
    labels: Path | None,
    reference: str,
    padding: Padding | None,
    modes: tuple[Mode, ...],
    decoder: Decoder,
    trusted_keys: tuple[Path, ...],
    topic: str | None,
    max_frames: int | None,
    per_class: bool,
    **choices: Any,
) -> None:
    """Measure FPS, latency and accuracy of engines on CLIP.

    Accuracy is mIoU against the FP32 reference. CLIP is a video, a robot log (MCAP, ROS bag), or a folder of
    images. Without --engine the newest bundle is taken. Without labels the reference's labels are the truth.
    """
    from fcnopt.benchmark import BenchFiles
    from fcnopt.benchmark import bench as run
    from fcnopt.bundle import MANIFEST
    from fcnopt.evaluate.result import check_gates, check_limits
    from fcnopt.locate import ENGINES, newest_bundle
    from fcnopt.report.terminal import print_bench

    if clip.suffix == ".onnx" or (clip / MANIFEST).is_file():
        raise UsageError(f"{clip}: is an engine, not a clip", fix=f"run fcnopt bench CLIP --engine {clip}")
    gates = {name: choices.pop(name) for name in ("max_miou_drop", "max_class_drop", "min_fps")}
    check_limits(**gates)
    files = BenchFiles(**choices)
    engines = engines or (chosen(newest_bundle(ENGINES), "--engine"),)
    with progress() as console:
        result = run(
            clip,
            engines=engines,
            labels=labels,
            reference=reference,
            max_frames=max_frames,
            padding=padding,
            modes=modes,
            decoder=decoder,
            topic=topic,
            trusted_keys=trusted_keys,
            files=files,
            show=lambda found: print_bench(found, per_class=per_class),
            progress=console,
        )
    for path in (files.json, files.html, files.overlay):
        if path is not None:
            click.echo(f"wrote {path}")
    check_gates(result, **gates)


@click.command(cls=Command)
@click.argument("a", type=BUNDLE_OR_MODEL)
@click.argument("b", type=BUNDLE_OR_MODEL)
@click.argument("clip", type=CLIP)
@click.option("--max-frames", type=int, default=16, show_default=True, help="Frames to compare, evenly spaced.")
@click.option("--alone", is_flag=True, help="Also run each layer of B on A's inputs: the layer's own noise, measured.")
@click.option("--top", type=click.IntRange(min=1), help="Print only the N worst layers, worst first.")
@click.option("--json", type=PATH, help="Write the result as data.")
@click.option("--html", type=PATH, help="Write a page with plot and table.")
def compare(a: Path, b: Path, clip: Path, top: int | None, **choices: Any) -> None:
    """Show layer by layer where two precisions part on CLIP.

    A is the reference, B is judged; both are bundles or ONNX files. Tensors are matched by name. Per layer: the
    signal-to-noise ratio (SQNR) of its result, and how much of the noise is its own.
    """
    from fcnopt.comparison import compare as run
    from fcnopt.report.parting import print_comparison

    with progress() as console:
        result = run(a, b, clip, progress=console, **choices)
    print_comparison(result, top=top)
    for path in (choices["json"], choices["html"]):
        if path is not None:
            click.echo(f"wrote {path}")
