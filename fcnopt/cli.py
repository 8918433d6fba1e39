"""The command line: parse, call one function, print, exit code."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import click

import fcnopt
from fcnopt.errors import FcnoptError

if TYPE_CHECKING:
    from fcnopt.models.fcn import Padding
    from fcnopt.report.progress import ConsoleProgress

P = ParamSpec("P")
R = TypeVar("R")
PATH = click.Path(path_type=Path)


def fails_plainly(command: Callable[P, R]) -> Callable[P, R]:
    """Print a user's mistake as message and fix, without a traceback, and exit with its code."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except FcnoptError as error:
            click.echo(f"error: {error}", err=True)
            sys.exit(error.exit_code)
        except KeyboardInterrupt:
            click.echo("interrupted; nothing half-written was kept", err=True)
            sys.exit(130)

    return wrapped


def taken(path: Path, what: str) -> Path:
    """Say which file a command took by itself."""
    click.echo(f"taking {path} ({what})")
    return path


@contextlib.contextmanager
def progress() -> Iterator[ConsoleProgress]:
    """A progress callback for the console."""
    from fcnopt.report.progress import ConsoleProgress

    with ConsoleProgress() as console:
        yield console


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(fcnopt.__version__, prog_name="fcnopt")
def main() -> None:
    """Take a trained fully convolutional network to engines that a car can run.

    \b
    The three steps, one after another in one folder:
      fcnopt export fcn8s.pth              checkpoint -> engines/fcn8s.onnx, verified against PyTorch
      fcnopt build --precision int8        -> engines/fcn8s-int8-TARGET/, calibrated on what lies in calib/
      fcnopt bench video.mp4               FPS, latency, and mIoU against the FP32 reference
    Each takes the newest result of the one before it, or what you name.
    """  # noqa: D301  (click reads the escape)


@main.command()
@click.argument("checkpoint", type=PATH, required=False)
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
@click.option("--frames", type=PATH, help="Image, folder or video to verify on [default: seeded random frames]")
@fails_plainly
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
    frames_there = any(path.suffix not in (".json", ".md") for path in Path("calib").glob("*"))
    first = "" if frames_there else "put frames of the camera into calib/, then "
    click.echo(f"next: {first}fcnopt build --precision int8")


@main.command()
@click.argument("model", type=PATH, required=False)
@click.option("-o", "--output", type=PATH, help="[default: MODEL.opt.onnx]")
@fails_plainly
def optimize(model: Path | None, output: Path | None) -> None:
    """Run the graph passes on MODEL and show what each did.

    Takes any ONNX file; without MODEL the newest in engines/. `fcnopt build` runs the same passes by itself.
    """
    from fcnopt.builder import optimize as run
    from fcnopt.locate import ENGINES, newest_model
    from fcnopt.report.summaries import print_passes

    model = model or taken(newest_model(ENGINES), "the newest model")
    with progress() as console:
        path, reports = run(model, output, progress=console)
    print_passes(reports)
    click.echo(f"wrote {path}")


@main.command()
@click.argument("model", type=PATH, required=False)
@click.option("--precision", help="fp32, fp16, bf16, int8, or fp8 (sm89 on) [default: the best half precision]")
@click.option(
    "--target", help="tensorrt, tensorrt-rtx:sm86,sm89, openvino, onnxruntime[:cuda] [default: the best here]"
)
@click.option("--calibration", type=PATH, multiple=True, help="Images, folder or video; repeatable [default: calib/]")
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
@click.option("--labels", type=PATH, help="Label maps of --validation [default: beside it, else FP32's labels]")
@click.option("--max-miou-drop", type=float, help="Budget in points: the fastest precisions that keep it are searched.")
@click.option("--max-class-drop", type=float, help="Budget in points, for every class.")
@click.option(
    "--budget-on",
    type=click.Choice(["interval", "mean"]),
    default="interval",
    show_default=True,
    help="What is held to it: the upper end of the drop's 95 % interval, or the mean.",
)
@click.option("--html", type=PATH, help="Write the search's table and Pareto plot as a page.")
@click.option("--name", help="The bundle's name [default: MODEL-PRECISION-TARGET]")
@click.option("--output", "folder", type=PATH, default=Path("engines"), show_default=True, help="Folder of bundles.")
@click.option("--no-optimize", is_flag=True, help="Leave the graph as exported.")
@click.option("--shapes", help="For dynamic models: MIN,BEST,MAX, each as NxHxW")
@click.option("--workspace-mib", type=int, help="TensorRT: most scratch memory.")
@click.option("--version-compatible", is_flag=True, help="TensorRT: run on later minor versions too.")
@click.option("--hardware-compatible", is_flag=True, help="TensorRT: run on later GPU generations too.")
@click.option("--timing-cache", type=PATH, help="TensorRT: file that keeps kernel timings between builds.")
@fails_plainly
def build(
    model: Path | None,
    precision: str | None,
    target: str | None,
    calibration: tuple[Path, ...],
    html: Path | None,
    **choices: Any,
) -> None:
    """Build an engine from MODEL and pack it as a bundle that proves itself.

    Without MODEL the newest in engines/ is taken. int8 and fp8 calibrate on --calibration, or on what lies in calib/.
    """
    from fcnopt.builder import build as run
    from fcnopt.bundle import Bundle
    from fcnopt.locate import newest_model
    from fcnopt.report.summaries import print_built
    from fcnopt.settings import BuildSettings, checked_precision

    settings = BuildSettings.parse(**choices)
    wanted = checked_precision(precision) if precision else None
    model = model or taken(newest_model(settings.folder), "the newest model")
    with progress() as console:
        path = run(
            model,
            precision=wanted,
            target=target,
            calibration=calibration or None,
            settings=settings,
            progress=console,
        )
    print_built(Bundle.read(path))
    show_search(path, html)
    click.echo("next: fcnopt bench VIDEO")


def show_search(bundle: Path, html: Path | None) -> None:
    """Print what a budget search found, and write it as a page."""
    from fcnopt.bundle import write_text
    from fcnopt.locate import read_search
    from fcnopt.report.search import print_search, render_search

    search = read_search(bundle)
    if search is None:
        return
    print_search(search)
    if html is not None:
        write_text(html, render_search(search, bundle.name))
        click.echo(f"wrote {html}")


@main.command()
@click.argument("clip", type=PATH)
@click.option("--engine", "engines", type=PATH, multiple=True, help="Bundle, ONNX file or checkpoint; repeatable.")
@click.option("--labels", type=PATH, help="Folder of label maps [default: beside CLIP in a known layout, else none]")
@click.option("--reference", default="fp32", show_default=True, help="fp32, or an ONNX file or checkpoint.")
@click.option("--padding", type=click.Choice(["same", "caffe"]), help="For a checkpoint without BatchNorm.")
@click.option("--max-frames", type=int, help="Bench no more than the first of this many frames.")
@click.option("--json", type=PATH, help="Write the result as data.")
@click.option("--html", type=PATH, help="Write a page with tables, charts and frames.")
@click.option("--overlay", type=PATH, help="Write a video (.mp4) with the first engine's labels.")
@click.option("--record", is_flag=True, help="Keep the figures in the bundles' manifests.")
@click.option("--per-class", is_flag=True, help="Print IoU and drop of every class too.")
@click.option("--max-miou-drop", type=float, help="Gate, in points: exit 1 if an engine loses more.")
@click.option("--max-class-drop", type=float, help="Gate, in points, for the worst class.")
@click.option("--min-fps", type=float, help="Gate: exit 1 if an engine is slower end to end.")
@fails_plainly
def bench(
    clip: Path,
    engines: tuple[Path, ...],
    labels: Path | None,
    reference: str,
    padding: Padding | None,
    max_frames: int | None,
    per_class: bool,
    **choices: Any,
) -> None:
    """Measure engines on CLIP: FPS, latency, and mIoU against the FP32 reference.

    CLIP is a video, or a folder of images. Without --engine the newest bundle is taken. Without labels the
    reference's labels are the truth.
    """
    from fcnopt.benchmark import BenchFiles
    from fcnopt.benchmark import bench as run
    from fcnopt.evaluate.result import check_gates, check_limits
    from fcnopt.locate import ENGINES, newest_bundle
    from fcnopt.report.terminal import print_bench

    gates = {name: choices.pop(name) for name in ("max_miou_drop", "max_class_drop", "min_fps")}
    check_limits(**gates)
    files = BenchFiles(**choices)
    engines = engines or (taken(newest_bundle(ENGINES), "the newest engine"),)
    with progress() as console:
        result = run(
            clip,
            engines=engines,
            labels=labels,
            reference=reference,
            max_frames=max_frames,
            padding=padding,
            files=files,
            show=lambda found: print_bench(found, per_class=per_class),
            progress=console,
        )
    for path in (files.json, files.html, files.overlay):
        if path is not None:
            click.echo(f"wrote {path}")
    check_gates(result, **gates)


@main.command()
@click.argument("a", type=PATH)
@click.argument("b", type=PATH)
@click.argument("clip", type=PATH)
@click.option("--max-frames", type=int, default=16, show_default=True, help="Frames to compare, evenly spaced.")
@click.option("--alone", is_flag=True, help="Also run each layer of B on A's inputs: the layer's own noise, measured.")
@click.option("--top", type=click.IntRange(min=1), help="Print only the N worst layers, worst first.")
@click.option("--json", type=PATH, help="Write the result as data.")
@click.option("--html", type=PATH, help="Write a page with plot and table.")
@fails_plainly
def compare(a: Path, b: Path, clip: Path, top: int | None, **choices: Any) -> None:
    """Show where two precisions part on CLIP, layer by layer: A is the reference, B is judged.

    A and B are bundles or ONNX files; tensors are matched by name. Per layer: the signal-to-noise ratio (SQNR) of its
    result, and how much of the noise is its own.
    """
    from fcnopt.comparison import compare as run
    from fcnopt.report.parting import print_comparison

    with progress() as console:
        result = run(a, b, clip, progress=console, **choices)
    print_comparison(result, top=top)
    for path in (choices["json"], choices["html"]):
        if path is not None:
            click.echo(f"wrote {path}")


@main.command()
@click.argument("path", type=PATH)
@click.option("--json", "as_json", is_flag=True, help="Print as data.")
@fails_plainly
def inspect(path: Path, as_json: bool) -> None:
    """Show what a bundle or an ONNX file holds: spec, statistics, layers with their precision."""
    from fcnopt.inspection import inspect as run
    from fcnopt.report.summaries import print_inspection

    found = run(path)
    if as_json:
        click.echo(found.to_json())
    else:
        print_inspection(str(found.path), found.spec, found.stats, found.manifest)


@main.command()
@fails_plainly
def doctor() -> None:
    """List what this machine can build and run, and what to install for the rest."""
    from fcnopt.backends import survey
    from fcnopt.backends.machine import describe_machine
    from fcnopt.report.summaries import print_doctor

    print_doctor(describe_machine(), survey())


@main.command()
@click.option("-o", "--output", type=PATH, default=Path("demo-out"), show_default=True, help="Folder for the results.")
@fails_plainly
def demo(output: Path) -> None:
    """Run the whole road on the embedded network and a rendered driving clip, in about a minute."""
    from fcnopt.bundle import Bundle
    from fcnopt.demo import demo as run
    from fcnopt.report.summaries import print_built, print_passes
    from fcnopt.report.terminal import print_bench

    with progress() as console:
        result = run(output, say=click.echo, progress=console)
    print_passes(result.passes)
    for path in result.bundles:
        print_built(Bundle.read(path))
    for reason in result.skipped:
        click.echo(f"not built: {reason}")
    print_bench(result.bench, per_class=True)
    click.echo(f"look at {output}/report.html and {output}/overlay.mp4")


if __name__ == "__main__":
    main()
