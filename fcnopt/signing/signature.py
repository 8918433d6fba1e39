r"""Signatures over bundles: Ed25519 (RFC 8032) over manifest.json, kept in manifest.sig beside it.

The manifest holds the SHA-256 of every other file, so one signature covers the bundle. What is signed is

    b"fcnopt bundle manifest v1\0" + the bytes of manifest.json

where the prefix keeps a signature that the key made for something else from passing for one over a bundle. The file
is one line of JSON that has exactly one form, byte for byte, so that it is compared and not parsed:

    {"schema": 1, "algorithm": "ed25519", "key": "BASE64 OF 32 BYTES", "signature": "BASE64 OF 64 BYTES"}

The key in it says who signed. It proves nothing by itself: whoever changes a bundle can sign it with a key of their
own. Only a comparison with keys that came another way does.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fcnopt.errors import BundleError
from fcnopt.signing.keys import fingerprint, require_cryptography

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

MANIFEST = "manifest.json"
SIGNATURE = "manifest.sig"
DOMAIN = b"fcnopt bundle manifest v1\0"

_FORM = '{{"schema": 1, "algorithm": "ed25519", "key": "{}", "signature": "{}"}}\n'
_WRITTEN = re.compile(rb'\{"schema": 1, "algorithm": "ed25519", "key": "([^"]{44})", "signature": "([^"]{88})"\}\n')
_COPY_FIX = "do not use it: copy the whole folder again from where it was signed"


def sign_bytes(manifest: bytes, key: Ed25519PrivateKey) -> str:
    """The content of manifest.sig for a manifest."""
    values = key.public_key().public_bytes_raw(), key.sign(DOMAIN + manifest)
    return _FORM.format(*(base64.b64encode(value).decode() for value in values))


def check(manifest: bytes, signature: bytes | None, folder: Path, trusted: Mapping[bytes, str]) -> str | None:
    """Hold the bytes of a manifest against its signature.

    Args:
        manifest: Content of manifest.json.
        signature: Content of manifest.sig; None where there is none.
        folder: The bundle's, for errors.
        trusted: Keys of which one must have signed it, from `required_keys`. With none, a bundle may be unsigned, and
            a signature need only fit the key in it: that finds damage, not who did it.

    Returns:
        The `fingerprint` of the key that signed it; None for an unsigned one.

    Raises:
        BundleError: It is unsigned, signed by another key, or changed since.
        BackendError: The package cryptography is missing.
    """
    if signature is None:
        if trusted:
            raise BundleError(
                f"{folder}: is not signed (it has no {SIGNATURE}), and a signature by {_any_of(trusted)} is required",
                fix=f"sign it with `fcnopt sign {folder} --key PRIVATE_KEY`, or load a bundle that is signed",
            )
        return None
    key, proof = _parts(signature, folder / SIGNATURE)
    if trusted and key not in trusted:
        raise BundleError(
            f"{folder}: is signed by an unknown key, {fingerprint(key)}; trusted is {_any_of(trusted)}",
            fix="get it from who you trust, or, if you trust who signed it, add that public key to the trusted ones",
        )
    require_cryptography()
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        Ed25519PublicKey.from_public_bytes(key).verify(proof, DOMAIN + manifest)
    except (InvalidSignature, ValueError) as error:
        raise BundleError(
            f"{folder}: the signature in {SIGNATURE} is wrong: it or manifest.json was changed after signing",
            fix=f"{_COPY_FIX}; if you changed manifest.json yourself, remove {SIGNATURE} and sign again",
        ) from error
    return fingerprint(key)


def _parts(signature: bytes, where: Path) -> tuple[bytes, bytes]:
    """Key and signature in the content of manifest.sig."""
    with contextlib.suppress(binascii.Error):
        found = _WRITTEN.fullmatch(signature)
        if found is not None:
            key, proof = (base64.b64decode(part, validate=True) for part in found.groups())
            # Base64 has several spellings of the same bytes; only one of them was written.
            if _FORM.format(*(base64.b64encode(part).decode() for part in (key, proof))).encode() == signature:
                return key, proof
    raise BundleError(f"{where}: is no signature of the form that `fcnopt sign` writes", fix=_COPY_FIX)


def _any_of(trusted: Mapping[bytes, str]) -> str:
    """Trusted keys in words."""
    names = [name if name == fingerprint(key) else f"{name} ({fingerprint(key)})" for key, name in trusted.items()]
    shown = ", ".join(sorted(names)[:3]) + (f" or {len(names) - 3} more" if len(names) > 3 else "")
    return shown if len(names) == 1 else f"one of {shown}"
