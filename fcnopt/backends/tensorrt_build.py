"""Building TensorRT engines, both flavours.

Precision is in the graph (strongly typed): casts and Q/DQ, never builder flags. TensorRT-RTX builds on any machine
for the compute capabilities named, into one engine that does what all of them can; standard TensorRT measures
kernels, so it builds on the GPU that will run.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from fcnopt.backends.base import Builder, BuildOptions, Built, EngineLayer, Progress
from fcnopt.backends.machine import gpu_capabilities, gpu_problem, gpus
from fcnopt.backends.targets import capability_name
from fcnopt.backends.tensorrt_log import (
    Flavour,
    LogBook,
    Messages,
    explain,
    load,
    log_book,
    parse_inspector,
    parse_layers,
)
from fcnopt.backends.tensorrt_parse import UNKNOWN_FIX, Parsed, parse
from fcnopt.errors import BackendError, BuildError, UsageError

ENGINE = "engine.plan"
_CONVOLUTIONS = ("conv", "correlation")
_FP8_SINCE = 89


class TensorRtBuilder(Builder):
    """Builds `engine.plan`.

    Args:
        flavour: "tensorrt" or "tensorrt_rtx".
    """

    def __init__(self, flavour: Flavour = "tensorrt") -> None:
        self._flavour: Flavour = flavour

    def build(self, model: Path, folder: Path, options: BuildOptions, progress: Progress) -> Built:
        """Build; see `Builder.build`."""
        self.check(options)
        trt = load(self._flavour)
        book = log_book(self._flavour)
        with book.listen() as messages:
            parsed = parse(trt, book, messages, model)
            config = parsed.builder.create_builder_config()
            config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
            device = self._aim(trt, config, options)
            notes = self._configure(trt, parsed, config, options)
            plan = _build(trt, parsed, config, progress, messages, model)
            layers = self._layers(trt, book, plan, messages)
        _write(folder / ENGINE, plan)
        self._keep_timings(config, options)
        if options.precision in ("int8", "fp8"):
            notes.append(_quantized_share(layers, device, options.precision))
        return Built((folder / ENGINE,), device, f"{self._flavour} {trt.__version__}", layers, tuple(notes))

    def check(self, options: BuildOptions) -> None:
        """Refuse what this flavour cannot do here; see `Builder.check`."""
        if self._flavour == "tensorrt" and options.compute_capabilities:
            raise UsageError(
                f"tensorrt: compute capabilities {', '.join(options.compute_capabilities)} were named, but tensorrt "
                "builds for this machine's GPU only",
                fix=f"use --target tensorrt-rtx:{','.join(options.compute_capabilities)}",
            )
        if self._flavour == "tensorrt_rtx" and options.hardware_compatible:
            raise UsageError(
                "tensorrt-rtx has no hardware-compatible mode",
                fix="name every compute capability the engine is for: tensorrt-rtx:sm86,sm89,sm120",
            )
        problem = gpu_problem()
        if problem and not options.compute_capabilities:  # before a missing package: installing it would not help
            other = (
                "name the GPUs that it is for, for example --target tensorrt-rtx:sm86,sm89"
                if self._flavour == "tensorrt_rtx"
                else "build on the machine that will run the engine, or use --target tensorrt-rtx:sm86"
            )
            raise BackendError(f"{self._flavour}: building for this machine needs an NVIDIA GPU: {problem}", fix=other)
        _capabilities(load(self._flavour), options)
        if options.precision == "fp8":
            _refuse_without_fp8(self._flavour, options)

    def _aim(self, trt: Any, config: Any, options: BuildOptions) -> str:
        """Set what the engine is for, and name it."""
        if not options.compute_capabilities:
            found = gpus()
            name = f"{found[0]['name']} ({found[0]['compute_capability']})" if found else gpu_capabilities()[0]
            return str(name)
        names = _capabilities(trt, options)
        config.num_compute_capabilities = len(names)
        for index, name in enumerate(names):
            config.set_compute_capability(getattr(trt.ComputeCapability, name.upper()), index)
        return "+".join(names)

    def _configure(self, trt: Any, parsed: Parsed, config: Any, options: BuildOptions) -> list[str]:
        """Apply the options; returns notes for the user."""
        notes: list[str] = []
        if options.workspace_bytes is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
        if options.version_compatible:
            config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
            if self._flavour == "tensorrt_rtx":  # RTX refuses to put its runtime into the engine
                config.set_flag(trt.BuilderFlag.EXCLUDE_LEAN_RUNTIME)
        if options.hardware_compatible:
            config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
        if options.timing_cache is not None:
            if self._flavour == "tensorrt_rtx":
                notes.append("the timing cache was not used: tensorrt-rtx measures no kernels while building")
            elif not _load_timings(config, options.timing_cache):
                notes.append(f"{options.timing_cache.name} is of another GPU or TensorRT version and is replaced")
        _add_profile(parsed, config, options)
        return notes

    def _layers(self, trt: Any, book: LogBook, plan: bytes, messages: Messages) -> tuple[EngineLayer, ...]:
        """The layers by the build log; where it has none, by the inspector, which needs the GPU."""
        if messages.layers:
            return parse_layers(messages.layers[0])
        if self._flavour == "tensorrt_rtx":
            return ()
        runtime = trt.Runtime(book.logger)
        if hasattr(runtime, "engine_host_code_allowed"):
            runtime.engine_host_code_allowed = True  # this process has just built the engine
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise BuildError(
                f"tensorrt built an engine that it does not load: {'; '.join(messages.errors[-2:])}",
                fix="update the NVIDIA driver and TensorRT together",
            )
        inspector = engine.create_engine_inspector()
        return parse_inspector(inspector.get_engine_information(trt.LayerInformationFormat.JSON))

    def _keep_timings(self, config: Any, options: BuildOptions) -> None:
        if options.timing_cache is not None and self._flavour == "tensorrt":
            _write(options.timing_cache, bytes(config.get_timing_cache().serialize()))


def _capabilities(trt: Any, options: BuildOptions) -> list[str]:
    """The compute capabilities to build for, as TensorRT-RTX names them in lower case.

    Raises:
        UsageError: It does not know one of them.
    """
    names = [capability_name(c) for c in options.compute_capabilities]
    known = {n.lower() for n in dir(getattr(trt, "ComputeCapability", None)) if n.startswith("SM")}
    for name in names if known else ():
        if name not in known:
            listed = ", ".join(sorted(known, key=lambda n: int(n[2:])))
            raise UsageError(
                f"tensorrt-rtx {trt.__version__} cannot build for compute capability {name}",
                fix=f"use one or more of {listed}",
            )
    return names


def _refuse_without_fp8(flavour: Flavour, options: BuildOptions) -> None:
    """FP8 came with Ada and Hopper; TensorRT says so only after minutes, and of the whole engine.

    Raises:
        UsageError: A GPU named has none.
        BackendError: The GPU of this machine has none.
    """
    named = [capability_name(c) for c in options.compute_capabilities]
    without = [name for name in named or gpu_capabilities()[:1] if int(name[2:]) < _FP8_SINCE]
    if not without:
        return
    found = f"{flavour}: fp8 needs compute capability 8.9 or later, found {', '.join(without)}"
    if named:
        others = ",".join(name for name in named if name not in without) or "sm89"
        raise UsageError(found, fix=f"use --target tensorrt-rtx:{others}, or --precision int8")
    raise BackendError(found, fix="use --precision int8 here")


def _build(trt: Any, parsed: Parsed, config: Any, progress: Progress, messages: Messages, model: Path) -> bytes:
    """Build and serialize.

    Raises:
        BuildError: TensorRT gave no engine.
    """
    monitor = _monitor(trt, progress)
    config.progress_monitor = monitor
    progress("build engine", 0.0)
    plan = parsed.builder.build_serialized_network(parsed.network, config)
    if monitor.error is not None:
        raise monitor.error
    if plan is None:
        text, fix = explain("\n".join(messages.errors[-3:]) or "no reason given")
        raise BuildError(f"{model.name}: {trt.__name__} cannot build it: {text}", fix=fix or UNKNOWN_FIX)
    progress("build engine", 1.0)
    return bytes(plan)


def _monitor(trt: Any, progress: Progress) -> Any:
    """An `IProgressMonitor` that reports the outermost phase; TensorRT calls it from threads of its own."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # the module is only known when it runs
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.error: BaseException | None = None
            self._steps: dict[str, int] = {}
            self._outer: str | None = None
            self._lock = threading.Lock()

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            with self._lock:
                self._steps[phase] = max(1, steps)
                if parent is None:
                    self._outer = phase

        def phase_finish(self, phase: str) -> None:
            with self._lock:
                self._steps.pop(phase, None)

        def step_complete(self, phase: str, step: int) -> bool:
            with self._lock:
                if self.error is None and phase == self._outer:
                    try:
                        progress("build engine", min(1.0, (step + 1) / self._steps.get(phase, 1)))
                    except BaseException as error:  # noqa: BLE001  (must not reach C++; raised after the build)
                        self.error = error
                return self.error is None  # False stops the build

    return Monitor()


def _add_profile(parsed: Parsed, config: Any, options: BuildOptions) -> None:
    """One optimization profile for the dynamic axes of the input [N, H, W, 3].

    Raises:
        UsageError: The graph has dynamic axes and no sizes were given, or a size contradicts a fixed axis.
    """
    tensor = parsed.network.get_input(0)
    dims = tuple(tensor.shape)
    if -1 not in dims:
        return
    if options.shapes is None:
        raise UsageError(
            f"input {tensor.name!r} is dynamic, {_dims(dims)}: an engine needs the least, best and largest size",
            fix="give --shapes MIN,BEST,MAX, each as NxHxW, or export the model with a fixed size",
        )
    wanted = [(*shape, 3) for shape in options.shapes]
    for shape in wanted:
        if any(d not in (-1, s) for d, s in zip(dims, shape, strict=True)):
            raise UsageError(
                f"shape {_dims(shape)} does not fit input {tensor.name!r} {_dims(dims)}",
                fix="give the sizes that the graph has where it is not dynamic",
            )
    profile = parsed.builder.create_optimization_profile()
    profile.set_shape(tensor.name, *wanted)
    if config.add_optimization_profile(profile) < 0:
        raise UsageError(
            f"shapes {', '.join(_dims(s) for s in wanted)} are no range",
            fix="give the least, the best and the largest size, in this order",
        )


def _load_timings(config: Any, path: Path) -> bool:
    """Use the timing cache in `path`, a fresh one if there is none; False if the one found does not fit."""
    data = path.read_bytes() if path.is_file() else b""
    if config.set_timing_cache(config.create_timing_cache(data), False):
        return True
    config.set_timing_cache(config.create_timing_cache(b""), False)
    return False


def _quantized_share(layers: tuple[EngineLayer, ...], device: str, precision: str) -> str:
    """How many convolutions compute in `precision`, deconvolutions left out: they stay in float by design."""
    convolutions = [la for la in layers if any(word in la.kind.lower() for word in _CONVOLUTIONS)]
    convolutions = [la for la in convolutions if "deconv" not in la.kind.lower()]
    count = sum(la.precision == precision for la in convolutions)
    note = f"{count} of {len(convolutions)} convolutions compute in {precision}"
    if not count and "sm75" in device:
        note += "; sm75 has none, and one engine does what all its GPUs can: leave sm75 out"
    return note


def _write(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    part = path.with_name(path.name + ".part")
    try:
        part.write_bytes(data)
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise BuildError(
            f"{path}: cannot write {len(data) / 2**20:.0f} MiB: {error.strerror}",
            fix="free disk space, or choose another folder",
        ) from error


def _dims(shape: tuple[int, ...]) -> str:
    return f"[{', '.join('?' if s == -1 else str(s) for s in shape)}]"
