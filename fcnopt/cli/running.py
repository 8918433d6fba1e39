"""The command that runs an engine over a clip and keeps its labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fcnopt.cli.console import BUNDLE, CLIP, PATH, Command, chosen, decoder_option, progress
from fcnopt.cli.signing import trusted_key_option


@click.command(cls=Command)
@click.argument("clip", type=CLIP)
@click.option(
    "-o",
    "--output",
    type=PATH,
    required=True,
    help="Labels: .mkv (lossless video), .mcap (messages, with an overlay), or a folder (PNGs).",
)
@click.option("--engine", type=BUNDLE, help="Bundle [default: the newest in engines/ that runs here]")
@click.option("--topic", help="Of a robot log [default: the only one with images]")
@click.option("--max-frames", type=click.IntRange(min=1), help="Most frames, from the clip's start.")
@click.option(
    "--mode",
    type=click.Choice(["latency", "throughput"]),
    default="latency",
    show_default=True,
    help="One batch in flight, or as many as pay.",
)
@decoder_option
@click.option("--max-latency-ms", type=float, help="Count frames whose labels come later than this as late.")
@trusted_key_option
@click.option("--rerun", type=PATH, help="Log frames, labels and timings to this Rerun file (.rrd) too.")
@click.option("--overwrite", is_flag=True, help="Replace files that are there.")
def run(clip: Path, output: Path, engine: Path | None, **choices: Any) -> None:
    """Run an engine over CLIP and write its labels.

    CLIP is a video, a robot log (MCAP, ROS bag), a picture or a folder of pictures. Each label map has its frame's
    size, and the frame's time. Interrupted, it leaves nothing.
    """
    from fcnopt.locate import ENGINES, newest_bundle
    from fcnopt.recording import RunOptions
    from fcnopt.recording import run as record

    options = RunOptions(**choices)
    engine = engine or chosen(newest_bundle(ENGINES), "--engine")
    with progress() as console:
        result = record(clip, engine, output, options=options, progress=console)
    click.echo(result.describe())
