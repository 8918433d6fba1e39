"""One way into a TensorRT engine: an execution context with its stream, its buffers and its CUDA graphs.

Everything is allocated once, for the largest shape: device buffers, pinned host buffers, a stream. The work of a
shape (copy in, run, copy out) is captured as a CUDA graph when it comes a second time, and then launched as one.
Frames already in GPU memory are read where they are; each address has its own graph.

Lanes of one engine share its weights and nothing else. While one copies, another computes.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fcnopt.backends.base import Outputs, elapsed_ms
from fcnopt.backends.closing import Closing
from fcnopt.backends.cudart import Cuda
from fcnopt.backends.device import DeviceArray, borrow
from fcnopt.backends.frames import as_numpy
from fcnopt.backends.tensorrt_load import create_context
from fcnopt.errors import BackendError, UsageError

_ALIGNMENT = 256  # bytes; what TensorRT's kernels may expect of an address
_MOST_GRAPHS = 8  # producers rotate through a few buffers; more addresses than this are run without a graph


@dataclass
class Buffer:
    """A tensor's memory: on the device and, pinned, on the host."""

    name: str
    dtype: np.dtype[Any]
    device: int = 0
    pinned: int = 0
    host: NDArray[np.uint8] = field(default_factory=lambda: np.empty(0, np.uint8))
    shape: tuple[int, ...] = ()

    @property
    def size(self) -> int:
        """Bytes that the current shape takes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def view(self) -> NDArray[Any]:
        """The pinned memory, seen in the current shape."""
        return self.host[: self.size].view(self.dtype).reshape(self.shape)


@dataclass(frozen=True)
class Loaded:
    """An engine, and what it runs with.

    Attributes:
        name: Of the runner, for messages.
        trt: The flavour's module.
        engine: Deserialized.
        cuda: CUDA's calls.
        cuda_graph: Launch repeated work as a CUDA graph.
    """

    name: str
    trt: Any
    engine: Any
    cuda: Cuda
    cuda_graph: bool


class TensorRtLane(Closing):
    """Runs an engine on a stream of its own; for one thread at a time.

    Args:
        loaded: The engine.
        input_: Name and type of the engine's input.
        outputs: The same of its outputs, in the order wanted.

    Raises:
        BackendError: There is not enough memory.
    """

    def __init__(
        self, loaded: Loaded, input_: tuple[str, np.dtype[Any]], outputs: Sequence[tuple[str, np.dtype[Any]]]
    ) -> None:
        self.name = loaded.name
        self._engine, self._cuda = loaded.engine, loaded.cuda
        self._buffers: list[Buffer] = []
        self._stream = 0
        self._graphs: OrderedDict[int, Any] = OrderedDict()
        self._seen: set[int] = set()
        self._address = 0
        self._input, self._outputs = Buffer(*input_), [Buffer(*output) for output in outputs]
        try:
            self._context, own_graphs = create_context(loaded.trt, loaded.engine, loaded.cuda_graph)
            self.uses_graph = loaded.cuda_graph and not own_graphs
            self._stream = self._cuda.stream()
            self._allocate()
        except BaseException:
            self.close()
            raise

    @property
    def most(self) -> int:
        """The most frames that the engine takes at once."""
        return self._range()[1][0]

    def infer(self, frames: Any) -> Outputs:
        """Run checked frames; those in GPU memory are read in place."""
        start = time.perf_counter()
        array = borrow(frames, self.name, self._stream)
        self._set_shape(tuple(int(s) for s in (array.shape if array else frames.shape)))
        address = self._stage(frames) if array is None else self._meet(array)
        self._run(address, copy_in=array is None)
        self._cuda.synchronize(self._stream)
        values: dict[str, Any] = {b.name: b.view().copy() for b in self._outputs}
        return Outputs(**values, inference_ms=elapsed_ms(start))

    def _allocate(self) -> None:
        """Take memory for the largest shape, and tell the engine where it is."""
        self._set_shape(self._range()[1])
        for buffer in (self._input, *self._outputs):
            self._buffers.append(buffer)
            buffer.device = self._cuda.malloc(buffer.size)
            buffer.pinned, buffer.host = self._cuda.host_alloc(buffer.size)
            if buffer is not self._input:
                self._context.set_tensor_address(buffer.name, buffer.device)

    def _set_shape(self, shape: tuple[int, ...]) -> None:
        """Set the input's shape and with it the outputs'; a new shape makes captured graphs void.

        Raises:
            UsageError: The shape is outside the engine's profile.
        """
        if shape == self._input.shape:
            return
        least, most = self._range()
        fits = all(a <= s <= b for a, s, b in zip(least, shape, most, strict=True))
        if not fits or not self._context.set_input_shape(self._input.name, shape):
            raise UsageError(
                f"{self.name}: frames {list(shape)} are outside what the engine was built for: "
                f"{list(least)} to {list(most)}",
                fix="hand in frames of these sizes, or build the engine for others",
            )
        self._forget_graphs()
        self._input.shape = shape
        for buffer in self._outputs:
            buffer.shape = tuple(int(s) for s in self._context.get_tensor_shape(buffer.name))

    def _range(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The least and the largest input shape; profiles hold only what is dynamic."""
        fixed = tuple(int(s) for s in self._engine.get_tensor_shape(self._input.name))
        if -1 not in fixed:
            return fixed, fixed
        least, _, most = self._engine.get_tensor_profile_shape(self._input.name, 0)
        return tuple(int(s) for s in least), tuple(int(s) for s in most)

    def _stage(self, frames: Any) -> int:
        """Put host frames into pinned memory; the address is where they will lie on the device."""
        np.copyto(self._input.view(), as_numpy(frames, self.name))
        return self._input.device

    def _meet(self, array: DeviceArray) -> int:
        """Let our stream wait for the producer's; the address to read from.

        An address that is not aligned (a slice of a larger array) is copied on the device.
        """
        if array.stream is not None:
            self._cuda.wait_for(self._stream, array.stream)
        if array.pointer % _ALIGNMENT == 0:
            return array.pointer
        self._cuda.copy(self._input.device, array.pointer, self._input.size, self._stream)
        return self._input.device

    def _run(self, address: int, *, copy_in: bool) -> None:
        """Give the stream the work: plainly the first time, as a graph from the second time on.

        The first, plain run also lets TensorRT do what it puts off until a shape is used, which a capture must not
        contain.
        """
        key = address if not copy_in else 0
        if key in self._graphs:
            self._graphs.move_to_end(key)
            self._cuda.launch(self._graphs[key], self._stream)
            return
        if address != self._address:
            self._context.set_tensor_address(self._input.name, address)
            self._address = address
        if not self.uses_graph or key not in self._seen:
            self._enqueue(copy_in)
            if len(self._seen) < 4 * _MOST_GRAPHS:
                self._seen.add(key)
            return
        graph = self._capture(copy_in)
        if graph is None:
            self._enqueue(copy_in)
        else:
            self._graphs[key] = graph
            self._cuda.launch(graph, self._stream)
            if len(self._graphs) > _MOST_GRAPHS:
                self._cuda.graph_destroy(self._graphs.popitem(last=False)[1])

    def _capture(self, copy_in: bool) -> Any:
        """The work as a graph; None, once and for all, where this engine cannot be captured."""
        self._cuda.begin_capture(self._stream)
        try:
            self._enqueue(copy_in)
            return self._cuda.end_capture(self._stream)
        except BackendError:
            self._cuda.abandon_capture(self._stream)
            self.uses_graph = False
            return None

    def _enqueue(self, copy_in: bool) -> None:
        if copy_in:
            self._cuda.copy(self._input.device, self._input.pinned, self._input.size, self._stream)
        if not self._context.execute_async_v3(self._stream):
            raise BackendError(
                f"{self.name}: TensorRT failed to run frames {list(self._input.shape)}",
                fix="see the GPU's state with `nvidia-smi`; if it is well, build the engine again",
            )
        for buffer in self._outputs:
            self._cuda.copy(buffer.pinned, buffer.device, buffer.size, self._stream)

    def _forget_graphs(self) -> None:
        for graph in self._graphs.values():
            self._cuda.graph_destroy(graph)
        self._graphs.clear()
        self._seen.clear()

    def close(self) -> None:
        """Free memory, graphs, stream and context. Calling it twice is fine."""
        buffers, self._buffers = self._buffers, []
        # After a CUDA error every further call fails with it: it was raised where it came up, and must not be hidden.
        with suppress(BackendError):
            if self._stream:
                self._cuda.synchronize(self._stream)
            self._forget_graphs()
            for buffer in buffers:
                buffer.host = np.empty(0, np.uint8)
                if buffer.device:
                    self._cuda.free(buffer.device)
                if buffer.pinned:
                    self._cuda.host_free(buffer.pinned)
            if self._stream:
                self._cuda.stream_destroy(self._stream)
        self._stream, self._context, self._engine = 0, None, None
