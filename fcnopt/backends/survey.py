"""What this machine can build and run, for `fcnopt doctor`."""

from __future__ import annotations

from dataclasses import dataclass

from fcnopt.backends.machine import gpu_capabilities
from fcnopt.backends.packages import installed, pip_command, require, version_of
from fcnopt.errors import BackendError


@dataclass(frozen=True)
class RuntimeStatus:
    """One runtime on this machine.

    Attributes:
        name: As targets name it: "tensorrt-rtx".
        version: Installed version, None where it is not installed.
        devices: What it can use here: ("cpu",), ("sm89",), ...
        builds: Whether engines can be built.
        runs: Whether engines can be run.
        note: What it does here, or why it does not.
        fix: What to do for the rest, empty where nothing is missing.
    """

    name: str
    version: str | None
    devices: tuple[str, ...]
    builds: bool
    runs: bool
    note: str
    fix: str = ""


def survey() -> tuple[RuntimeStatus, ...]:
    """Every runtime that fcnopt knows, whether installed or not. Loads those that are."""
    return (_torch(), _cpu_runtime("onnxruntime"), _cpu_runtime("openvino"), _tensorrt(), _tensorrt_rtx())


def devices_of(runtime: str) -> tuple[str, ...]:
    """The devices that a CPU-first runtime finds here, as targets name them; empty where it is not installed."""
    if not installed(runtime):
        return ()
    module = require(runtime)
    if runtime == "onnxruntime":
        cuda = "CUDAExecutionProvider" in module.get_available_providers() and gpu_capabilities()
        return ("cpu", "cuda") if cuda else ("cpu",)
    return tuple(dict.fromkeys(name.split(".")[0].lower() for name in module.Core().available_devices))


def _missing(name: str, module: str) -> RuntimeStatus:
    return RuntimeStatus(name, None, (), False, False, "not installed", pip_command(module))


def _broken(name: str, version: str | None, error: BackendError) -> RuntimeStatus:
    return RuntimeStatus(name, version, (), False, False, error.message, error.fix)


def _torch() -> RuntimeStatus:
    version = version_of("torch")
    if version is None:
        return _missing("torch", "torch")
    try:
        torch = require("torch")
    except BackendError as error:
        return _broken("torch", version, error)
    devices = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    return RuntimeStatus("torch", version, devices, False, True, "export, and the reference in benchmarks")


def _cpu_runtime(name: str) -> RuntimeStatus:
    version = version_of(name)
    if version is None:
        return _missing(name, name)
    try:
        devices = devices_of(name)
    except BackendError as error:
        return _broken(name, version, error)
    fix = ""
    if name == "onnxruntime" and gpu_capabilities() and "cuda" not in devices:
        fix = "for CUDA: pip uninstall onnxruntime, then pip install onnxruntime-gpu"
    return RuntimeStatus(name, version, devices, True, True, "builds and runs here", fix)


def _tensorrt() -> RuntimeStatus:
    version, here = version_of("tensorrt"), gpu_capabilities()
    if version is None:
        return _missing("tensorrt", "tensorrt")
    try:
        require("tensorrt")
    except BackendError as error:
        return _broken("tensorrt", version, error)
    return _gpu_status("tensorrt", version, here, builds=bool(here))


def _tensorrt_rtx() -> RuntimeStatus:
    version, here = version_of("tensorrt_rtx"), gpu_capabilities()
    if version is None:
        return _missing("tensorrt-rtx", "tensorrt_rtx")
    try:
        require("tensorrt_rtx")
    except BackendError as error:
        return _broken("tensorrt-rtx", version, error)
    return _gpu_status("tensorrt-rtx", version, here, builds=True)


def _gpu_status(name: str, version: str, here: tuple[str, ...], *, builds: bool) -> RuntimeStatus:
    """The status of an installed TensorRT flavour: running takes a GPU and cuda-python."""
    if not here:
        note = "builds for named GPUs (tensorrt-rtx:sm86,sm89)" if builds else "builds on a machine with a GPU only"
        fix = "to run: a machine with an NVIDIA GPU and its driver"
        return RuntimeStatus(name, version, (), builds, False, f"{note}; no NVIDIA GPU here", fix)
    if not installed("cuda"):
        note = "cuda-python is missing"
        return RuntimeStatus(name, version, here, builds, False, note, pip_command(name.replace("-", "_")))
    return RuntimeStatus(name, version, here, builds, True, "builds and runs here")
