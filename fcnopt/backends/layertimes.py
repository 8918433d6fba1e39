"""How long each layer of a graph takes on a CPU runtime, by the runtime's own clock."""

from __future__ import annotations

import json
import re
import tempfile
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fcnopt.backends.base import Precision
from fcnopt.backends.closing import Closing
from fcnopt.backends.openvino import executed_layers, open_core
from fcnopt.backends.openvino_mode import compile_model
from fcnopt.backends.packages import require
from fcnopt.backends.targets import Target
from fcnopt.errors import BackendError

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class LayerTime:
    """One layer as the runtime executed it.

    Attributes:
        names: Names it goes by: of ONNX nodes or of their results.
        ms: Its least time over the runs: other work on the machine only adds.
    """

    names: tuple[str, ...]
    ms: float


class LayerTimer(Closing):
    """Runs one graph with the runtime's profile on; a context manager.

    First all runs, then `times`: a runtime may close its profile to be read.
    """

    def __init__(self) -> None:
        self._least: dict[tuple[str, ...], float] = {}

    @abstractmethod
    def run(self, frame: NDArray[np.uint8]) -> None:
        """Run one frame, uint8 [1, H, W, 3]."""

    def times(self) -> tuple[LayerTime, ...]:
        """Every layer that ran; no run may follow."""
        return tuple(LayerTime(names, ms) for names, ms in self._least.items())

    def _add(self, names: tuple[str, ...], ms: float) -> None:
        self._least[names] = min(ms, self._least.get(names, ms))


def layer_timer(model: onnx.ModelProto, target: Target, precision: Precision) -> LayerTimer:
    """A timer on the runtime of `target`.

    Args:
        model: As it would be built for the target.
        target: OpenVINO or ONNX Runtime on the CPU.
        precision: OpenVINO takes its execution mode from it.

    Raises:
        BackendError: The runtime is missing, or tells no times of single layers.
    """
    if target.runtime == "openvino" and target.device in ("", "cpu"):
        return _OpenVinoTimer(model, precision)
    if target.runtime == "onnxruntime" and target.device in ("", "cpu"):
        return _OnnxRuntimeTimer(model)
    raise BackendError(f"{target}: its layers cannot be timed one by one", fix="use --target openvino or onnxruntime")


class _OpenVinoTimer(LayerTimer):
    def __init__(self, model: onnx.ModelProto, precision: Precision) -> None:
        super().__init__()
        core = open_core("CPU")
        graph = core.read_model(model.SerializeToString())
        compiled = compile_model(core, graph, precision, "CPU", profile=True)
        layers = executed_layers(compiled, {node.name for node in model.graph.node})
        self._nodes = {layer.name: layer.nodes for layer in layers}
        self._request: Any = compiled.create_infer_request()

    def run(self, frame: NDArray[np.uint8]) -> None:
        self._request.infer({0: frame})
        for layer in self._request.profiling_info:
            nodes = self._nodes.get(layer.node_name, ())
            self._add((layer.node_name, *nodes), layer.real_time.total_seconds() * 1e3)

    def close(self) -> None:
        self._request = None


class _OnnxRuntimeTimer(LayerTimer):
    def __init__(self, model: onnx.ModelProto) -> None:
        super().__init__()
        ort = require("onnxruntime")
        self._folder = tempfile.TemporaryDirectory(prefix="fcnopt-")
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(self._folder.name) / "profile")
        self._session: Any = ort.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self._input = self._session.get_inputs()[0].name

    def run(self, frame: NDArray[np.uint8]) -> None:
        self._session.run(None, {self._input: frame})

    def times(self) -> tuple[LayerTime, ...]:
        if self._session is not None:
            for names, ms in _events(Path(self._session.end_profiling())):
                self._add(names, ms)
            self._session = None
        return super().times()

    def close(self) -> None:
        self._session = None
        self._folder.cleanup()


def _events(profile: Path) -> Iterator[tuple[tuple[str, ...], float]]:
    """Kernel times in ONNX Runtime's profile; layers of blocked layout are named after the result of what they fuse."""
    for event in json.loads(profile.read_text("utf-8")):
        name = str(event.get("name", ""))
        if event.get("cat") == "Node" and name.endswith("_kernel_time"):
            own = re.sub(r"_token_\d+$", "", name.removesuffix("_kernel_time"))
            yield (own, own.removesuffix("_nchwc")), event["dur"] / 1e3
