"""Runtimes on the CPU, reading tensors from the middle of a network.

ONNX Runtime hands out any tensor. OpenVINO runs symmetric INT8 several times as fast, which ONNX Runtime computes in
float: where it is installed it judges candidates (`judging`), but for CPUs whose integer sums saturate.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fcnopt.backends.closing import Closing
from fcnopt.backends.machine import int8_saturates
from fcnopt.errors import BackendError, CalibrationError
from fcnopt.graph.optimizers import unsafe_optimizers
from fcnopt.graph.taps import expose

if TYPE_CHECKING:
    import onnx

_UNKNOWN_TO_OPENVINO = frozenset({17})  # onnx.TensorProto.FLOAT8E4M3FN
_INT8 = 3  # onnx.TensorProto.INT8


class Session(Closing):
    """Runs one network frame by frame and hands out tensors of it; a context manager.

    Args:
        model: Below 2 GB, its first input the frames.
        names: Tensors to read.

    Raises:
        BackendError: ONNX Runtime is not installed.
        CalibrationError: It cannot run the network.
    """

    def __init__(self, model: onnx.ModelProto, names: Sequence[str]) -> None:
        runtime = _runtime()
        options = runtime.SessionOptions()
        options.log_severity_level = 3
        if int8_saturates():  # what is judged is the graph, not this CPU's integers
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        self._names = list(names)
        self._options = runtime.RunOptions()
        # Nothing behind the last tensor asked for is computed.
        self._options.only_execute_path_to_fetches = True
        try:
            tapped = expose(model, self._names)
            self._session: Any = runtime.InferenceSession(
                tapped.SerializeToString(),
                options,
                providers=["CPUExecutionProvider"],
                disabled_optimizers=list(unsafe_optimizers(model)),
            )
        except runtime.capi.onnxruntime_pybind11_state.Fail as error:
            raise _cannot(error) from error
        self._input = self._session.get_inputs()[0].name

    def run(self, frame: NDArray[np.uint8]) -> list[NDArray[Any]]:
        """The tensors' values for one batch, in the order of the names."""
        outputs: list[NDArray[Any]] = self._session.run(self._names, {self._input: frame}, self._options)
        return outputs

    def stream(self, frame: NDArray[np.uint8]) -> Iterator[tuple[str, NDArray[Any]]]:
        """Names and values one by one, each freed before the next is handed out."""
        values = self.run(frame)
        for name in reversed(self._names):
            yield name, values.pop()

    def close(self) -> None:
        """Free the network."""
        self._session = None


class OpenVinoSession(Closing):
    """Runs one network frame by frame by OpenVINO, float layers in FP32; a context manager.

    Args:
        model: Below 2 GB, its first input the frames.
        name: The tensor to read.

    Raises:
        CalibrationError: OpenVINO cannot run the network.
    """

    def __init__(self, model: onnx.ModelProto, name: str) -> None:
        import openvino

        core = openvino.Core()
        try:
            network = core.read_model(expose(model, [name]).SerializeToString())
            compiled = core.compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        except RuntimeError as error:
            raise _cannot(error, "OpenVINO") from error
        self._output = next(output for output in compiled.outputs if name in output.get_names())
        self._request: Any = compiled.create_infer_request()

    def run(self, frame: NDArray[np.uint8]) -> list[NDArray[Any]]:
        """The tensor's values for one batch, in a list of one."""
        self._request.infer({0: frame})
        return [np.array(self._request.get_tensor(self._output).data)]

    def close(self) -> None:
        """Free the network."""
        self._request = None


def openvino_misreads(model: onnx.ModelProto) -> bool:
    """Whether OpenVINO would run a quantized graph wrongly, or not at all.

    It has no FP8, and OpenVINO 2026.4 joins symmetric INT8 tensors with wrong values (a third of the logits' range off
    in a small network with a Concat; ONNX Runtime and the reference evaluator agree with each other). Joins of uint8
    and of floats are right.
    """
    kinds = {initializer.name: initializer.data_type for initializer in model.graph.initializer}
    if not _UNKNOWN_TO_OPENVINO.isdisjoint(kinds.values()):
        return True
    zeros = (node.input[2] for node in model.graph.node if node.op_type == "QuantizeLinear" and len(node.input) > 2)
    symmetric = any(kinds.get(name) == _INT8 for name in zeros)
    return symmetric and any(node.op_type == "Concat" for node in model.graph.node)


def judging(model: onnx.ModelProto, name: str) -> Session | OpenVinoSession:
    """The fastest session here for one tensor: OpenVINO where it is installed and computes what the graph says."""
    if importlib.util.find_spec("openvino") is None or int8_saturates() or openvino_misreads(model):
        return Session(model, (name,))
    try:
        return OpenVinoSession(model, name)
    except CalibrationError:  # operators or values that OpenVINO refuses
        return Session(model, (name,))


def _runtime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendError(
            "calibration needs ONNX Runtime, which is not installed", fix="pip install 'fcnopt[cpu]'"
        ) from error
    return onnxruntime


def _cannot(error: Exception, runtime: str = "ONNX Runtime") -> CalibrationError:
    return CalibrationError(
        f"calibration: {runtime} cannot run the network: {str(error).splitlines()[0]}",
        fix="check the model with 'fcnopt inspect'; an operator or opset may be newer than the installed runtime",
    )
