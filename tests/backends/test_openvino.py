from __future__ import annotations

import re

import numpy as np
import onnx
import onnxruntime
import pytest

from fcnopt.backends import openvino_mode
from fcnopt.backends.base import BuildOptions
from fcnopt.backends.onnxruntime import OnnxRuntimeRunner
from fcnopt.backends.openvino import OpenVinoBuilder, OpenVinoRunner
from fcnopt.errors import BackendError, BuildError
from tests.backends.tiny import tiny_onnx, tiny_spec


def build(model, folder, precision="fp32"):
    folder.mkdir(exist_ok=True)
    steps: list[tuple[str, float]] = []
    built = OpenVinoBuilder().build(
        model, folder, BuildOptions(precision=precision), lambda step, fraction: steps.append((step, fraction))
    )
    assert steps[0][1] == 0
    assert steps[-1][1] == 1
    return built


def test_the_ir_keeps_weights_as_they_are_and_says_what_the_model_says(tmp_path, frames):
    spec = tiny_spec(outputs=("labels", "logits"))
    model = tiny_onnx(tmp_path / "model.onnx", spec)
    built = build(model, tmp_path / "engine")
    assert [f.name for f in built.files] == ["engine.xml", "engine.bin"]
    text = built.files[0].read_text()
    assert 'element_type="f32"' in text
    assert 'element_type="f16"' not in text, "weights must not be compressed behind the user's back"
    with OpenVinoRunner(built.files[0], spec) as ir, OnnxRuntimeRunner(model, spec) as ort:
        got, want = ir.run(frames[:1]), ort.run(frames[:1])
    np.testing.assert_array_equal(got.labels, want.labels)
    np.testing.assert_allclose(got.logits, want.logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("quantized", ["int8", "uint8"])
def test_a_quantized_convolution_runs_in_int8_and_the_layers_say_so(tmp_path, monkeypatch, quantized):
    monkeypatch.setattr(openvino_mode, "int8_saturates", lambda: False)  # here it may; then it would run in float
    spec = tiny_spec()
    model = tiny_onnx(tmp_path / "model.onnx", spec, quantized=quantized)
    built = build(model, tmp_path / "engine", "int8")
    assert not [layer for layer in built.layers if layer.kind == "Reshape" and not layer.nodes]
    convolutions = {n: layer for layer in built.layers if layer.kind == "Convolution" for n in layer.nodes}
    assert convolutions["conv1"].precision in ("fp32", "bf16")
    assert convolutions["conv2"].precision == "int8"
    assert "relu1" in convolutions["conv1"].nodes or "relu1_Q" in convolutions["conv1"].nodes


@pytest.mark.parametrize("quantized", ["int8", "uint8"])
def test_an_int8_engine_gives_the_labels_of_its_graph_on_any_cpu(tmp_path, frames, quantized):
    """Sums of int8 products saturate on x86 without VNNI: OpenVINO's own integers then give 91 % of these labels."""
    spec = tiny_spec()
    model = tiny_onnx(tmp_path / "model.onnx", spec, quantized=quantized)
    built = build(model, tmp_path / "engine", "int8")
    plain = onnxruntime.SessionOptions()
    plain.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model, plain)
    (want,) = session.run(["labels"], {session.get_inputs()[0].name: frames[:1]})
    with OpenVinoRunner(built.files[0], spec, "int8") as ov, OnnxRuntimeRunner(model, spec) as ort:
        assert ov.name == "openvino int8"
        assert np.mean(ov.run(frames[:1]).labels == want) > 0.97
        assert np.mean(ort.run(frames[:1]).labels == want) > 0.97


def test_layers_of_an_fp32_engine_compute_in_fp32(tmp_path):
    built = build(tiny_onnx(tmp_path / "model.onnx", tiny_spec()), tmp_path / "engine")
    convolutions = [layer for layer in built.layers if "onv" in layer.kind and layer.nodes and layer.kind != "Convert"]
    assert {n for layer in convolutions for n in layer.nodes} >= {"conv1", "conv2", "up"}
    assert {layer.precision for layer in convolutions} == {"fp32"}


def test_fp8_is_refused():
    with pytest.raises(BackendError, match="openvino: this CPU has no fp8 kernels") as caught:
        OpenVinoBuilder().check(BuildOptions(precision="fp8"))
    assert "tensorrt-rtx:sm89" in caught.value.fix


def test_a_missing_device_is_named(tmp_path):
    model = tiny_onnx(tmp_path / "model.onnx", tiny_spec())
    with pytest.raises(BackendError, match=r"device NPU was asked for, found .*CPU"):
        OpenVinoRunner(model, tiny_spec(), device="NPU")


def test_a_damaged_model_is_one_clear_error(tmp_path, capfd):
    model = tiny_onnx(tmp_path / "model.onnx", tiny_spec())
    model.write_bytes(model.read_bytes()[:400])
    with pytest.raises(BackendError, match=r"model\.onnx: is truncated or not an ONNX file"):
        OpenVinoRunner(model, tiny_spec())
    with pytest.raises(BuildError, match="is truncated or not an ONNX file"):
        build(model, tmp_path / "engine")
    with pytest.raises(BackendError, match=r"nothing\.onnx: cannot be read: No such file"):
        OpenVinoRunner(tmp_path / "nothing.onnx", tiny_spec())
    assert capfd.readouterr() == ("", ""), "OpenVINO's readers must not speak"


def test_openvino_s_own_errors_are_one_line_without_its_source(tmp_path):
    model = tiny_onnx(tmp_path / "model.onnx", tiny_spec())
    proto = onnx.load(model)
    proto.graph.node[0].op_type = "Splat"
    onnx.save(proto, model)
    with pytest.raises(BackendError, match=r"model\.onnx: openvino refused it: .*Splat") as caught:
        OpenVinoRunner(model, tiny_spec())
    assert not re.search(r"src/\w+", caught.value.message)
    assert "\n" not in caught.value.message
    with pytest.raises(BuildError, match="Splat"):
        build(model, tmp_path / "engine")


def test_a_model_that_does_not_fit_its_spec_is_refused(tmp_path):
    model = tiny_onnx(tmp_path / "model.onnx", tiny_spec())
    with pytest.raises(
        BackendError, match=r"should be uint8 \[N, 24, 64, 3\] by the spec, found uint8 \[1, 24, 32, 3\]"
    ):
        OpenVinoRunner(model, tiny_spec(24, 64))


def test_opening_streaming_and_closing_again_and_again_ends_well(tmp_path, frames):
    # With asynchronous requests, this ended the process: a worker freed the model that it was running in.
    model = tiny_onnx(tmp_path / "model.onnx", tiny_spec())
    for turn in range(24):
        with OpenVinoRunner(model, tiny_spec()) as runner:
            stream = runner.stream(iter(frames))
            next(stream)
            if turn % 2:
                assert len(list(stream)) == 7
            else:
                stream.close()


def test_in_a_stream_time_in_the_queue_is_latency_but_not_inference(tmp_path, frames):
    model = tiny_onnx(tmp_path / "model.onnx", tiny_spec())
    many = [frames[i % 8] for i in range(40)]
    with OpenVinoRunner(model, tiny_spec()) as runner:
        outs = list(runner.stream(iter(many), prefetch=16))
    assert len(outs) == 40
    assert all(0 <= out.inference_ms <= out.latency_ms for out in outs)
    assert sum(out.inference_ms > 0 for out in outs) > 30


def test_for_throughput_the_runtime_says_how_many_streams_it_has(tmp_path, frames):
    model = tiny_onnx(tmp_path / "model.onnx", tiny_spec())
    with OpenVinoRunner(model, tiny_spec()) as one, OpenVinoRunner(model, tiny_spec(), mode="throughput") as several:
        assert one.in_flight == 1
        assert several.in_flight >= 1
        want = [one.run(frame[None]).labels for frame in frames]
        for count in (None, 3):
            outs = list(several.stream(iter(frames), in_flight=count))
            assert [out.index for out in outs] == list(range(8))
            for out, labels in zip(outs, want, strict=True):
                np.testing.assert_array_equal(out.labels, labels)
                assert 0 < out.inference_ms <= out.latency_ms
        np.testing.assert_array_equal(several.run(frames[:1]).labels, want[0])


def test_asynchronous_requests_end_before_the_model_again_and_again(tmp_path, frames):
    # A callback of ours would run in a worker of the runtime, which could be the last to hold the model: the worker
    # then frees the threads that it is one of, and the process ends.
    model = tiny_onnx(tmp_path / "model.onnx", tiny_spec())
    for turn in range(24):
        with OpenVinoRunner(model, tiny_spec(), mode="throughput") as runner:
            stream = runner.stream(iter(frames), in_flight=3)
            next(stream)
            if turn % 2:
                assert len(list(stream)) == 7
            else:
                stream.close()


def test_a_batch_of_the_build_is_gathered_from_the_stream(tmp_path, frames):
    model = tiny_onnx(tmp_path / "model.onnx", tiny_spec(), batch=3)
    single = tiny_onnx(tmp_path / "single.onnx", tiny_spec())
    with OpenVinoRunner(model, tiny_spec(), mode="throughput") as runner, OpenVinoRunner(single, tiny_spec()) as one:
        assert runner.batch == 3
        outs = list(runner.stream(iter(frames)))
        assert len(outs) == 8
        for out, frame in zip(outs, frames, strict=True):
            np.testing.assert_array_equal(out.labels, one.run(frame[None]).labels)
