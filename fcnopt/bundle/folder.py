"""A bundle on disk: its manifest, read after its signature was checked, and its files, held against their hashes."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fcnopt.backends import Target
from fcnopt.bundle.staging import write_text
from fcnopt.errors import BundleError
from fcnopt.manifest import Manifest
from fcnopt.selftest import SELFTEST
from fcnopt.signing import MANIFEST, SIGNATURE, TrustedKeys, check, hash_member, read_member, required_keys

MODEL = "model.onnx"
RECIPE = "recipe.json"
_MAX_MANIFEST_BYTES = 16 << 20
_MAX_SIGNATURE_BYTES = 4096  # a whole one has 227
# What `write_text` leaves where it is killed, or is just writing; nothing reads it.
_UNFINISHED = re.compile(r"\.manifest\.(json|sig)\.\d+(-[0-9a-f]{8})?\.(tmp|partial)")


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk whose manifest was read but whose files were not yet checked.

    Attributes:
        path: Its folder.
        manifest: What it says of itself.
        signer: Fingerprint of the key that signed it, None where it is unsigned.
        trusted: Whether that key is one of those that were required.
    """

    path: Path
    manifest: Manifest
    signer: str | None = None
    trusted: bool = False

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
        """Read a bundle's manifest to look at it; whoever signed it, and whether or not anybody did.

        Raises:
            BundleError: There is no bundle at `path`, its manifest cannot be used, or was changed after signing.
        """
        return read_bundle(Path(path), {})[0]

    @classmethod
    def read_trusted(cls, path: str | Path, trusted_keys: TrustedKeys = ()) -> Bundle:
        """Read a bundle's manifest to use its files: its signature first, where keys are required.

        Args:
            path: The folder engines/NAME.
            trusted_keys: See `load`.

        Raises:
            BundleError: As `read`; or keys are required, and none of them signed the manifest as it is.
            UsageError: A key cannot be used.
        """
        return read_bundle(Path(path), required_keys(trusted_keys))[0]

    def verify(self, copies: Mapping[str, Path] | None = None) -> None:
        """Compare every file with its hash.

        Args:
            copies: By name, where a copy of a file goes; what was copied is what was hashed.

        Raises:
            BundleError: A file is missing, changed, not listed, or no regular file; names it.
        """
        own = (MANIFEST, SIGNATURE)
        present = {p.name for p in self.path.iterdir() if p.name not in own and not _UNFINISHED.fullmatch(p.name)}
        listed = set(self.manifest.files)
        for name in sorted(listed ^ present):
            what = "is missing" if name in listed else "is not listed in manifest.json"
            raise BundleError(f"{self.path / name} {what}", fix="copy the whole folder again, or build it again")
        for name, expected in sorted(self.manifest.files.items()):
            found = hash_member(self.path / name, (copies or {}).get(name))
            if found != expected:
                raise BundleError(
                    f"{self.path / name}: SHA-256 is {found[:12]}..., the manifest says {expected[:12]}...",
                    fix="the file was changed or damaged: copy the bundle again, or build it again",
                )

    @contextlib.contextmanager
    def verified_copy(self) -> Iterator[Path]:
        """A folder, for this user alone, with the engine and its known-answer test as they were verified.

        A runtime opens files by their path, and some map them into memory. So who may write to the bundle could change
        a file after it was hashed, even while it runs; here they cannot. It vanishes when the block ends; what a
        runtime has mapped by then stays.

        Raises:
            BundleError: See `verify`; or there is no room in the folder for temporary files.
        """
        try:
            private = tempfile.TemporaryDirectory(prefix="fcnopt-", ignore_cleanup_errors=True)
        except OSError as error:
            raise BundleError(f"{self.path}: cannot be copied: {error}", fix="set TMPDIR to a folder") from error
        with private as place:
            folder = Path(place) / self.path.resolve().name  # errors name a bundle by its folder
            folder.mkdir()
            self.verify({name: folder / name for name in (*self.manifest.engine, SELFTEST)})
            yield folder

    def check_recordable(self) -> None:
        """Refuse what would make a signature void.

        Raises:
            BundleError: The bundle is signed.
        """
        if os.path.lexists(self.path / SIGNATURE):
            raise BundleError(
                f"{self.path}: is signed, and a measurement in manifest.json would void the signature",
                fix=f"record before signing, or remove {SIGNATURE}, record, and sign again",
            )

    def record(self, measurement: dict[str, Any]) -> None:
        """Add a measurement to the manifest, in place of an earlier one on the same clip and machine in this mode.

        Raises:
            BundleError: The bundle is signed.
        """
        self.check_recordable()

        def key(entry: dict[str, Any]) -> tuple[Any, ...]:
            gpus = tuple(entry.get("gpus") or ())
            return entry.get("clip"), entry.get("cpu"), gpus, entry.get("mode", "latency")

        kept = tuple(m for m in self.manifest.measurements if key(m) != key(measurement))
        write_text(self.path / MANIFEST, replace(self.manifest, measurements=(*kept, measurement)).to_json())


def read_bundle(folder: Path, trusted: Mapping[bytes, str]) -> tuple[Bundle, bytes]:
    """A bundle, and the bytes of its manifest: those that were checked against the signature are those parsed."""
    file = folder / MANIFEST
    if not file.is_file():
        what = "is not a bundle: it has no manifest.json" if folder.is_dir() else "does not exist"
        raise BundleError(f"{folder} {what}", fix="build one with `fcnopt build`, or give the folder engines/NAME")
    content = read_member(file, _MAX_MANIFEST_BYTES)
    signed = os.path.lexists(folder / SIGNATURE)
    signature = read_member(folder / SIGNATURE, _MAX_SIGNATURE_BYTES) if signed else None
    signer = check(content, signature, folder, trusted)
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise BundleError(f"{file}: cannot be read: {error}", fix="build the bundle again") from error
    return Bundle(folder, Manifest.from_json(text, file), signer, bool(trusted)), content
