"""What all commands share: paths, errors without a trace, progress."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import click

from fcnopt.errors import FcnoptError

if TYPE_CHECKING:
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
