"""The command that packs a bundle for another stack."""

from __future__ import annotations

from pathlib import Path

import click

from fcnopt.cli.console import BUNDLE, PATH, Command
from fcnopt.cli.signing import trusted_key_option
from fcnopt.deployment import TARGETS


@click.command(cls=Command)
@click.argument("bundle", type=BUNDLE)
@click.option("--to", type=click.Choice(tuple(TARGETS)), required=True, help="What shall run it.")
@click.option("-o", "--output", type=PATH, help="Folder to write [default: deploy/NAME-TO]")
@trusted_key_option
def deploy(bundle: Path, to: str, output: Path | None, trusted_keys: tuple[Path, ...]) -> None:
    """Write a folder with all that another stack needs for BUNDLE.

    Its README.md says the exact commands.
    """
    from fcnopt.deployment import deploy as run

    place = run(bundle, to=to, output=output, trusted_keys=trusted_keys)
    click.echo(f"wrote {place}; next: see {place / 'README.md'}")
