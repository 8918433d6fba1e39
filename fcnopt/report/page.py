"""The pages: where they can be written, and their templates, each of which extends `base.html`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fcnopt.errors import UsageError

if TYPE_CHECKING:
    import jinja2


def template(name: str, filters: Mapping[str, Callable[..., Any]] | None = None) -> jinja2.Template:
    """A template of this folder; what it shows is escaped, and a value that it lacks is an error.

    Args:
        name: Of its file.
        filters: That it uses beside Jinja's own.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fcnopt.report", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= filters or {}
    return environment.get_template(name)


def check_writable(file: Path) -> None:
    """Refuse a place where no report can be written, before the work that it reports on: that takes minutes.

    Raises:
        UsageError: It is a folder, or lies in one that is missing or read-only.
    """
    if file.is_dir() or not file.parent.is_dir() or not os.access(file.parent, os.W_OK):
        raise UsageError(
            f"{file}: cannot be written there: it is a folder, or lies in one that is missing or read-only",
            fix="give a file in an existing folder",
        )
