"""From an engine's bytes to an execution context, with the reasons where TensorRT refuses."""

from __future__ import annotations

from typing import Any

from fcnopt.backends.tensorrt_log import LogBook, explain
from fcnopt.errors import BackendError

_REBUILD = "build the engine again on this machine: `fcnopt build`"


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
        reason, fix = explain("\n".join(messages.errors[-2:]) or "TensorRT gives no reason")
        raise BackendError(
            f"{runner}: {trt.__name__} {trt.__version__} does not load the engine; it is for another GPU or version, "
            f"or damaged: {reason}",
            fix=fix or _REBUILD,
        )
    return runtime, engine


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
