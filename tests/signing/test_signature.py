"""Signed bundles: what is unsigned, forged or changed does not load, and is not signed."""

from __future__ import annotations

import base64
import json
import random
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import fcnopt
from fcnopt import bundle as bundles
from fcnopt.bundle import Bundle, sign
from fcnopt.errors import BundleError, FcnoptError
from fcnopt.selftest import SELFTEST
from fcnopt.signing import SIGNATURE, fingerprint, read_private_key
from tests.signing.common import ReachedError, load


def test_a_signed_bundle_loads_with_and_without_keys(bundle: Path, trusted: Path, keys: Path) -> None:
    raw = read_private_key(keys / "release").public_key().public_bytes_raw()
    load(bundle)
    load(bundle, trusted)
    load(bundle, raw)
    load(bundle, keys / "stranger.pub", trusted)
    load(bundle, str(trusted))
    fcnopt.load(bundle, trusted_keys=trusted).close()
    read = Bundle.read_trusted(bundle, raw)
    assert (read.signer, read.trusted) == (fingerprint(raw), True)
    assert (Bundle.read(bundle).signer, Bundle.read(bundle).trusted) == (fingerprint(raw), False)


def test_an_unsigned_bundle_is_refused_where_keys_are_required(
    unsigned: Path, trusted: Path, parsed: list[str]
) -> None:
    with pytest.raises(BundleError, match=r"net: is not signed .* release\.pub \([0-9a-f]{16}\) is required"):
        load(unsigned, trusted)
    assert parsed == []


def test_a_bundle_signed_by_an_unknown_key_is_refused(
    bundle: Path, trusted: Path, keys: Path, parsed: list[str]
) -> None:
    sign(bundle, keys / "stranger")
    stranger = fingerprint(read_private_key(keys / "stranger").public_key().public_bytes_raw())
    parsed.clear()
    with pytest.raises(BundleError, match=rf"signed by an unknown key, {stranger}; trusted is release\.pub"):
        load(bundle, trusted)
    assert parsed == []
    assert Bundle.read(bundle).signer == stranger


def test_a_changed_manifest_is_refused_before_it_is_parsed(bundle: Path, trusted: Path, parsed: list[str]) -> None:
    file = bundle / bundles.MANIFEST
    file.write_text(json.dumps(json.loads(file.read_text()) | {"min_agreement": 0.0}))
    for arguments in ((), (trusted,)):
        with pytest.raises(BundleError, match=r"the signature in manifest\.sig is wrong"):
            load(bundle, *arguments)
    with pytest.raises(BundleError, match="is wrong"):
        sign(bundle, trusted.with_suffix(""))
    assert parsed == []


def test_a_signature_of_another_manifest_or_another_purpose_is_refused(
    bundle: Path, keys: Path, trusted: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(bundle, tmp_path / "other"))
    (other / SIGNATURE).unlink()
    manifest = replace(Bundle.read(other).manifest, notes=("another",))
    bundles.write_text(other / bundles.MANIFEST, manifest.to_json())
    sign(other, keys / "release")
    shutil.copy(other / SIGNATURE, bundle / SIGNATURE)
    with pytest.raises(BundleError, match="is wrong"):
        load(bundle, trusted)

    key = read_private_key(keys / "release")
    content = json.loads((bundle / SIGNATURE).read_text())
    content["signature"] = base64.b64encode(key.sign((bundle / bundles.MANIFEST).read_bytes())).decode()
    (bundle / SIGNATURE).write_text(json.dumps(content) + "\n")
    with pytest.raises(BundleError, match="is wrong"):
        load(bundle, trusted)


@pytest.mark.parametrize(
    "change",
    [
        lambda _: b"",
        lambda _: b"x" * 5000,
        lambda s: s.rstrip(),
        lambda s: s.replace(b": 1,", b": 2,"),
        lambda s: s.replace(b"ed25519", b"none"),
        lambda s: json.dumps(json.loads(s), indent=1).encode(),
        lambda s: s.replace(b'"schema": 1', b'"schema": 1, "schema": 1'),
        # The last digits before the padding, whose lowest bits Base64 passes over.
        lambda s: s[:-6] + bytes([s[-6] + 1]) + s[-5:],
        lambda s: re.sub(rb"(.)=\"", lambda digit: bytes([digit[1][0] + 1]) + b'="', s, count=1),
    ],
    ids=["empty", "large", "cut", "schema", "algorithm", "spaced", "twice", "signature", "key"],
)
def test_a_signature_file_has_one_form(bundle: Path, trusted: Path, change: Callable[[bytes], bytes]) -> None:
    whole = (bundle / SIGNATURE).read_bytes()
    assert change(whole) != whole
    (bundle / SIGNATURE).write_bytes(change(whole))
    for arguments in ((), (trusted,)):
        with pytest.raises(BundleError, match=r"manifest\.sig: (is no signature of the form|has over)"):
            load(bundle, *arguments)


def test_no_flipped_byte_gets_past_the_check(bundle: Path, trusted: Path, parsed: list[str]) -> None:
    """Every byte of the signature, 60 of every other file, each changed to some other value."""
    rng = random.Random(5)  # noqa: S311  (which bytes are flipped is no secret)
    flips = 0
    for file in sorted(bundle.iterdir()):
        whole = file.read_bytes()
        places = range(len(whole)) if file.name == SIGNATURE else rng.sample(range(len(whole)), 60)
        for at in places:
            file.write_bytes(whole[:at] + bytes([whole[at] ^ rng.randrange(1, 256)]) + whole[at + 1 :])
            for arguments in ((), (trusted,)):
                parsed.clear()
                with pytest.raises(BundleError):
                    load(bundle, *arguments)
                early = file.name in (SIGNATURE, bundles.MANIFEST)
                assert parsed == ([] if early else ["manifest"]), f"{file.name}, byte {at}: went too far"
            flips += 1
        file.write_bytes(whole)
    assert flips > 300
    with pytest.raises(ReachedError):  # by the whole bundle
        load(bundle, trusted)


def test_a_damaged_bundle_is_not_signed(bundle: Path, keys: Path) -> None:
    before = (bundle / SIGNATURE).read_bytes()
    (bundle / SELFTEST).write_bytes(b"changed")
    with pytest.raises(BundleError, match=r"selftest\.npz: SHA-256"):
        sign(bundle, keys / "stranger")
    assert (bundle / SIGNATURE).read_bytes() == before


def test_a_signature_is_written_whole_or_not_at_all(
    bundle: Path, keys: Path, trusted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_self: Path, _target: Path) -> Path:
        raise OSError(5, "Input/output error")

    names = sorted(p.name for p in bundle.iterdir())
    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", fail)
        with pytest.raises(FcnoptError, match=r"manifest\.sig: cannot be written: Input/output error"):
            sign(bundle, keys / "stranger")
    assert sorted(p.name for p in bundle.iterdir()) == names
    load(bundle, trusted)


def test_nothing_is_recorded_in_a_signed_bundle(bundle: Path, keys: Path, trusted: Path) -> None:
    before = (bundle / bundles.MANIFEST).read_bytes()
    with pytest.raises(BundleError, match="is signed") as caught:
        Bundle.read(bundle).record({"clip": "a"})
    assert "record before signing, or remove manifest.sig, record, and sign again" in caught.value.fix
    assert (bundle / bundles.MANIFEST).read_bytes() == before
    (bundle / SIGNATURE).unlink()
    Bundle.read(bundle).record({"clip": "a"})
    sign(bundle, keys / "release")
    load(bundle, trusted)
