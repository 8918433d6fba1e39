"""Who takes part: each contender with what it needs, the file it runs, and the program that runs it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rivals.environment import add_readers, python_of

from fcnopt.backends.base import Precision
from fcnopt.backends.machine import describe_machine, gpu_problem
from fcnopt.backends.packages import installed
from fcnopt.backends.targets import Target
from fcnopt.errors import BackendError
from race.making import (
    Kitchen,
    Made,
    bundle_by_fcnopt,
    engine_by_tool,
    own_python,
    quantized_by_modelopt,
    quantized_by_nncf,
    quantized_by_ort,
)

Need = Callable[[], str]
"""Why a contender cannot take part here; empty where it can."""

Flags = tuple[str, ...]
Make = Callable[[Kitchen], Made]

_COMPILERS = ("c++", "g++", "clang++")


@dataclass(frozen=True)
class Ready:
    """A contender that can be started.

    Attributes:
        command: For `Process`.
        made: The file that it runs; None where it runs the checkpoint itself.
    """

    command: list[str]
    made: Made | None = None


@dataclass(frozen=True)
class Contender:
    """One that takes part.

    Attributes:
        title: For tables.
        ready: Makes its file and says its command; raises BackendError where that fails.
        needs: All of them must be there.
        ours: It is fcnopt's.
    """

    title: str
    ready: Callable[[Kitchen], Ready]
    needs: tuple[Need, ...] = ()
    ours: bool = False

    def missing(self) -> str:
        """What is not there; empty where all is."""
        return next(filter(None, (need() for need in self.needs)), "")


def _module(name: str) -> Need:
    return lambda: "" if installed(name) else f"{name} is not installed"


def _tool(name: str) -> Need:
    return lambda: "" if shutil.which(name) else f"{name} is not installed"


def _bf16() -> str:
    return "" if "bf16" in describe_machine()["isa"] else "this CPU has no BF16"


def _compiler() -> str:
    found = any(map(shutil.which, _COMPILERS))
    return "" if found else f"torch.compile needs a C++ compiler, and found none of {', '.join(_COMPILERS)}"


def _torch_cuda() -> str:
    import torch

    return gpu_problem() or ("" if torch.cuda.is_available() else f"torch {torch.__version__} sees no GPU")


def _provider(name: str) -> Need:
    def missing() -> str:
        import onnxruntime

        found = onnxruntime.get_available_providers()
        return gpu_problem() or ("" if name in found else f"this ONNX Runtime has {', '.join(found)}")

    return missing


def _target(name: str) -> Need:
    return lambda: "" if Target.parse(name).runs_here() else f"the target {name} does not run here"


def _torch(kitchen: Kitchen, flags: Flags = ()) -> Ready:
    return Ready([own_python(), "with_torch", _task(kitchen), str(kitchen.checkpoint), *flags])


def _ort(kitchen: Kitchen, flags: Flags = (), make: Make | None = None) -> Ready:
    made = make(kitchen) if make else _plain(kitchen)
    return Ready([own_python(), "with_onnxruntime", _task(kitchen), str(made.path), *flags], made)


def _openvino(kitchen: Kitchen, flags: Flags = (), make: Make | None = None) -> Ready:
    made = make(kitchen) if make else _plain(kitchen)
    return Ready([own_python(), "with_openvino", _task(kitchen), str(made.path), *flags], made)


def _nncf(kitchen: Kitchen, flags: Flags = ()) -> Ready:
    made = quantized_by_nncf(kitchen)
    python = python_of("nncf", kitchen.envs)
    add_readers("nncf", kitchen.envs)
    return Ready([str(python), "with_openvino", _task(kitchen), str(made.path), *flags], made)


def _tensorrt(kitchen: Kitchen, tool: str, flags: Flags, make: Make | None = None) -> Ready:
    source = (make(kitchen) if make else _plain(kitchen)).path
    made = engine_by_tool(kitchen, tool, source, flags)
    return Ready([own_python(), "with_tensorrt", _task(kitchen), str(made.path)], made)


def _fcnopt(kitchen: Kitchen, precision: Precision, target: str, mode: str) -> Ready:
    return _bundle(kitchen, mode, bundle_by_fcnopt(kitchen, precision, target))


def _bundle(kitchen: Kitchen, mode: str, made: Made) -> Ready:
    return Ready([own_python(), "with_fcnopt", _task(kitchen), str(made.path), "--mode", mode], made)


def _plain(kitchen: Kitchen) -> Made:
    return Made(kitchen.plain, kitchen.plain_s, {})


def _task(kitchen: Kitchen) -> str:
    return str(kitchen.work / "task.json")


def of_bundles(paths: tuple[Path, ...]) -> dict[str, Contender]:
    """Bundles that were built before, such as of slimmed networks, each in both modes; named by their folders."""
    found = {}
    for path in paths:
        if not (path / "manifest.json").is_file():
            raise BackendError(f"{path}: is no bundle", fix="give a folder engines/NAME that fcnopt build wrote")
        made = Made(path.absolute(), 0.0, {})
        for mode in ("latency", "throughput"):
            ready = partial(_bundle, mode=mode, made=made)
            found[f"{path.name}-{mode}"] = Contender(f"fcnopt, {path.name}, {mode}", ready, ours=True)
    return found


def _own(title: str, precision: Precision, target: str, mode: str) -> Contender:
    ready = partial(_fcnopt, precision=precision, target=target, mode=mode)
    return Contender(f"fcnopt {precision.upper()}, {title}, {mode}", ready, (_target(target),), ours=True)


REFERENCE = "torch"
SCRIPT = "nncf"
"""Whom fcnopt's rows are compared with: NNCF and OpenVINO, as their documentation's example scripts run them."""

_ON_GPU = (_torch_cuda,)
_CUDA, _TENSORRT = ("--device", "cuda"), ("--provider", "TensorrtExecutionProvider")
_TOOLS = (_torch_cuda, _module("tensorrt"), _module("polygraphy"))
_ORT_CUDA = ("--provider", "CUDAExecutionProvider")
_ENDS, _QUEUE = "ends in graph", "AsyncInferQueue"

CONTENDERS: Mapping[str, Contender] = {
    REFERENCE: Contender("PyTorch eager FP32", _torch),
    "torch-compile": Contender(
        "PyTorch torch.compile FP32", partial(_torch, flags=("--compile", "default")), (_compiler,)
    ),
    "ort": Contender("ONNX Runtime FP32", _ort, (_module("onnxruntime"),)),
    "ort-int8": Contender(
        "ONNX Runtime INT8, its quantizer", partial(_ort, make=quantized_by_ort), (_module("onnxruntime"),)
    ),
    "openvino-fp32": Contender(
        "OpenVINO FP32", partial(_openvino, flags=("--computes", "f32")), (_module("openvino"),)
    ),
    "openvino-bf16": Contender(
        "OpenVINO BF16", partial(_openvino, flags=("--computes", "bf16")), (_module("openvino"), _bf16)
    ),
    SCRIPT: Contender("NNCF INT8 + OpenVINO", _nncf),
    "nncf-queue": Contender(f"NNCF INT8 + OpenVINO, {_QUEUE}", partial(_nncf, flags=("--queue",))),
    "nncf-ends": Contender(f"NNCF INT8 + OpenVINO, {_ENDS}", partial(_nncf, flags=("--in-graph",))),
    "nncf-ends-queue": Contender(
        f"NNCF INT8 + OpenVINO, {_ENDS}, {_QUEUE}", partial(_nncf, flags=("--in-graph", "--queue"))
    ),
    "modelopt-ort": Contender(
        "Model Optimizer INT8 in ONNX Runtime", partial(_ort, make=quantized_by_modelopt), (_module("onnxruntime"),)
    ),
    "modelopt-openvino": Contender(
        "Model Optimizer INT8 in OpenVINO", partial(_openvino, make=quantized_by_modelopt), (_module("openvino"),)
    ),
    "torch-cuda": Contender("PyTorch eager FP32, GPU", partial(_torch, flags=_CUDA), _ON_GPU),
    "torch-fp16": Contender("PyTorch FP16 channels last, GPU", partial(_torch, flags=(*_CUDA, "--half")), _ON_GPU),
    "torch-autotune": Contender(
        "PyTorch FP16 torch.compile max-autotune, GPU",
        partial(_torch, flags=(*_CUDA, "--half", "--compile", "max-autotune")),
        _ON_GPU,
    ),
    "torch-tensorrt": Contender(
        "Torch-TensorRT FP16",
        partial(_torch, flags=(*_CUDA, "--half", "--compile", "torch_tensorrt")),
        (*_ON_GPU, _module("torch_tensorrt")),
    ),
    "ort-cuda": Contender(
        "ONNX Runtime FP32, CUDA", partial(_ort, flags=_ORT_CUDA), (_provider("CUDAExecutionProvider"),)
    ),
    "ort-tensorrt": Contender(
        "ONNX Runtime, TensorRT", partial(_ort, flags=_TENSORRT), (_provider("TensorrtExecutionProvider"),)
    ),
    "trtexec-fp16": Contender(
        "TensorRT FP16 by trtexec", partial(_tensorrt, tool="trtexec", flags=("--fp16",)), (*_TOOLS, _tool("trtexec"))
    ),
    "polygraphy-fp16": Contender(
        "TensorRT FP16 by polygraphy",
        partial(_tensorrt, tool="polygraphy", flags=("--fp16",)),
        (*_TOOLS, _tool("polygraphy")),
    ),
    "modelopt-trtexec": Contender(
        "Model Optimizer INT8, TensorRT by trtexec",
        partial(_tensorrt, tool="trtexec", flags=("--stronglyTyped",), make=quantized_by_modelopt),
        (*_TOOLS, _tool("trtexec")),
    ),
    "fcnopt-openvino": _own("OpenVINO", "int8", "openvino", "latency"),
    "fcnopt-openvino-stream": _own("OpenVINO", "int8", "openvino", "throughput"),
    "fcnopt-ort": _own("ONNX Runtime", "int8", "onnxruntime", "latency"),
    "fcnopt-ort-stream": _own("ONNX Runtime", "int8", "onnxruntime", "throughput"),
    "fcnopt-tensorrt-fp16": _own("TensorRT", "fp16", "tensorrt", "latency"),
    "fcnopt-tensorrt": _own("TensorRT", "int8", "tensorrt", "latency"),
    "fcnopt-tensorrt-stream": _own("TensorRT", "int8", "tensorrt", "throughput"),
}
"""Everyone, in the order of the tables; PyTorch eager is what speed and labels are compared with."""
