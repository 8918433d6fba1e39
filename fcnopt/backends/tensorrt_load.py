"""From an engine's bytes to an execution context, with the reasons where TensorRT refuses."""

from __future__ import annotations

import re
from typing import Any

from fcnopt.backends.tensorrt_log import LogBook, explain
from fcnopt.errors import BackendError

_REBUILD = "build the engine again on this machine: `fcnopt build`"
# What TensorRT says of an engine that is not for here, in its words of versions 7 to 10 (NVIDIA/TensorRT issues 564,
# 2176, 2177, 574), and the same with found and expected in that order. It names what is here first.
_MISFITS: tuple[tuple[str, str, str], ...] = (
    (
        r"expecting library version ([\d.]+) got ([\d.]+)",
        r"it was built by TensorRT \2, here is TensorRT \1",
        _REBUILD + r", or install TensorRT \2; one built with --version-compatible runs on later minor versions",
    ),
    (
        r"expecting compute (\d+\.\d+) got compute (\d+\.\d+)",
        r"it was built for compute capability \2, this GPU has \1",
        _REBUILD + r", or run it on a GPU of compute capability \2",
    ),
    (
        r"Current Version: (\d+), Serialized Engine Version: (\d+)",
        r"its format has version \2, this TensorRT reads version \1: it was built by another TensorRT",
        _REBUILD + ", or install the TensorRT that manifest.json names",
    ),
    (
        r"Platform specific tag mismatch",
        "it was built on another operating system or processor architecture",
        _REBUILD,
    ),
)


def deserialize(trt: Any, book: LogBook, plan: bytes, runner: str) -> tuple[Any, Any]:
    """Load an engine; returns runtime and engine, which must live together.

    Raises:
        BackendError: It is for another device, driver or version, or is damaged.
    """
    runtime = trt.Runtime(book.logger)
    with book.listen() as messages:
        if hasattr(runtime, "get_engine_validity"):
            validity, diagnostics = runtime.get_engine_validity(plan)
            if validity == trt.EngineValidity.INVALID:
                reasons = ", ".join(_reasons(trt, int(diagnostics))) or explain("\n".join(messages.errors[-1:]))[0]
                raise BackendError(f"{runner}: the engine is not valid on this machine: {reasons}", fix=_REBUILD)
        elif hasattr(runtime, "engine_host_code_allowed"):
            runtime.engine_host_code_allowed = True  # version-compatible engines; the caller verified the hash
        engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        reason, fix = _misfit(messages.errors)
        raise BackendError(f"{runner}: {trt.__name__} {trt.__version__} does not load the engine: {reason}", fix=fix)
    return runtime, engine


def _misfit(errors: list[str]) -> tuple[str, str]:
    """Why an engine does not load, and what to do."""
    text = "\n".join(errors)
    for pattern, reason, fix in _MISFITS:
        found = re.search(pattern, text)
        if found:
            return found.expand(reason), found.expand(fix)
    said, known = explain("\n".join(errors[-2:]) or "TensorRT gives no reason")
    return f"it is for another GPU or version, or damaged: {said}", known or _REBUILD


def create_context(trt: Any, engine: Any, cuda_graph: bool) -> tuple[Any, bool]:
    """An execution context, and whether it makes CUDA graphs itself.

    TensorRT-RTX compiles kernels while it runs, which a stream capture must not see; it has its own strategy.

    Raises:
        BackendError: There is not enough memory.
    """
    own = cuda_graph and hasattr(trt, "CudaGraphStrategy")
    if own:
        config = engine.create_runtime_config()
        config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        context = engine.create_execution_context(config)
    else:
        context = engine.create_execution_context()
    if context is None:
        raise BackendError(
            "TensorRT cannot create an execution context: the GPU's memory does not hold the engine's scratch space",
            fix="close other programs that use the GPU, or build for smaller shapes",
        )
    return context, own


def _reasons(trt: Any, diagnostics: int) -> list[str]:
    """The names of the bits in TensorRT-RTX's diagnostics, in words."""
    members = trt.EngineInvalidityDiagnostics.__members__
    return [name.lower().replace("_", " ") for name, bit in members.items() if diagnostics & int(bit)]
