"""Bundles: a folder that holds an engine, proves that it is whole, and proves that it still answers right.

    engines/NAME/manifest.json   what it is, for which device, hashes of every other file, what was measured
    engines/NAME/model.onnx      the precision graph that the engine was built from
    engines/NAME/engine.*        the engine
    engines/NAME/selftest.npz    a frame and its labels (the known-answer test)

A bundle is written to a temporary folder beside its place and renamed, so a killed build leaves nothing that loads.
Loading checks every hash before a byte reaches a runtime's deserializer, then runs the known-answer test.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fcnopt.backends import Target, open_engine
from fcnopt.backends.base import Mode
from fcnopt.engine import Engine
from fcnopt.errors import BundleError, FcnoptError
from fcnopt.manifest import Manifest
from fcnopt.selftest import SELFTEST, run_selftest

MANIFEST = "manifest.json"
MODEL = "model.onnx"
RECIPE = "recipe.json"
_MAX_MANIFEST_BYTES = 16 << 20


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk whose manifest was read but whose files were not yet checked."""

    path: Path
    manifest: Manifest

    @property
    def model(self) -> Path:
        """The precision ONNX file."""
        return self.path / MODEL

    @property
    def target(self) -> Target:
        """What the engine is for."""
        return Target.parse(self.manifest.target)

    @classmethod
    def read(cls, path: str | Path) -> Bundle:
        """Read a bundle's manifest.

        Raises:
            BundleError: There is no bundle at `path`, or its manifest cannot be used.
        """
        folder = Path(path)
        file = folder / MANIFEST
        if not file.is_file():
            what = "is not a bundle: it has no manifest.json" if folder.is_dir() else "does not exist"
            raise BundleError(f"{folder} {what}", fix="build one with `fcnopt build`, or give the folder engines/NAME")
        if file.stat().st_size > _MAX_MANIFEST_BYTES:
            raise BundleError(f"{file}: over {_MAX_MANIFEST_BYTES >> 20} MiB", fix="build the bundle again")
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise BundleError(f"{file}: cannot be read: {error}", fix="build the bundle again") from error
        return cls(folder, Manifest.from_json(text, file))

    def verify(self) -> None:
        """Compare every file with its hash.

        Raises:
            BundleError: A file is missing, changed or not listed; names it.
        """
        present = {p.name for p in self.path.iterdir() if p.name != MANIFEST}
        listed = set(self.manifest.files)
        for name in sorted(listed ^ present):
            what = "is missing" if name in listed else "is not listed in manifest.json"
            raise BundleError(f"{self.path / name} {what}", fix="copy the whole folder again, or build it again")
        for name, expected in sorted(self.manifest.files.items()):
            found = sha256_of(self.path / name)
            if found != expected:
                raise BundleError(
                    f"{self.path / name}: SHA-256 is {found[:12]}..., the manifest says {expected[:12]}...",
                    fix="the file was changed or damaged: copy the bundle again, or build it again",
                )

    def record(self, measurement: dict[str, Any]) -> None:
        """Add a measurement to the manifest, in place of an earlier one on the same clip and machine in this mode."""

        def key(entry: dict[str, Any]) -> tuple[Any, ...]:
            return entry.get("clip"), entry.get("cpu"), entry.get("mode", "latency")

        kept = tuple(m for m in self.manifest.measurements if key(m) != key(measurement))
        write_text(self.path / MANIFEST, replace(self.manifest, measurements=(*kept, measurement)).to_json())


def load(path: str | Path, *, mode: Mode = "latency", selftest: bool = True) -> Engine:
    """Open a bundle: check its hashes, load its engine, run its known-answer test.

    Args:
        path: The folder engines/NAME.
        mode: "latency" computes one batch at a time, as fast as can be; "throughput" several in a `stream`, for most
            frames a second.
        selftest: Run the known-answer test. Leave it on unless the caller runs it.

    Raises:
        BundleError: The bundle is damaged, or its engine answers wrongly.
        BackendError: The runtime or the device is missing, or is another one than the engine was built for.
    """
    bundle = Bundle.read(path)
    bundle.verify()
    manifest = bundle.manifest
    files = tuple(bundle.path / name for name in manifest.engine)
    runner = open_engine(files, bundle.target, manifest.precision, manifest.spec, mode)
    engine = Engine(runner, manifest)
    try:
        if selftest:
            run_selftest(engine, bundle.path / SELFTEST, manifest.min_agreement)
    except BaseException:
        engine.close()
        raise
    return engine


def prepare(place: Path) -> None:
    """Make sure that a bundle can be written to `place`, and clear up what killed builds of it left.

    Raises:
        BundleError: `place` is something else than a bundle, or its folder cannot be written.
    """
    if place.exists() and not (place / MANIFEST).is_file():
        raise BundleError(f"{place} exists and is not a bundle", fix="move it away, or give another --name")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        _clear_up(place)
        with tempfile.TemporaryFile(dir=place.parent):
            pass
    except OSError as error:
        raise _unwritable(place, error) from error


def _unwritable(place: Path, error: OSError) -> BundleError:
    return BundleError(
        f"{place}: cannot be written: {error.strerror or error}",
        fix="free disk space or choose another folder with --output",
    )


@contextlib.contextmanager
def staged(place: Path) -> Iterator[Path]:
    """A temporary folder that takes `place` when the block ends well, and vanishes when it does not.

    An existing bundle at `place` stays until the new one is whole.

    Raises:
        BundleError: `place` is something else than a bundle, or cannot be written.
    """
    prepare(place)
    folder = place.with_name(f".{place.name}.{os.getpid()}-{secrets.token_hex(4)}.partial")
    try:
        folder.mkdir()
        yield folder
        _exchange(folder, place)
    except OSError as error:
        raise _unwritable(place, error) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def finish(folder: Path, manifest: Manifest) -> None:
    """Hash every file in `folder` and write the manifest."""
    files = {p.name: sha256_of(p) for p in sorted(folder.iterdir()) if p.name != MANIFEST}
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
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise FcnoptError(
            f"{path}: cannot be written: {error.strerror}", fix="free disk space or choose another place"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _exchange(folder: Path, place: Path) -> None:
    """Put `folder` at `place`; what was there is kept until it is."""
    old = folder.with_suffix(".old")
    replaced = place.exists()
    if replaced:
        place.rename(old)
    try:
        folder.rename(place)
    except OSError:
        if replaced:
            old.rename(place)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _clear_up(place: Path) -> None:
    """Remove what builds of `place` that were killed left, and bring back a bundle that one had moved aside."""
    name = re.compile(rf"\.{re.escape(place.name)}\.(\d+)-[0-9a-f]{{8}}\.(partial|old)")
    for entry in place.parent.iterdir():
        found = name.fullmatch(entry.name)
        if found is None or _is_running(int(found[1])):
            continue
        if found[2] == "old" and not place.exists():
            entry.rename(place)
        else:
            shutil.rmtree(entry, ignore_errors=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
