"""The commands that show what there is: in a file, on this machine, and as a demonstration."""

from __future__ import annotations

from pathlib import Path

import click

from fcnopt.cli.console import BUNDLE_OR_MODEL, PATH, Command, progress


@click.command(cls=Command)
@click.argument("path", type=BUNDLE_OR_MODEL)
@click.option("--json", "as_json", is_flag=True, help="Print as data.")
def inspect(path: Path, as_json: bool) -> None:
    """Show what a bundle or an ONNX file holds.

    The spec, statistics, and layers with their precision.
    """
    from fcnopt.inspection import inspect as run
    from fcnopt.report.summaries import print_inspection

    found = run(path)
    if as_json:
        click.echo(found.to_json())
    else:
        print_inspection(found)


@click.command(cls=Command)
def doctor() -> None:
    """List what this machine can build and run.

    And what to install for the rest.
    """
    from fcnopt.backends import survey
    from fcnopt.backends.machine import describe_machine
    from fcnopt.report.summaries import print_doctor

    print_doctor(describe_machine(), survey())


@click.command(cls=Command)
@click.option("-o", "--output", type=PATH, default=Path("demo-out"), show_default=True, help="Folder for the results.")
def demo(output: Path) -> None:
    """Run the whole road on an embedded network, in a minute.

    A driving clip is rendered; engines for this machine and for RTX cards are built and measured on it.
    """
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
