"""What all commands share: inputs, errors without a trace, progress."""

from __future__ import annotations

import contextlib
import difflib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fcnopt.errors import FcnoptError, UsageError

if TYPE_CHECKING:
    from fcnopt.report.progress import ConsoleProgress

PATH = click.Path(path_type=Path)
decoder_option = click.option(
    "--decoder",
    type=click.Choice(["pyav", "nvdec", "auto"]),
    default="pyav",
    show_default=True,
    help="Of a video: the CPU, the GPU (PyNvVideoCodec), or the GPU where it can.",
)
"""`--decoder`, for each command that runs engines on a clip."""

# By command: what a word too many was probably meant for.
_MEANT = {
    "bench": "give each engine with --engine: fcnopt bench CLIP --engine BUNDLE",
    "build": "give frames with --calibration, the rest with --precision and --target",
    "compare": "two files are compared on one clip",
    "demo": "name the folder with -o",
    "deploy": "name the stack with --to, the folder with -o",
    "export": "name the result with -o, give frames to verify on with --frames",
    "inspect": "it shows one bundle or file at a time",
    "optimize": "name the result with -o",
    "slim": "give the frames with --frames, name the result with -o",
}


class InputPath(click.Path):
    """A path that has to be there; `Command` checks that before any library is loaded.

    Args:
        fix: What to give instead of one that is not there.
        file: Whether a folder is refused. A bundle is not: the commands say what to give in its place.
    """

    def __init__(self, fix: str, *, file: bool = False) -> None:
        super().__init__(path_type=Path)
        self.fix, self.file = fix, file

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """As click does; but an empty text, as an unset variable gives, is not the working folder."""
        if value == "":
            self.fail(f"an empty path\n  fix: {self.fix}", param, ctx)
        return super().convert(value, param, ctx)

    def check(self, path: Path) -> None:
        """Refuse a path that is not there.

        Raises:
            UsageError: It is not there, or is a folder where a file is wanted.
        """
        if not path.exists():
            siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
            near = difflib.get_close_matches(path.name, siblings)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise UsageError(f"{path}: no such file{'' if self.file else ' or folder'}{hint}", fix=self.fix)
        if self.file and path.is_dir():
            from fcnopt.bundle import MANIFEST

            if not (path / MANIFEST).is_file():
                raise UsageError(f"{path}: is a folder, expected a file", fix=self.fix)


CLIP = InputPath("give the path of a video, a robot log, a picture or a folder of pictures")
CHECKPOINT = InputPath("give the path of the trained network's .pth file", file=True)
MODEL = InputPath("give the path of an ONNX file", file=True)
BUNDLE = InputPath("give the folder engines/NAME")
BUNDLE_OR_MODEL = InputPath("give a folder engines/NAME, or an .onnx file")
LABELS = InputPath("give the folder of label maps")


class Command(click.Command):
    """A command whose inputs are there, and that prints a user's mistake as message and fix, without a trace."""

    allow_extra_args = True  # so that `parse_args` can say what they were meant for

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click does, with a hint for words too many."""
        more = super().parse_args(ctx, args)
        if more and not ctx.resilient_parsing:
            words = "argument" if len(more) == 1 else "arguments"
            meant = _MEANT.get(self.name or "")
            ctx.fail(f"Got unexpected extra {words} ({' '.join(more)})" + (f"\n  fix: {meant}" if meant else ""))
        return more

    def invoke(self, ctx: click.Context) -> Any:
        """Run it, and exit with the code of what went wrong."""
        try:
            _check_inputs(ctx)
            return super().invoke(ctx)
        except FcnoptError as error:
            click.echo(f"error: {error}", err=True)
            sys.exit(error.exit_code)
        except KeyboardInterrupt:
            click.echo("interrupted; nothing half-written was kept", err=True)
            sys.exit(130)


def _check_inputs(ctx: click.Context) -> None:
    for parameter in ctx.command.params:
        given = ctx.params.get(parameter.name or "")
        if isinstance(parameter.type, InputPath) and given is not None:
            for path in given if isinstance(given, tuple) else (given,):
                parameter.type.check(path)


def chosen(path: Path, what: str) -> Path:
    """Say which file a command chose by itself, since `what` was not given."""
    click.echo(f"no {what} given: using {path}, the newest")
    return path


@contextlib.contextmanager
def progress() -> Iterator[ConsoleProgress]:
    """A progress callback for the console."""
    from fcnopt.report.progress import ConsoleProgress

    with ConsoleProgress() as console:
        yield console
