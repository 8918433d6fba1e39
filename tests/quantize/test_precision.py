from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, numpy_helper

from fcnopt.errors import CalibrationError
from fcnopt.quantize import CalibrationFrames, PrecisionResult, make_precision, tune
from fcnopt.quantize.choose import Evidence
from fcnopt.quantize.methods import METHODS
from tests.quantize.nets import CLASSES, Net, Options, exact, fcn, ops, residual, run, spec, write_images


@pytest.fixture
def frames(rng: np.random.Generator, tmp_path: Path) -> CalibrationFrames:
    return CalibrationFrames.collect([write_images(rng, tmp_path / "frames", 6)], spec())


def checked(result: PrecisionResult) -> PrecisionResult:
    onnx.checker.check_model(result.model, full_check=True)
    assert json.loads(json.dumps(result.report, allow_nan=False)) == result.report
    return result


def test_fp32_is_the_graph_itself(rng: np.random.Generator) -> None:
    model = fcn(rng)
    result = make_precision(model, spec(), "fp32", form="openvino", frames=None)
    assert result.model is model
    assert result.notes == ()


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_for_cpus_is_left_to_the_runtime(rng: np.random.Generator, precision: str) -> None:
    model = fcn(rng)
    result = make_precision(model, spec(), precision, form="openvino", frames=None)
    assert result.model is model
    assert "the graph stays FP32" in result.notes[0]


@pytest.mark.parametrize("form", ["openvino", "onnxruntime", "tensorrt"])
def test_auto_records_all_four_methods_and_takes_the_best(
    rng: np.random.Generator, frames: CalibrationFrames, form: str
) -> None:
    model = fcn(rng)
    result = checked(make_precision(model, spec(), "int8", form=form, frames=frames))
    evidence = {entry["name"]: entry for entry in result.report["evidence"]}
    assert tuple(evidence) == (*METHODS, "rounded", "refined")
    started = evidence[result.report["method"]]
    assert started["divergence"] == min(evidence[rule]["divergence"] for rule in METHODS)
    chosen = result.report["chosen"]
    assert chosen == min(evidence.values(), key=lambda entry: entry["divergence"])
    assert chosen["equal_labels"] > 0.95
    assert all(10 < entry["logits_db"] < 80 for entry in evidence.values())
    assert result.report["layers"] == ["node_conv2", "node_conv3"]
    assert {entry["node"] for entry in result.report["declined"]} == {
        "node_conv1",
        "node_score",
        "node_score_pool",
        "node_logits",
    }
    assert 0.5 < result.report["int8_macs_share"] < 1
    frame = next(iter(frames))
    assert np.mean(run(result.model, frame)[0] == run(model, frame)[0]) > 0.95


@pytest.mark.parametrize("rule", METHODS)
def test_named_method_is_the_one_used(rng: np.random.Generator, frames: CalibrationFrames, rule: str) -> None:
    result = make_precision(fcn(rng), spec(), "int8", form="openvino", frames=frames, method=rule)
    assert result.report["method"] == rule
    assert [entry["name"] for entry in result.report["evidence"]] == [rule]
    assert (result.report["refined"], result.report["rounded"]) == ([], [])
    assert f"ranges by {rule}: " in result.notes[0]
    top = result.ranges.tensors["conv2_relu_pool"].intervals[rule][255][1]
    assert result.report["tensors"]["conv2_relu_pool"]["scale"] == pytest.approx(top / 255)


def test_forms_differ_in_type_and_rest(rng: np.random.Generator, frames: CalibrationFrames) -> None:
    for form, kind, rest in (
        ("openvino", TensorProto.UINT8, TensorProto.FLOAT),
        ("tensorrt", TensorProto.INT8, TensorProto.FLOAT16),
    ):
        model = make_precision(fcn(rng), spec(), "int8", form=form, frames=frames, method="mse").model
        constants = {tensor.name.removesuffix("_fp16"): tensor.data_type for tensor in model.graph.initializer}
        assert constants["conv2_relu_pool_zero"] == kind
        assert constants["conv1.weight"] == rest
        assert constants["conv2.weight_int8"] == TensorProto.INT8


def test_int8_without_frames_says_how_to_give_some(rng: np.random.Generator) -> None:
    with pytest.raises(CalibrationError, match="int8 needs calibration frames, and none were given") as error:
        make_precision(fcn(rng), spec(), "int8", form="openvino", frames=None)
    assert "--calibration PATH" in error.value.fix


def test_frames_of_another_size_are_refused(rng: np.random.Generator, frames: CalibrationFrames) -> None:
    with pytest.raises(CalibrationError, match="calibration frames are 32x24, the model takes 64x48"):
        make_precision(fcn(rng), spec().with_size(48, 64), "int8", form="openvino", frames=frames)


def test_network_with_nothing_to_quantize_is_refused(rng: np.random.Generator, frames: CalibrationFrames) -> None:
    net = Net(rng)
    net.labels(net.conv(net.relu(net.conv(net.frames(), "a", (3, 8))), "score", (8, CLASSES), 1))
    with pytest.raises(CalibrationError, match=r"no layer can be quantized \(node_a: first layer"):
        make_precision(net.model(), spec(), "int8", form="openvino", frames=frames)


def test_quantized_graph_is_not_quantized_again(rng: np.random.Generator, frames: CalibrationFrames) -> None:
    once = make_precision(fcn(rng), spec(), "int8", form="openvino", frames=frames, method="minmax")
    with pytest.raises(CalibrationError, match="is quantized already"):
        make_precision(once.model, spec(), "int8", form="openvino", frames=frames)


def test_range_file_is_written_then_used(rng: np.random.Generator, frames: CalibrationFrames, tmp_path: Path) -> None:
    model, path = fcn(rng), tmp_path / "calib" / "net.json"
    steps: list[str] = []

    def build(form: str) -> PrecisionResult:
        return make_precision(
            model,
            spec(),
            "int8",
            form=form,
            frames=frames,
            range_file=path,
            progress=lambda step, _: steps.append(step),
        )

    first = build("openvino")
    assert path.is_file()
    assert steps.count("calibrate") == 7
    steps.clear()
    second = build("openvino")
    assert "calibrate" not in steps
    assert (first.report["ranges_reused"], second.report["ranges_reused"]) == (False, True)
    assert first.model.SerializeToString() == second.model.SerializeToString()
    assert build("tensorrt").report["ranges_reused"]  # one file serves both forms


def test_stale_range_file_is_refused(rng: np.random.Generator, frames: CalibrationFrames, tmp_path: Path) -> None:
    path = tmp_path / "net.json"
    make_precision(fcn(rng), spec(), "int8", form="openvino", frames=frames, range_file=path, method="minmax")
    before = path.read_bytes()
    with pytest.raises(CalibrationError, match=r"net\.json: ranges belong to other weights: ") as error:
        make_precision(fcn(rng), spec(), "int8", form="openvino", frames=frames, range_file=path)
    assert f"delete {path}" in error.value.fix
    assert path.read_bytes() == before


def test_fp16_without_frames_says_what_was_not_checked(rng: np.random.Generator) -> None:
    result = checked(make_precision(fcn(rng), spec(), "fp16", form="tensorrt", frames=None))
    assert "no calibration frames were given" in result.notes[0]
    assert result.report["frames"] == 0
    assert result.report["half"]["unknown"] > 0


def test_fp16_of_a_hot_network_is_rescaled_and_says_so(rng: np.random.Generator, frames: CalibrationFrames) -> None:
    result = checked(make_precision(fcn(rng, Options(gain=3e4)), spec(), "fp16", form="tensorrt", frames=frames))
    assert [entry["node"] for entry in result.report["half"]["rescaled"]] == ["node_conv2"]
    assert any("divided by powers of two" in note for note in result.notes)


def test_int8_of_a_hot_network_keeps_its_labels(rng: np.random.Generator, frames: CalibrationFrames) -> None:
    model = fcn(rng, Options(gain=3e4))
    result = checked(make_precision(model, spec(), "int8", form="tensorrt", frames=frames))
    frame = next(iter(frames))
    assert result.report["half"]["rescaled"]
    assert np.mean(run(result.model, frame)[0] == run(model, frame)[0]) > 0.95


def test_old_opset_and_dynamic_size(rng: np.random.Generator, frames: CalibrationFrames) -> None:
    model = fcn(rng, Options(opset=13))
    for value in (*model.graph.input, *model.graph.output):
        for axis in (1, 2):
            value.type.tensor_type.shape.dim[axis].dim_param = f"axis{axis}"
    wide = spec().with_size(None, None)
    for kind, form in (("int8", "openvino"), ("int8", "tensorrt"), ("fp16", "tensorrt")):
        result = checked(make_precision(model, wide, kind, form=form, frames=frames, method="mse"))
        frame = next(iter(frames))
        larger = np.concatenate([frame, frame], axis=2)
        assert run(result.model, larger)[0].shape == (1, 24, 64)
    assert "QuantizeLinear" in ops(make_precision(model, wide, "int8", form="openvino", frames=frames).model)


@pytest.mark.parametrize(("gain", "layers"), [(2e4, ["node_a", "node_b"]), (1e8, ["node_b"])])
def test_hot_skip_branch_keeps_its_labels(
    rng: np.random.Generator, frames: CalibrationFrames, gain: float, layers: list[str]
) -> None:
    model = residual(rng, gain)
    result = checked(make_precision(model, spec(), "int8", form="tensorrt", frames=frames))
    assert result.report["layers"] == layers
    assert set(result.report["tensors"]) == {"stem_relu", "a_relu"} - ({"stem_relu"} if gain == 1e8 else set())
    reasons = {entry["node"]: entry["reason"] for entry in result.report["declined"]}
    assert "float16 scales serve" in reasons["node_c"]
    assert any("no float16 scale serves them: " in note and note.endswith("node_c") for note in result.notes)
    for tensor in result.model.graph.initializer:
        if "_scale" in tensor.name:
            values = numpy_helper.to_array(tensor)
            assert np.isfinite(values.astype(np.float16)).all()
            assert (values.astype(np.float16) > 0).all()
    frame = next(iter(frames))
    want = run(model, frame)[0]
    assert len(np.unique(want)) > 1
    assert np.mean(exact(result.model, frame) == want) > 0.95


def test_network_too_faint_for_float16_scales_is_refused(rng: np.random.Generator, frames: CalibrationFrames) -> None:
    model = residual(rng, 1e-8)
    with pytest.raises(CalibrationError, match=r"its input 'stem_relu' reaches .* float16 scales serve") as error:
        make_precision(model, spec(), "int8", form="tensorrt", frames=frames)
    assert "--precision fp16" in error.value.fix
    result = make_precision(model, spec(), "int8", form="openvino", frames=frames)  # float32 scales serve
    assert max(entry["equal_labels"] for entry in result.report["evidence"]) > 0.95


def test_warning_about_labels_comes_first(
    rng: np.random.Generator, frames: CalibrationFrames, monkeypatch: pytest.MonkeyPatch
) -> None:
    for share in (0.6, 0.4):
        monkeypatch.setattr(tune, "measure", lambda *_, share=share: (Evidence("mse", 0.1, 5.0, share),))
        if share < 0.5:
            with pytest.raises(CalibrationError, match=r"leaves only 40\.0% of the labels"):
                make_precision(fcn(rng), spec(), "int8", form="openvino", frames=frames, method="mse")
        else:
            result = make_precision(fcn(rng), spec(), "int8", form="openvino", frames=frames, method="mse")
            assert result.notes[0].startswith("WARNING: int8 by mse leaves only 60.0%")


def test_onnx_runtime_computes_every_quantized_layer_in_integers(
    rng: np.random.Generator, frames: CalibrationFrames, tmp_path: Path
) -> None:
    """It does where all readers of a layer's result read it quantized."""
    integers = {}
    for form in ("onnxruntime", "openvino"):
        made = make_precision(fcn(rng), spec(), "int8", form=form, frames=frames, method="minmax")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # "saved for this machine alone"
        options.optimized_model_filepath = str(tmp_path / f"{form}.onnx")
        onnxruntime.InferenceSession(made.model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        integers[form] = ops(onnx.load(tmp_path / f"{form}.onnx")).count("QLinearConv")
    assert integers["onnxruntime"] == 2
    assert integers["openvino"] < 2, "scores of this form read floats"
