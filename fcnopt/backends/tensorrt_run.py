"""Running TensorRT engines, both flavours, through cuda-python.

The runner owns the engine and its lanes: each an execution context with stream, buffers and CUDA graphs. For least
latency there is one; for throughput two, so that the GPU computes one batch while the next is copied in and the one
before it is copied out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fcnopt.backends.base import Mode, Outputs, Precision, Runner
from fcnopt.backends.cudart import Cuda
from fcnopt.backends.frames import check_interface
from fcnopt.backends.tensorrt_lane import Loaded, TensorRtLane
from fcnopt.backends.tensorrt_load import deserialize
from fcnopt.backends.tensorrt_log import Flavour, LogBook, load, log_book
from fcnopt.errors import BackendError
from fcnopt.spec import ModelSpec

_IN_FLIGHT = 2  # for throughput: copies of one batch hide behind the other's computing, and a third would only wait


class TensorRtRunner(Runner):
    """Runs a serialized engine on the first GPU.

    Args:
        engine: The plan's bytes. Whoever hands them in has verified their hash: an engine can hold code.
        spec: What the engine takes and gives.
        flavour: "tensorrt" or "tensorrt_rtx".
        precision: Of the graph it was built from, for the runner's name.
        mode: One lane for latency, two for throughput.
        cuda_graph: Launch repeated work as a CUDA graph.
        cuda: CUDA's calls; a test can give its own.
        trt: The flavour's module; a test can give its own.

    Raises:
        BackendError: There is no GPU, a package is missing, or the engine is for another device or version.
    """

    def __init__(
        self,
        engine: bytes,
        spec: ModelSpec,
        flavour: Flavour = "tensorrt",
        *,
        precision: Precision = "fp32",
        mode: Mode = "latency",
        cuda_graph: bool = True,
        cuda: Cuda | None = None,
        trt: Any = None,
    ) -> None:
        self.name = f"{flavour.replace('_', '-')} {precision}"
        self.spec = spec
        self._trt = trt if trt is not None else load(flavour)
        cuda = cuda if cuda is not None else _cuda(self.name)
        book = log_book(flavour) if trt is None else LogBook(trt)
        self._runtime, plan = deserialize(self._trt, book, engine, self.name)
        self._loaded: Loaded | None = Loaded(self.name, self._trt, plan, cuda, cuda_graph)
        self._lanes: list[TensorRtLane] = []
        if mode == "throughput":
            self.in_flight = _IN_FLIGHT
        try:
            self._tensors = self._describe(plan)
            self.lanes(self.in_flight)
            self.most = None if self.batch else self._lanes[0].most
        except BaseException:
            self.close()
            raise

    @property
    def uses_graph(self) -> bool:
        """Whether repeated work is launched as CUDA graphs captured here, and not by the runtime itself."""
        return all(lane.uses_graph for lane in self._lanes)

    def infer(self, frames: Any) -> Outputs:
        """Run checked frames; those in GPU memory are read in place."""
        return self._lanes[0].infer(frames)

    def lanes(self, count: int) -> Sequence[Callable[[Any], Outputs]]:
        """Contexts with a stream each; the engine's weights are there once."""
        if self._loaded is not None:
            while len(self._lanes) < count:
                self._lanes.append(TensorRtLane(self._loaded, *self._tensors))
        return [lane.infer for lane in self._lanes[:count]]

    def _describe(self, engine: Any) -> tuple[tuple[str, np.dtype[Any]], list[tuple[str, np.dtype[Any]]]]:
        """Names and types of the engine's input and outputs, checked against the spec."""
        trt = self._trt
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        inputs = [n for n in names if engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT]
        outputs = [n for n in names if n not in inputs]
        types = {n: np.dtype(trt.nptype(engine.get_tensor_dtype(n))) for n in names}
        shapes = {
            n: (types[n].name, tuple(None if s < 0 else int(s) for s in engine.get_tensor_shape(n))) for n in inputs
        }
        self.batch = check_interface(self.name, self.spec, shapes, outputs)
        # In the spec's order; an output that the spec does not name still needs memory.
        rest = [n for n in outputs if n not in self.spec.outputs]
        if rest:
            raise BackendError(
                f"{self.name}: the engine has outputs that the spec does not name: {', '.join(rest)}",
                fix="export and build the model again",
            )
        return (inputs[0], types[inputs[0]]), [(n, types[n]) for n in self.spec.outputs]

    def close(self) -> None:
        """Free engine, memory and streams. Calling it twice is fine."""
        lanes, self._lanes = self._lanes, []
        for lane in lanes:
            lane.close()
        # TensorRT wants them to go in this order: contexts, engine, runtime.
        self._loaded = None
        self._runtime = None


def _cuda(runner: str) -> Cuda:
    try:
        return Cuda()
    except BackendError as error:
        raise BackendError(f"{runner}: {error.message}", fix=error.fix) from error
