"""What was verified is what runs; links and pipes are no files of a bundle."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fcnopt
from fcnopt import bundle as bundles
from fcnopt.backends import open_engine
from fcnopt.backends.base import Outputs
from fcnopt.bundle import Bundle, loading, sign
from fcnopt.errors import BundleError
from fcnopt.signing import SIGNATURE
from tests.signing.common import known_answer, load, make_bundle


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_a_file_that_is_changed_after_it_was_verified_changes_nothing(
    target: str, keys: Path, trusted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(target)
    place = make_bundle(tmp_path / "net", target)
    sign(place, keys / "release")
    given: list[Path] = []

    def attacked(files: tuple[Path, ...], *rest: Any) -> Any:
        given.extend(files)
        for name in Bundle.read(place).manifest.files:
            (place / name).write_bytes(b"evil")
        assert stat.S_IMODE(files[0].parent.parent.stat().st_mode) == 0o700
        return open_engine(files, *rest)

    monkeypatch.setattr(loading, "open_engine", attacked)
    frame, labels = known_answer()
    with fcnopt.load(place, trusted_keys=trusted) as engine:
        assert given
        assert not any(file.exists() for file in given), "the copy outlives loading"
        outputs: Outputs = engine.run(frame)
        np.testing.assert_array_equal(outputs.labels, labels)


def test_a_copy_that_finds_no_room_says_where(
    bundle: Path, trusted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(BundleError, match=r"net: cannot be copied: .*nowhere") as caught:
        load(bundle, trusted)
    assert "TMPDIR" in caught.value.fix


@pytest.mark.parametrize("name", [bundles.MODEL, bundles.MANIFEST, SIGNATURE])
def test_links_and_pipes_in_a_bundle_are_refused(bundle: Path, trusted: Path, tmp_path: Path, name: str) -> None:
    (bundle / name).rename(tmp_path / name)
    (bundle / name).symlink_to(tmp_path / name)
    for arguments in ((), (trusted,)):
        with pytest.raises(BundleError, match=rf"{name} is a symbolic link"):
            load(bundle, *arguments)
    (bundle / name).unlink()
    os.mkfifo(bundle / name)
    with pytest.raises(BundleError, match=r"no file, but a folder, pipe or device|has no manifest"):
        load(bundle, trusted)


def test_a_link_to_a_bundle_is_a_bundle(bundle: Path, trusted: Path, tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to(bundle)
    load(tmp_path / "current", trusted)


def test_what_a_killed_writer_left_is_passed_over(bundle: Path, trusted: Path) -> None:
    (bundle / ".manifest.sig.12345.partial").write_text("half")
    load(bundle, trusted)
    (bundle / ".engine.12345.partial").write_text("half")
    with pytest.raises(BundleError, match="is not listed"):
        load(bundle, trusted)
