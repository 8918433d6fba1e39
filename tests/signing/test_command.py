"""`fcnopt sign`, and `--trusted-key` of bench."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from fcnopt import bundle as bundles
from fcnopt.bundle import Bundle
from fcnopt.signing import new_key
from tests.signing.common import WORDS, fcnopt_cli, load


def test_the_command_makes_a_key_and_signs(unsigned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, key = Path(shutil.copytree(unsigned, tmp_path / "net")), tmp_path / "k"
    made = fcnopt_cli("sign", "--new-key", key)
    assert made.exit_code == 0, made.output
    assert f"wrote {key} (private: keep it secret) and {key}.pub" in made.output
    signed = fcnopt_cli("sign", place, "--key", key)
    assert signed.exit_code == 0, signed.output
    assert f"signed {place} with key {Bundle.read(place).signer}" in signed.output
    load(place, Path(f"{key}.pub"))

    monkeypatch.setenv("KEY_WORDS", WORDS)
    secret = tmp_path / "secret"
    both = fcnopt_cli("sign", place, "--new-key", secret, "--passphrase-env", "KEY_WORDS")
    assert both.exit_code == 0, both.output
    assert "BEGIN ENCRYPTED" in secret.read_text()
    load(place, Path(f"{secret}.pub"))
    assert fcnopt_cli("sign", place, "--key", secret, typed=f"{WORDS}\n").exit_code == 0
    assert fcnopt_cli("sign", place, "--key", secret, "--passphrase-env", "KEY_WORDS").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["net"], 2, "neither --key nor --new-key"),
        (["net", "--key", "release", "--new-key", "x"], 2, "both given"),
        (["--key", "release"], 2, "no bundle was given"),
        (["net", "--key", "nokey"], 2, "nokey: no such file"),
        (["nonet", "--key", "release"], 2, "nonet: no such file"),
        (["net", "--key", "release.pub"], 2, "is no private key"),
        (["empty", "--key", "release"], 1, "has no manifest.json"),
        (["--new-key", "release"], 2, "a key is not overwritten"),
        (["net", "--key", ""], 2, "an empty path"),
        (["net", "--key", "secret"], 2, "is encrypted, and no passphrase was given"),
        (["net", "--key", "secret", "--passphrase-env", "NO_SUCH"], 2, "NO_SUCH: there is no such variable"),
        (["--new-key", "x", "--passphrase-env", "NO_SUCH"], 2, "NO_SUCH: there is no such variable"),
    ],
)
def test_mistakes_in_the_command_are_clear(
    bundle: Path, keys: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, words: str
) -> None:
    monkeypatch.chdir(bundle.parent)
    for name in ("release", "release.pub"):
        shutil.copy(keys / name, name)
    new_key("secret", passphrase=WORDS)
    Path("empty").mkdir()
    result = fcnopt_cli("sign", *arguments)
    assert result.exit_code == code, result.output
    assert words in result.output
    assert "fix:" in result.output
    assert "Traceback" not in result.output
    assert not Path("x").exists()


def test_no_command_opens_the_graph_of_a_bundle_that_is_not_trusted(
    bundle: Path, keys: Path, street: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FCNOPT_TRUSTED_KEYS", str(keys / "stranger.pub"))
    for command in (("inspect", bundle), ("compare", bundle, bundle, street / "clip.mp4")):
        refused = fcnopt_cli(*command)
        assert refused.exit_code == 1, refused.output
        assert "is signed by an unknown key" in refused.output


def test_inspect_says_who_signed_a_bundle(bundle: Path, keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    signer = Bundle.read(bundle).signer
    assert signer is not None
    assert f"  signature  by key {signer}, whoever that is" in fcnopt_cli("inspect", bundle).output
    monkeypatch.setenv("FCNOPT_TRUSTED_KEYS", str(keys / "release.pub"))
    assert f"  signature  by key {signer}, which FCNOPT_TRUSTED_KEYS names" in fcnopt_cli("inspect", bundle).output
    shown = json.loads(fcnopt_cli("inspect", bundle, "--json").output)
    assert shown["signature"] == {"signer": signer, "trusted": True}
    monkeypatch.delenv("FCNOPT_TRUSTED_KEYS")
    (bundle / bundles.SIGNATURE).unlink()
    assert "  signature  none\n" in fcnopt_cli("inspect", bundle).output


def test_bench_takes_only_what_a_trusted_key_signed(bundle: Path, keys: Path, street: Path) -> None:
    bench = ("bench", street / "clip.mp4", "--engine", bundle, "--reference", bundle / bundles.MODEL, "--max-frames", 2)
    done = fcnopt_cli(*bench, "--trusted-key", keys / "stranger.pub", "--trusted-key", keys / "release.pub")
    assert done.exit_code == 0, done.output
    refused = fcnopt_cli(*bench, "--trusted-key", keys / "stranger.pub")
    assert refused.exit_code == 1
    assert "is signed by an unknown key" in refused.output
    record = fcnopt_cli(*bench, "--record")
    assert record.exit_code == 1
    assert "record before signing" in record.output
    assert "FPS" not in record.output, "refused only after the bench"
