"""From a target to its builder and its runner. Each runtime's file is imported when it is asked for, not before."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from fcnopt.backends.packages import installed
from fcnopt.backends.targets import Target
from fcnopt.errors import BackendError

if TYPE_CHECKING:
    from fcnopt.backends.base import Builder, Mode, Precision, Runner
    from fcnopt.spec import ModelSpec


def default_target() -> Target:
    """The fastest target that this machine can both build and run.

    Raises:
        BackendError: No runtime is installed.
    """
    for name in ("tensorrt", "tensorrt-rtx", "openvino", "onnxruntime"):
        target = Target.parse(name)
        if target.runs_here():
            return target
    raise BackendError(
        "no runtime can build and run engines here: OpenVINO, ONNX Runtime and TensorRT with a GPU are missing",
        fix='run: pip install "fcnopt[cpu]" (or fcnopt[gpu] on a machine with an NVIDIA GPU)',
    )


def make_builder(target: Target) -> Builder:
    """The builder of a target; the runtime itself is loaded when it builds."""
    if target.runtime == "openvino":
        from fcnopt.backends.openvino import OpenVinoBuilder

        return OpenVinoBuilder(target.device.upper() or "CPU")
    if target.runtime == "onnxruntime":
        from fcnopt.backends.onnxruntime import OnnxRuntimeBuilder, providers_of

        return OnnxRuntimeBuilder(providers_of(target))
    from fcnopt.backends.tensorrt import TensorRtBuilder

    return TensorRtBuilder("tensorrt_rtx" if target.runtime == "tensorrt-rtx" else "tensorrt")


def open_engine(
    files: tuple[Path, ...], target: Target, precision: Precision, spec: ModelSpec, mode: Mode = "latency"
) -> Runner:
    """Load an engine that `make_builder(target)` built.

    Args:
        files: `Built.files`; their hashes must have been checked, since TensorRT engines can hold code.
        target: What it was built for.
        precision: Of the graph it was built from.
        spec: What it takes and gives.
        mode: Open it for least latency, or for several batches in flight.

    Raises:
        BackendError: The runtime or device is missing, or the engine is for another one.
    """
    if target.runtime == "openvino":
        from fcnopt.backends.openvino import OpenVinoRunner

        return OpenVinoRunner(files[0], spec, precision, device=target.device.upper() or "CPU", mode=mode)
    if target.runtime == "onnxruntime":
        from fcnopt.backends.onnxruntime import OnnxRuntimeRunner, providers_of

        return OnnxRuntimeRunner(files[0], spec, providers_of(target), precision=precision, mode=mode)
    from fcnopt.backends.tensorrt import TensorRtRunner

    flavour: Literal["tensorrt", "tensorrt_rtx"] = "tensorrt_rtx" if target.runtime == "tensorrt-rtx" else "tensorrt"
    return TensorRtRunner(read_engine(files[0]), spec, flavour, precision=precision, mode=mode)


def open_onnx(
    path: Path,
    spec: ModelSpec,
    precision: Precision = "fp32",
    runtime: Literal["openvino", "onnxruntime"] | None = None,
    mode: Mode = "latency",
) -> Runner:
    """Run a plain ONNX file: on `runtime`, else on ONNX Runtime with CUDA, OpenVINO or ONNX Runtime, as there is.

    Raises:
        BackendError: No such runtime is installed, or it refuses the file.
    """
    cuda = Target("onnxruntime", "cuda")
    if runtime is None and cuda.runs_here():
        return open_engine((path,), cuda, precision, spec, mode)
    chosen = runtime or ("openvino" if installed("openvino") else "onnxruntime")
    return open_engine((path,), Target(chosen), precision, spec, mode)


def read_engine(path: Path) -> bytes:
    """The bytes of an engine file.

    Raises:
        BackendError: It cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise BackendError(f"{path}: cannot be read: {error.strerror}", fix="build the engine again") from error
