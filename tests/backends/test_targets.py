from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from fcnopt.backends import Target, default_target, make_builder, open_engine, open_onnx, survey
from fcnopt.backends import machine as machines
from fcnopt.backends import targets as target_module
from fcnopt.backends.targets import EXAMPLES, capability_name
from fcnopt.errors import BackendError, UsageError
from tests.backends.tiny import silent, tiny_onnx, tiny_spec


@pytest.mark.parametrize("text", EXAMPLES)
def test_a_target_is_written_as_it_is_read(text):
    target = Target.parse(text)
    assert str(target) == text
    assert Target.parse(str(target)) == target


@pytest.mark.parametrize(
    ("text", "canonical", "file_safe", "form"),
    [
        (" TensorRT ", "tensorrt", "tensorrt", "tensorrt"),
        ("tensorrt-rtx:SM86, 8.9,sm_86", "tensorrt-rtx:sm86,sm89", "tensorrt-rtx-sm86-sm89", "tensorrt"),
        ("tensorrt-rtx:12.0", "tensorrt-rtx:sm120", "tensorrt-rtx-sm120", "tensorrt"),
        ("openvino:CPU", "openvino", "openvino", "openvino"),
        ("openvino:GPU", "openvino:gpu", "openvino-gpu", "openvino"),
        ("onnxruntime:cpu", "onnxruntime", "onnxruntime", "onnxruntime"),
        ("onnxruntime:CUDA", "onnxruntime:cuda", "onnxruntime-cuda", "tensorrt"),
    ],
)
def test_spellings_have_one_meaning(text, canonical, file_safe, form):
    target = Target.parse(text)
    assert (str(target), target.file_safe, target.form) == (canonical, file_safe, form)


@pytest.mark.parametrize(
    "text", ["", "trt", "tensorrt:sm86", "openvino:tpu", "openvino:", "onnxruntime:cuda,cpu", "onnxruntime:cuda:0", ":"]
)
def test_an_unknown_target_lists_the_known_ones(text):
    with pytest.raises(UsageError, match="is not known") as caught:
        Target.parse(text)
    assert all(example in caught.value.fix for example in EXAMPLES)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("text", ["ampere", "8", "sm", "sm8x", "8.10"])
def test_a_word_that_is_no_compute_capability_is_named(text):
    with pytest.raises(UsageError, match=f"'{text}' is not a compute capability"):
        Target.parse(f"tensorrt-rtx:{text}")


def test_compute_capabilities_have_one_spelling():
    assert [capability_name(t) for t in ("sm86", "SM_86", "8.6", "12.1", "sm121")] == [
        "sm86",
        "sm86",
        "sm86",
        "sm121",
        "sm121",
    ]


def test_only_rtx_takes_compute_capabilities():
    with pytest.raises(UsageError, match="cannot be chosen"):
        Target("tensorrt", compute_capabilities=("sm86",))


def _machine_with(monkeypatch: pytest.MonkeyPatch, gpus: tuple[str, ...], packages: set[str]) -> None:
    monkeypatch.setattr("fcnopt.backends.machine.gpu_capabilities", lambda: gpus)
    monkeypatch.setattr("fcnopt.backends.packages.installed", lambda name: name in packages)
    monkeypatch.setattr("fcnopt.backends.opening.installed", lambda name: name in packages)


@pytest.mark.parametrize(
    ("gpus", "packages", "best"),
    [
        (("sm90",), {"tensorrt", "tensorrt_rtx", "cuda", "openvino"}, "tensorrt"),
        (("sm89",), {"tensorrt_rtx", "cuda", "openvino"}, "tensorrt-rtx"),
        (("sm89",), {"tensorrt", "openvino"}, "openvino"),  # without cuda-python no engine runs
        ((), {"tensorrt", "tensorrt_rtx", "cuda", "openvino", "onnxruntime"}, "openvino"),
        ((), {"onnxruntime"}, "onnxruntime"),
    ],
)
def test_the_default_target_is_the_best_that_runs_here(monkeypatch, gpus, packages, best):
    _machine_with(monkeypatch, gpus, packages)
    assert str(default_target()) == best


def test_without_any_runtime_the_default_target_says_what_to_install(monkeypatch):
    _machine_with(monkeypatch, (), set())
    with pytest.raises(BackendError) as caught:
        default_target()
    assert 'pip install "fcnopt[cpu]"' in caught.value.fix


def test_an_rtx_engine_runs_only_on_the_gpus_it_names(monkeypatch):
    _machine_with(monkeypatch, ("sm89",), {"tensorrt_rtx", "cuda"})
    assert Target.parse("tensorrt-rtx").runs_here()
    assert Target.parse("tensorrt-rtx:sm86,sm89").runs_here()
    assert not Target.parse("tensorrt-rtx:sm86").runs_here()


@pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
def test_a_cpu_target_builds_and_opens(name, tmp_path, frames):
    from fcnopt.backends.base import BuildOptions

    spec, target = tiny_spec(), Target.parse(name)
    model = tiny_onnx(tmp_path / "model.onnx", spec)
    folder = tmp_path / "engine"
    folder.mkdir()
    built = make_builder(target).build(model, folder, BuildOptions(), silent)
    model.unlink()
    assert target.runs_here()
    assert all(file.parent == folder and file.is_file() for file in built.files)
    with open_engine(built.files, target, "fp32", spec) as engine:
        assert engine.name == f"{name} fp32"
        labels = engine.run(frames[:1]).labels
    tiny_onnx(model, spec)
    with open_onnx(model, spec) as best, open_onnx(model, spec, runtime="onnxruntime") as ort:
        assert ort.name == "onnxruntime fp32"
        np_labels = best.run(frames[:1]).labels
        assert (np_labels == labels).all()
        assert (ort.run(frames[:1]).labels == labels).all()


def test_a_missing_engine_file_is_named(tmp_path):
    from fcnopt.backends.opening import read_engine

    with pytest.raises(BackendError, match=r"nothing\.plan: cannot be read: No such file"):
        read_engine(tmp_path / "nothing.plan")


def test_importing_the_package_loads_no_runtime_and_no_numpy():
    heavy = ["numpy", "torch", "onnx", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "cuda", "cv2"]
    code = (
        "import sys; sys.modules['fcnopt'] = type(sys)('fcnopt'); sys.modules['fcnopt'].__path__ = [sys.argv[1]]; "
        "from fcnopt.backends import Target; Target.parse('tensorrt-rtx:sm86'); "
        f"print([m for m in {heavy} if m in sys.modules])"
    )
    folder = str(Path(target_module.__file__).parents[1])
    done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_survey_names_every_runtime_and_the_fix_for_what_is_missing():
    found = {status.name: status for status in survey()}
    assert list(found) == ["torch", "onnxruntime", "openvino", "tensorrt", "tensorrt-rtx"]
    for name in ("onnxruntime", "openvino"):
        assert found[name].version
        assert found[name].builds
        assert found[name].runs
        assert "cpu" in found[name].devices
    for status in found.values():
        assert status.runs or status.fix, status
        assert status.version or "pip install" in status.fix


def test_the_survey_tells_a_runtime_that_is_installed_but_broken(monkeypatch):
    module = importlib.import_module("fcnopt.backends.survey")  # the package has a function of this name

    def broken(name: str, **_: str) -> None:
        raise BackendError(f"{name} is installed but cannot be loaded: libfoo.so", fix="install it again")

    monkeypatch.setattr(module, "require", broken)
    status = {s.name: s for s in module.survey()}["openvino"]
    assert not status.runs
    assert "libfoo.so" in status.note
    assert status.fix == "install it again"


def test_the_machine_is_described_for_json():
    import json

    facts = json.loads(json.dumps(machines.describe_machine()))
    assert facts["cores"] >= 1
    assert facts["memory_gib"] > 0
    assert facts["versions"]["openvino"]
    assert facts["python"] == ".".join(map(str, sys.version_info[:3]))
    assert isinstance(facts["gpus"], list)
    assert facts["cpu"]


def test_vector_extensions_are_read_from_cpuinfo():
    xeon = "processor\t: 0\nflags\t\t: fpu avx2 avx512f avx512_vnni avx512_bf16 amx_bf16 amx_tile amx_int8\n"
    assert machines.isa_of(xeon) == ("avx2", "avx512", "vnni", "bf16", "amx-int8", "amx-bf16")
    assert machines.isa_of("Features\t: fp asimd asimdhp asimddp\n") == ("fp16", "neon", "dotprod")
    assert machines.isa_of("") == ()


def test_gpus_are_read_from_nvidia_smi_s_lines():
    text = "NVIDIA RTX A4000, 550.54.14, 8.6, 16376\nOrin (nvgpu), 540.4.0, 8.7, [N/A]\ngarbage\n"
    first, second = machines.parse_gpus(text)
    assert first == {
        "name": "NVIDIA RTX A4000",
        "driver": "550.54.14",
        "compute_capability": "8.6",
        "memory_mib": 16376,
    }
    assert second["memory_mib"] is None


@pytest.mark.skipif(bool(machines.gpu_capabilities()), reason="this machine has an NVIDIA GPU")
def test_without_a_gpu_the_reason_has_cuda_s_error_number():
    assert "cudaError" in machines.gpu_problem()
    assert machines.gpus() == []


@pytest.mark.parametrize(
    ("isa", "answer"),
    [
        (("avx2",), True),
        (("avx2", "avx512"), True),
        (("avx2", "vnni"), False),
        (("avx2", "avx512", "vnni", "amx-int8"), False),
        (("neon", "dotprod"), False),  # ARM adds in 32 bits
        ((), False),
    ],
)
def test_int8_sums_saturate_on_x86_without_vnni(isa, answer, monkeypatch):
    assert machines.int8_saturates(isa) is answer
    monkeypatch.setattr(machines, "cpu_isa", lambda: isa)
    assert machines.int8_saturates() is answer
