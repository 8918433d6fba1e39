from __future__ import annotations

import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

ov = pytest.importorskip("openvino", reason="files are evaluated on OpenVINO")
pytest.importorskip("onnxruntime", reason="its quantizer is one of the rows")

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import accuracy  # noqa: E402  (programs beside the package, not part of it)
import ingredients  # noqa: E402
import trial  # noqa: E402
from rivals import environment, int8_share, measure, page, rows  # noqa: E402

from fcnopt.errors import BackendError, UsageError  # noqa: E402
from fcnopt.graph import io  # noqa: E402
from fcnopt.graph.passes import optimize  # noqa: E402
from fcnopt.quantize import CalibrationFrames  # noqa: E402
from fcnopt.spec import ClassSpec  # noqa: E402


def _silent(_step: str, _fraction: float) -> None:
    """Progress that nobody watches."""


def _quantized_conv(data: str, weight: str, zero_type: int = TensorProto.INT8) -> onnx.ModelProto:
    """x [1, 4, 8, 8] -> Q -> DQ -> `data` op -> Conv `first` -> Conv `second`, the first with a `weight` kernel."""
    kernel = np.arange(24 * 4 * 9, dtype=np.float32).reshape(24, 4, 3, 3) / 900
    zero = helper.make_tensor("zero", zero_type, [], b"\0", raw=True)
    scale = numpy_helper.from_array(np.float32(0.1), "scale")
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
        helper.make_node(data, ["d"], ["m"], **({"kernel_shape": [1, 1]} if data == "MaxPool" else {})),
    ]
    constants = [zero, scale, numpy_helper.from_array(np.ones((5, 24, 1, 1), np.float32), "w2")]
    if weight == "float":
        constants.append(numpy_helper.from_array(kernel, "w"))
    else:
        constants.append(numpy_helper.from_array(np.round(kernel).astype(np.int8), "w_int"))
        nodes.append(helper.make_node("DequantizeLinear", ["w_int", "scale"], ["w"]))
    nodes += [
        helper.make_node("Conv", ["m", "w"], ["y1"], name="first"),
        helper.make_node("Conv", ["y1", "w2"], ["y"], name="second"),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 5, 6, 6])],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


def test_a_conv_is_int8_where_data_and_weight_are_dequantized(tmp_path: Path) -> None:
    model = _quantized_conv("MaxPool", "int8")
    assert int8_share.int8_nodes(model) == {"first"}
    first, second = 24 * 36 * 4 * 9, 5 * 36 * 24
    path = io.save(model, tmp_path / "net.onnx")
    assert int8_share.int8_share(path) == pytest.approx(first / (first + second))


@pytest.mark.parametrize(
    ("data", "weight", "zero_type"),
    [
        ("Relu", "int8", TensorProto.INT8),  # computes in float between DequantizeLinear and Conv
        ("MaxPool", "float", TensorProto.INT8),
        ("MaxPool", "int8", TensorProto.FLOAT8E4M3FN),
    ],
)
def test_a_conv_is_not_int8_where_one_input_is_not(data: str, weight: str, zero_type: int) -> None:
    assert int8_share.int8_nodes(_quantized_conv(data, weight, zero_type)) == set()


def test_share_of_an_openvino_ir_counts_transposed_and_grouped_convolutions(tmp_path: Path) -> None:
    ops = ov.opset13
    x = ops.parameter([1, 4, 8, 8], np.float32)
    grid = [ops.constant(np.float32(v)) for v in (0, 1, 0, 1)]
    still, none = [1, 1], [0, 0]
    quantized = ops.max_pool(ops.fake_quantize(x, *grid, 256), still, still, none, none, still).output(0)
    kernel = ops.convert(ops.constant(np.ones((6, 4, 3, 3), np.int8)), "f32")
    conv = ops.convolution(
        quantized, ops.multiply(kernel, ops.constant(np.float32(0.1))), [1, 1], [0, 0], [0, 0], [1, 1]
    )
    grouped = ops.group_convolution(conv, ops.constant(np.ones((2, 5, 3, 1, 1), np.float32)), still, none, none, still)
    deconv = ops.convolution_backprop_data(
        grouped, ops.constant(np.ones((10, 3, 4, 4), np.float32)), strides=[2, 2], pads_begin=[0, 0], pads_end=[0, 0]
    )
    path = tmp_path / "net.xml"
    ov.save_model(ov.Model([deconv], [x]), path, compress_to_fp16=False)
    macs = {"conv": 6 * 36 * 4 * 9, "grouped": 10 * 36 * 3, "deconv": 10 * 36 * 3 * 16}
    assert int8_share.int8_share(path) == pytest.approx(macs["conv"] / sum(macs.values()))


@pytest.mark.parametrize(("count", "available"), [(64, 367), (3, 10), (4, 5)])
def test_frames_to_tune_by_are_not_calibration_frames(count: int, available: int) -> None:
    places = trial.held_out(count, available)
    calibration = {index * available // count for index in range(count)}
    assert places
    assert not calibration & set(places)
    assert max(places) < available
    assert places == sorted(set(places))


def test_every_calibration_frame_may_be_taken() -> None:
    assert trial.held_out(5, 5) == []


def test_unknown_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"unknown rows nncf.*\n.*choose from minmax.*nncf-mixed"):
        accuracy.Options(tmp_path, tmp_path, tmp_path, only=("nncf",))


def test_no_frames_are_refused() -> None:
    for wrong in ({"calibration": 0}, {"most": 0}):
        with pytest.raises(UsageError, match="at least one"):
            trial.Selection(**wrong)


def test_the_key_of_own_rows_follows_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "fcnopt"
    for name in ("graph/a.py", "quantize/b.py", "report/c.py"):
        (package / name).parent.mkdir(parents=True)
        (package / name).write_text("1")
    rows_file = tmp_path / "ingredients.py"
    rows_file.write_text("1")
    monkeypatch.setattr(ingredients.fcnopt, "__file__", str(package / "__init__.py"))
    monkeypatch.setattr(ingredients, "__file__", str(rows_file))
    before = ingredients.own_source()
    (package / "report/c.py").write_text("2")
    assert ingredients.own_source() == before
    for file in (package / "graph/a.py", package / "quantize/b.py", rows_file):
        file.write_text("2")
        assert ingredients.own_source() != before
        file.write_text("1")
    assert ingredients.own_source() == before


def test_command_says_what_was_run(tmp_path: Path) -> None:
    options = accuracy.Options(tmp_path, tmp_path, tmp_path, ("auto", "mse"), trial.Selection(tune=True, most=4))
    assert options.command() == "python benchmarks/accuracy.py ../shared --only auto,mse --tune --max-frames 4"


def test_a_failed_program_is_told_by_its_last_error(tmp_path: Path) -> None:
    code = "print('ERROR: No matching distribution'); print('bye'); raise SystemExit(3)"
    with pytest.raises(BackendError, match=r"^python\S* -c .*failed: ERROR: No matching distribution") as caught:
        environment.run([sys.executable, "-c", code], tmp_path / "logs" / "x.log")
    assert "x.log" in caught.value.fix


def test_an_environment_is_made_once_and_anew_for_other_requirements(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], log: Path) -> None:
        commands.append(command)
        (log.parent / "nncf" / "bin").mkdir(parents=True, exist_ok=True)
        (log.parent / "nncf" / "bin" / "python").touch()

    monkeypatch.setattr(environment, "run", run)
    monkeypatch.setenv("PIP_ARGS", "--find-links 'a b'")
    python = environment.python_of("nncf", tmp_path)
    assert python.is_relative_to(tmp_path)
    venv, torch, rest = commands
    assert "venv" in venv
    assert torch[-1].startswith("torch==")
    assert rest[-2:] == ["-r", str(environment.HERE / "nncf.txt")]
    assert "a b" in torch
    environment.python_of("nncf", tmp_path)
    assert len(commands) == 3
    (tmp_path / "nncf" / "installed.txt").write_text("other", encoding="utf-8")
    environment.python_of("nncf", tmp_path)
    assert len(commands) == 6


@pytest.mark.parametrize("peer", ["nncf", "modelopt"])
def test_requirements_are_pinned(peer: str) -> None:
    lines = environment.requirements(peer).splitlines()
    assert any(line.startswith("torch==") for line in lines)
    assert all("==" in line and "+" not in line for line in lines)


@pytest.fixture(scope="module")
def inputs(tiny_model: Path, street: Path, tmp_path_factory: pytest.TempPathFactory) -> rows.Inputs:
    work = tmp_path_factory.mktemp("work")
    model, _ = optimize(io.load(tiny_model), verify=False)
    spec = io.read_spec(model)
    assert spec is not None
    frames = CalibrationFrames.collect([street / "images"], spec, limit=3)
    path = io.save(model, work / "fp32.onnx")
    return rows.Inputs(path, model, spec, trial.stored_frames(frames, work), work / "envs")


@pytest.fixture(scope="module")
def frames(inputs: rows.Inputs, street: Path) -> CalibrationFrames:
    return CalibrationFrames.collect([street / "images"], inputs.spec, limit=3)


@pytest.fixture(scope="module")
def evaluation(inputs: rows.Inputs, street: Path) -> measure.Evaluation:
    # The rendered street has nine classes, the network of random weights five.
    read = measure.Evaluation.read(street / "images", street / "labels", inputs.spec, [0, 2, 5], "street")
    return replace(read, truth=tuple(np.minimum(truth, 4) for truth in read.truth))


def test_a_row_is_made_once_for_the_same_inputs(
    inputs: rows.Inputs, frames: CalibrationFrames, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def count(model: onnx.ModelProto, *_: object) -> onnx.ModelProto:
        calls.append(1)
        return model

    monkeypatch.setattr(ingredients, "INGREDIENTS", {"same": count})
    run = partial(ingredients.quantized, "same", inputs, work=tmp_path, progress=_silent)
    first = run(frames=frames)
    assert run(frames=frames) == first
    assert calls == [1]
    (tmp_path / first["file"]).unlink()
    assert run(frames=frames)["sha256"] == first["sha256"]
    monkeypatch.setattr(ingredients, "own_source", lambda: "other code")
    changed = run(frames=frames)
    assert calls == [1, 1, 1]
    assert changed["file"] != first["file"]
    assert not (tmp_path / first["file"]).exists()
    run(frames=frames.subset(2))
    assert len(calls) == 4
    assert (tmp_path / changed["file"]).exists()


def test_labels_are_kept_by_file_and_frames(
    inputs: rows.Inputs, evaluation: measure.Evaluation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sha = measure.file_sha256(inputs.path)
    keep = partial(measure.kept_labels, inputs.path, sha, inputs.spec, folder=tmp_path, progress=_silent)
    first = keep(evaluation=evaluation)
    assert [labels.shape for labels in first] == [(64, 96)] * 3
    monkeypatch.setattr(measure, "open_onnx", None)
    for one, other in zip(keep(evaluation=evaluation), first, strict=True):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(TypeError):  # other frames are not known yet
        keep(evaluation=replace(evaluation, hash="other"))


def test_scores_name_the_worst_class() -> None:
    truth = [np.array([[0, 0, 1, 1], [2, 2, 2, 3]], np.uint8)] * 2
    wrong = [truth[0].copy(), truth[0].copy()]
    wrong[0][0, 2] = 0  # one of the four pixels of class 1
    classes = ClassSpec(("a", "b", "c"), ((0, 0, 0), (1, 1, 1), (2, 2, 2)), ignore_index=3)
    reference = [np.where(t == 3, 0, t).astype(np.uint8) for t in truth]
    labels = [np.where(t == 3, 0, t).astype(np.uint8) for t in wrong]
    found = measure.score(labels, reference, truth, classes)
    assert found["worst_class"]["name"] == "b"
    assert found["worst_class"]["drop"] == pytest.approx(25.0)
    assert found["drop"] == pytest.approx((25.0 + 20.0) / 3)  # class a: 4 of 5
    assert found["equal_labels"] == pytest.approx(100 * 15 / 16)
    assert [entry["name"] for entry in found["classes"]] == ["a", "b", "c"]
    json.dumps(found)


def test_model_optimizer_leaves_out_the_first_and_the_score_convolutions(inputs: rows.Inputs) -> None:
    convs = [node for node in inputs.model.graph.node if node.op_type == "Conv"]
    shapes = {tensor.name: tensor.dims for tensor in inputs.model.graph.initializer}
    wanted = [convs[0].name, *(node.name for node in convs[1:] if shapes[node.input[1]][0] == 5)]
    assert len(wanted) == 4
    assert rows.first_and_scores(inputs) == wanted


@pytest.mark.parametrize("name", ["ort-stock", "ort-tensorrt"])
def test_onnx_runtimes_quantizer_gives_a_file_that_runs(
    name: str, inputs: rows.Inputs, evaluation: measure.Evaluation, tmp_path: Path
) -> None:
    made = rows.PEERS[name].make(inputs, tmp_path / name)
    assert int8_share.int8_share(made.path) > 0.9
    labels = measure.labels_of(made.path, inputs.spec, evaluation, _silent)
    reference = measure.labels_of(inputs.path, inputs.spec, evaluation, _silent)
    found = measure.score(labels, reference, evaluation.truth, inputs.spec.classes)
    assert 50 < found["equal_labels"] < 100
    model = onnx.load(made.path)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    zeros = [constants[node.input[2]] for node in model.graph.node if node.op_type == "DequantizeLinear"]
    assert zeros
    symmetric = all(zero.dtype == np.int8 and not zero.any() for zero in zeros)
    assert symmetric == (name == "ort-tensorrt")


def test_the_page_says_what_could_not_be_measured() -> None:
    row = {
        "title": "fcnopt, auto",
        "miou": 70.5,
        "drop": 0.02,
        "drop_interval": (-0.01, 0.05),
        "worst_class": {"name": "Car", "drop": 0.2, "interval": None},
        "equal_labels": 99.8,
        "int8_macs_share": 0.993,
        "seconds": 28.4,
        "bytes": 41_600_000,
        "versions": {"fcnopt": "0.1"},
    }
    found = {
        "machine": {"cpu": "CPU", "cores": 2, "isa": ["vnni"], "memory_gib": 8, "versions": {"openvino": "1"}},
        "command": "python benchmarks/accuracy.py ../shared",
        "evaluation": {"title": "camvid/val", "frames": 101},
        "calibration": {"frames": 64},
        "reference": {"miou": 70.52},
        "rows": [row, {"title": "NNCF", "skipped": "pip failed:\nno | network"}],
    }
    text = page.as_markdown(found)
    assert "| fcnopt, auto | 70.50 | +0.02 (-0.01 to +0.05) | +0.20 Car | 99.80 % | 99.3% | 28 | 41.6 |" in text
    assert "| NNCF | not measured: pip failed: no / network | | | | | | |" in text
    assert "64 calibration frames of camvid/train; evaluated on 101 frames of camvid/val" in text
