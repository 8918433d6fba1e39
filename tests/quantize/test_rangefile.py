from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from fcnopt.errors import CalibrationError
from fcnopt.quantize.frames import CalibrationFrames
from fcnopt.quantize.rangefile import RangeFile
from fcnopt.quantize.ranges import observe
from tests.quantize.nets import fcn, spec, write_images


@pytest.fixture
def made(rng: np.random.Generator, tmp_path: Path) -> tuple[onnx.ModelProto, CalibrationFrames, RangeFile]:
    model = fcn(rng)
    frames = CalibrationFrames.collect([write_images(rng, tmp_path / "frames", 3)], spec())
    ranges = observe(model, frames, tensors=("conv1_relu", "logits"), quantized=("conv1_relu",))
    ranges = replace(ranges, factors={"conv1_relu": (0.5, 2.0, 1 / 3)})
    return model, frames, RangeFile.of(ranges, model, frames)


def test_what_was_saved_is_what_is_loaded(made, tmp_path: Path) -> None:
    model, frames, file = made
    path = file.save(tmp_path / "calib" / "net.json")
    loaded = RangeFile.load(path)
    assert loaded == file
    assert loaded.ranges.tensors["conv1_relu"].intervals["entropy"][127][1] > 0
    loaded.check(model, frames)
    assert [entry.name for entry in path.parent.iterdir()] == ["net.json"]
    data = json.loads(path.read_text())
    assert data["version"] == 3
    assert data["settled"]["frames"] == 3
    assert data["frames"] == {"count": 3, "sources": list(frames.sources)}


def test_other_weights_are_refused(made) -> None:
    model, frames, file = made
    other = onnx.ModelProto()
    other.CopyFrom(model)
    weight = other.graph.initializer[3]
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) * 1.5, weight.name))
    with pytest.raises(CalibrationError, match=r"belong to other weights: weights expected \w{12}, found \w{12}"):
        file.check(other, frames, name="calib/net.json")


def test_other_frames_are_refused(made, rng: np.random.Generator, tmp_path: Path) -> None:
    model, _, file = made
    others = CalibrationFrames.collect([write_images(rng, tmp_path / "other", 3)], spec())
    with pytest.raises(CalibrationError, match=r"^calib/net.json: ranges belong to other frames: ") as error:
        file.check(model, others, name="calib/net.json")
    assert file.frames[:12] in error.value.message
    assert others.hash[:12] in error.value.message
    assert "delete calib/net.json" in error.value.fix


def test_another_graph_is_refused(made) -> None:
    model, frames, file = made
    other = onnx.ModelProto()
    other.CopyFrom(model)
    pool = next(node for node in other.graph.node if node.op_type == "MaxPool")
    pool.op_type = "AveragePool"
    with pytest.raises(CalibrationError, match="ranges belong to other graph: graph expected"):
        file.check(other, frames)


def test_everything_that_differs_is_named(made, rng: np.random.Generator, tmp_path: Path) -> None:
    file = made[2]
    others = CalibrationFrames.collect([write_images(rng, tmp_path / "other", 2)], spec())
    from tests.quantize.nets import Options

    with pytest.raises(CalibrationError, match="other weights and frames and graph"):
        file.check(fcn(rng, Options(bias=False)), others)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: text[:0],
        lambda text: text[:0] + "[]",
        lambda text: text.replace('"hashes"', '"hash"'),
        lambda text: text.replace('"minimum": 0.0', '"minimum": "low"', 1),
        lambda text: text.replace('"minimum": 0.0', '"minimum": NaN', 1),
        lambda text: text.replace('"count": 3', '"count": 0'),
        lambda text: text.replace('"127": [', '"127": [1e9, ', 1),
        lambda text: "\x00" + text,
        lambda text: text.replace('"factors"', '"factor"'),
        lambda text: text.replace("   0.5,", "   -0.5,"),
        lambda text: text.replace("   0.5,", "   0,"),
        lambda text: text.replace("   0.5,", "   Infinity,"),
        lambda text: text.replace("   0.5,", '   "half",'),
        lambda text: text.replace('"factors": {', '"factors": {"a": 7, '),
        lambda text: text.replace('"settled": {', '"settled": {"unsettled": 1, '),
        lambda text: text.replace('"tolerance": 0.02', '"tolerance": "x"'),
        lambda text: text.replace('"settled_after": null', '"settled_after": "x"', 1),
        lambda text: text.replace('"settled": {\n  "frames": 3', '"settled": {\n  "frames": "x"'),
        lambda text: text.replace('"settled": {\n  "frames": 3', '"settled": {\n  "frames": 0'),
        lambda text: text.replace('"steps": []', '"steps": [{"frames": 1}]'),
        lambda text: text.replace('"sources": [', '"sources": [7, '),
        lambda text: text.replace('"weights": "', '"weights": 7, "w": "'),
    ],
)
def test_damage_is_one_clear_error(made, tmp_path: Path, damage) -> None:
    path = made[2].save(tmp_path / "net.json")
    before = path.read_text()
    after = damage(before)
    assert after != before
    path.write_text(after)
    with pytest.raises(CalibrationError, match=r"net\.json: the range file is cut off or damaged") as error:
        RangeFile.load(path)
    assert "delete" in error.value.fix


def test_another_schema_version_is_refused(made, tmp_path: Path) -> None:
    path = made[2].save(tmp_path / "net.json")
    path.write_text(path.read_text().replace('"version": 3', '"version": 2'))
    with pytest.raises(CalibrationError, match="schema version 2, this fcnopt reads 3"):
        RangeFile.load(path)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=r"none\.json: the range file cannot be read: No such file"):
        RangeFile.load(tmp_path / "none.json")


def test_failed_save_leaves_the_old_file(made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = made[2].save(tmp_path / "net.json")
    before = path.read_bytes()

    def full(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(CalibrationError, match="cannot be written: No space left on device"):
        made[2].save(path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir() if entry.is_file()] == ["net.json"]
