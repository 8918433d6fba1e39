"""The command that makes a network smaller before it is exported."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from fcnopt.cli.console import CHECKPOINT, CLIP, LABELS, PATH, Command, progress
from fcnopt.errors import UsageError


@click.command(cls=Command)
@click.argument("checkpoint", type=CHECKPOINT)
@click.option(
    "--frames", type=CLIP, required=True, help="Folder of images or video to learn from; not those you prove on."
)
@click.option("--topic", help="Of a robot log [default: the only one with images]")
@click.option("--labels", type=LABELS, help="Label maps of --frames [default: beside them, else FP32's labels]")
@click.option("-o", "--output", type=PATH, help="Checkpoint to write [default: engines/CHECKPOINT-slim.pth]")
@click.option("--speedup", type=float, default=2.0, show_default=True, help="Of the INT8 network on the target.")
@click.option("--max-miou-drop", type=float, default=0.5, show_default=True, help="Budget in points.")
@click.option(
    "--budget-on",
    type=click.Choice(["interval", "mean"]),
    default="interval",
    show_default=True,
    help="What is held to it on held-out frames: the upper end of the drop's 95 % interval, or the mean.",
)
@click.option("--minutes", type=float, default=40.0, show_default=True, help="Time for recovery.")
@click.option("--classes", help="camvid, cityscapes, voc, or a JSON file {names, palette} [default: by their number]")
@click.option("--size", help="Frame size as HEIGHTxWIDTH [default: that of the frames]")
@click.option("--target", help="Where it shall run, as for build [default: the best here]")
@click.option("--padding", help="same or caffe: needed for a checkpoint without BatchNorm")
@click.option("--normalize", help="imagenet, caffe, unit, none, or MEAN/STD as R,G,B/R,G,B [default: by padding]")
@click.option("--at-once", is_flag=True, help="The FCN-8s was trained at once, with scaled pools (FCN8sAtOnce).")
@click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True, help="To train on."
)
@click.option("--work", type=PATH, help="Folder of intermediate results, to be kept [default: removed when done]")
def slim(
    checkpoint: Path,
    frames: Path,
    labels: Path | None,
    output: Path | None,
    classes: str | None,
    work: Path | None,
    **choices: Any,
) -> None:
    """Make CHECKPOINT faster by taking channels out and training on.

    The network learns from what CHECKPOINT itself answers on --frames; label maps help but need not be. Some of the
    frames are held out to judge by. A run that was stopped goes on where it was. Exits with 1 where the result,
    which is written all the same, misses the budget.
    """
    if checkpoint.suffix == ".onnx":
        raise UsageError(f"{checkpoint}: is an ONNX file", fix="give the checkpoint that it was exported from")
    from fcnopt.slimming.options import SlimOptions
    from fcnopt.slimming.slimmer import slim as run

    options = SlimOptions.parse(**choices)
    try:
        with progress() as console:
            result = run(
                checkpoint,
                frames,
                output,
                labels=labels,
                classes=classes,
                options=options,
                work=work,
                say=click.echo,
                progress=console,
            )
    except KeyboardInterrupt:
        click.echo("interrupted; the same command goes on from where it was", err=True)
        sys.exit(130)
    click.echo(result.describe())
    click.echo(f"next: fcnopt export {result.path}")
    if not result.kept:
        sys.exit(1)
