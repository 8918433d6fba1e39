"""ONNX Runtime, on the CPU and on CUDA. The engine is the ONNX file itself.

ONNX Runtime can write the graph as it optimized it, but that file runs only on machines with the same instruction
set, so it is used to report the layers and then thrown away.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from fcnopt.backends.base import (
    FP8_FIX,
    Builder,
    BuildOptions,
    Built,
    EngineLayer,
    Mode,
    Outputs,
    Precision,
    Progress,
    Runner,
)
from fcnopt.backends.base import elapsed_ms as since
from fcnopt.backends.frames import as_numpy, check_interface
from fcnopt.backends.machine import int8_saturates, usable_cores
from fcnopt.backends.onnxfile import external_files, read_structure
from fcnopt.backends.packages import require, version_of
from fcnopt.backends.targets import Target
from fcnopt.errors import BackendError, BuildError
from fcnopt.graph.optimizers import has_wide_weights, unsafe_optimizers
from fcnopt.spec import ModelSpec

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
_IN_FLIGHT = 2  # for throughput on a CPU: what one frame computes on a single core, another uses the rest for


def providers_of(target: Target) -> tuple[str, ...]:
    """The execution providers of a target, most wanted first."""
    return (CUDA, CPU) if target.device == "cuda" else (CPU,)


class OnnxRuntimeRunner(Runner):
    """Runs an ONNX file.

    Opened for latency, a run has all cores. Opened for throughput on a CPU, two runs share them, each from a thread of
    `stream`; CUDA's provider runs one at a time.

    Args:
        model: The file, or its bytes (then without external data).
        spec: What the model takes and gives.
        providers: Execution providers, most wanted first; the first one must be there.
        precision: Of the graph, for the runner's name.
        mode: What to open the session for.

    Raises:
        BackendError: ONNX Runtime or the provider is missing, or the graph is refused or does not fit the spec.
    """

    def __init__(
        self,
        model: Path | bytes,
        spec: ModelSpec,
        providers: tuple[str, ...] = (CPU,),
        *,
        precision: Precision = "fp32",
        mode: Mode = "latency",
    ) -> None:
        self.name = f"onnxruntime {precision}" + (" cuda" if providers[0] == CUDA else "")
        self.spec = spec
        self._on_cuda = providers[0] == CUDA
        if not self._on_cuda:
            self.in_flight, self.prefetch = (_IN_FLIGHT, 4) if mode == "throughput" else (1, 0)
        self._session: Any = open_session(model, providers, share=self.in_flight)
        inputs = {i.name: (_dtype(i.type), _shape(i.shape)) for i in self._session.get_inputs()}
        self.batch = check_interface(self.name, spec, inputs, [o.name for o in self._session.get_outputs()])
        self._input = next(iter(inputs))

    def lanes(self, count: int) -> Sequence[Callable[[Any], Outputs]]:
        """The session itself, which any number of threads may run."""
        return [self.infer] * (1 if self._on_cuda else count)

    def infer(self, frames: Any) -> Outputs:
        """Run checked frames; with CUDA, frames in GPU memory are taken where they are."""
        start = time.perf_counter()
        with _translated(f"{self.name}: inference failed"):
            if self._on_cuda and not isinstance(frames, np.ndarray):
                values = self._run_bound(frames)
            else:
                values = self._session.run(list(self.spec.outputs), {self._input: as_numpy(frames, self.name)})
        return Outputs(**dict(zip(self.spec.outputs, values, strict=True)), inference_ms=since(start))

    def _run_bound(self, frames: Any) -> list[Any]:
        """Run frames that may lie in GPU memory, without copying those that do."""
        from fcnopt.backends.cudart import Cuda
        from fcnopt.backends.device import borrow

        array = borrow(frames, self.name)
        if array is None:
            return list(self._session.run(list(self.spec.outputs), {self._input: as_numpy(frames, self.name)}))
        # ONNX Runtime's own stream cannot be made to wait for the producer's, so the producer is waited for here.
        Cuda().synchronize(array.stream or 0)
        binding = self._session.io_binding()
        binding.bind_input(self._input, "cuda", 0, np.uint8, list(array.shape), array.pointer)
        for name in self.spec.outputs:
            binding.bind_output(name, "cpu")
        self._session.run_with_iobinding(binding)
        return list(binding.copy_outputs_to_cpu())

    def close(self) -> None:
        """Free the session."""
        self._session = None


class OnnxRuntimeBuilder(Builder):
    """Proves that ONNX Runtime takes the graph, and makes the ONNX file the engine.

    Args:
        providers: Execution providers, most wanted first.
    """

    def __init__(self, providers: tuple[str, ...] = (CPU,)) -> None:
        self._providers = providers

    def check(self, options: BuildOptions) -> None:
        """Refuse a missing provider, and half precision on the CPU; see `Builder.check`."""
        check_provider(self._providers[0])
        if options.precision in ("fp16", "bf16") and self._providers[0] == CPU:
            raise BackendError(
                f"onnxruntime: its CPU kernels compute {options.precision} graphs in fp32, only slower",
                fix="use --precision int8 or fp32 here, or --target openvino or onnxruntime:cuda",
            )
        if options.precision == "fp8":
            raise BackendError("onnxruntime has no fp8 kernels: it would compute in float, only slower", fix=FP8_FIX)

    def build(self, model: Path, folder: Path, options: BuildOptions, progress: Progress) -> Built:
        """Build; see `Builder.build`. A model that is in `folder` already is not copied."""
        del options  # the graph says everything
        progress("load in onnxruntime", 0.0)
        layers = self._layers(model)
        files = tuple(_place(file, folder) for file in (model, *external_files(model)))
        progress("load in onnxruntime", 1.0)
        device = "CUDA" if self._providers[0] == CUDA else "CPU"
        return Built(files, device, f"onnxruntime {version_of('onnxruntime')}", layers)

    def _layers(self, model: Path) -> tuple[EngineLayer, ...]:
        """Load the model and list the nodes that ONNX Runtime made of it."""
        with tempfile.TemporaryDirectory(prefix="fcnopt-") as scratch:
            optimized = Path(scratch) / "optimized.onnx"
            try:
                open_session(model, self._providers, optimized)
            except BackendError as error:
                if "ExecutionProvider" in error.message or "installed" in error.message:
                    raise
                raise BuildError(error.message, fix=error.fix) from error
            graph = read_structure(optimized).graph
        types = {i.name: i.data_type for i in graph.initializer}
        return tuple(
            EngineLayer(node.name, node.op_type, _precision(node, types), (node.name,) if node.name else ())
            for node in graph.node
        )


def open_session(
    model: Path | bytes, providers: tuple[str, ...], optimized: Path | None = None, *, share: int = 1
) -> Any:
    """An `InferenceSession` on the providers asked for, and no silent other.

    Args:
        model: The file, or its bytes.
        providers: Execution providers, most wanted first.
        optimized: Where to write the optimized graph.
        share: Runs that will go on side by side: each gets its share of the cores.

    Raises:
        BackendError: A provider is missing, or the graph is refused.
    """
    ort = require("onnxruntime")
    available = check_provider(providers[0])
    options = ort.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is raised
    proto = _parsed(model)
    if proto is not None and providers[0] == CPU and int8_saturates() and has_wide_weights(proto):
        options.add_session_config_entry("session.disable_quant_qdq", "1")  # quantized values, in float layers
    if share > 1:
        options.intra_op_num_threads = max(1, usable_cores() // share)
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    name = model.name if isinstance(model, Path) else "the ONNX model"
    with _translated(f"{name}: onnxruntime refused it"):
        source = str(model) if isinstance(model, Path) else model
        session = ort.InferenceSession(
            source,
            options,
            providers=[p for p in providers if p in available],
            disabled_optimizers=[] if proto is None else list(unsafe_optimizers(proto)),
        )
    if session.get_providers()[0] != providers[0]:
        raise _no_provider(providers[0], f"it failed to start and left {', '.join(session.get_providers())}")
    return session


def check_provider(provider: str) -> list[str]:
    """The execution providers of the installed ONNX Runtime, `provider` among them.

    Raises:
        BackendError: ONNX Runtime is not installed, or `provider` is not one of its own.
    """
    ort = require("onnxruntime")
    available: list[str] = ort.get_available_providers()
    if provider not in available:
        raise _no_provider(provider, f"this onnxruntime {ort.__version__} has {', '.join(available)}")
    return available


def _parsed(model: Path | bytes) -> Any:
    """The graph, with its weights where these are looked at; None where the session will say what is wrong with it."""
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # has no type information

    try:
        if not isinstance(model, Path):
            return onnx.load_model_from_string(model)
        return onnx.load(model) if int8_saturates() else read_structure(model)
    except (BuildError, DecodeError, OSError, ValueError, onnx.checker.ValidationError):
        return None


def _place(file: Path, folder: Path) -> Path:
    """Put `file` into `folder`: the same file where the file system can, else a copy."""
    target = folder / file.name
    if target.exists() and target.samefile(file):
        return target
    target.unlink(missing_ok=True)
    try:
        os.link(file, target)
    except OSError:
        shutil.copyfile(file, target)
    return target


def _no_provider(provider: str, found: str) -> BackendError:
    device = provider.removesuffix("ExecutionProvider")
    fix = f"use a target without {device.lower()}"
    if provider == CUDA:
        fix = (
            "on a machine with an NVIDIA GPU: pip uninstall onnxruntime, then pip install onnxruntime-gpu; "
            "elsewhere use --target onnxruntime"
        )
    return BackendError(f"onnxruntime: {provider} was asked for, {found}", fix=fix)


@contextmanager
def _translated(what: str) -> Iterator[None]:
    """ONNX Runtime's exceptions as `BackendError`; they derive from nothing but Exception, so the module tells them."""
    try:
        yield
    except Exception as error:
        if not type(error).__module__.startswith("onnxruntime"):
            raise
        message = " ".join(str(error).split())
        raise BackendError(
            f"{what}: {message}", fix="check the model with `fcnopt inspect`, or export it again"
        ) from error


def _dtype(ort_type: str) -> str:
    """`uint8` of `tensor(uint8)`."""
    return ort_type.removeprefix("tensor(").removesuffix(")")


def _shape(shape: list[Any]) -> tuple[int | None, ...]:
    return tuple(s if isinstance(s, int) else None for s in shape)


def _precision(node: Any, types: dict[str, int]) -> str:
    """What a node of the optimized graph computes in, by its operator and its weights."""
    import onnx

    if node.op_type.startswith("QLinear") or node.op_type in ("ConvInteger", "MatMulInteger", "QGemm"):
        return "int8"
    weights = {types[name] for name in node.input if name in types}
    if onnx.TensorProto.FLOAT16 in weights:
        return "fp16"
    return "bf16" if onnx.TensorProto.BFLOAT16 in weights else "fp32"
