"""What the builder asks of standard TensorRT, on a module that writes down what it is asked."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from fcnopt.backends import tensorrt_build
from fcnopt.backends.base import BuildOptions
from fcnopt.backends.tensorrt import TensorRtBuilder
from fcnopt.backends.tensorrt_log import LogBook
from fcnopt.errors import BackendError, BuildError
from tests.backends.tiny import silent

INSPECTED = json.dumps(
    {"Layers": [{"Name": "conv1", "LayerType": "CaskConvolution", "Inputs": [{"Datatype": "Half"}]}]}
)


class Config:
    def __init__(self, mismatched: bytes) -> None:
        self.flags: list[str] = []
        self.pools: dict[str, int] = {}
        self.profiles: list[dict[str, Any]] = []
        self.cache = b""
        self._mismatched = mismatched

    def set_flag(self, flag: str) -> None:
        self.flags.append(flag)

    def set_memory_pool_limit(self, pool: str, size: int) -> None:
        self.pools[pool] = size

    def create_timing_cache(self, data: bytes) -> bytes:
        return bytes(data)

    def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> bool:
        assert ignore_mismatch is False
        if cache == self._mismatched != b"":
            return False
        self.cache = cache
        return True

    def get_timing_cache(self) -> SimpleNamespace:
        return SimpleNamespace(serialize=lambda: self.cache + b"+new")

    def add_optimization_profile(self, profile: dict[str, Any]) -> int:
        self.profiles.append(profile)
        return len(self.profiles) - 1


class Recorder:
    """A `tensorrt` module; `config`, `network_flags` and `parsed` say what the builder did."""

    def __init__(self, version: str, shape: tuple[int, ...], *, says: str = "", mismatched: bytes = b"") -> None:
        self.config = Config(mismatched)
        self.network_flags: list[int] = []
        self.parsed: list[str] = []
        self.__name__ = "tensorrt"
        self.__version__ = version
        self.shape, self.says = shape, says
        base = type("Base", (), {"__init__": lambda _: None})
        self.ILogger = self.IProgressMonitor = base
        self.NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1)
        self.ProfilingVerbosity = SimpleNamespace(DETAILED="detailed")
        self.MemoryPoolType = SimpleNamespace(WORKSPACE="workspace")
        self.BuilderFlag = SimpleNamespace(VERSION_COMPATIBLE="version", EXCLUDE_LEAN_RUNTIME="exclude")
        self.HardwareCompatibilityLevel = SimpleNamespace(AMPERE_PLUS="ampere+")
        self.LayerInformationFormat = SimpleNamespace(JSON="json")

    def Builder(self, logger: Any) -> SimpleNamespace:  # noqa: N802  (TensorRT's name)
        def build(_network: Any, config: Config) -> bytes | None:
            monitor = config.progress_monitor
            monitor.phase_start("all", None, 2)
            monitor.phase_start("inner", "all", 9)
            for step in range(9):
                assert monitor.step_complete("inner", step)
            monitor.phase_finish("inner")
            for step in range(2):
                assert monitor.step_complete("all", step)
            if self.says:
                logger.log(SimpleNamespace(name="ERROR"), self.says)
                return None
            return b"plan"

        def network(flags: int) -> SimpleNamespace:
            self.network_flags.append(flags)
            tensor = SimpleNamespace(name="frames", shape=self.shape)
            return SimpleNamespace(get_input=lambda _: tensor)

        def profile() -> Any:
            shapes: dict[str, Any] = {}
            return SimpleNamespace(set_shape=lambda name, *sizes: shapes.update({name: sizes}), shapes=shapes)

        return SimpleNamespace(
            create_builder_config=lambda: self.config,
            create_network=network,
            create_optimization_profile=profile,
            build_serialized_network=build,
        )

    def OnnxParser(self, _network: Any, _logger: Any) -> SimpleNamespace:  # noqa: N802  (TensorRT's name)
        return SimpleNamespace(parse_from_file=lambda path: self.parsed.append(path) or True, num_errors=0)

    def Runtime(self, _logger: Any) -> SimpleNamespace:  # noqa: N802  (TensorRT's name)
        inspector = SimpleNamespace(get_engine_information=lambda _: INSPECTED)
        engine = SimpleNamespace(create_engine_inspector=lambda: inspector)
        return SimpleNamespace(deserialize_cuda_engine=lambda plan: engine if plan == b"plan" else None)


@pytest.fixture
def build(monkeypatch, tmp_path):
    gpu = {"name": "NVIDIA RTX A4000", "driver": "580.1", "compute_capability": "8.6", "memory_mib": 16376}

    def built(trt: Recorder, progress=silent, **options):
        monkeypatch.setattr(tensorrt_build, "load", lambda _: trt)
        monkeypatch.setattr(tensorrt_build, "log_book", lambda _: LogBook(trt))
        monkeypatch.setattr(tensorrt_build, "gpu_problem", lambda: "")
        monkeypatch.setattr(tensorrt_build, "gpus", lambda: [gpu])
        return TensorRtBuilder("tensorrt").build(tmp_path / "m.onnx", tmp_path, BuildOptions(**options), progress)

    return built


FIXED = (1, 24, 32, 3)


@pytest.mark.parametrize(("version", "flags"), [("10.13.0.35", 2), ("11.4.0.106", 0)])
def test_networks_are_strongly_typed_by_flag_before_11_and_by_nature_after(build, version, flags):
    trt = Recorder(version, FIXED)
    assert build(trt).runtime == f"tensorrt {version}"
    assert trt.network_flags == [flags]


def test_an_engine_is_for_this_machine_s_gpu_and_its_layers_come_from_the_inspector(build, tmp_path):
    trt = Recorder("11.4.0", FIXED)
    built = build(trt)
    assert built.device == "NVIDIA RTX A4000 (8.6)"
    assert (tmp_path / "engine.plan").read_bytes() == b"plan"
    assert [(layer.name, layer.precision) for layer in built.layers] == [("conv1", "fp16")]
    assert trt.parsed == [str(tmp_path / "m.onnx")]
    assert trt.config.profiling_verbosity == "detailed"
    assert trt.config.flags == []


def test_options_reach_tensorrt(build):
    trt = Recorder("10.13.0", FIXED)
    build(trt, workspace_bytes=2**30, version_compatible=True, hardware_compatible=True)
    assert trt.config.pools == {"workspace": 2**30}
    assert trt.config.flags == ["version"], "standard engines keep the lean runtime, or later versions cannot load them"
    assert trt.config.hardware_compatibility_level == "ampere+"


def test_a_dynamic_input_gets_one_profile(build):
    trt = Recorder("10.13.0", (-1, 24, 32, 3))
    build(trt, shapes=((1, 24, 32), (1, 24, 32), (4, 24, 32)))
    (profile,) = trt.config.profiles
    assert profile.shapes == {"frames": ((1, 24, 32, 3), (1, 24, 32, 3), (4, 24, 32, 3))}


def test_the_timing_cache_is_read_and_kept(build, tmp_path):
    cache = tmp_path / "timings.bin"
    assert build(Recorder("10.13.0", FIXED), timing_cache=cache).notes == ()
    assert cache.read_bytes() == b"+new"
    assert build(Recorder("10.13.0", FIXED), timing_cache=cache).notes == ()
    assert cache.read_bytes() == b"+new+new"


def test_a_timing_cache_of_another_gpu_is_replaced_and_said(build, tmp_path):
    cache = tmp_path / "timings.bin"
    cache.write_bytes(b"other")
    built = build(Recorder("10.13.0", FIXED, mismatched=b"other"), timing_cache=cache)
    assert built.notes == ("timings.bin is of another GPU or TensorRT version and is replaced",)
    assert cache.read_bytes() == b"+new"


def test_progress_is_the_outermost_phase_s(build):
    steps: list[float] = []
    build(Recorder("11.4.0", FIXED), progress=lambda _, fraction: steps.append(fraction))
    assert steps == [0.0, 0.5, 1.0, 1.0]


def test_a_build_that_fails_says_why_and_writes_nothing(build, tmp_path):
    with pytest.raises(BuildError, match=r"m\.onnx: tensorrt cannot build it: .*out of memory") as caught:
        build(Recorder("11.4.0", FIXED, says="Autotuner: GPU out of memory"))
    assert "lower the workspace limit" in caught.value.fix
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("there", [True, False])
def test_without_a_gpu_standard_tensorrt_does_not_build(monkeypatch, there):
    """Not installing it is the fix: it would not build then either."""

    def load(_):
        if not there:
            raise BackendError("tensorrt is not installed", fix="install it")
        return Recorder("11.4.0", FIXED)

    monkeypatch.setattr(tensorrt_build, "load", load)
    monkeypatch.setattr(tensorrt_build, "gpu_problem", lambda: "cudaError 35: no driver")
    with pytest.raises(BackendError, match="needs an NVIDIA GPU: cudaError 35") as caught:
        TensorRtBuilder("tensorrt").check(BuildOptions())
    assert "tensorrt-rtx:sm86" in caught.value.fix
