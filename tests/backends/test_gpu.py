"""The real thing, on a machine with an NVIDIA GPU: `make test-gpu`."""

from __future__ import annotations

import numpy as np
import pytest

from fcnopt.backends import Target, make_builder, open_engine
from fcnopt.backends.base import BuildOptions
from fcnopt.backends.machine import gpu_capabilities, gpu_problem
from fcnopt.backends.onnxruntime import CPU, CUDA, OnnxRuntimeRunner
from tests.backends.tiny import silent, tiny_module, tiny_onnx, tiny_spec

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not gpu_capabilities(), reason=f"no NVIDIA GPU: {gpu_problem()}")]

ALL = ("labels", "confidence", "logits")


@pytest.fixture(scope="module", params=["tensorrt", "tensorrt-rtx"])
def engine(request, tmp_path_factory):
    """The tiny network, built in FP32 for this machine: files, target and spec, and its ONNX file."""
    target = Target.parse(request.param)
    if not target.runs_here():
        pytest.skip(f"{target} does not run here: fcnopt doctor says why")
    folder, spec = tmp_path_factory.mktemp(target.file_safe), tiny_spec(outputs=ALL)
    model = tiny_onnx(folder / "model.onnx", spec)
    built = make_builder(target).build(model, folder, BuildOptions(), silent)
    assert built.layers
    return built.files, target, spec, model


@pytest.fixture
def runner(engine):
    files, target, spec, _ = engine
    with open_engine(files, target, "fp32", spec) as opened:
        yield opened


@pytest.fixture
def want(engine, frames):
    _, _, spec, model = engine
    with OnnxRuntimeRunner(model, spec) as reference:
        return [reference.run(frame[None]) for frame in frames]


def test_torch_on_cuda_equals_the_cpu(frames):
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this torch has no CUDA")
    from fcnopt.backends.torch import TorchRunner

    spec = tiny_spec(outputs=ALL)
    with TorchRunner(tiny_module(), spec) as cpu, TorchRunner(tiny_module(), spec, "cuda") as cuda:
        a, b = cpu.run(frames), cuda.run(frames)
        c = cuda.run(torch.from_numpy(frames).cuda())
    assert np.mean(a.labels == b.labels) > 0.999
    np.testing.assert_allclose(a.logits, b.logits, rtol=2e-2, atol=2e-2)  # TF32
    np.testing.assert_array_equal(b.labels, c.labels)


def test_onnxruntime_on_cuda_equals_the_cpu(tmp_path, frames):
    import onnxruntime

    if CUDA not in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has no CUDA")
    spec = tiny_spec(outputs=ALL)
    model = tiny_onnx(tmp_path / "model.onnx", spec)
    with OnnxRuntimeRunner(model, spec) as cpu, OnnxRuntimeRunner(model, spec, (CUDA, CPU)) as cuda:
        a, b = cpu.run(frames[:1]), cuda.run(frames[:1])
        torch = pytest.importorskip("torch")
        if torch.cuda.is_available():
            c = cuda.run(torch.from_numpy(frames[:1]).cuda())
            np.testing.assert_array_equal(b.labels, c.labels)
    assert np.mean(a.labels == b.labels) > 0.999
    np.testing.assert_allclose(a.logits, b.logits, rtol=2e-2, atol=2e-2)


def test_the_engine_s_labels_are_onnxruntime_s(runner, frames, want):
    for _ in range(3):  # plain, captured, launched
        for frame, expected in zip(frames, want, strict=True):
            out = runner.run(frame[None])
            assert np.mean(out.labels == expected.labels) > 0.999
            np.testing.assert_allclose(out.logits, expected.logits, rtol=2e-2, atol=2e-2)
            np.testing.assert_allclose(out.confidence, expected.confidence, rtol=2e-2, atol=2e-2)


def test_a_stream_gives_the_same_in_order(runner, frames, want):
    outs = list(runner.stream(iter(frames)))
    assert len(outs) == len(want)
    for out, expected in zip(outs, want, strict=True):
        assert np.mean(out.labels == expected.labels) > 0.999


def test_two_lanes_give_the_same_in_order_as_one(engine, frames, runner):
    files, target, spec, _ = engine
    want = [runner.run(frame[None]) for frame in frames]
    with open_engine(files, target, "fp32", spec, mode="throughput") as two:
        assert two.in_flight == 2
        for _ in range(3):
            outs = list(two.stream(frame for _ in range(8) for frame in frames))
            assert [out.index for out in outs] == list(range(8 * len(frames)))
            for out, expected in zip(outs, want * 8, strict=True):
                np.testing.assert_array_equal(out.labels, expected.labels)
                np.testing.assert_array_equal(out.logits, expected.logits)


def test_two_lanes_take_gpu_arrays_where_they_are(engine, frames, runner):
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this torch has no CUDA")
    files, target, spec, _ = engine
    arrays = [torch.from_numpy(frame).cuda() for frame in frames]
    with open_engine(files, target, "fp32", spec, mode="throughput") as two:
        for out, frame in zip(two.stream(arrays * 3), [*frames] * 3, strict=True):
            np.testing.assert_array_equal(out.labels, runner.run(frame[None]).labels)


def test_the_gpu_decodes_what_pyav_decodes(tmp_path):
    pytest.importorskip("PyNvVideoCodec")
    from fcnopt.media import open_clip
    from fcnopt.media.synth import SceneOptions, SynthClip

    clip = tmp_path / "clip.mp4"
    SynthClip(SceneOptions(seed=3, frames=50, height=256, width=384)).write_video(clip)
    cpu, gpu = list(open_clip(clip)), list(open_clip(clip, decoder="nvdec"))
    assert [frame.index for frame in gpu] == [frame.index for frame in cpu]
    for one, other in zip(cpu, gpu, strict=True):
        assert np.abs(one.image.astype(int) - other.image).mean() < 3


def test_cuda_graph_on_and_off_are_equal(engine, frames):
    from fcnopt.backends.tensorrt import TensorRtRunner

    files, target, spec, _ = engine
    flavour = target.runtime.replace("-", "_")
    plan = files[0].read_bytes()
    with TensorRtRunner(plan, spec, flavour) as on, TensorRtRunner(plan, spec, flavour, cuda_graph=False) as off:
        for frame in [*frames, *frames]:
            a, b = on.run(frame[None]), off.run(frame[None])
            np.testing.assert_array_equal(a.labels, b.labels)
            np.testing.assert_array_equal(a.logits, b.logits)


@pytest.mark.parametrize("library", ["torch", "cupy", "pycuda"])
def test_gpu_arrays_are_taken_without_a_copy(runner, frames, library):
    move = _mover(library)
    arrays = [move(frame[None]) for frame in frames]
    for _ in range(3):
        for frame, array in zip(frames, arrays, strict=True):
            np.testing.assert_array_equal(runner.run(array).labels, runner.run(frame[None]).labels)


def test_frames_made_on_another_stream_are_waited_for(runner, frames):
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this torch has no CUDA")
    side, pixels = torch.cuda.Stream(), torch.from_numpy(frames[:1]).cuda()
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        busy = torch.zeros(4096, 4096, device="cuda")
        for _ in range(20):
            busy = busy @ busy
        late = pixels.clone()
        labels = runner.run(late).labels
    np.testing.assert_array_equal(labels, runner.run(frames[:1]).labels)


def test_an_int8_engine_agrees_with_its_graph(engine, frames, tmp_path):
    _, target, _, _ = engine
    spec = tiny_spec()
    model = tiny_onnx(tmp_path / "int8.onnx", spec, quantized="int8")
    built = make_builder(target).build(model, tmp_path, BuildOptions(precision="int8"), silent)
    with open_engine(built.files, target, "int8", spec) as engine8, OnnxRuntimeRunner(model, spec) as reference:
        for frame in frames:
            assert np.mean(engine8.run(frame[None]).labels == reference.run(frame[None]).labels) > 0.97


def _mover(library: str):
    if library == "torch":
        torch = pytest.importorskip("torch")
        if not torch.cuda.is_available():
            pytest.skip("this torch has no CUDA")
        return lambda array: torch.from_numpy(array).cuda()
    if library == "cupy":
        return pytest.importorskip("cupy").asarray
    pytest.importorskip("pycuda")
    import pycuda.autoprimaryctx  # noqa: F401  (makes the context that the runner shares)
    from pycuda import gpuarray

    return gpuarray.to_gpu
