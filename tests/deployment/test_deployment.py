"""`fcnopt.deploy`: whole or not there, and only of bundles that are whole."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import fcnopt
from fcnopt.bundle import MANIFEST, SIGNATURE, Bundle, finish, sign, write_text
from fcnopt.cli import main
from fcnopt.deployment import TARGETS, deploy
from fcnopt.deployment.folder import MARK
from fcnopt.errors import BundleError, UsageError
from fcnopt.signing import new_key
from tests.deployment.bundles import make_bundle


@pytest.fixture
def copied(int8_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(int8_bundle, tmp_path / int8_bundle.name))


def test_a_deployment_holds_the_bundle_byte_for_byte_and_all_headers(deployed: Path, int8_bundle: Path) -> None:
    copy = deployed / "bundle" / int8_bundle.name
    assert {p.name: p.read_bytes() for p in copy.iterdir()} == {p.name: p.read_bytes() for p in int8_bundle.iterdir()}
    headers = {p.name for p in (deployed / "include" / "fcnopt").iterdir()}
    text = "".join(p.read_text() for p in (deployed / "include" / "fcnopt").iterdir())
    assert "engine.hpp" in headers
    assert {name for name in headers if f'#include "{name}"' in text} == headers - {"engine.hpp"}
    readme = (deployed / "README.md").read_text()
    assert "64 rows, 96 columns" in readme
    assert "{{" not in readme
    assert "{%" not in readme


def test_the_readme_of_a_gpu_engine_says_what_it_runs_on(copied: Path, tmp_path: Path) -> None:
    manifest = replace(Bundle.read(copied).manifest, target="tensorrt", runtime="tensorrt 10.16.0", device="X (8.9)")
    write_text(copied / MANIFEST, manifest.to_json())
    readme = (deploy(copied, to="cpp", output=tmp_path / "out") / "README.md").read_text()
    assert "built for X (8.9) by tensorrt 10.16.0" in readme
    assert "-DTENSORRT_ROOT=/opt/tensorrt" in readme
    assert "OpenVINO" not in readme


def test_a_signature_goes_with_the_bundle(copied: Path, tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    public, other = new_key(tmp_path / "key"), new_key(tmp_path / "other")
    with pytest.raises(BundleError, match="is not signed"):
        deploy(copied, to="cpp", output=tmp_path / "out", trusted_keys=[public])
    sign(copied, tmp_path / "key")
    with pytest.raises(BundleError, match="unknown key"):
        deploy(copied, to="cpp", output=tmp_path / "out", trusted_keys=[other])
    assert not (tmp_path / "out").exists()
    place = deploy(copied, to="cpp", output=tmp_path / "out", trusted_keys=[public])
    assert (place / "bundle" / copied.name / SIGNATURE).read_bytes() == (copied / SIGNATURE).read_bytes()
    assert "test, signed" in (place / "README.md").read_text()


def test_a_damaged_bundle_is_not_deployed(copied: Path, tmp_path: Path) -> None:
    (copied / "engine.bin").write_bytes(b"changed")
    with pytest.raises(BundleError, match=r"engine\.bin: SHA-256 is"):
        deploy(copied, to="cpp", output=tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == [copied.name]


@pytest.mark.parametrize(
    ("change", "message"),
    [({"target": "onnxruntime"}, "which C\\+\\+ has no part for"), ({"size": (None, 96)}, "frames of any size")],
)
def test_what_cpp_cannot_run_is_refused_here_and_not_on_the_vehicle(
    copied: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    manifest = Bundle.read(copied).manifest
    size = change.pop("size", None)
    if size is not None:
        change = {"spec": manifest.spec.with_size(*size)}
    finish(copied, replace(manifest, **change))
    with pytest.raises(UsageError, match=message):
        deploy(copied, to="cpp", output=tmp_path / "out")


def test_an_earlier_deployment_is_replaced_and_nothing_else_is(int8_bundle: Path, tmp_path: Path) -> None:
    place = tmp_path / "out"
    place.mkdir()
    deploy(int8_bundle, to="cpp", output=place)
    (place / "build").mkdir()
    assert deploy(int8_bundle, to="cpp", output=place) == place
    assert not (place / "build").exists()
    (place / "keys").mkdir()
    (place / "keys" / "release.pub").write_text("a key")
    (place / "notes").write_text("kept")
    with pytest.raises(BundleError, match=r"keys/release\.pub and 1 more was added since deploy wrote the folder"):
        deploy(int8_bundle, to="cpp", output=place)
    assert (place / "notes").read_text() == "kept"
    (place / MARK).unlink()
    with pytest.raises(BundleError, match="is no deployment"):
        deploy(int8_bundle, to="cpp", output=place)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_deployment_that_fails_leaves_the_earlier_one(
    int8_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = deploy(int8_bundle, to="cpp", output=tmp_path / "out")

    def killed(_bundle: Bundle, folder: Path) -> None:
        (folder / "half").write_bytes(b"x")
        raise OSError(28, "No space left on device")

    monkeypatch.setitem(TARGETS, "cpp", killed)
    with pytest.raises(BundleError, match="No space left") as caught:
        deploy(int8_bundle, to="cpp", output=place)
    assert "free disk space" in caught.value.fix
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert (place / "README.md").exists()


def test_what_a_killed_deployment_left_is_removed_and_the_earlier_one_is_brought_back(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    place = deploy(make_bundle(tmp_path, "onnxruntime"), to="triton", output=tmp_path / "out")
    place.rename(tmp_path / f".out.{dead.pid}-0123abcd.old")
    (tmp_path / f".out.{dead.pid}-0123abcd.partial").mkdir()
    with pytest.raises(UsageError, match="C\\+\\+ has no part for"):
        deploy(tmp_path / "net", to="cpp", output=place)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net", "out"]
    assert "model repository" in (place / "README.md").read_text()


def test_the_working_folder_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = make_bundle(tmp_path, "onnxruntime")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(UsageError, match="cannot be written anew"):
        deploy(bundle, to="triton", output=".")


def test_unknown_stacks_are_refused_with_those_that_are_known(int8_bundle: Path) -> None:
    with pytest.raises(UsageError, match="'abacus' is not known") as caught:
        fcnopt.deploy(int8_bundle, to="abacus")
    assert "cpp" in caught.value.fix


def test_the_command_writes_beside_and_says_where(
    int8_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, ["deploy", str(int8_bundle), "--to", "cpp"])
    assert done.exit_code == 0, done.output
    place = Path("deploy") / f"{int8_bundle.name}-cpp"
    assert f"wrote {place}; next: see {place}/README.md" in done.output
    assert (place / "CMakeLists.txt").is_file()
    wrong = CliRunner().invoke(main, ["deploy", str(int8_bundle), "--to", "abacus"])
    assert wrong.exit_code == 2
    assert "'cpp'" in wrong.output
    none = CliRunner().invoke(main, ["deploy", str(tmp_path / "none"), "--to", "cpp"])
    assert none.exit_code == 2
    assert "no such file or folder" in none.output


def test_listing_stacks_loads_no_library() -> None:
    code = "import sys, fcnopt.deployment; print(sorted({'numpy', 'cv2', 'onnx', 'jinja2'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
