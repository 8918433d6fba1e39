"""NVIDIA Triton: a model repository with configuration, warm-up frame and class names, and a client that checks it.

What the configuration may say follows from the sources of Triton's backends (openvino_backend, onnxruntime_backend,
tensorrt_backend, August 2026):

- A server that joins requests (`max_batch_size` above 0) wants an open first axis from TensorRT and ONNX Runtime. The
  OpenVINO backend fixes the batch at `max_batch_size` and can pad what is missing, so there a fixed batch is joined.
- The OpenVINO backend can ask for BF16 and for nothing else: what it leaves out, the plugin's default decides.
- The ONNX Runtime backend sets the level of all graph optimizers; it cannot leave out a single one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fcnopt.bundle import Bundle, write_text
from fcnopt.deployment.folder import render
from fcnopt.deployment.parts import (
    PROOF,
    Interface,
    Tensor,
    copy_parts,
    described,
    engine_names,
    interface_of,
    verified_graph,
    write_sums,
)
from fcnopt.errors import BundleError, UsageError
from fcnopt.graph.optimizers import unsafe_optimizers
from fcnopt.selftest import SELFTEST

REPOSITORY = "models"
_TEMPLATES = Path(__file__).parent / "templates" / "triton"
_FILES = {"tensorrt": "model.plan", "onnxruntime": "model.onnx", "openvino": "model.xml"}
_TYPES = {"uint8": "TYPE_UINT8", "float32": "TYPE_FP32"}
_LABELS = "labels.txt"
_WARMUP = "selftest.raw"
_MOST_JOINED = 8  # where the engine takes any number: more gain little speed and cost latency and memory


@dataclass(frozen=True)
class _Batching:
    """How the server feeds the engine.

    Attributes:
        most: Frames that the server may join, `max_batch_size`; 0 where requests have the engine's own shape.
        together: Frames in the warm-up request.
    """

    most: int
    together: int


def write(bundle: Bundle, folder: Path) -> None:
    """Write the deployment into an empty folder.

    Raises:
        UsageError: Triton cannot run this bundle, or not as it was proved.
        BundleError: The bundle is damaged.
    """
    _check_runtime(bundle)
    model = verified_graph(bundle)
    parameters = _parameters(bundle, model)
    names = bundle.manifest.spec.classes.names
    if any(char in name for name in names for char in "\r\n"):
        raise UsageError(
            f"{bundle.path}: a class name has a line break, and {_LABELS} has one class a line",
            fix="export the model again with class names of one line",
        )
    interface = interface_of(bundle, model)
    batching = _batching(bundle, interface)
    if batching.most and bundle.target.runtime == "openvino":
        parameters["ENABLE_BATCH_PADDING"] = "YES"
    base = Path(REPOSITORY) / bundle.path.resolve().name
    files = engine_names(bundle, _FILES[bundle.target.runtime])
    copy_parts(bundle, folder, {name: base / "1" / new for name, new in files.items()})
    size = _write_warmup(folder, base, batching)
    write_text(folder / base / _LABELS, "".join(f"{name}\n" for name in names))
    values = {
        **described(bundle),
        "base": base,
        "interface": interface,
        "batching": batching,
        "parameters": {**parameters, **_described_parameters(bundle)},
        "height": size[0],
        "width": size[1],
        "kind": "KIND_GPU" if bundle.target.runtime == "tensorrt" or bundle.target.device == "cuda" else "KIND_CPU",
        "engine": _FILES[bundle.target.runtime],
        "quoted": quoted,
        "type_of": _type_of,
        "dims_of": lambda tensor: _dims_of(tensor, batching),
    }
    write_text(folder / base / "config.pbtxt", render(_TEMPLATES / "config.pbtxt", values))
    write_text(folder / "check.py", (_TEMPLATES / "check.py.in").read_text(encoding="utf-8"))
    write_text(folder / "README.md", render(_TEMPLATES / "README.md", values))
    write_sums(folder)


def quoted(text: str) -> str:
    """A string of protobuf's text format: bytes other than printable ASCII as three octal digits."""
    plain = (chr(byte) if 32 <= byte < 127 and byte not in b'"\\' else f"\\{byte:03o}" for byte in text.encode())
    return f'"{"".join(plain)}"'


def _check_runtime(bundle: Bundle) -> None:
    if bundle.target.runtime not in _FILES:
        raise UsageError(
            f"{bundle.path}: is for {bundle.target}, which Triton's tensorrt backend cannot load",
            fix="build one with --target tensorrt on the machine that shall serve it, or --target onnxruntime:cuda",
        )


def _parameters(bundle: Bundle, model: Any) -> dict[str, str]:
    """What makes the backend compute in what the bundle was proved with.

    Raises:
        UsageError: Nothing does.
    """
    target = bundle.target
    if target.runtime == "onnxruntime":
        unsafe = unsafe_optimizers(model)
        if unsafe:
            raise UsageError(
                f"{bundle.path}: is right only without ONNX Runtime's {', '.join(unsafe)}, "
                "which Triton's onnxruntime backend cannot leave out",
                fix="build one with --target tensorrt, or with --precision fp16",
            )
        return {}
    return _openvino_parameters(bundle) if target.runtime == "openvino" else {}


def _openvino_parameters(bundle: Bundle) -> dict[str, str]:
    """See `_parameters`; a GPU's plugin computes in FP16 by default, a CPU's in BF16 where it has that, else FP32."""
    precision, on_gpu = bundle.manifest.precision, bundle.target.device == "gpu"
    if precision not in (("fp16", "int8") if on_gpu else ("fp32", "bf16", "int8")):
        fix = "--precision fp16 or int8" if on_gpu else "--precision bf16 or int8"
        raise UsageError(
            f"{bundle.path}: computes in {precision}, which Triton's openvino backend cannot ask a "
            f"{'GPU' if on_gpu else 'CPU'} for: it would silently compute in something else",
            fix=f"build one with {fix}",
        )
    parameters = {"PERFORMANCE_HINT": "LATENCY"}
    if on_gpu:
        parameters["TARGET_DEVICE"] = "GPU"
    if precision == "bf16":
        parameters["HINT_BF16"] = "YES"
    return parameters


def _described_parameters(bundle: Bundle) -> dict[str, str]:
    """What a client can ask the server for, as `fcnopt serve` gives it too; backends do not read it."""
    return {"fcnopt.spec": bundle.manifest.spec.to_json(), "fcnopt.precision": bundle.manifest.precision}


def _batching(bundle: Bundle, interface: Interface) -> _Batching:
    """See the module's docstring."""
    fixed, runtime = interface.batch, bundle.target.runtime
    if fixed is not None:
        return _Batching(fixed, fixed) if runtime == "openvino" and fixed > 1 else _Batching(0, fixed)
    if runtime == "tensorrt":
        return _Batching(_largest_built(bundle), 1)
    return _Batching(_MOST_JOINED if runtime == "onnxruntime" else 0, 1)


def _largest_built(bundle: Bundle) -> int:
    """The most frames of a TensorRT engine's profile; 0 where the manifest does not say."""
    match bundle.manifest.sources.get("shapes"):  # (min, best, max), each (N, H, W)
        case [_, _, [int(largest), _, _]]:
            return largest
    return 0


def _write_warmup(folder: Path, base: Path, batching: _Batching) -> tuple[int, int]:
    """Write the frame of the known-answer test as raw bytes; returns its height and width."""
    with np.load(folder / PROOF / SELFTEST, allow_pickle=False) as known:
        frame = known["frame"]
    if frame.ndim != 4 or frame.shape[0] != 1 or frame.dtype != np.uint8:
        raise BundleError(f"{SELFTEST}: frame is {frame.dtype} {list(frame.shape)}", fix="build the bundle again")
    copies = 1 if batching.most else batching.together  # the server repeats a sample that it may join
    place = folder / base / "warmup" / _WARMUP
    place.parent.mkdir()
    place.write_bytes(np.repeat(frame, copies, axis=0).tobytes())
    return frame.shape[1], frame.shape[2]


def _dims_of(tensor: Tensor, batching: _Batching) -> str:
    dims = tensor.dims[1:] if batching.most else tensor.dims
    return ", ".join("-1" if size is None else str(size) for size in dims)


def _type_of(tensor: Tensor) -> str:
    return _TYPES[tensor.dtype]
