"""Key pairs, and which public keys are trusted. PEM files as OpenSSL writes them: PKCS 8, SubjectPublicKeyInfo."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fcnopt.backends.packages import require
from fcnopt.errors import UsageError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

ENVIRONMENT = "FCNOPT_TRUSTED_KEYS"
"""Variable that names the keys, separated as in PATH, of which one must have signed what the process loads."""

TrustedKey = str | Path | bytes
TrustedKeys = TrustedKey | Collection[TrustedKey]
"""PEM files of public keys, folders of them, or public keys as 32 bytes."""
Passphrase = str | Callable[[], str]
"""A passphrase, or what is asked for it where a key needs one."""

_MAX_PEM_BYTES = 64 << 10
_KEY_FILES = (".pem", ".pub")
_TRUST_FIX = f"give a public key's PEM file, or a folder of them, in trusted_keys, --trusted-key or {ENVIRONMENT}"


def new_key(path: str | Path, *, passphrase: str | None = None) -> Path:
    """Make a key pair: the private key at `path`, readable by its owner alone, the public one at `path`.pub.

    Args:
        path: Where to; nothing is overwritten.
        passphrase: What to encrypt the private key with; None leaves it unencrypted.

    Returns:
        The public key's file: what those who load bundles need.

    Raises:
        UsageError: One of the files exists or cannot be written, or the passphrase is empty or too long.
    """
    require_cryptography()
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    private, public = Path(path), Path(f"{path}.pub")
    for file in (private, public):
        if os.path.lexists(file):
            raise UsageError(f"{file}: exists, and a key is not overwritten", fix="give another path for the new key")
    key = Ed25519PrivateKey.generate()
    kind: Any = serialization.NoEncryption()
    try:
        if passphrase is not None:
            kind = serialization.BestAvailableEncryption(passphrase.encode())
        secret = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, kind)
    except ValueError as error:
        raise UsageError(f"the passphrase of {private} cannot be used: {error}", fix="give 1 to 1023 bytes") from error
    shown = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    _create(private, secret, 0o600)
    try:
        _create(public, shown, 0o644)
    except BaseException:
        private.unlink()
        raise
    return public


def read_private_key(path: str | Path, passphrase: Passphrase | None = None) -> Ed25519PrivateKey:
    """Read a private key to sign with.

    Args:
        path: A PEM file, as `new_key` or `openssl genpkey -algorithm ed25519` writes it.
        passphrase: Of an encrypted key; not asked for where the key is not.

    Raises:
        UsageError: It is no Ed25519 private key, or the passphrase is missing or wrong.
    """
    require_cryptography()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    file, fix = Path(path), "give a private key's PEM file; `fcnopt sign --new-key PATH` makes one"
    data = _read_pem(file, fix)
    encrypted = b"-----BEGIN ENCRYPTED PRIVATE KEY-----" in data
    if encrypted and passphrase is None:
        raise UsageError(f"{file}: is encrypted, and no passphrase was given", fix="give its passphrase")
    if b"PRIVATE KEY-----" not in data:
        raise UsageError(f"{file}: is no private key in PEM form", fix=fix)
    words = (passphrase() if callable(passphrase) else passphrase) if encrypted else None
    try:
        key = load_pem_private_key(data, words.encode() if words is not None else None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        what = "the passphrase is wrong, or the file is damaged" if encrypted else f"cannot be read: {error}"
        raise UsageError(f"{file}: {what}", fix="give the right passphrase" if encrypted else fix) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise UsageError(f"{file}: is a key for another algorithm than Ed25519", fix=fix)
    return key


def required_keys(keys: TrustedKeys = ()) -> dict[bytes, str]:
    """The public keys, each with its name, of which one must have signed what is loaded; none where all may be.

    Args:
        keys: Those that the caller trusts. The empty tuple takes those that FCNOPT_TRUSTED_KEYS names, if it is set.

    Raises:
        UsageError: A key cannot be read; or keys are asked for, and there is none. An empty list is refused, since it
            is more often a pattern that matched nothing than the wish to load anything.
    """
    if keys == ():
        named = os.environ.get(ENVIRONMENT)
        if named is None:
            return {}
        keys = [part for part in named.split(os.pathsep) if part]
        if not keys:
            raise UsageError(f"{ENVIRONMENT} is set but names no key", fix="unset it, or name the keys' PEM files")
    found: dict[bytes, str] = {}
    for key in [keys] if isinstance(keys, str | Path | bytes) else keys:
        found |= _public_keys(key)
    if not found:
        raise UsageError("trusted_keys holds no key: a bundle could not be told from a forged one", fix=_TRUST_FIX)
    return found


def fingerprint(key: bytes) -> str:
    """What a public key is called: the first 16 hex digits of the SHA-256 of its 32 bytes."""
    return hashlib.sha256(key).hexdigest()[:16]


def require_cryptography() -> None:
    """Say how to install the package cryptography where it is missing.

    Raises:
        BackendError: It is, or it cannot be loaded.
    """
    require("cryptography.hazmat.primitives.serialization", install='pip install "cryptography>=42"')


def _public_keys(key: TrustedKey) -> dict[bytes, str]:
    """The keys that one entry of `trusted_keys` stands for, by their bytes."""
    if isinstance(key, bytes):
        if len(key) != 32:
            raise UsageError(f"a trusted key of {len(key)} bytes, expected the 32 of Ed25519", fix=_TRUST_FIX)
        return {key: fingerprint(key)}
    if not str(key):  # as a path it would be the working folder, and whatever lies there be trusted
        raise UsageError("a trusted key is an empty text, expected a path", fix=_TRUST_FIX)
    path = Path(key)
    if not path.is_dir():
        return {_read_public_key(path): path.name}
    files = [file for file in sorted(path.iterdir()) if file.suffix in _KEY_FILES and not file.name.startswith(".")]
    if not files:
        raise UsageError(f"{path}: holds no key ({' or '.join('*' + end for end in _KEY_FILES)})", fix=_TRUST_FIX)
    return {_read_public_key(file): file.name for file in files}


def _read_public_key(path: Path) -> bytes:
    require_cryptography()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    data = _read_pem(path, _TRUST_FIX)
    if b"PRIVATE KEY-----" in data:
        raise UsageError(
            f"{path}: is a private key, which only who signs should have; expected a public one",
            fix=f"give {path}.pub, or write it: openssl pkey -in {path} -pubout -out {path}.pub",
        )
    try:
        key = load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UsageError(f"{path}: is no public key in PEM form", fix=_TRUST_FIX) from error
    if not isinstance(key, Ed25519PublicKey):
        raise UsageError(f"{path}: is a key for another algorithm than Ed25519", fix=_TRUST_FIX)
    return key.public_bytes_raw()


def _read_pem(path: Path, fix: str) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_PEM_BYTES)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}", fix=fix) from error
    if data.count(b"-----BEGIN") > 1:
        raise UsageError(f"{path}: holds several keys or certificates, expected one key", fix="give each its own file")
    return data


def _create(path: Path, data: bytes, mode: int) -> None:
    """Write a file that must not be there yet, or leave none."""
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            try:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                path.unlink()
                raise
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror}", fix="give another path") from error
