"""The C++ deployment: built by its README's commands, it answers as Python does, and refuses what Python refuses."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fcnopt.bundle import MANIFEST, SIGNATURE, Bundle, finish, load, sign
from fcnopt.selftest import SELFTEST, write_selftest
from fcnopt.signing import new_key
from tests.deployment.conftest import readme_commands, run_program

Frames = NDArray[np.uint8]


@pytest.fixture
def raw(street_frames: Frames, tmp_path: Path) -> Path:
    """A file of raw frames."""
    file = tmp_path / "frames.raw"
    street_frames.tofile(file)
    return file


@pytest.fixture
def copied(int8_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(int8_bundle, tmp_path / int8_bundle.name))


@pytest.mark.parametrize("mode", ["latency", "throughput"])
def test_labels_are_those_of_python_bit_for_bit(
    program: Path, int8_bundle: Path, street_frames: Frames, raw: Path, mode: Any
) -> None:
    with load(int8_bundle, mode=mode) as engine:
        expected = engine.run(street_frames).labels
    assert len(np.unique(expected)) > 1, "labels of one class only prove little"
    many = raw.with_name("many.raw")
    many.write_bytes(raw.read_bytes() * 5)
    code, said, errors = run_program(
        program, int8_bundle, many, raw.with_name("labels.raw"), "--mode", mode, "--size", "64x96"
    )
    assert (code, errors) == (0, "")
    assert "30 frames (64x96x3 uint8 BGR), latency p50 " in said
    labels = np.fromfile(raw.with_name("labels.raw"), np.uint8).reshape(30, 64, 96)
    np.testing.assert_array_equal(labels, np.concatenate([expected] * 5))


def test_the_readme_runs_the_bundle_that_was_deployed(program: Path, deployed: Path, raw: Path) -> None:
    (command,) = readme_commands(deployed, "build/fcnopt_run")
    _, bundle, *_ = command.split()
    assert sorted(p.name for p in (deployed / "bundle").iterdir()) == [Path(bundle).name]
    code, said, _ = run_program(program, deployed / bundle, raw, raw.with_name("labels.raw"))
    assert code == 0
    assert "6 frames" in said


def test_frames_come_from_a_pipe_and_labels_go_to_one(program: Path, int8_bundle: Path, street_frames: Frames) -> None:
    import subprocess

    done = subprocess.run(
        [program, int8_bundle, "-", "-"], input=street_frames.tobytes(), capture_output=True, timeout=300
    )
    assert done.returncode == 0
    assert b"6 frames" in done.stderr
    with load(int8_bundle) as engine:
        assert done.stdout == engine.run(street_frames).labels.tobytes()


def refused(program: Path, bundle: Path, raw: Path, *more: str | Path, code: int = 1, **variables: str) -> str:
    """What the program says of a bundle or frames that it must refuse, leaving nothing behind."""
    place = raw.with_name("refused.raw")
    found, said, errors = run_program(program, bundle, raw, place, *more, **variables)
    assert (found, said) == (code, ""), errors
    assert errors.startswith("error: ")
    assert "\n  fix: " in errors
    assert not place.exists()
    assert not place.with_name("refused.raw.partial").exists()
    return errors


def test_labels_do_not_take_the_place_of_the_frames(program: Path, int8_bundle: Path, raw: Path) -> None:
    before = raw.read_bytes()
    code, said, errors = run_program(program, int8_bundle, raw, raw)
    assert (code, said) == (2, ""), errors
    assert "is the frames' own file" in errors
    assert raw.read_bytes() == before


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def test_every_file_is_guarded_by_its_hash(program: Path, copied: Path, raw: Path) -> None:
    names = sorted(Bundle.read(copied).manifest.files)
    assert {"engine.xml", "engine.bin", "model.onnx", SELFTEST} <= set(names)
    for name in names:
        whole = (copied / name).read_bytes()
        for place in (0, len(whole) // 2, len(whole) - 1):
            (copied / name).write_bytes(flipped(whole, place))
            assert f"{name}: SHA-256 is" in refused(program, copied, raw)
        (copied / name).write_bytes(whole)
    assert run_program(program, copied, raw, raw.with_name("labels.raw"))[0] == 0


def test_missing_added_and_linked_files_are_named(program: Path, copied: Path, raw: Path) -> None:
    (copied / "added.bin").write_bytes(b"x")
    assert "added.bin is not listed" in refused(program, copied, raw)
    (copied / "added.bin").unlink()
    engine = copied / "engine.bin"
    engine.rename(raw.with_name("elsewhere"))
    assert "engine.bin is missing" in refused(program, copied, raw)
    engine.symlink_to(raw.with_name("elsewhere"))
    assert "engine.bin: is a symbolic link" in refused(program, copied, raw)
    engine.unlink()
    os.mkfifo(engine)
    assert "engine.bin: is no file" in refused(program, copied, raw)
    assert "has no manifest.json" in refused(program, raw.parent, raw)
    assert "has no manifest.json" in refused(program, raw.with_name("nowhere"), raw)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 9}, "schema version"),
        ({"engine": []}, "engine names no file"),
        ({"engine": ["manifest.json", "engine.bin"]}, "has no hash"),
        ({"engine": "engine.xml"}, "expected an array"),
        ({"files": {"../model.onnx": "0"}}, "'../model.onnx' is not a file name"),
        ({"files": ["model.onnx"]}, "expected an object"),
        ({"min_agreement": 2.0}, "min_agreement"),
        ({"min_agreement": "all"}, "expected a number"),
        ({"surprise": 1}, "'surprise' is not known"),
        ({"spec": {}}, "'version' is missing"),
        ({"name": 3}, "expected a string"),
        ({"precision": "int2"}, "'int2' is unknown"),
    ],
)
def test_a_damaged_manifest_is_refused_with_what_is_wrong(
    program: Path, copied: Path, raw: Path, change: dict[str, Any], message: str
) -> None:
    file = copied / MANIFEST
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    errors = refused(program, copied, raw)
    assert "manifest.json: cannot be used" in errors
    assert message in errors


def test_an_engine_for_another_runtime_or_with_a_wrong_known_answer_is_refused(
    program: Path, copied: Path, raw: Path
) -> None:
    file = copied / MANIFEST
    whole = file.read_text()
    file.write_text(json.dumps(json.loads(whole) | {"target": "tensorrt"}))
    assert "is for tensorrt, and this program was built without it" in refused(program, copied, raw)
    file.write_text(whole)
    with np.load(copied / SELFTEST) as known:
        frame, labels = known["frame"], known["labels"]
    write_selftest(copied / SELFTEST, frame, (labels + 1) % 5)
    finish(copied, Bundle.read(copied).manifest)
    assert "known-answer test failed: 0.00% of labels agree" in refused(program, copied, raw)


def test_an_engine_that_is_another_one_than_the_manifest_says_is_refused(
    program: Path, copied: Path, raw: Path
) -> None:
    file = copied / MANIFEST
    manifest = json.loads(file.read_text())
    manifest["spec"]["frame"] |= {"height": 96, "width": 64}
    file.write_text(json.dumps(manifest))
    assert "expected uint8 [N, 96, 64, 3]" in refused(program, copied, raw)
    manifest["spec"]["frame"] |= {"height": None}
    file.write_text(json.dumps(manifest))
    assert "frames of any size" in refused(program, copied, raw)


def test_frames_of_another_size_and_wrong_requests_exit_with_2(program: Path, int8_bundle: Path, raw: Path) -> None:
    def wrong(*more: str, file: Path = raw) -> str:
        return refused(program, int8_bundle, file, *more, code=2)

    assert "takes frames of 64x96, not 96x64" in wrong("--size", "96x64")
    part = raw.with_name("part.raw")
    for size in (0, 1, 64 * 96 * 3 * 2 - 1):
        part.write_bytes(raw.read_bytes()[:size])
        assert f"{size} bytes are no whole number of frames of 18432 bytes" in wrong(file=part)
    assert "cannot be read" in wrong(file=raw.with_name("nothing.raw"))
    assert "--mode fast is unknown" in wrong("--mode", "fast")
    assert "--size wants a value" in wrong("--size")
    assert "expected BUNDLE FRAMES LABELS" in wrong("more")
    code, _, errors = run_program(program, int8_bundle, "-", "-", given=raw.read_bytes()[:-1])
    assert code == 2
    assert "no whole number of frames" in errors
    code, _, errors = run_program(program, int8_bundle, raw, raw.parent / "nowhere" / "labels.raw")
    assert code == 2
    assert "cannot be written" in errors
    code, said, _ = run_program(program, "--help")
    assert code == 0
    assert "usage: fcnopt_run BUNDLE FRAMES LABELS" in said


@pytest.fixture
def signed(copied: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A signed bundle and the public key; needs OpenSSL's headers where the program was built."""
    pytest.importorskip("cryptography")
    if not Path("/usr/include/openssl/evp.h").exists():
        pytest.skip("OpenSSL's headers are not installed")
    public = new_key(tmp_path / "key")
    sign(copied, tmp_path / "key")
    return copied, public


def test_a_trusted_signature_is_accepted_and_others_are_not(
    program: Path, signed: tuple[Path, Path], int8_bundle: Path, raw: Path
) -> None:
    bundle, public = signed
    other = new_key(raw.with_name("other"))
    labels = raw.with_name("labels.raw")
    folder = raw.with_name("keys")
    folder.mkdir()
    shutil.copy(public, folder)
    for more in ((), ("--trusted-key", public), ("--trusted-key", other, "--trusted-key", public)):
        assert run_program(program, bundle, raw, labels, *more)[0] == 0
    assert run_program(program, bundle, raw, labels, FCNOPT_TRUSTED_KEYS=f"{other}:{folder}")[0] == 0
    assert "signed by an unknown key" in refused(program, bundle, raw, "--trusted-key", other)
    assert "signed by an unknown key" in refused(program, bundle, raw, FCNOPT_TRUSTED_KEYS=str(other))
    assert "is not signed" in refused(program, int8_bundle, raw, "--trusted-key", public)
    assert "names no key" in refused(program, bundle, raw, code=2, FCNOPT_TRUSTED_KEYS=":")
    for no_key in (raw.with_name("key"), raw):
        assert "is no Ed25519 public key" in refused(program, bundle, raw, "--trusted-key", no_key, code=2)


def test_of_a_signed_bundle_no_byte_can_be_changed(program: Path, signed: tuple[Path, Path], raw: Path) -> None:
    bundle, public = signed
    rng = np.random.default_rng(0)
    for name, messages in ((MANIFEST, ("signature in manifest.sig is wrong",)), (SIGNATURE, ("manifest.sig", "key"))):
        whole = (bundle / name).read_bytes()
        for place in (0, *rng.integers(0, len(whole), 12).tolist(), len(whole) - 1):
            (bundle / name).write_bytes(flipped(whole, place))
            errors = refused(program, bundle, raw, "--trusted-key", public)
            assert any(message in errors for message in messages), (place, errors)
        (bundle / name).write_bytes(whole + b"\n")
        refused(program, bundle, raw)
        (bundle / name).write_bytes(whole)
    assert run_program(program, bundle, raw, raw.with_name("labels.raw"), "--trusted-key", public)[0] == 0
