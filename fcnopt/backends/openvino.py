"""OpenVINO: ONNX to IR, and IR on a CPU (or an Intel GPU).

The precision of a CPU engine is part graph, part execution mode: Q/DQ say which layers compute in int8, and the mode
says what the rest computes in (`fcnopt.backends.openvino_mode`).
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fcnopt.backends.base import (
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
from fcnopt.backends.onnxfile import read_structure
from fcnopt.backends.openvino_mode import capabilities, check_precision, compile_model
from fcnopt.backends.packages import require, version_of
from fcnopt.errors import BackendError, BuildError
from fcnopt.spec import ModelSpec

ENGINE = "engine.xml"
_PRECISION = {"u8": "int8", "i8": "int8", "f32": "fp32", "f16": "fp16", "i32": "int32", "i64": "int64"}
_NOT_COMPUTED = {"Const", "Input", "Output", "Parameter", "Result"}
_PLUGIN_ERROR = re.compile(r"^Exception from .*?:\d+:\s*|^Check '.*' failed at .*?:\d+:\s*", re.MULTILINE)


class OpenVinoRunner(Runner):
    """Runs an IR or ONNX file.

    Opened for latency, one stream has all cores and infers in the calling thread. Opened for throughput, the runtime
    chooses how many streams share the cores, and `stream` keeps an asynchronous request on each.

    Args:
        model: `engine.xml` with its `.bin` beside it, or an ONNX file.
        spec: What the model takes and gives.
        precision: Of the graph; with the graph itself, chooses the execution mode.
        device: "CPU" or "GPU" (an Intel one).
        mode: What to compile for.

    Raises:
        BackendError: OpenVINO or the device is missing, the CPU lacks the precision, or the file is refused or does
            not fit the spec.
    """

    def __init__(
        self,
        model: Path,
        spec: ModelSpec,
        precision: Precision = "fp32",
        *,
        device: str = "CPU",
        mode: Mode = "latency",
    ) -> None:
        self.name = f"openvino {precision}" + ("" if device == "CPU" else f" {device.lower()}")
        self.spec = spec
        core = open_core(device)
        if model.suffix == ".onnx":
            _check_readable(model)
        with _translated(f"{model.name}: openvino refused it"):
            compiled = compile_model(core, core.read_model(model), precision, device, mode)
        inputs = {_name(p): (p.get_element_type().to_dtype().name, _shape(p)) for p in compiled.inputs}
        outputs = {name for port in compiled.outputs for name in port.get_names()}
        self.batch = check_interface(self.name, spec, inputs, outputs)
        if mode == "throughput":
            self.in_flight = int(compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
        elif device == "CPU":
            self.prefetch = 0
        self._compiled: Any = compiled
        self._requests: list[Any] = [compiled.create_infer_request()]
        self._tensor = require("openvino").Tensor

    def infer(self, frames: Any) -> Outputs:
        """Run checked frames in the calling thread, which costs no change of threads."""
        return self._infer(self._requests[0], frames, wait=False)

    def lanes(self, count: int) -> Sequence[Callable[[Any], Outputs]]:
        """One request a lane; asynchronous ones where there are several, which is how streams run side by side."""
        if count == 1:
            return [self.infer]
        while len(self._requests) < count:
            self._requests.append(self._compiled.create_infer_request())
        return [partial(self._infer, request, wait=True) for request in self._requests[:count]]

    def _infer(self, request: Any, frames: Any, *, wait: bool) -> Outputs:
        """Run checked frames on a request: start it and `wait`, or run it in this thread.

        An asynchronous request is waited for, and gets no callback: a callback runs in the runtime's worker, which
        could then be the last to hold the model when it is closed, and that ends the process.
        """
        start = time.perf_counter()
        array = _writable(as_numpy(frames, self.name))  # named, because the request does not keep it alive
        with _translated(f"{self.name}: inference failed"):
            request.set_input_tensor(self._tensor(array, shared_memory=True))
            if wait:
                request.start_async()
                request.wait()
            else:
                request.infer()
            values = {name: request.get_tensor(name).data.copy() for name in self.spec.outputs}
        return Outputs(**values, inference_ms=since(start))

    def close(self) -> None:
        """Free requests, then the compiled model, once no worker of the runtime uses it any more."""
        for request in self._requests:
            request.wait()
        self._requests = []
        self._compiled = None


class OpenVinoBuilder(Builder):
    """Converts ONNX to IR and compiles it once, to prove it and to list its layers.

    Args:
        device: "CPU" or "GPU" (an Intel one).
    """

    def __init__(self, device: str = "CPU") -> None:
        self._device = device

    def check(self, options: BuildOptions) -> None:
        """Refuse a missing device or precision; see `Builder.check`."""
        check_precision(options.precision, capabilities(open_core(self._device), self._device), self._device)

    def build(self, model: Path, folder: Path, options: BuildOptions, progress: Progress) -> Built:
        """Build; see `Builder.build`."""
        ov, core = require("openvino"), open_core(self._device)
        names = {node.name for node in read_structure(model).graph.node}
        try:
            with _translated(f"{model.name}: openvino refused it"):
                progress("convert to OpenVINO IR", 0.0)
                graph = core.read_model(model)
                ov.save_model(graph, folder / ENGINE, compress_to_fp16=False)
                progress("compile for " + self._device, 0.5)
                compiled = compile_model(core, core.read_model(folder / ENGINE), options.precision, self._device)
                layers = executed_layers(compiled, names)
        except BackendError as error:
            raise BuildError(error.message, fix=error.fix) from error
        progress("compile for " + self._device, 1.0)
        files = (folder / ENGINE, folder / Path(ENGINE).with_suffix(".bin"))
        device = core.get_property(self._device, "FULL_DEVICE_NAME")
        mode = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        computes = _PRECISION.get(mode, mode)
        notes: tuple[str, ...] = ()
        if computes != options.precision:
            what = "what is not int8" if options.precision == "int8" else f"{options.precision} is not at hand:"
            notes = (f"on this {self._device}, {what} computes in {computes}",)
        return Built(files, f"{self._device} ({device.strip()})", f"openvino {version_of('openvino')}", layers, notes)


def open_core(device: str) -> Any:
    """An OpenVINO core that has `device`.

    Raises:
        BackendError: OpenVINO or the device is missing.
    """
    core = require("openvino").Core()
    devices = core.available_devices
    if not any(name.split(".")[0] == device for name in devices):
        raise BackendError(
            f"openvino: device {device} was asked for, found {', '.join(devices) or 'none'}",
            fix="use --target openvino, or install the device's driver",
        )
    return core


def executed_layers(compiled: Any, nodes: set[str]) -> tuple[EngineLayer, ...]:
    """The layers that a compiled model executes, in order, each with its precision and the ONNX nodes in it.

    Args:
        compiled: An `openvino.CompiledModel`.
        nodes: Names of the ONNX nodes; OpenVINO's own names are left out.
    """
    found = []
    for op in compiled.get_runtime_model().get_ordered_ops():
        info = {key: str(op.rt_info[key].astype(str)) for key in _INFO if key in op.rt_info}
        kind = info.get("layerType", "Const")
        if kind in _NOT_COMPUTED:
            continue
        precision = info.get("runtimePrecision", "")
        fused = dict.fromkeys(name for name in info.get("originalLayersNames", "").split(",") if name in nodes)
        if kind == "Reshape" and not fused:  # of weights, done once when the model is compiled
            continue
        found.append(EngineLayer(op.get_friendly_name(), kind, _PRECISION.get(precision, precision), tuple(fused)))
    return tuple(found)


_INFO = ("layerType", "runtimePrecision", "originalLayersNames")


def _check_readable(model: Path) -> None:
    """Refuse a damaged ONNX file before OpenVINO tries all its other readers on it, loudly."""
    try:
        read_structure(model)
    except BuildError as error:
        raise BackendError(error.message, fix=error.fix) from error


def _writable(array: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """OpenVINO shares only memory that is writable by its flag, though it does not write to inputs."""
    return array if array.flags.writeable else array.copy()


def _name(port: Any) -> str:
    return str(port.get_any_name() if port.get_names() else port.node.get_friendly_name())


def _shape(port: Any) -> tuple[int | None, ...]:
    return tuple(d.get_length() if d.is_static else None for d in port.get_partial_shape())


@contextmanager
def _translated(what: str) -> Iterator[None]:
    """OpenVINO's RuntimeError as `BackendError`, without the places in OpenVINO's source."""
    try:
        yield
    except RuntimeError as error:
        lines = [line.strip() for line in _PLUGIN_ERROR.sub("", str(error)).splitlines() if line.strip()]
        message = "; ".join(dict.fromkeys(lines)) or type(error).__name__
        raise BackendError(
            f"{what}: {message}", fix="check the model with `fcnopt inspect`, or export it again"
        ) from error
