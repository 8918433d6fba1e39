"""Ahead-of-time builds with TensorRT-RTX, which need no GPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fcnopt.backends.base import BuildOptions, Built
from fcnopt.backends.machine import gpu_capabilities
from fcnopt.backends.tensorrt import TensorRtBuilder
from fcnopt.errors import BackendError, BuildError, UsageError
from tests.backends.tiny import silent, tiny_onnx, tiny_spec

pytest.importorskip("tensorrt_rtx", reason='needs TensorRT-RTX: pip install "fcnopt[rtx]"')

AMPERE_AND_ADA = ("sm86", "sm89")
no_gpu = pytest.mark.skipif(bool(gpu_capabilities()), reason="shows what a machine without a GPU says")


def build(model, folder, capabilities=AMPERE_AND_ADA, progress=silent, **options) -> Built:
    folder.mkdir(exist_ok=True)
    settings = BuildOptions(compute_capabilities=capabilities, **options)
    return TensorRtBuilder("tensorrt_rtx").build(model, folder, settings, progress)


@pytest.fixture
def model(tmp_path):
    return tiny_onnx(tmp_path / "model.onnx", tiny_spec())


def rewritten(model, change):
    proto = onnx.load(model)
    change(proto.graph)
    onnx.save(proto, model)
    return model


def test_fp32_builds_for_two_gpu_generations_and_reports_its_layers(model, tmp_path):
    steps: list[tuple[str, float]] = []
    built = build(model, tmp_path / "e", progress=lambda step, fraction: steps.append((step, fraction)))
    assert built.files == (tmp_path / "e" / "engine.plan",)
    assert built.files[0].read_bytes()[:4] == b"vtrt"
    assert [f.name for f in (tmp_path / "e").iterdir()] == ["engine.plan"]
    assert built.device == "sm86+sm89"
    assert built.runtime.startswith("tensorrt_rtx 1.")
    of_node = {node: layer for layer in built.layers for node in layer.nodes}
    assert {"conv1", "conv2", "pool1", "up", "argmax"} <= set(of_node)
    assert of_node["conv1"].kind == "correlation"
    assert of_node["conv1"].precision == of_node["conv2"].precision == "fp32"
    assert "relu1" in of_node["conv1"].nodes, "ReLU is fused into the convolution"
    fractions = [fraction for _, fraction in steps]
    assert len(fractions) > 3
    assert fractions[-1] == 1.0
    assert all(0 <= f <= 1 for f in fractions)


def test_a_quantized_convolution_is_reported_as_int8(tmp_path):
    model = tiny_onnx(tmp_path / "model.onnx", tiny_spec(), quantized="int8")
    built = build(model, tmp_path / "e", precision="int8")
    convolutions = {n: la for la in built.layers if la.kind == "correlation" for n in la.nodes}
    assert convolutions["conv1"].precision == "fp32"
    assert convolutions["conv2"].precision == "int8"
    assert "conv2_weight_DQ" in convolutions["conv2"].nodes
    assert built.notes == ("1 of 2 convolutions compute in int8",)


def test_a_gpu_without_int8_takes_it_from_the_whole_engine_and_the_note_says_so(tmp_path):
    model = tiny_onnx(tmp_path / "model.onnx", tiny_spec(), quantized="int8")
    built = build(model, tmp_path / "e", ("sm86", "sm75"), precision="int8")
    assert not any(layer.precision == "int8" for layer in built.layers if layer.kind == "correlation")
    assert built.notes[0].startswith("0 of 2 convolutions compute in int8; sm75 has none")


def test_fp8_is_refused_for_gpus_without_it_before_any_work(model, tmp_path):
    with pytest.raises(UsageError, match=r"fp8 needs compute capability 8\.9 or later, found sm86\n") as caught:
        build(model, tmp_path / "e", ("sm86", "sm89", "sm120"), precision="fp8")
    assert caught.value.fix == "use --target tensorrt-rtx:sm89,sm120, or --precision int8"
    with pytest.raises(UsageError, match=r"found sm75, sm80\n") as caught:
        build(model, tmp_path / "e", ("7.5", "8.0"), precision="fp8")
    assert "tensorrt-rtx:sm89" in caught.value.fix
    assert build(model, tmp_path / "e", ("8.9",), precision="fp8").device == "sm89"


@pytest.mark.parametrize(("found", "fits"), [("sm86", False), ("sm89", True), ("sm90", True), ("sm120", True)])
def test_fp8_for_this_machine_asks_for_its_gpu(monkeypatch, found, fits):
    monkeypatch.setattr("fcnopt.backends.tensorrt_build.gpu_problem", lambda: "")
    monkeypatch.setattr("fcnopt.backends.tensorrt_build.gpu_capabilities", lambda: (found,))
    check = TensorRtBuilder("tensorrt_rtx").check
    if fits:
        check(BuildOptions(precision="fp8"))
    else:
        with pytest.raises(BackendError, match="found sm86"):
            check(BuildOptions(precision="fp8"))
    check(BuildOptions(precision="int8"))


def test_compute_capabilities_may_be_written_with_a_dot(model, tmp_path):
    assert build(model, tmp_path / "e", ("8.6",)).device == "sm86"


def test_an_unknown_compute_capability_lists_the_known_ones(model, tmp_path):
    with pytest.raises(UsageError, match="cannot build for compute capability sm90") as caught:
        build(model, tmp_path / "e", ("sm90",))
    assert "sm75, sm80, sm86, sm89, sm120" in caught.value.fix
    assert not list((tmp_path / "e").iterdir())


@pytest.mark.parametrize(
    ("quantized", "node", "says", "fix"),
    [
        ("int32-bias", "'conv2_bias_DQ' (DequantizeLinear)", "has type Int32", "leave biases in float"),
        ("int8-offset", "'relu1_Q' (QuantizeLinear)", "Non-zero zero point", "quantize symmetrically"),
        ("uint8-offset", "'relu1_Q' (QuantizeLinear)", "Non-zero zero point", "quantize symmetrically"),
        ("uint8", "'relu1_Q'", "would read as int8", "quantize activations to int8, not uint8"),
    ],
)
def test_quantization_that_tensorrt_refuses_is_named_with_node_and_fix(tmp_path, quantized, node, says, fix):
    model = tiny_onnx(tmp_path / "model.onnx", tiny_spec(), quantized=quantized)
    with pytest.raises(BuildError) as caught:
        build(model, tmp_path / "e", precision="int8")
    message = caught.value.message
    assert message.startswith("model.onnx: ")
    assert node in message
    assert says in message
    assert fix in caught.value.fix
    assert "catchCudaError" not in message
    assert ".cpp" not in message
    assert not list((tmp_path / "e").iterdir())


def test_a_bias_of_another_type_is_named_with_node_and_fix(model, tmp_path):
    def half_bias(graph):
        (bias,) = [i for i in graph.initializer if i.name == "b2"]
        bias.CopyFrom(numpy_helper.from_array(np.zeros(16, np.float16), "b2"))

    with pytest.raises(BuildError, match=r"node 'conv2' \(Conv\): .*must be of same type") as caught:
        build(rewritten(model, half_bias), tmp_path / "e")
    assert "give all inputs of the node one type" in caught.value.fix


def test_a_node_after_the_cast_to_uint8_is_named_with_the_fix(model, tmp_path):
    def more(graph):
        graph.node[-1].output[0] = "early"
        graph.node.append(helper.make_node("Identity", ["early"], ["late"], "same"))
        graph.initializer.append(numpy_helper.from_array(np.array([1, 24, 32]), "shape"))
        graph.node.append(helper.make_node("Reshape", ["late", "shape"], ["labels"], "reshape"))

    with pytest.raises(BuildError, match="UINT8 types for intermediate tensors") as caught:
        build(rewritten(model, more), tmp_path / "e")
    assert "cast to uint8 be the last node" in caught.value.fix


@pytest.mark.parametrize(
    ("op", "domain", "says"),
    [("Unique", "", "the operator is not supported"), ("Splat", "my.ops", "Plugin not found")],
)
def test_an_operator_that_tensorrt_lacks_is_named(model, tmp_path, op, domain, says):
    def strange(graph):
        at = [n.name for n in graph.node].index("conv1")
        graph.node[at].input[0] = "odd"
        graph.node.insert(at, helper.make_node(op, ["m"], ["odd"], "odd_one", domain=domain))

    proto = onnx.load(model)
    strange(proto.graph)
    if domain:
        proto.opset_import.append(helper.make_opsetid(domain, 1))
    onnx.save(proto, model)
    with pytest.raises(BuildError, match=rf"node 'odd_one' \({op}\): .*{says}") as caught:
        build(model, tmp_path / "e")
    assert "replace" in caught.value.fix


def test_a_bf16_deconvolution_is_a_build_error_with_the_fix(model, tmp_path):
    def bf16(graph):
        up = next(n for n in graph.node if n.name == "up")
        at = list(graph.node).index(up)
        up.input[0], up.input[1], up.output[0] = "r2_bf16", "w3_bf16", "up_bf16"
        to = TensorProto.BFLOAT16
        graph.node.insert(at, helper.make_node("Cast", ["r2"], ["r2_bf16"], "to_bf16", to=to))
        graph.node.insert(at, helper.make_node("Cast", ["w3"], ["w3_bf16"], "weights_to_bf16", to=to))
        graph.node.insert(at + 3, helper.make_node("Cast", ["up_bf16"], ["logits"], "back", to=TensorProto.FLOAT))

    with pytest.raises(BuildError, match="tensorrt_rtx cannot build it") as caught:
        build(rewritten(model, bf16), tmp_path / "e")
    assert "keep ConvTranspose in FP32 or FP16" in caught.value.fix


def test_a_truncated_file_is_one_clear_error(model, tmp_path):
    model.write_bytes(model.read_bytes()[:300])
    with pytest.raises(BuildError, match="Failed to parse the ONNX model") as caught:
        build(model, tmp_path / "e")
    assert "truncated or is not ONNX" in caught.value.fix


def test_weights_beside_the_model_are_found(model, tmp_path):
    folder = tmp_path / "external"
    folder.mkdir()
    onnx.save(onnx.load(model), folder / "m.onnx", save_as_external_data=True, location="m.bin", size_threshold=16)
    assert build(folder / "m.onnx", tmp_path / "e").files[0].stat().st_size > 1000


def test_a_dynamic_model_needs_and_takes_a_range_of_sizes(tmp_path):
    model = tiny_onnx(tmp_path / "model.onnx", tiny_spec(None, None), batch=None)
    with pytest.raises(UsageError, match=r"input 'frames' is dynamic, \[\?, \?, \?, 3\]"):
        build(model, tmp_path / "e")
    built = build(model, tmp_path / "e", shapes=((1, 16, 16), (1, 24, 32), (4, 48, 64)))
    assert built.files[0].is_file()
    with pytest.raises(UsageError, match="are no range"):
        build(model, tmp_path / "e", shapes=((4, 48, 64), (1, 24, 32), (1, 16, 16)))


def test_sizes_must_agree_with_the_fixed_axes(tmp_path):
    model = tiny_onnx(tmp_path / "model.onnx", tiny_spec(), batch=None)
    with pytest.raises(UsageError, match=r"shape \[1, 16, 32, 3\] does not fit input 'frames' \[\?, 24, 32, 3\]"):
        build(model, tmp_path / "e", shapes=((1, 16, 32), (1, 24, 32), (4, 24, 32)))
    assert build(model, tmp_path / "e", shapes=((1, 24, 32), (1, 24, 32), (4, 24, 32))).files[0].is_file()


def test_options_of_standard_tensorrt_are_refused_or_noted(model, tmp_path):
    with pytest.raises(UsageError, match="has no hardware-compatible mode"):
        build(model, tmp_path / "e", hardware_compatible=True)
    built = build(model, tmp_path / "e", timing_cache=tmp_path / "timings", workspace_bytes=2**28)
    assert built.notes == ("the timing cache was not used: tensorrt-rtx measures no kernels while building",)
    assert not (tmp_path / "timings").exists()


def test_a_version_compatible_engine_builds(model, tmp_path):
    assert build(model, tmp_path / "e", version_compatible=True).files[0].is_file()


def test_standard_tensorrt_refuses_named_gpus(model, tmp_path):
    options = BuildOptions(compute_capabilities=("sm86",))
    with pytest.raises((UsageError, BackendError)) as caught:
        TensorRtBuilder("tensorrt").build(model, tmp_path, options, silent)
    assert "tensorrt-rtx:sm86" in caught.value.fix or "pip install" in caught.value.fix


@no_gpu
def test_building_for_this_machine_s_gpu_without_one_says_so(model, tmp_path):
    with pytest.raises(BackendError, match="needs an NVIDIA GPU: cudaError") as caught:
        build(model, tmp_path / "e", ())
    assert "tensorrt-rtx:sm86,sm89" in caught.value.fix


@no_gpu
def test_running_without_a_gpu_says_so(model, tmp_path):
    from fcnopt.backends import Target, open_engine

    built = build(model, tmp_path / "e")
    with pytest.raises(BackendError, match="tensorrt-rtx fp32: needs an NVIDIA GPU: cudaError") as caught:
        open_engine(built.files, Target.parse("tensorrt-rtx:sm86,sm89"), "fp32", tiny_spec())
    assert "openvino" in caught.value.fix


def test_progress_that_raises_stops_the_build_and_leaves_nothing(model, tmp_path):
    class StopError(Exception):
        pass

    def stop(_step, fraction):
        if fraction > 0:
            raise StopError

    with pytest.raises(StopError):
        build(model, tmp_path / "e", progress=stop)
    assert not list((tmp_path / "e").iterdir())


def test_an_engine_that_cannot_be_written_is_one_clear_error(model, tmp_path, monkeypatch):
    def full(_path, _data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(BuildError, match=r"engine\.plan: cannot write .* MiB: No space left on device"):
        build(model, tmp_path / "e")
    assert not list((tmp_path / "e").iterdir())


def test_builds_of_two_threads_do_not_mix_their_messages(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    good = tiny_onnx(tmp_path / "good.onnx", tiny_spec())
    bad = tiny_onnx(tmp_path / "bad.onnx", tiny_spec(), quantized="int32-bias")
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(build, good, tmp_path / "a")
        second = pool.submit(build, bad, tmp_path / "b")
        assert first.result().layers
        with pytest.raises(BuildError, match="conv2_bias_DQ"):
            second.result()
