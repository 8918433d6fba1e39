"""Bundles: whole or refused, and proved when they are loaded."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fcnopt import bundle as bundles
from fcnopt.builder import build
from fcnopt.bundle import Bundle, load, loading, staged
from fcnopt.errors import BackendError, BundleError, UsageError
from fcnopt.manifest import Manifest
from fcnopt.media.clips import open_clip
from fcnopt.selftest import SELFTEST, write_selftest
from fcnopt.settings import BuildSettings


@pytest.fixture(scope="module")
def built(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("engines")
    return build(tiny_model, precision="fp32", target="onnxruntime", settings=BuildSettings(folder=folder))


@pytest.fixture
def copied(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / built.name))


def test_a_bundle_loads_and_answers_its_known_answer(built: Path) -> None:
    with load(built) as engine, np.load(built / SELFTEST) as known:
        assert known["labels"].max() > 0, "a known answer of one class only proves little"
        np.testing.assert_array_equal(engine.run(known["frame"]).labels, known["labels"])


def test_manifest_round_trip_keeps_everything(built: Path) -> None:
    manifest = Bundle.read(built).manifest
    assert set(manifest.files) == {p.name for p in built.iterdir()} - {bundles.MANIFEST}
    assert Manifest.from_json(manifest.to_json(), built) == manifest


def test_every_file_is_guarded_by_its_hash(copied: Path) -> None:
    names = sorted(Bundle.read(copied).manifest.files)
    assert bundles.MODEL in names
    for name in names:
        whole = (copied / name).read_bytes()
        middle = len(whole) // 2
        (copied / name).write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
        with pytest.raises(BundleError, match=rf"{name}: SHA-256 is"):
            load(copied)
        (copied / name).write_bytes(whole)
    load(copied).close()


def test_hashes_are_checked_before_a_runtime_sees_a_byte(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Any] = []
    monkeypatch.setattr(loading, "open_engine", lambda *args: opened.append(args))
    (copied / bundles.MODEL).write_bytes(b"changed")
    with pytest.raises(BundleError, match="SHA-256"):
        load(copied)
    assert not opened


def test_a_missing_and_an_added_file_are_named(copied: Path) -> None:
    (copied / "added.bin").write_bytes(b"x")
    with pytest.raises(BundleError, match=r"added\.bin is not listed"):
        load(copied)
    (copied / "added.bin").unlink()
    (copied / SELFTEST).unlink()
    with pytest.raises(BundleError, match=r"selftest\.npz is missing"):
        load(copied)


def test_an_engine_that_answers_wrongly_is_refused(copied: Path) -> None:
    with np.load(copied / SELFTEST) as known:
        frame, labels = known["frame"], known["labels"]
    write_selftest(copied / SELFTEST, frame, (labels + 1) % 5)
    bundles.finish(copied, Bundle.read(copied).manifest)
    with pytest.raises(BundleError, match=r"known-answer test failed: 0\.00% of labels agree"):
        load(copied)
    load(copied, selftest=False).close()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 9}, "schema version 9"),
        ({"engine": []}, "no hash"),
        ({"engine": ["../model.onnx"]}, "not a file name"),
        ({"files": ["model.onnx"]}, "files is not an object"),
        ({"min_agreement": 2.0}, "not within"),
        ({"min_agreement": "all"}, "not within"),
        ({"surprise": 1}, "surprise"),
        ({"spec": {}}, "model spec"),
        ({"name": 3}, "name is not a string"),
        ({"layers": [{}]}, "not a bundle manifest"),
    ],
)
def test_a_damaged_manifest_is_refused_with_what_is_wrong(copied: Path, change: dict[str, Any], message: str) -> None:
    file = copied / bundles.MANIFEST
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(BundleError, match=message):
        load(copied)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"x"', "[" * 50_000])
def test_what_is_not_a_manifest_is_refused(copied: Path, text: str) -> None:
    (copied / bundles.MANIFEST).write_text(text)
    with pytest.raises(BundleError, match=r"manifest\.json"):
        load(copied)


def test_a_folder_without_manifest_and_no_folder_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="has no manifest"):
        load(tmp_path)
    with pytest.raises(BundleError, match="does not exist"):
        load(tmp_path / "nowhere")


def test_a_bundle_for_another_device_says_so(copied: Path) -> None:
    manifest = Bundle.read(copied).manifest
    bundles.write_text(copied / bundles.MANIFEST, replace(manifest, target="onnxruntime:cuda").to_json())
    if Bundle.read(copied).target.runs_here():
        pytest.skip("this machine has ONNX Runtime with CUDA")
    with pytest.raises(BackendError, match="CUDA"):
        load(copied)


def test_a_build_that_fails_leaves_nothing_and_keeps_the_old_bundle(copied: Path) -> None:
    before = sorted(p.name for p in copied.parent.iterdir())

    def build_half() -> None:
        with staged(copied) as folder:
            (folder / "half").write_bytes(b"x")
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        build_half()
    assert sorted(p.name for p in copied.parent.iterdir()) == before
    load(copied).close()


@pytest.fixture
def dead_process() -> int:
    """The number of a process that is no more."""
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


def test_what_a_killed_build_left_is_removed_by_the_next(copied: Path, dead_process: int) -> None:
    leftovers = [copied.with_name(f".{copied.name}.{dead_process}-0123abcd.{kind}") for kind in ("partial", "old")]
    running = copied.with_name(f".{copied.name}.{os.getpid()}-0123abcd.partial")
    other = copied.with_name(f".{copied.name}.v2.{dead_process}-0123abcd.partial")
    for folder in (*leftovers, running, other):
        folder.mkdir()
    with staged(copied) as folder:
        bundles.finish(folder, _moved(copied, folder))
    assert not any(folder.exists() for folder in leftovers)
    assert running.exists(), "another build's folder was taken from it"
    assert other.exists(), "another bundle's folder was removed"
    load(copied).close()


def test_a_bundle_that_a_killed_build_had_moved_aside_comes_back(copied: Path, dead_process: int) -> None:
    copied.rename(copied.with_name(f".{copied.name}.{dead_process}-0123abcd.old"))

    def fail() -> None:
        with staged(copied):
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        fail()
    load(copied).close()


def test_the_old_bundle_stays_where_the_new_one_cannot_be_moved_in(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if self.suffix == ".partial":
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(BundleError, match="Input/output error"), staged(copied) as folder:
        bundles.finish(folder, _moved(copied, folder))
    assert [p.name for p in copied.parent.iterdir()] == [copied.name]
    load(copied).close()


def test_a_full_disk_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="No space left") as caught, staged(tmp_path / "x"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert "free disk space" in caught.value.fix
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_no_bundle_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "photo.jpg").write_bytes(b"x")
    with pytest.raises(BundleError, match="is not a bundle"), staged(tmp_path / "mine"):
        pass
    assert (tmp_path / "mine" / "photo.jpg").exists()


def test_stream_takes_a_clip_of_another_size_and_answers_at_its_size(built: Path, street: Path) -> None:
    with load(built) as engine:
        labels = [out.labels for out in engine.stream(street / "clip.mp4")]
        assert [x.shape for x in labels] == [(1, 64, 96)] * 6
        large = [np.repeat(np.repeat(frame.image, 2, 0), 2, 1) for frame in open_clip(street / "clip.mp4")]
        streamed = [out.labels for out in engine.stream(large)]
    assert [x.shape for x in streamed] == [(1, 128, 192)] * 6
    assert np.mean([(a.repeat(2, 1).repeat(2, 2) == b).mean() for a, b in zip(labels, streamed, strict=True)]) > 0.9


def test_of_a_live_source_each_answer_has_the_size_of_its_own_frame(built: Path, street: Path) -> None:
    """Every other frame is twice as large; the frames that were skipped take their sizes with them."""
    small = [frame.image for frame in open_clip(street / "clip.mp4")]

    def camera() -> Iterator[NDArray[np.uint8]]:
        for number in range(60):
            time.sleep(0.001)
            image = small[number % 6]
            yield image if number % 2 else image.repeat(2, 0).repeat(2, 1)

    with load(built) as engine:
        outs = []
        for out in engine.stream(camera(), policy="drop-oldest"):
            outs.append(out)
            time.sleep(0.005)
    assert len(outs) + sum(out.skipped for out in outs) == 60
    assert sum(out.skipped for out in outs) > 0
    for out in outs:
        assert out.labels.shape == ((1, 64, 96) if (out.index or 0) % 2 else (1, 128, 192))


def test_a_closed_engine_streams_no_more(built: Path, street: Path) -> None:
    with load(built, mode="throughput") as engine:
        assert engine.in_flight == 2
        assert len(list(engine.stream(street / "clip.mp4"))) == 6
    with pytest.raises(UsageError, match="is closed"):
        engine.stream(street / "clip.mp4")


def test_run_refuses_frames_of_another_size_or_type(built: Path) -> None:
    with load(built) as engine:
        with pytest.raises(UsageError, match=r"uint8 \[N, 64, 96, 3\]"):
            engine.run(np.zeros((1, 64, 97, 3), np.uint8))
        with pytest.raises(UsageError, match="float32"):
            engine.run(np.zeros((1, 64, 96, 3), np.float32))


def test_several_frames_run_on_an_engine_of_one(built: Path, street: Path) -> None:
    frames = np.stack([frame.image for frame in open_clip(street / "clip.mp4")])
    with load(built) as engine:
        assert engine.batch == 1
        together = engine.run(frames).labels
        np.testing.assert_array_equal(together, np.concatenate([engine.run(frame[None]).labels for frame in frames]))
    assert together.shape == (6, 64, 96)
    with pytest.raises(UsageError, match="is closed"):
        engine.run(frames)


def test_a_measurement_replaces_the_one_on_the_same_clip_and_machine(copied: Path) -> None:
    bundle = Bundle.read(copied)
    bundle.record({"clip": "a", "cpu": "x", "fps": 1.0})
    Bundle.read(copied).record({"clip": "b", "cpu": "x", "fps": 2.0})
    Bundle.read(copied).record({"clip": "a", "cpu": "x", "gpus": ["H100"], "fps": 9.0})
    Bundle.read(copied).record({"clip": "a", "cpu": "x", "fps": 3.0})
    kept = [(m["clip"], m["fps"]) for m in Bundle.read(copied).manifest.measurements]
    assert kept == [("b", 2.0), ("a", 9.0), ("a", 3.0)], "another GPU is another machine"
    load(copied).close()


def _moved(source: Path, folder: Path) -> Manifest:
    manifest = Bundle.read(source).manifest
    for name in manifest.files:
        shutil.copy(source / name, folder / name)
    return manifest
