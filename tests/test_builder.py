"""From model to bundle: defaults, refusals, and every precision on every runtime that is here."""

from __future__ import annotations

import os
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fcnopt
from fcnopt import builder, selftest
from fcnopt.backends import Target
from fcnopt.backends.base import BuildOptions, Outputs
from fcnopt.builder import build, optimize
from fcnopt.bundle import Bundle, load
from fcnopt.errors import BackendError, BuildError, BundleError, CalibrationError, FcnoptError, UsageError
from fcnopt.graph import io
from fcnopt.graph.batch import with_batch
from fcnopt.inspection import inspect
from fcnopt.locate import find_reference, newest_bundle, newest_model
from fcnopt.origin import ORIGIN_KEY, Origin
from fcnopt.settings import BuildSettings


@pytest.mark.parametrize("target", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_engines_for_cpus_build_load_and_agree_with_fp32(
    tiny_model: Path, street: Path, tmp_path: Path, target: str, precision: Any
) -> None:
    settings = BuildSettings(folder=tmp_path, calib=tmp_path / "calib")
    path = build(tiny_model, precision=precision, target=target, calibration=street / "images", settings=settings)
    reference = build(tiny_model, precision="fp32", target="onnxruntime", settings=BuildSettings(folder=tmp_path / "r"))
    with load(path) as engine, load(reference) as fp32:
        pairs = zip(engine.stream(street / "clip.mp4"), fp32.stream(street / "clip.mp4"), strict=True)
        agreement = np.mean([(a.labels == b.labels).mean() for a, b in pairs])
    # random weights leave the logits close together: a trained network agrees far better (benchmarks/camvid.py)
    assert agreement > (0.9 if precision == "int8" else 0.9999)
    assert Bundle.read(path).manifest.precision == precision


@pytest.mark.parametrize("target", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_engines_of_several_frames_at_a_time(
    tiny_model: Path, street: Path, tmp_path: Path, target: str, precision: Any
) -> None:
    one, three = (
        build(
            tiny_model,
            precision=precision,
            target=target,
            calibration=street / "images",
            settings=BuildSettings(folder=tmp_path / str(batch), calib=tmp_path / "calib", batch=batch),
        )
        for batch in (None, 3)
    )
    with load(one) as single, load(three) as engine:
        assert engine.batch == 3
        assert three.name.endswith("-b3")
        assert inspect(three).stats.macs == inspect(one).stats.macs, "a frame's"
        pairs = zip(engine.stream(street / "clip.mp4"), single.stream(street / "clip.mp4"), strict=True)
        assert np.mean([(a.labels == b.labels).mean() for a, b in pairs]) > 0.999


@pytest.fixture
def four_model(tiny_model: Path, tmp_path: Path) -> Path:
    """As the export of an ONNX file that takes four frames at a time."""
    return io.save(with_batch(io.load(tiny_model), 4), tmp_path / "four.onnx")


@pytest.mark.parametrize("target", ["openvino", "onnxruntime"])
def test_a_model_that_takes_several_frames_at_a_time_builds_where_no_frame_is_judged(
    four_model: Path, street: Path, tmp_path: Path, target: str
) -> None:
    settings = BuildSettings(folder=tmp_path, calib=tmp_path / "calib", select="diverse")
    path = build(four_model, precision="fp32", target=target, calibration=street / "images", settings=settings)
    with load(path) as engine:
        assert engine.batch == 4
        assert len(list(engine.stream(street / "clip.mp4"))) == 6


@pytest.mark.parametrize(
    ("precision", "target"),
    [("int8", "onnxruntime"), ("int8", "openvino"), ("fp8", "tensorrt-rtx:sm89"), ("fp16", "tensorrt-rtx:sm89")],
)
@pytest.mark.parametrize("select", ["even", "diverse"])
def test_a_model_that_takes_several_frames_at_a_time_is_refused_where_frames_are_judged(
    four_model: Path, street: Path, tmp_path: Path, precision: Any, target: str, select: Any
) -> None:
    if "rtx" in target:
        pytest.importorskip("tensorrt_rtx")
    settings = BuildSettings(folder=tmp_path / "engines", calib=tmp_path / "calib", select=select)
    message = rf"four\.onnx: takes 4 frames at a time, but frames for {precision} are judged one by one"
    with pytest.raises(UsageError, match=message) as caught:
        build(four_model, precision=precision, target=target, calibration=street / "images", settings=settings)
    assert "a batch of 1" in caught.value.fix
    assert "--batch 4" in caught.value.fix
    assert not list(tmp_path.glob("engines/*"))


def test_the_batch_is_refused_before_frames_are_asked_for(four_model: Path, tmp_path: Path) -> None:
    settings = BuildSettings(folder=tmp_path, calib=tmp_path / "calib")
    with pytest.raises(UsageError, match="takes 4 frames at a time"):
        build(four_model, precision="int8", target="onnxruntime", settings=settings)


def test_half_precision_without_frames_takes_any_batch(four_model: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    settings = BuildSettings(folder=tmp_path, calib=tmp_path / "calib")
    path = build(four_model, precision="fp16", target="tensorrt-rtx:sm89", settings=settings)
    assert inspect(path).batch == 4


def test_a_batch_below_one_is_refused() -> None:
    with pytest.raises(UsageError, match="batch is 0"):
        BuildSettings(batch=0)


@pytest.mark.parametrize("precision", ["fp16", "int8", "fp8"])
def test_tensorrt_rtx_engines_build_without_a_gpu(
    tiny_model: Path, street: Path, tmp_path: Path, precision: Any
) -> None:
    pytest.importorskip("tensorrt_rtx")
    settings = BuildSettings(folder=tmp_path, calib=tmp_path / "calib")
    path = build(
        tiny_model,
        precision=precision,
        target="tensorrt-rtx:sm89" if precision == "fp8" else "tensorrt-rtx:sm86,sm89",
        calibration=street / "images",
        settings=settings,
    )
    manifest = Bundle.read(path).manifest
    Bundle.read(path).verify()
    assert manifest.layers, "the build log names the engine's layers"
    precisions = {layer.precision for layer in manifest.layers}
    assert precisions & {"int8", "fp8"} == ({precision} - {"fp16"})


@pytest.mark.parametrize(
    ("precision", "target", "message"),
    [
        ("fp16", "onnxruntime", "CPU kernels compute fp16 graphs in fp32"),
        ("bf16", "onnxruntime", "CPU kernels compute bf16 graphs in fp32"),
        ("int8", "onnxruntime:cuda", "CUDA"),
        ("int8", "tensorrt", "tensorrt"),
    ],
)
def test_what_cannot_be_built_here_is_refused_before_frames_are_read(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: Any, target: str, message: str
) -> None:
    if target != "onnxruntime" and Target.parse(target).runs_here():
        pytest.skip(f"{target} runs on this machine")
    monkeypatch.setattr(builder, "calibration_frames", lambda *_a, **_k: pytest.fail("frames were read"))
    with pytest.raises(BackendError, match=message):
        build(tiny_model, precision=precision, target=target, settings=BuildSettings(folder=tmp_path))


def test_int8_without_frames_is_an_error_that_says_how_to_give_some(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CalibrationError, match="int8 needs calibration frames") as caught:
        build(tiny_model, precision="int8", target="onnxruntime")
    assert "calib/" in caught.value.fix
    assert "--calibration" in caught.value.fix
    assert not list(tmp_path.glob("engines/*"))


@pytest.mark.parametrize("stray", [".gitkeep", ".DS_Store", ".tiny.json.1a2b3c4d.tmp", "notes.txt"])
def test_what_is_no_frame_in_the_calibration_folder_is_none(tiny_model: Path, tmp_path: Path, stray: str) -> None:
    settings = BuildSettings(folder=tmp_path, calib=tmp_path / "calib")
    settings.calib.mkdir()
    (settings.calib / stray).write_text("x")
    assert build(tiny_model, precision="fp32", target="onnxruntime", settings=settings).is_dir()
    with pytest.raises(CalibrationError, match="int8 needs calibration frames"):
        build(tiny_model, precision="int8", target="onnxruntime", settings=settings)


def test_label_maps_in_the_calibration_folder_are_named(tiny_model: Path, street: Path, tmp_path: Path) -> None:
    settings = BuildSettings(folder=tmp_path, calib=tmp_path / "calib")
    shutil.copytree(street / "labels", settings.calib / "labels")
    with pytest.raises(CalibrationError, match="holds label maps, not frames"):
        build(tiny_model, precision="int8", target="onnxruntime", settings=settings)


def test_frames_that_cover_the_clip_are_picked_the_same_way_again(
    tiny_model: Path, street: Path, tmp_path: Path
) -> None:
    settings = BuildSettings(folder=tmp_path, calib=tmp_path / "calib", max_frames=3, select="diverse")
    steps: list[tuple[str, float]] = []

    def run() -> dict[str, Any]:
        path = build(
            tiny_model,
            precision="int8",
            target="onnxruntime",
            calibration=street / "images",
            settings=settings,
            progress=lambda step, done: steps.append((step, done)),
        )
        return Bundle.read(path).manifest.sources

    first = run()
    assert "3 of 6 frames, 96x64" in first["calibration"]
    assert "picked from 6 to cover them" in first["calibration"]
    assert [done for step, done in steps if step == "pick frames"] == pytest.approx([i / 6 for i in range(7)])
    kept = (settings.calib / "tiny.json").read_bytes()
    assert run()["frames_sha256"] == first["frames_sha256"]
    assert (settings.calib / "tiny.json").read_bytes() == kept


def test_label_maps_left_out_are_noted_in_the_bundle(tiny_model: Path, street: Path, tmp_path: Path) -> None:
    shutil.copytree(street / "images", tmp_path / "set" / "train")
    shutil.copytree(street / "labels", tmp_path / "set" / "trainannot")
    settings = BuildSettings(folder=tmp_path, calib=tmp_path / "calib")
    path = build(tiny_model, precision="int8", target="onnxruntime", calibration=tmp_path / "set", settings=settings)
    manifest = Bundle.read(path).manifest
    assert manifest.sources["frames"] == 6
    left = tmp_path / "set" / "trainannot"
    assert f"calibration: left out the label maps in {left}" in manifest.notes


def test_kept_ranges_are_used_again_and_refused_for_other_frames(
    tiny_model: Path, street: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = BuildSettings(folder=tmp_path, calib=tmp_path / "calib")

    def run(frames: Path, **changes: Any) -> Path:
        chosen = BuildSettings(folder=tmp_path, calib=tmp_path / "calib", **changes)
        return build(tiny_model, precision="int8", target="onnxruntime", calibration=frames, settings=chosen)

    run(street / "images")
    file = settings.calib / "tiny.json"
    kept = file.read_bytes()
    run(street / "images")
    assert file.read_bytes() == kept
    with monkeypatch.context() as patch:  # before the graph passes, which take their time
        patch.setattr(builder, "run_passes", lambda *_a, **_k: pytest.fail("passes ran first"))
        with pytest.raises(CalibrationError, match=r"ranges belong to other frames: .*\(6 frames then, 3 now\)"):
            run(street / "images", max_frames=3)
    assert file.read_bytes() == kept
    run(street / "images", max_frames=3, recalibrate=True)
    assert file.read_bytes() != kept


def test_a_model_without_spec_is_refused_with_the_command_that_adds_it(tiny_model: Path, tmp_path: Path) -> None:
    model = io.load(tiny_model)
    del model.metadata_props[:]
    io.save(model, tmp_path / "foreign.onnx")
    with pytest.raises(UsageError, match="normalized") as caught:
        build(tmp_path / "foreign.onnx", precision="fp32", target="onnxruntime")
    assert "fcnopt export" in caught.value.fix


def test_an_engine_that_disagrees_with_its_graph_is_not_packed(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = selftest.open_engine

    def wrong(*args: Any) -> Any:
        runner = whole(*args)
        monkeypatch.setattr(runner, "infer", lambda frames: Outputs(np.full(frames.shape[:3], 4, np.uint8)))
        return runner

    monkeypatch.setattr(selftest, "open_engine", wrong)
    with pytest.raises(BuildError, match="agrees with its own graph on"):
        build(tiny_model, precision="fp32", target="onnxruntime", settings=BuildSettings(folder=tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_quantized_graph_is_no_source_whatever_the_precision(tiny_model: Path, street: Path, tmp_path: Path) -> None:
    settings = BuildSettings(folder=tmp_path, calib=tmp_path / "calib")
    path = build(tiny_model, precision="int8", target="onnxruntime", calibration=street / "images", settings=settings)
    with pytest.raises(UsageError, match="is quantized already"):
        build(path / "model.onnx", precision="fp32", target="onnxruntime", settings=settings)
    with pytest.raises(UsageError, match="is a bundle"):
        build(path, precision="fp32", target="onnxruntime", settings=settings)
    with pytest.raises(UsageError, match="fcnopt export") as caught:
        build(tiny_model.with_suffix(".pth"), precision="fp32", target="onnxruntime", settings=settings)
    assert "is a checkpoint" in caught.value.message
    assert any("6 frames only" in note for note in Bundle.read(path).manifest.notes)


def test_a_recalibration_that_fails_keeps_the_old_ranges(
    tiny_model: Path, street: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(**changes: Any) -> None:
        settings = BuildSettings(folder=tmp_path, calib=tmp_path / "calib", **changes)
        build(tiny_model, precision="int8", target="onnxruntime", calibration=street / "images", settings=settings)

    run()
    kept = (tmp_path / "calib/tiny.json").read_bytes()
    monkeypatch.setattr(builder, "tune", lambda *_a, **_k: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run(recalibrate=True)
    assert (tmp_path / "calib/tiny.json").read_bytes() == kept


def test_options_that_the_runtime_has_not_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    settings = BuildSettings(folder=tmp_path, backend=BuildOptions(version_compatible=True))
    with pytest.raises(UsageError, match="openvino: version_compatible cannot be chosen"):
        build(tiny_model, precision="fp32", target="openvino", settings=settings)
    with pytest.raises(UsageError, match="workspace is 0 MiB"):
        BuildSettings.parse(workspace_mib=0)


def test_a_folder_that_cannot_be_written_is_refused_before_any_work(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(BundleError, match="cannot be written"):
        build(tiny_model, precision="fp32", target="onnxruntime", settings=BuildSettings(folder=tmp_path / "file"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"precision": "int4"}, "precision 'int4' is unknown"),
        ({"target": "tpu"}, "tpu"),
        ({"target": "tensorrt-rtx:sm11"}, "sm11"),
    ],
)
def test_wrong_words_are_named(tiny_model: Path, tmp_path: Path, arguments: Any, message: str) -> None:
    with pytest.raises(FcnoptError, match=message):
        build(tiny_model, **arguments, settings=BuildSettings(folder=tmp_path))


def test_wrong_settings_are_named() -> None:
    with pytest.raises(UsageError, match="method 'mean'"):
        BuildSettings(method="mean")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="select 'best' is unknown") as caught:
        BuildSettings(select="best")  # type: ignore[arg-type]
    assert "even, diverse" in caught.value.fix
    with pytest.raises(UsageError, match="max_frames is 0"):
        BuildSettings(max_frames=0)
    with pytest.raises(UsageError, match="not a folder name"):
        BuildSettings(name="../x")
    with pytest.raises(UsageError, match="not three sizes"):
        BuildSettings.parse(shapes="1x2x3")
    with pytest.raises(UsageError, match="do not grow"):
        BuildSettings.parse(shapes="2x32x32,1x32x32,1x64x64")
    parsed = BuildSettings.parse(shapes="1x32x32,1x64x64,4x64x64", workspace_mib=2, no_optimize=True)
    assert parsed.backend.shapes == ((1, 32, 32), (1, 64, 64), (4, 64, 64))
    assert parsed.backend.workspace_bytes == 2 << 20
    assert not parsed.optimize


def test_the_newest_model_and_bundle_are_taken(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="fcnopt export"):
        newest_model(tmp_path)
    with pytest.raises(UsageError, match="fcnopt build"):
        newest_bundle(tmp_path)
    for age, name in enumerate(("new", "old")):
        model = tmp_path / f"{name}.onnx"
        model.write_bytes(b"")
        os.utime(model, (1000 - age, 1000 - age))
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text("{}")
        (tmp_path / name / "model.onnx").write_bytes(b"")
        os.utime(tmp_path / name / "model.onnx", (1000 - age, 1000 - age))
    (tmp_path / "newer.opt.onnx").write_bytes(b"")
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "manifest.json").write_text("{}")
    assert newest_model(tmp_path).name == "new.onnx"
    assert newest_bundle(tmp_path).name == "new"


def test_the_newest_bundle_that_runs_here_is_taken(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = BuildSettings(folder=tmp_path, calib=tmp_path / "calib")
    here = build(tiny_model, precision="fp32", target="onnxruntime", settings=settings)
    os.utime(here / "model.onnx", (1000, 1000))
    away = tmp_path / "away"
    shutil.copytree(here, away)
    manifest = replace(Bundle.read(here).manifest, name="away", target="tensorrt")
    (away / "manifest.json").write_text(manifest.to_json())
    os.utime(away / "model.onnx", (2000, 2000))
    monkeypatch.setattr(Target, "runs_here", lambda self: self.runtime == "onnxruntime")
    assert newest_bundle(tmp_path) == here
    shutil.rmtree(here)
    assert newest_bundle(tmp_path) == away


def test_the_reference_is_found_beside_a_moved_bundle_and_only_if_unchanged(tiny_model: Path, tmp_path: Path) -> None:
    home = tmp_path / "engines"
    home.mkdir()
    model = home / "m.onnx"
    model.write_bytes(tiny_model.read_bytes())
    path = build(model, precision="fp32", target="onnxruntime", settings=BuildSettings(folder=home))
    home.rename(tmp_path / "moved")
    bundle = Bundle.read(tmp_path / "moved" / path.name)
    assert find_reference(bundle) == tmp_path / "moved" / "m.onnx"
    (tmp_path / "moved" / "m.onnx").write_bytes(b"other")
    with pytest.raises(FcnoptError, match="missing or was changed"):
        find_reference(bundle)


def test_optimize_writes_a_smaller_graph_with_the_spec(tiny_model: Path, tmp_path: Path) -> None:
    path, reports = optimize(tiny_model, tmp_path / "o.onnx")
    before, after = io.load(tiny_model), io.load(path)
    count = {op: sum(n.op_type == op for n in before.graph.node) for op in ("BatchNormalization", "Conv")}
    assert count["BatchNormalization"] > 10
    assert not any(n.op_type == "BatchNormalization" for n in after.graph.node)
    assert sum(n.op_type == "Conv" for n in after.graph.node) == count["Conv"]
    assert io.read_spec(after) == io.read_spec(before)
    assert max(report.error for report in reports) < 1e-5


def test_the_package_offers_its_verbs_as_functions() -> None:
    for name in set(fcnopt.__all__) - {"__version__"}:
        assert callable(getattr(fcnopt, name))
    modules = {path.stem for path in Path(fcnopt.__file__).parent.glob("*.py")}
    assert not modules & set(fcnopt.__all__), "a module of a verb's name would hide the verb"
    with pytest.raises(AttributeError, match="no attribute 'train'"):
        fcnopt.train  # noqa: B018


def test_a_bundle_says_what_its_network_was_slimmed_from(tiny_model: Path, tmp_path: Path) -> None:
    origin = Origin("fcn8s.pth", "0" * 64, "same", accuracy={"drop": 0.3})
    slimmed = io.load(tiny_model)
    slimmed.metadata_props.add(key=ORIGIN_KEY, value=origin.to_json())
    model = io.save(slimmed, tmp_path / "slimmed.onnx")
    path = build(model, precision="fp32", target="onnxruntime", settings=BuildSettings(folder=tmp_path))
    assert Bundle.read(path).manifest.sources["slimmed_from"] == asdict(origin)
