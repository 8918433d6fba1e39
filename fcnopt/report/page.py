"""The pages' templates: each extends `base.html`, which holds what all of them have."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

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
