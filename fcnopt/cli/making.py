"""The commands that make something: a model, a smaller graph, an engine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fcnopt.cli.console import CHECKPOINT, CLIP, LABELS, MODEL, PATH, Command, chosen, progress
from fcnopt.errors import GateError

if TYPE_CHECKING:
    from fcnopt.backends.base import Precision
    from fcnopt.report.pareto import Search


@click.command(cls=Command)
@click.argument("checkpoint", type=CHECKPOINT, required=False)
@click.option("-o", "--output", type=PATH, help="ONNX file to write [default: engines/CHECKPOINT.onnx]")
@click.option("--classes", help="camvid, cityscapes, voc, or a JSON file {names, palette} [default: by their number]")
@click.option("--size", help="Frame size as HEIGHTxWIDTH [default: 360x480 for camvid, 512x1024 for cityscapes]")
@click.option("--dynamic", is_flag=True, help="Leave batch, height and width open.")
@click.option("--padding", help="same or caffe: needed for a checkpoint without BatchNorm")
@click.option("--normalize", help="imagenet, caffe, unit, none, or MEAN/STD as R,G,B/R,G,B [default: by padding]")
@click.option("--color", type=click.Choice(["BGR", "RGB"]), default="BGR", show_default=True, help="Of the frames.")
@click.option("--resize", type=click.Choice(["stretch", "letterbox", "none"]), default="stretch", show_default=True)
@click.option("--outputs", default="labels", show_default=True, help="labels[,confidence][,logits]")
@click.option("--module", help="package.module:Class of your own network, called with float [N,3,H,W]")
@click.option("--at-once", is_flag=True, help="The FCN-8s was trained at once, with scaled pools (FCN8sAtOnce).")
@click.option("--opset", type=int, default=20, show_default=True, help="Of the ONNX file, 18 to 23.")
@click.option("--frames", type=CLIP, help="Image, folder or video to verify on [default: seeded random frames]")
def export(
    checkpoint: Path | None, output: Path | None, classes: str | None, frames: Path | None, **choices: Any
) -> None:
    """Export CHECKPOINT to ONNX and verify it against PyTorch.

    The architecture is read from the checkpoint. An ONNX file from elsewhere (float [N,3,H,W] to logits) is taken
    too. Without CHECKPOINT the embedded demo network is exported.
    """
    from fcnopt.exporter import ExportOptions
    from fcnopt.exporter import export as run

    options = ExportOptions.parse(**choices)
    with progress() as console:
        result = run(checkpoint, output, classes=classes, options=options, frames=frames, progress=console)
    click.echo(result.describe())
    frames_there = any(path.suffix not in (".json", ".md") for path in Path("calib").glob("[!.]*"))
    first = "" if frames_there else "put frames of the camera into calib/, then "
    click.echo(f"next: {first}fcnopt build --precision int8")


@click.command(cls=Command)
@click.argument("model", type=MODEL, required=False)
@click.option("-o", "--output", type=PATH, help="[default: MODEL.opt.onnx]")
def optimize(model: Path | None, output: Path | None) -> None:
    """Run the graph passes on MODEL and show what each did.

    Takes any ONNX file; without MODEL the newest in engines/. `fcnopt build` runs the same passes by itself.
    """
    from fcnopt.builder import optimize as run
    from fcnopt.locate import ENGINES, newest_model
    from fcnopt.report.summaries import print_passes

    model = model or chosen(newest_model(ENGINES), "MODEL")
    with progress() as console:
        path, reports = run(model, output, progress=console)
    print_passes(reports)
    click.echo(f"wrote {path}")


@click.command(cls=Command)
@click.argument("model", type=MODEL, required=False)
@click.option("--precision", help="fp32, fp16, bf16, int8, or fp8 (sm89 on) [default: the best half precision]")
@click.option(
    "--target", help="tensorrt, tensorrt-rtx:sm86,sm89, openvino, onnxruntime[:cuda] [default: the best here]"
)
@click.option("--calibration", type=CLIP, multiple=True, help="Images, folder or video; repeatable [default: calib/]")
@click.option("--topic", help="Of robot logs [default: the only one with images]")
@click.option("--calib", type=PATH, default=Path("calib"), show_default=True, help="Folder of frames and ranges.")
@click.option(
    "--method", default="auto", show_default=True, help="int8 and fp8 ranges: auto, minmax, percentile, entropy, mse"
)
@click.option("--max-frames", type=int, default=64, show_default=True, help="Calibration frames, at most.")
@click.option(
    "--select",
    default="even",
    show_default=True,
    help="Calibration frames: even (spacing), or diverse: those that cover the clip.",
)
@click.option("--recalibrate", is_flag=True, help="Measure ranges anew, replacing those kept in calib/MODEL.json.")
@click.option(
    "--validation", type=PATH, help="int8, fp8: images or video that accuracy is measured on; not calibrated on."
)
@click.option("--labels", type=LABELS, help="Label maps of --validation [default: beside it, else FP32's labels]")
@click.option("--max-miou-drop", type=float, help="Budget in points: the fastest precisions that keep it are searched.")
@click.option("--max-class-drop", type=float, help="Budget in points, for every class.")
@click.option(
    "--budget-on",
    type=click.Choice(["interval", "mean"]),
    help="What is held to it: the upper end of the drop's 95 % interval, or the mean. [default: interval]",
)
@click.option("--html", type=PATH, help="With a budget: write the search's table and Pareto plot as a page.")
@click.option("--name", help="The bundle's name [default: MODEL-PRECISION-TARGET[-bBATCH]]")
@click.option("--output", "folder", type=PATH, default=Path("engines"), show_default=True, help="Folder of bundles.")
@click.option("--batch", type=int, help="Frames that the engine computes at once [default: as exported]")
@click.option("--no-optimize", is_flag=True, help="Leave the graph as exported.")
@click.option("--shapes", help="For dynamic models: MIN,BEST,MAX, each as NxHxW")
@click.option("--workspace-mib", type=int, help="TensorRT: most scratch memory.")
@click.option("--version-compatible", is_flag=True, help="TensorRT: run on later minor versions too.")
@click.option("--hardware-compatible", is_flag=True, help="TensorRT: run on later GPU generations too.")
@click.option("--timing-cache", type=PATH, help="TensorRT: file that keeps kernel timings between builds.")
def build(
    model: Path | None,
    precision: str | None,
    target: str | None,
    calibration: tuple[Path, ...],
    html: Path | None,
    **choices: Any,
) -> None:
    """Build an engine from MODEL and pack it as a bundle.

    The bundle proves itself whenever it is loaded. Without MODEL the newest in engines/ is taken. int8 and fp8
    calibrate on --calibration, or on what lies in calib/.
    """
    from fcnopt.builder import build as run
    from fcnopt.bundle import Bundle
    from fcnopt.locate import ENGINES, newest_model, read_search
    from fcnopt.report.page import check_writable
    from fcnopt.report.summaries import print_built
    from fcnopt.settings import BuildSettings, checked_precision

    settings = BuildSettings.parse(html=html, **choices)
    if html is not None:
        check_writable(html)
    wanted = checked_precision(precision) if precision else None
    model = model or chosen(newest_model(settings.folder), "MODEL")
    try:
        with progress() as console:
            path = run(
                model,
                precision=wanted,
                target=target,
                calibration=calibration or None,
                settings=settings,
                progress=console,
            )
    except GateError:  # the budget is missed: there is no bundle, but a search to learn from
        show_search(missed_search(settings.calib, model, wanted, target), settings.name or model.stem, html)
        raise
    print_built(Bundle.read(path))
    show_search(read_search(path), path.name, html)
    click.echo("next: fcnopt bench VIDEO" + ("" if settings.folder == ENGINES else f" --engine {path}"))


def missed_search(calib: Path, model: Path, precision: Precision | None, target: str | None) -> Search | None:
    """What the search of a build found that ended with its budget missed: it is kept beside the ranges."""
    from fcnopt.backends import Target, default_target
    from fcnopt.builder import recipe_place
    from fcnopt.quantize.recipe import Recipe

    if precision is None:
        return None
    aim = Target.parse(target) if target else default_target()
    return Recipe.load(recipe_place(calib, model, precision, aim.form)).search


def show_search(search: Search | None, name: str, html: Path | None) -> None:
    """Print what a budget search found, and write it as a page."""
    from fcnopt.bundle import write_text
    from fcnopt.report.search import print_search, render_search

    if search is None:
        return
    print_search(search)
    if html is not None:
        write_text(html, render_search(search, name))
        click.echo(f"wrote {html}")
