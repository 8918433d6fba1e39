"""`fcnopt compare`, as a user types it and as a program calls it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner, Result

import fcnopt
from fcnopt.backends.machine import cpu_isa
from fcnopt.cli import main
from fcnopt.errors import GraphError, MediaError, UsageError
from fcnopt.graph import io
from fcnopt.graph.prepost import attach
from fcnopt.quantize import qdq
from fcnopt.quantize.casts import to_half
from fcnopt.settings import BuildSettings
from fcnopt.spec import METADATA_KEY


def command(*arguments: object) -> Result:
    result = CliRunner().invoke(main, ["compare", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture(scope="session")
def bundle(tiny_model: Path, street: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny network in INT8, its scores reading floats."""
    folder = tmp_path_factory.mktemp("bundles")
    settings = BuildSettings(folder=folder, calib=folder / "calib", method="minmax", name="tiny-int8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(qdq, "int8_saturates", lambda: False)  # weights of the same numbers on every CPU
        return fcnopt.build(
            tiny_model, precision="int8", target="openvino", calibration=street / "images", settings=settings
        )


def test_a_bundle_against_its_model(tiny_model: Path, bundle: Path, street: Path) -> None:
    found = fcnopt.compare(tiny_model, bundle, street / "clip.mp4", alone=True)
    assert (found.a, found.b, found.clip, found.frames, found.size) == ("tiny.onnx", "tiny-int8", "clip", 6, (64, 96))
    layers = {layer.name: layer for layer in found.layers}
    assert len(layers) > 12
    quantized = set(json.loads((bundle / "manifest.json").read_text())["quantization"]["layers"])
    assert len(quantized) > 8
    alone = {name: layer.alone.sqnr_db for name, layer in layers.items() if layer.alone is not None}
    assert all(alone[name] < 60 for name in quantized), alone
    assert min(alone[name] for name in ("score_fr", "upscore_pool4", "upscore8")) > 100  # left float
    assert layers["upscore8"].result.sqnr_db < 50  # it inherits
    assert {layer.name for layer in found.worst(3)} <= quantized
    assert found.logits == "logits"
    assert layers["by_class"].tensor == "logits"
    assert found.equal_labels is not None
    assert 80 < found.equal_labels < 100
    assert found.notes == ()
    assert found.date
    assert found.command


def test_frames_are_spread_over_the_clip(tiny_model: Path, bundle: Path, street: Path) -> None:
    steps: list[float] = []
    progress = lambda _what, share: steps.append(share)  # noqa: E731  (one line, used once)
    few = fcnopt.compare(tiny_model, bundle, street / "images", max_frames=2, progress=progress)
    assert steps == [0.0, 0.25, 0.5, 0.75, 1.0]
    every = fcnopt.compare(tiny_model, bundle, street / "images", max_frames=99)
    assert (few.frames, every.frames) == (2, 6)
    first = fcnopt.compare(tiny_model, bundle, sorted((street / "images").iterdir())[0])
    assert first.frames == 1
    assert few.layers[2].result != first.layers[2].result


def test_the_command_prints_and_writes(tiny_model: Path, bundle: Path, street: Path, tmp_path: Path) -> None:
    files = ("--json", tmp_path / "c.json", "--html", tmp_path / "c.html")
    result = command(tiny_model, bundle, street / "images", "--max-frames", 2, "--alone", *files)
    assert result.exit_code == 0, result.output
    assert "tiny-int8 against tiny.onnx on images: 2 frames, 96x64" in result.output
    assert "% of the labels are equal." in result.output
    assert f"wrote {tmp_path / 'c.json'}\nwrote {tmp_path / 'c.html'}" in result.output
    data = json.loads((tmp_path / "c.json").read_text())
    assert data["schema_version"] == 1
    assert [layer["tensor"] in result.output for layer in data["layers"]] == [True] * len(data["layers"])
    assert "<html" in (tmp_path / "c.html").read_text()
    short = command(tiny_model, bundle, street / "images", "--max-frames", 1, "--top", 1)
    assert sum(layer["tensor"] in short.output.split("labels")[0].split() for layer in data["layers"]) == 1


def test_a_network_from_elsewhere_is_wrapped_by_the_others_spec(tiny_model: Path, street: Path, tmp_path: Path) -> None:
    model = io.load(tiny_model)
    spec = io.read_spec(model)
    assert spec is not None
    bare = bare_network(model)
    foreign = io.save(bare, tmp_path / "foreign.onnx")
    found = fcnopt.compare(tiny_model, foreign, street / "images", max_frames=1)
    assert found.only_a == ()
    assert min(layer.result.sqnr_db for layer in found.layers) > 100
    assert found.equal_labels == 100.0
    assert io.read_spec(attach(bare, spec)) == spec  # what `compare` relies on
    with pytest.raises(UsageError, match=r"neither .*foreign.onnx nor .*foreign.onnx says how frames are normalized"):
        fcnopt.compare(foreign, foreign, street / "images")


def bare_network(model: onnx.ModelProto) -> onnx.ModelProto:
    """The network between normalized pixels and logits, as any exporter writes it."""
    bare = onnx.utils.Extractor(model).extract_model(["normalized"], ["logits"])
    kept = [entry for entry in bare.metadata_props if entry.key != METADATA_KEY]
    del bare.metadata_props[:]
    bare.metadata_props.extend(kept)
    return bare


def test_half_precision_parts_by_its_rounding(tiny_model: Path, street: Path, tmp_path: Path) -> None:
    half, _ = to_half(io.load(tiny_model), {}, "fp16")
    found = fcnopt.compare(tiny_model, io.save(half, tmp_path / "half.onnx"), street / "images", max_frames=2)
    assert all(40 < layer.result.sqnr_db < 90 for layer in found.layers)


@pytest.mark.skipif("bf16" not in cpu_isa(), reason="this CPU has no BF16")
def test_a_precision_that_is_not_in_the_graph_is_said(tiny_model: Path, street: Path, tmp_path: Path) -> None:
    settings = BuildSettings(folder=tmp_path, name="wide")
    path = fcnopt.build(tiny_model, precision="bf16", target="openvino", settings=settings)
    found = fcnopt.compare(tiny_model, path, street / "images", max_frames=1)
    assert found.notes == (
        "wide: its graph is FP32 and openvino computes it in bf16 by itself: none of that can be seen here.",
    )


def test_the_same_name_twice_becomes_two_paths(tiny_model: Path, street: Path) -> None:
    found = fcnopt.compare(tiny_model, tiny_model, street / "images", max_frames=1)
    assert found.a == found.b == str(tiny_model)
    assert all(layer.result.sqnr_db == math.inf for layer in found.layers)


def test_mistakes_are_said_before_anything_runs(tiny_model: Path, bundle: Path, street: Path, tmp_path: Path) -> None:
    clip = street / "images"
    cases: list[tuple[type[Exception], str, tuple[Path, Path, Path], dict[str, object]]] = [
        (UsageError, "--max-frames 0: expected a positive number", (tiny_model, bundle, clip), {"max_frames": 0}),
        (UsageError, "is no bundle", (tiny_model, tmp_path, clip), {}),
        (GraphError, "no such file", (tiny_model, tmp_path / "none", clip), {}),
        (UsageError, "is a checkpoint", (tiny_model.with_suffix(".pth"), bundle, clip), {}),
        (MediaError, "no such file or folder", (tiny_model, bundle, tmp_path / "none.mp4"), {}),
        (UsageError, "cannot be written there", (tiny_model, bundle, clip), {"html": tmp_path / "none" / "x.html"}),
        (UsageError, "cannot be written there", (tiny_model, bundle, clip), {"json": tmp_path}),
    ]
    for kind, message, (a, b, where), options in cases:
        with pytest.raises(kind, match=message):
            fcnopt.compare(a, b, where, **options)  # type: ignore[arg-type]  # one table for all options


def test_a_damaged_bundle_is_refused(tiny_model: Path, bundle: Path, street: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in bundle.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    data = bytearray((copy / "model.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (copy / "model.onnx").write_bytes(data)
    result = command(tiny_model, copy, street / "images")
    assert result.exit_code == 1
    assert "SHA-256" in result.output


def test_different_sizes_are_refused(tiny_model: Path, street: Path, tmp_path: Path) -> None:
    from fcnopt.exporter import ExportOptions, export

    other = export(tiny_model.with_suffix(".pth"), tmp_path / "o.onnx", options=ExportOptions(size=(96, 128))).path
    result = command(tiny_model, other, street / "images")
    assert result.exit_code == 2
    assert "tiny.onnx takes frames of 96x64, o.onnx of 128x96 (width x height)" in result.output
    assert "one frame size" in result.output


def test_open_sizes_take_the_clips(tiny_model: Path, street: Path, tmp_path: Path) -> None:
    from fcnopt.exporter import ExportOptions, export

    free = export(tiny_model.with_suffix(".pth"), tmp_path / "f.onnx", options=ExportOptions(dynamic=True)).path
    found = fcnopt.compare(free, tiny_model, street / "images", max_frames=1)
    assert found.size == (64, 96)
    assert found.equal_labels == 100.0
    assert {layer.name for layer in found.layers} >= {"conv1_1", "fc6", "score_fr"}
    assert {entry.name for entry in found.only_a} >= {"upscore8"}  # uncropped in one, cropped in the other
    assert min(layer.result.sqnr_db for layer in found.layers) > 100
