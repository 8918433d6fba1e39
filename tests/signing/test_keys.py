"""Keys: made, read, trusted, and needed only where they are used."""

from __future__ import annotations

import base64
import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fcnopt import bundle as bundles
from fcnopt.bundle import Bundle, sign
from fcnopt.errors import BackendError, BundleError, UsageError
from fcnopt.signing import SIGNATURE, new_key, read_private_key, required_keys
from fcnopt.signing.signature import DOMAIN
from tests.signing.common import WORDS, load


def test_the_environment_requires_keys_of_every_load(
    unsigned: Path, bundle: Path, keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FCNOPT_TRUSTED_KEYS", f"{keys / 'stranger.pub'}{os.pathsep}{keys / 'release.pub'}")
    load(bundle)
    with pytest.raises(BundleError, match="is not signed"):
        load(unsigned)
    assert Bundle.read(unsigned).signer is None, "looking at a bundle needs no key"
    sign(Path(shutil.copytree(unsigned, tmp_path / "new")), keys / "release")
    monkeypatch.setenv("FCNOPT_TRUSTED_KEYS", str(keys / "stranger.pub"))
    with pytest.raises(BundleError, match="unknown key"):
        load(bundle)
    load(bundle, keys / "release.pub")
    monkeypatch.setenv("FCNOPT_TRUSTED_KEYS", "")
    with pytest.raises(UsageError, match="set but names no key"):
        load(bundle)


def test_a_folder_of_keys_trusts_each(bundle: Path, keys: Path, tmp_path: Path) -> None:
    folder = tmp_path / "trusted"
    folder.mkdir()
    with pytest.raises(UsageError, match="trusted: holds no key"):
        load(bundle, folder)
    for name in ("release", "stranger"):
        shutil.copy(keys / f"{name}.pub", folder / f"{name}.pub.pem")
    assert sorted(required_keys(folder).values()) == ["release.pub.pem", "stranger.pub.pem"]
    load(bundle, folder)
    shutil.copy(keys / "release", folder / "release.pem")
    with pytest.raises(UsageError, match=r"release\.pem: is a private key"):
        load(bundle, folder)


def test_trusted_keys_that_are_none_are_refused(keys: Path, tmp_path: Path) -> None:
    curve = tmp_path / "curve.pem"
    other = ec.generate_private_key(ec.SECP256R1()).public_key()
    curve.write_bytes(other.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    (tmp_path / "text.pem").write_text("hello")
    (tmp_path / "two.pem").write_text((keys / "release.pub").read_text() + (keys / "stranger.pub").read_text())
    for given, message in [
        ([], "holds no key"),
        ("", "is an empty text"),
        ([""], "is an empty text"),
        (b"x" * 31, "of 31 bytes"),
        (tmp_path / "missing.pem", "No such file"),
        (tmp_path / "text.pem", "is no public key"),
        (tmp_path / "two.pem", "holds several keys"),
        (curve, "another algorithm"),
        (keys / "release", "is a private key"),
    ]:
        with pytest.raises(UsageError, match=message):
            required_keys(given)  # type: ignore[arg-type]  # one of each kind


def test_a_new_key_is_private_and_overwrites_nothing(tmp_path: Path) -> None:
    public = new_key(tmp_path / "k.pem")
    assert public == tmp_path / "k.pem.pub"
    assert stat.S_IMODE((tmp_path / "k.pem").stat().st_mode) == 0o600
    before = (tmp_path / "k.pem").read_bytes()
    for gone in (None, tmp_path / "k.pem.pub"):
        if gone is not None:
            gone.unlink()
        with pytest.raises(UsageError, match="exists, and a key is not overwritten"):
            new_key(tmp_path / "k.pem")
    assert (tmp_path / "k.pem").read_bytes() == before
    assert not public.exists()
    with pytest.raises(UsageError, match="cannot be written: No such file"):
        new_key(tmp_path / "no" / "k")
    with pytest.raises(UsageError, match="passphrase"):
        new_key(tmp_path / "empty", passphrase="")
    assert not (tmp_path / "empty").exists()


def test_openssl_keys_sign_and_openssl_verifies(unsigned: Path, tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl command")

    def openssl(*arguments: object) -> None:
        subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)

    plain, secret = tmp_path / "plain.pem", tmp_path / "secret.pem"
    openssl("genpkey", "-algorithm", "ed25519", "-out", plain)
    openssl("genpkey", "-algorithm", "ed25519", "-aes-256-cbc", "-pass", f"pass:{WORDS}", "-out", secret)
    for key, words in ((plain, None), (secret, WORDS)):
        place = Path(shutil.copytree(unsigned, tmp_path / key.stem))
        sign(place, key, passphrase=words)
        openssl("pkey", "-in", key, "-passin", f"pass:{WORDS}", "-pubout", "-out", tmp_path / "pub.pem")
        load(place, tmp_path / "pub.pem")
        (tmp_path / "message").write_bytes(DOMAIN + (place / bundles.MANIFEST).read_bytes())
        (tmp_path / "sig").write_bytes(base64.b64decode(json.loads((place / SIGNATURE).read_text())["signature"]))
        verify = ("pkeyutl", "-verify", "-pubin", "-inkey", tmp_path / "pub.pem", "-rawin")
        openssl(*verify, "-in", tmp_path / "message", "-sigfile", tmp_path / "sig")
    with pytest.raises(UsageError, match="passphrase is wrong"):
        read_private_key(secret, "wrong")
    with pytest.raises(UsageError, match="is encrypted, and no passphrase"):
        read_private_key(secret)
    with pytest.raises(UsageError, match="no private key"):
        read_private_key(tmp_path / "pub.pem")


def test_without_cryptography_the_pip_line_is_named(
    bundle: Path, trusted: Path, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.serialization", None)
    for attempt in (
        lambda: load(bundle, trusted),
        lambda: load(bundle),
        lambda: sign(bundle, keys / "release"),
        lambda: new_key(keys / "another"),
    ):
        with pytest.raises(BackendError, match=r"cryptography.* is not installed") as caught:
            attempt()
        assert 'pip install "cryptography' in caught.value.fix


def test_an_unsigned_bundle_loads_without_cryptography(unsigned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.serialization", None)
    load(unsigned)


def test_cryptography_is_loaded_only_where_it_is_used() -> None:
    code = "import sys, fcnopt.cli, fcnopt.bundle, fcnopt.cli.signing; print('cryptography' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
