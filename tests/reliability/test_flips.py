"""One flipped byte, anywhere, and the bundle is refused; and a load that checks nothing is noticed."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
from faults.case import judged
from faults.flips import flips

from fcnopt.bundle import Bundle
from fcnopt.errors import BundleError
from fcnopt.manifest import _CHECKSUM, Manifest


def test_a_flipped_byte_is_always_refused(seeds: Path) -> None:
    tallies = flips(seeds / "engines" / "net", 30, every=29)
    assert [tally.what.split(" ", 1)[1] for tally in tallies] == [
        "flips over 4 files, unsigned",
        "29th byte of manifest.json, unsigned",
        "flips over 5 files, signed",
        "29th byte of manifest.json, signed",
        "29th byte of manifest.sig, signed",
    ]
    for tally in tallies:
        assert tally.faults == []
        assert set(tally.outcomes) == {"refused: BundleError"}


def test_a_load_that_does_not_verify_is_noticed(seeds: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(bundle: Bundle, copies: Mapping[str, Path] | None = None) -> None:
        for name, place in (copies or {}).items():
            shutil.copy(bundle.path / name, place)

    monkeypatch.setattr(Bundle, "verify", careless)
    monkeypatch.setattr("fcnopt.manifest._check_sum", lambda _: None)
    unsigned, manifest, *_ = flips(seeds / "engines" / "net", 12, every=211)
    assert [fault for fault in (*unsigned.faults, *manifest.faults) if "loaded as if nothing was wrong" in fault]


def test_a_refusal_that_names_no_file_is_noticed() -> None:
    def refused() -> str:
        raise BundleError("net/model.onnx: SHA-256 is another", fix="copy it again")

    assert judged(refused, ("model.onnx",)) == ("refused: BundleError", "")
    outcome, fault = judged(refused, ("engine.bin",))
    assert (outcome, fault) == ("refused: BundleError", "names none of engine.bin: net/model.onnx: SHA-256 is another")


def test_a_manifest_of_before_the_checksum_is_read(seeds: Path) -> None:
    text = (seeds / "engines" / "net" / "manifest.json").read_text()
    without = text[: text.rindex(f',\n "{_CHECKSUM}"')] + "\n}\n"
    assert Manifest.from_json(without, Path("m")) == Manifest.from_json(text, Path("m"))
