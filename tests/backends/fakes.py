"""A GPU made of Python: CUDA's memory, streams and graphs, and a TensorRT engine on them.

What matters for the runner is kept as the real one has it: addresses, sizes, work that runs in the order given to a
stream, recordings that bake in addresses, host memory that changes only when its copy runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import Enum
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fcnopt.errors import BackendError

Work = Callable[[], None]


class FakeCuda:
    """Keeps the promises of `Cuda`, and counts.

    Attributes:
        log: What was called, in order.
        memory: Bytes at each address that is allocated.
        graphs: Recorded work, by handle, of graphs that live.
    """

    def __init__(self, *, capture_fails: bool = False) -> None:
        self.log: list[str] = []
        self.memory: dict[int, NDArray[np.uint8]] = {}
        self.graphs: dict[int, list[Work]] = {}
        self.streams: set[int] = set()
        self._next = 4096
        self._recordings: dict[int, list[Work]] = {}
        self._handles = 0
        self._capture_fails = capture_fails

    def _take(self, size: int) -> int:
        assert size > 0
        pointer, self._next = self._next, self._next + (size + 4095) // 4096 * 4096
        self.memory[pointer] = np.full(size, 0xCD, np.uint8)
        return pointer

    def malloc(self, size: int) -> int:
        self.log.append("malloc")
        return self._take(size)

    def free(self, pointer: int) -> None:
        del self.memory[pointer]

    def host_alloc(self, size: int) -> tuple[int, NDArray[np.uint8]]:
        pointer = self._take(size)
        return pointer, self.memory[pointer]

    def host_free(self, pointer: int) -> None:
        del self.memory[pointer]

    def stream(self) -> int:
        stream = max(self.streams, default=76) + 1
        self.streams.add(stream)
        return stream

    def stream_destroy(self, stream: int) -> None:
        self.streams.remove(stream)

    def synchronize(self, stream: int) -> None:
        assert stream in self.streams
        assert stream not in self._recordings, "a capturing stream must not be waited for"
        self.log.append("synchronize")

    def wait_for(self, stream: int, producer: int) -> None:
        assert stream in self.streams
        self.log.append(f"wait_for {producer}")

    def copy(self, target: int, source: int, size: int, stream: int) -> None:
        assert stream in self.streams
        self.log.append(f"copy {size}")
        self.submit(lambda: self._move(target, source, size), stream)

    def _move(self, target: int, source: int, size: int) -> None:
        self.at(target, size)[:] = self.at(source, size)

    def at(self, pointer: int, size: int) -> NDArray[np.uint8]:
        """The bytes at an address, which may lie inside an allocation."""
        for start, data in self.memory.items():
            if start <= pointer and pointer + size <= start + len(data):
                return data[pointer - start : pointer - start + size]
        raise AssertionError(f"address {pointer:#x} + {size} is not allocated")

    def submit(self, work: Work, stream: int) -> None:
        """Give work to the stream: run now, or record."""
        if stream in self._recordings:
            self._recordings[stream].append(work)
        else:
            work()

    def records(self, stream: int) -> bool:
        """Whether `stream` is being captured."""
        return stream in self._recordings

    def begin_capture(self, stream: int) -> None:
        assert stream in self.streams
        self.log.append("begin_capture")
        self._recordings[stream] = []

    def end_capture(self, stream: int) -> int:
        assert stream in self.streams
        if self._capture_fails:
            raise BackendError("cudaStreamEndCapture failed with cudaError 900", fix="none")
        self._handles += 1
        handle = self._handles
        self.graphs[handle] = self._recordings.pop(stream)
        self.log.append("end_capture")
        return handle

    def abandon_capture(self, stream: int) -> None:
        assert stream in self.streams
        self._recordings.pop(stream, None)
        self.log.append("abandon_capture")

    def launch(self, graph: int, stream: int) -> None:
        assert stream in self.streams
        self.log.append("launch")
        for work in self.graphs[graph]:
            work()

    def graph_destroy(self, graph: int) -> None:
        del self.graphs[graph]


class _Mode(Enum):
    INPUT = 1
    OUTPUT = 2


class FakeContext:
    """Labels are the first channel modulo 5; confidence is the second one over 255."""

    def __init__(self, engine: FakeEngine) -> None:
        self.engine, self.addresses = engine, dict[str, int]()
        self.shape: tuple[int, ...] = ()
        self.fails = False
        self.pending_shape = False

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert name == "frames"
        self.shape, self.pending_shape = shape, True
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shape if name == "frames" else self.shape[:3]

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        cuda = self.engine.cuda
        assert stream in cuda.streams
        cuda.log.append("execute")
        if self.fails:
            return False
        assert not (self.pending_shape and cuda.records(stream)), "the first run of a shape was captured"
        self.pending_shape = False
        shape, places = self.shape, dict(self.addresses)  # baked in, as a capture does

        def compute() -> None:
            size = int(np.prod(shape))
            frames = cuda.at(places["frames"], size).reshape(shape)
            results = {"labels": frames[..., 0] % 5, "confidence": (frames[..., 1] / 255).astype(np.float32)}
            for name in self.engine.outputs:
                data = np.ascontiguousarray(results[name]).view(np.uint8).ravel()
                cuda.at(places[name], data.size)[:] = data

        cuda.submit(compute, stream)
        return True


class FakeEngine:
    def __init__(self, cuda: FakeCuda, least: Any, most: Any, outputs: tuple[str, ...]) -> None:
        self.cuda, self.least, self.most, self.outputs = cuda, tuple(least), tuple(most), outputs
        self.names = (*reversed(outputs), "frames")  # in an order that nobody may rely on
        self.num_io_tensors = len(self.names)
        self.contexts: list[FakeContext] = []
        self.own_graphs = False

    def get_tensor_name(self, index: int) -> str:
        return self.names[index]

    def get_tensor_mode(self, name: str) -> _Mode:
        return _Mode.INPUT if name == "frames" else _Mode.OUTPUT

    def get_tensor_dtype(self, name: str) -> str:
        return "float32" if name == "confidence" else "uint8"

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        assert name == "frames"
        return tuple(a if a == b else -1 for a, b in zip(self.least, self.most, strict=True))

    def get_tensor_profile_shape(self, name: str, profile: int) -> tuple[tuple[int, ...], ...]:
        assert (name, profile) == ("frames", 0)
        assert self.least != self.most, "a fixed shape has no profile"
        return self.least, self.least, self.most

    def create_runtime_config(self) -> SimpleNamespace:
        return SimpleNamespace()

    def create_execution_context(self, config: Any = None) -> FakeContext:
        self.own_graphs = config is not None and config.cuda_graph_strategy == "whole"
        self.contexts.append(FakeContext(self))
        return self.contexts[-1]


class FakeLogger:
    def __init__(self) -> None:
        pass


def fake_trt(
    cuda: FakeCuda,
    least: tuple[int, ...] = (1, 4, 6, 3),
    most: tuple[int, ...] = (1, 4, 6, 3),
    outputs: tuple[str, ...] = ("labels",),
    *,
    refuses: str = "",
    diagnostics: int | None = None,
    rtx: bool = False,
) -> Any:
    """A module like `tensorrt`; `module.engine` is the engine that it deserializes any plan to."""
    engine = FakeEngine(cuda, least, most, outputs)
    seen: list[bytes] = []

    class Runtime:
        if not rtx:
            engine_host_code_allowed = False

        def __init__(self, logger: Any) -> None:
            self.logger = logger
            if rtx:
                self.get_engine_validity = lambda _: ("invalid" if diagnostics else "valid", diagnostics or 0)

        def deserialize_cuda_engine(self, plan: bytes) -> FakeEngine | None:
            seen.append(plan)
            if refuses:
                self.logger.log(SimpleNamespace(name="ERROR"), refuses)
                return None
            return engine

    module = SimpleNamespace(
        __name__="tensorrt_rtx" if rtx else "tensorrt",
        __version__="11.4.0",
        ILogger=FakeLogger,
        TensorIOMode=_Mode,
        Runtime=Runtime,
        nptype=np.dtype,
        engine=engine,
        seen=seen,
    )
    if rtx:
        module.EngineValidity = SimpleNamespace(INVALID="invalid")
        bits = {"VERSION_MISMATCH": 1, "UNSUPPORTED_CC": 2, "OLD_CUDA_DRIVER": 4}
        module.EngineInvalidityDiagnostics = SimpleNamespace(__members__=bits)
        module.CudaGraphStrategy = SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole")
    return module


class GpuArray:
    """Frames in the fake GPU's memory, with `__cuda_array_interface__` as PyCUDA and CuPy have it."""

    def __init__(self, cuda: FakeCuda, frames: NDArray[np.uint8], *, offset: int = 0, **interface: Any) -> None:
        base = cuda.malloc(frames.nbytes + offset)
        cuda.at(base + offset, frames.nbytes)[:] = frames.ravel()
        self.shape, self.dtype = frames.shape, frames.dtype
        self.__cuda_array_interface__ = {
            "shape": frames.shape,
            "typestr": "|u1",
            "data": (base + offset, True),
            "version": 3,
            "strides": None,
            **interface,
        }

    def __iter__(self) -> Iterator[Any]:
        raise AssertionError("frames in GPU memory were read by the host")

    def __array__(self, *_: Any, **__: Any) -> NDArray[np.uint8]:
        raise AssertionError("frames in GPU memory were copied to the host")
