"""What all deployments share: their folder, the bundle in it, and texts that are filled in."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fcnopt.bundle import MANIFEST, SIGNATURE, Bundle, write_text
from fcnopt.errors import BundleError
from fcnopt.leftovers import clear_up, exchange, part_of
from fcnopt.signing import hash_member

MARK = ".fcnopt-deployment"
"""File that tells a deployment, which may be replaced, from any other folder; it lists what was written."""


@contextlib.contextmanager
def replaced(place: Path) -> Iterator[Path]:
    """A new folder that takes `place` when the block ends well, and vanishes when it does not.

    Raises:
        BundleError: `place` is something else than an earlier deployment or an empty folder, or an earlier one to which
            files were added, or cannot be written.
        UsageError: `place` is the working folder.
    """
    folder = part_of(place, ".partial")
    clear_up(place)
    kept = place.exists() and not (place / MARK).is_file()
    if kept and (not place.is_dir() or any(place.iterdir())):
        raise BundleError(f"{place} exists and is no deployment", fix="move it away, or give another --output")
    added = () if kept or not place.exists() else _added(place)
    if added:
        more = f" and {len(added) - 1} more" if len(added) > 1 else ""
        raise BundleError(
            f"{place}: {added[0]}{more} was added since deploy wrote the folder, and would be lost",
            fix="move it away, or give another --output",
        )
    try:
        folder.mkdir(parents=True)
        yield folder
        write_text(folder / MARK, "".join(f"{name}\n" for name in _files(folder)))
        exchange(folder, place)
    except OSError as error:
        raise BundleError(
            f"{place}: cannot be written: {error.strerror or error}",
            fix="free disk space, or give another folder with --output",
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def copy_bundle(bundle: Bundle, place: Path) -> None:
    """Copy a bundle whole, with its signature; what was copied is what was checked.

    Raises:
        BundleError: A file of it is missing, changed or not listed.
    """
    place.mkdir(parents=True)
    bundle.verify({name: place / name for name in bundle.manifest.files})
    for name in (MANIFEST, SIGNATURE):
        if (bundle.path / name).exists():
            hash_member(bundle.path / name, place / name)
    copy = Bundle.read(place)
    if copy.manifest != bundle.manifest or copy.signer != bundle.signer:
        raise BundleError(f"{bundle.path}: was changed while it was copied", fix="deploy it again")


def render(template: Path, values: Mapping[str, Any]) -> str:
    """A text with its `{{ places }}` filled in; a value that is missing is an error."""
    import jinja2

    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701  (plain text for people and programs, no page)
    )
    return environment.from_string(template.read_text(encoding="utf-8")).render(values)


def _files(folder: Path) -> list[str]:
    """All files below a folder but the mark, by their paths in it."""
    found = (str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())
    return sorted(name for name in found if name != MARK)


def _added(place: Path) -> tuple[str, ...]:
    """Files of a deployment that it did not have when it was written."""
    written = set((place / MARK).read_text("utf-8").splitlines()) if (place / MARK).is_file() else set()
    return tuple(name for name in _files(place) if name not in written)
