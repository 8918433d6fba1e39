"""What holds for every stack: only what is whole and signed as required is deployed, and the folder proves itself."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from fcnopt.bundle import Bundle, sign
from fcnopt.deployment import deploy
from fcnopt.errors import BundleError
from fcnopt.signing import new_key
from tests.deployment.bundles import TENSORRT_ENGINE, make_bundle


@pytest.mark.parametrize("to", ["triton", "isaac-ros", "autoware", "docker"])
class TestEveryStack:
    def test_a_changed_file_is_refused_and_an_earlier_deployment_stays(self, to: str, tmp_path: Path) -> None:
        bundle = make_bundle(tmp_path, "tensorrt", "int8")
        folder = deploy(bundle, to=to, output=tmp_path / "out")
        before = (folder / "SHA256SUMS").read_text()
        (bundle / "engine.plan").write_bytes(TENSORRT_ENGINE[:-1] + b"!")
        with pytest.raises(BundleError, match=r"engine\.plan: SHA-256 is"):
            deploy(bundle, to=to, output=folder)
        assert (folder / "SHA256SUMS").read_text() == before
        assert sorted(path.name for path in tmp_path.iterdir()) == ["net", "out"]

    def test_an_unsigned_bundle_is_refused_where_a_key_is_required(self, to: str, tmp_path: Path) -> None:
        bundle, key = make_bundle(tmp_path, "tensorrt", "int8"), new_key(tmp_path / "key")
        with pytest.raises(BundleError, match="not signed"):
            deploy(bundle, to=to, output=tmp_path / "out", trusted_keys=[key])
        assert not (tmp_path / "out").exists()
        finger = sign(bundle, tmp_path / "key")
        folder = deploy(bundle, to=to, output=tmp_path / "out", trusted_keys=[key])
        assert f"signed by key {finger}, which was required" in (folder / "README.md").read_text()
        proof = next(folder.rglob("manifest.sig")).parent
        assert Bundle.read_trusted(proof, [key]).trusted

    def test_sums_hold_every_file_and_notice_a_change(self, to: str, tmp_path: Path) -> None:
        folder = deploy(make_bundle(tmp_path, "tensorrt", "int8"), to=to, output=tmp_path / "out")
        listed = {line.split("  ", 1)[1] for line in (folder / "SHA256SUMS").read_text().splitlines()}
        there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        assert there - listed == {"SHA256SUMS", ".fcnopt-deployment"}
        check = ["sha256sum", "--quiet", "-c", "SHA256SUMS"]
        assert subprocess.run(check, cwd=folder, check=False).returncode == 0
        next(folder.rglob("*.onnx" if to == "autoware" else "*.plan")).write_bytes(b"changed")
        assert subprocess.run(check, cwd=folder, check=False, capture_output=True).returncode == 1

    def test_the_readme_says_what_was_not_proved_and_has_no_holes(self, to: str, tmp_path: Path) -> None:
        text = (
            deploy(make_bundle(tmp_path, "tensorrt", "int8"), to=to, output=tmp_path / "out") / "README.md"
        ).read_text()
        assert "## Not proved here" in text
        assert "sha256sum -c SHA256SUMS" in text
        assert "not signed" in text
        assert not any(hole in text for hole in ("{{", "{%", "None", "Undefined", "\n\n\n\n"))
