from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from fcnopt.backends.base import BuildOptions
from fcnopt.backends.onnxruntime import CPU, CUDA, OnnxRuntimeBuilder, OnnxRuntimeRunner
from fcnopt.errors import BackendError, BuildError
from fcnopt.quantize import CalibrationFrames, make_precision
from tests.backends.tiny import tiny_onnx, tiny_spec
from tests.quantize import nets


def no_progress(step: str, fraction: float) -> None:
    assert 0 <= fraction <= 1, step


def build(model, folder, **options):
    folder.mkdir(exist_ok=True)
    return OnnxRuntimeBuilder().build(model, folder, BuildOptions(**options), no_progress)


@pytest.fixture
def model(tmp_path):
    return tiny_onnx(tmp_path / "model.onnx", tiny_spec())


def test_a_model_runs_from_its_bytes(model, frames):
    with OnnxRuntimeRunner(model, tiny_spec()) as a, OnnxRuntimeRunner(model.read_bytes(), tiny_spec()) as b:
        np.testing.assert_array_equal(a.run(frames[:1]).labels, b.run(frames[:1]).labels)


def test_cuda_without_the_provider_names_what_is_there(model):
    if CUDA in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    with pytest.raises(BackendError, match="CUDAExecutionProvider was asked for") as caught:
        OnnxRuntimeRunner(model, tiny_spec(), (CUDA, CPU))
    assert CPU in caught.value.message
    assert "onnxruntime-gpu" in caught.value.fix


def test_cuda_that_fails_to_start_is_not_silently_the_cpu(model, monkeypatch):
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    real = onnxruntime.InferenceSession
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *a, **_: real(*a, providers=[CPU]))
    with pytest.raises(BackendError, match=f"it failed to start and left {CPU}"):
        OnnxRuntimeRunner(model, tiny_spec(), (CUDA, CPU))


def test_a_damaged_file_is_one_clear_error(model):
    model.write_bytes(model.read_bytes()[:500])
    with pytest.raises(BackendError, match=r"model\.onnx: onnxruntime refused it"):
        OnnxRuntimeRunner(model, tiny_spec())


def test_a_model_that_does_not_fit_its_spec_is_refused(model):
    with pytest.raises(
        BackendError, match=r"should be uint8 \[N, 48, 32, 3\] by the spec, found uint8 \[1, 24, 32, 3\]"
    ):
        OnnxRuntimeRunner(model, tiny_spec(48, 32))
    with pytest.raises(BackendError, match="the outputs labels, confidence, found frames -> labels"):
        OnnxRuntimeRunner(model, tiny_spec(outputs=("labels", "confidence")))


def test_the_engine_is_the_onnx_file_and_a_model_in_place_is_not_copied(model, tmp_path):
    built = build(model, tmp_path / "engine")
    assert built.files == (tmp_path / "engine" / "model.onnx",)
    assert built.files[0].read_bytes() == model.read_bytes()
    assert build(model, tmp_path).files == (model,)
    assert built.device == "CPU"
    assert built.runtime.startswith("onnxruntime 1.")


def test_weights_beside_the_model_come_along(model, tmp_path, frames):
    proto = onnx.load(model)
    big = tmp_path / "big" / "big.onnx"
    big.parent.mkdir()
    onnx.save(proto, big, save_as_external_data=True, location="big.bin", size_threshold=16)
    built = build(big, tmp_path / "engine")
    assert [f.name for f in built.files] == ["big.onnx", "big.bin"]
    big.unlink()
    with OnnxRuntimeRunner(built.files[0], tiny_spec()) as a, OnnxRuntimeRunner(model, tiny_spec()) as b:
        np.testing.assert_array_equal(a.run(frames[:1]).labels, b.run(frames[:1]).labels)


def test_weights_outside_the_model_s_folder_are_refused(model, tmp_path):
    from fcnopt.backends.onnxfile import external_files

    big = tmp_path / "big.onnx"
    onnx.save(onnx.load(model), big, save_as_external_data=True, location="big.bin", size_threshold=16)
    proto = onnx.load(big, load_external_data=False)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../../etc/passwd"
    big.write_bytes(proto.SerializeToString())
    with pytest.raises(BuildError, match=r"in '\.\./\.\./etc/passwd', outside the model's folder"):
        external_files(big)


def test_a_graph_that_onnxruntime_refuses_is_a_build_error(model, tmp_path):
    proto = onnx.load(model)
    proto.graph.node[3].domain = "my.ops"
    proto.opset_import.append(onnx.helper.make_opsetid("my.ops", 1))
    model.write_bytes(proto.SerializeToString())
    with pytest.raises(BuildError, match=r"model\.onnx: onnxruntime refused it: .*my\.ops"):
        build(model, tmp_path / "engine")


def test_fp8_is_refused_as_a_target() -> None:
    with pytest.raises(BackendError, match="onnxruntime has no fp8 kernels") as caught:
        OnnxRuntimeBuilder().check(BuildOptions(precision="fp8"))
    assert "tensorrt-rtx:sm89" in caught.value.fix


def test_an_fp8_graph_runs_as_it_is_written(rng: np.random.Generator, tmp_path: Path) -> None:
    frames = CalibrationFrames.collect([nets.write_images(rng, tmp_path / "frames", 3)], nets.spec())
    graph = make_precision(nets.fcn(rng), nets.spec(), "fp8", form="tensorrt", frames=frames).model
    frame = next(iter(frames))
    onnx.save(graph, tmp_path / "fp8.onnx")
    with OnnxRuntimeRunner(tmp_path / "fp8.onnx", nets.spec()) as runner:
        labels = runner.run(frame).labels
    assert np.mean(labels == nets.exact(graph, frame)) > 0.98


def test_the_layers_show_what_runs_in_int8(tmp_path):
    fp32 = build(tiny_onnx(tmp_path / "a.onnx", tiny_spec()), tmp_path / "a")
    assert {layer.precision for layer in fp32.layers} == {"fp32"}
    assert any("Conv" in layer.kind for layer in fp32.layers)


def test_float16_scales_are_not_misread(rng: np.random.Generator, tmp_path: Path) -> None:
    frames = CalibrationFrames.collect([nets.write_images(rng, tmp_path / "frames", 4)], nets.spec())
    model = nets.fcn(rng, nets.Options(logits_too=True))
    int8 = make_precision(model, nets.spec(), "int8", form="tensorrt", frames=frames, method="mse").model
    kinds = {tensor.name: tensor.data_type for tensor in int8.graph.initializer}
    scales = [kinds.get(node.input[1]) for node in int8.graph.node if node.op_type == "DequantizeLinear"]
    assert onnx.TensorProto.FLOAT16 in scales
    frame = next(iter(frames))
    spec = replace(nets.spec(), outputs=("labels", "logits"))
    with OnnxRuntimeRunner(int8.SerializeToString(), spec) as runner:
        logits = runner.run(frame).logits
    literal = onnxruntime.SessionOptions()
    literal.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(int8.SerializeToString(), literal, providers=["CPUExecutionProvider"])
    (expected,) = session.run(["logits"], {"frames": frame})
    np.testing.assert_allclose(logits, expected, atol=1e-4 * np.abs(expected).max())


def test_for_throughput_two_runs_share_the_cores(model, frames, monkeypatch):
    from fcnopt.backends import onnxruntime as backend

    monkeypatch.setattr(backend, "usable_cores", lambda: 6)
    with OnnxRuntimeRunner(model, tiny_spec()) as one, OnnxRuntimeRunner(model, tiny_spec(), mode="throughput") as two:
        assert (one.in_flight, two.in_flight) == (1, 2)
        assert two._session.get_session_options().intra_op_num_threads == 3
        assert one._session.get_session_options().intra_op_num_threads == 0  # all
        want = [one.run(frame[None]).labels for frame in frames]
        outs = list(two.stream(iter(frames)))
    assert [out.index for out in outs] == list(range(8))
    for out, labels in zip(outs, want, strict=True):
        np.testing.assert_array_equal(out.labels, labels)
