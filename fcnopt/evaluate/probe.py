"""Any tensors of a network on the CPU, computed as the graph says and not as a runtime would like to.

ONNX Runtime's own optimizations are off, so nothing is fused and Q/DQ stand where they are written. One liberty of
its CPU remains: it has few float16 kernels, computes in float32 between casts of its own, and takes back-to-back
casts out, so that most float16 results are never rounded (seen with 1.31, optimizations off). An Identity in float16
behind every such result keeps the casts apart, and the rounding in.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from fcnopt.backends.closing import Closing
from fcnopt.backends.packages import require
from fcnopt.errors import BackendError
from fcnopt.graph import io
from fcnopt.graph.shapes import TensorType, graph_inputs, tensor_types
from fcnopt.graph.taps import expose

_RAW = "|unrounded"
_GIVEN = "|given"


class Probe(Closing):
    """Reads tensors of one network; a context manager that owns the runtime's session.

    Args:
        model: The network; its first input takes the frames.
        tensors: Names of the tensors to read.
        name: Of the network, for errors.
        given: Tensors that come from the caller: whatever reads one of them reads the caller's value. Each stretch of
            the network between them then runs on its own, on true inputs.

    Raises:
        BackendError: ONNX Runtime is missing or cannot run the network.
        GraphError: There is no such tensor, or its type is unknown.
    """

    def __init__(self, model: onnx.ModelProto, tensors: Sequence[str], name: str, given: Sequence[str] = ()) -> None:
        runtime = require("onnxruntime")
        self._name = name
        self._tensors = list(tensors)
        types = tensor_types(model)
        rounded = _rounding(model, types)
        self._frames = graph_inputs(model)[0].name
        self._dtypes = {tensor: onnx.helper.tensor_dtype_to_np_dtype(types[tensor].elem_type) for tensor in given}
        options = runtime.SessionOptions()
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 4  # what goes wrong is raised
        self._options = runtime.RunOptions()
        self._options.only_execute_path_to_fetches = True  # nothing behind the last tensor asked for is computed
        tapped = expose(_cut(rounded, given, types), self._tensors)
        with self._translated("ONNX Runtime cannot run the network"), _source(tapped) as source:
            self._session: Any = runtime.InferenceSession(source, options, providers=["CPUExecutionProvider"])

    def read(
        self, frames: NDArray[np.uint8], given: Mapping[str, NDArray[Any]] | None = None
    ) -> dict[str, NDArray[Any]]:
        """The tensors of one batch, by name.

        Args:
            frames: uint8 [N, H, W, 3], of the network's size and colour order.
            given: Values for the tensors that come from the caller; cast to the network's type.

        Raises:
            BackendError: The run failed.
        """
        feeds: dict[str, NDArray[Any]] = {self._frames: frames}
        with np.errstate(over="ignore"):  # what float16 cannot hold becomes infinite, as in the network
            feeds |= {f"{name}{_GIVEN}": value.astype(self._dtypes[name]) for name, value in (given or {}).items()}
        present = {value.name for value in self._session.get_inputs()}
        feeds = {name: value for name, value in feeds.items() if name in present}
        with self._translated("inference failed"):
            values = self._session.run(self._tensors, feeds, self._options)
        return dict(zip(self._tensors, values, strict=True))

    def close(self) -> None:
        """Free the session."""
        self._session = None

    @contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        """ONNX Runtime's exceptions derive from nothing but Exception; their module tells them."""
        try:
            yield
        except Exception as error:
            if not type(error).__module__.startswith("onnxruntime"):
                raise
            raise BackendError(
                f"{self._name}: {what}: {' '.join(str(error).split())}",
                fix="give a graph that ONNX Runtime's CPU can run: FP32, FP16, or INT8 with Q/DQ nodes (it has no "
                "kernels for bfloat16)",
            ) from error


def _rounding(model: onnx.ModelProto, types: Mapping[str, TensorType]) -> onnx.ModelProto:
    """A copy with an Identity behind every float16 result."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    nodes = list(copy.graph.node)
    del copy.graph.node[:]
    for node in nodes:
        halves = [name for name in node.output if name in types and types[name].elem_type == onnx.TensorProto.FLOAT16]
        for index, name in enumerate(node.output):
            if name in halves:
                node.output[index] = name + _RAW
        copy.graph.node.append(node)
        copy.graph.node.extend(onnx.helper.make_node("Identity", [name + _RAW], [name]) for name in halves)
    return copy


def _cut(model: onnx.ModelProto, given: Sequence[str], types: Mapping[str, TensorType]) -> onnx.ModelProto:
    """Let the readers of `given` read graph inputs instead; changes `model`."""
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            if name in given:
                node.input[index] = name + _GIVEN
    for name in given:
        value = onnx.helper.make_tensor_value_info(name + _GIVEN, types[name].elem_type, None)
        model.graph.input.append(value)
    return model


@contextmanager
def _source(model: onnx.ModelProto) -> Iterator[bytes | str]:
    """What ONNX Runtime opens: the model's bytes, or a temporary file where it is beyond what protobuf can hold."""
    if sum(tensor.ByteSize() for tensor in model.graph.initializer) <= io.EXTERNAL_ABOVE_BYTES:
        yield model.SerializeToString()
        return
    with tempfile.TemporaryDirectory(prefix="fcnopt-") as folder:
        yield str(io.save(model, Path(folder) / "model.onnx"))
