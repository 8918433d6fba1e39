"""Writing bundles: whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from fcnopt.errors import BundleError, FcnoptError
from fcnopt.leftovers import clear_up, exchange, part_of
from fcnopt.manifest import Manifest
from fcnopt.signing import MANIFEST, SIGNATURE


def prepare(place: Path) -> None:
    """Make sure that a bundle can be written to `place`, and clear up what killed builds of it left.

    Raises:
        BundleError: `place` is something else than a bundle, or its folder cannot be written.
    """
    if place.exists() and not (place / MANIFEST).is_file():
        raise BundleError(f"{place} exists and is not a bundle", fix="move it away, or give another --name")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        clear_up(place)
        with tempfile.TemporaryFile(dir=place.parent):
            pass
    except OSError as error:
        raise _unwritable(place, error) from error


@contextlib.contextmanager
def staged(place: Path) -> Iterator[Path]:
    """A temporary folder that takes `place` when the block ends well, and vanishes when it does not.

    An existing bundle at `place` stays until the new one is whole.

    Raises:
        BundleError: `place` is something else than a bundle, or cannot be written.
    """
    prepare(place)
    folder = part_of(place, ".partial")
    try:
        folder.mkdir()
        yield folder
        exchange(folder, place)
    except OSError as error:
        raise _unwritable(place, error) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def finish(folder: Path, manifest: Manifest) -> None:
    """Hash every file in `folder` and write the manifest."""
    files = {p.name: sha256_of(p) for p in sorted(folder.iterdir()) if p.name not in (MANIFEST, SIGNATURE)}
    write_text(folder / MANIFEST, replace(manifest, files=files).to_json())


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hex, read in pieces."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BundleError(f"{path}: cannot be read: {error.strerror}", fix="copy the bundle again") from error


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    temporary = part_of(path)
    try:
        clear_up(path)
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise FcnoptError(
            f"{path}: cannot be written: {error.strerror}", fix="free disk space or choose another place"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _unwritable(place: Path, error: OSError) -> BundleError:
    return BundleError(
        f"{place}: cannot be written: {error.strerror or error}",
        fix="free disk space or choose another folder with --output",
    )
