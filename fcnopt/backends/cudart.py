"""The few calls of the CUDA runtime that a runner needs, through cuda-python.

One small class stands between the runner and CUDA, so that the runner's logic can be tested on a machine without a
GPU, and so that every CUDA error becomes one kind of exception.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fcnopt.backends.machine import gpu_problem
from fcnopt.backends.packages import require
from fcnopt.errors import BackendError

LEGACY_STREAM = 1
"""cudaStreamLegacy: the default stream, which waits for and is waited for by ordinary streams."""

_NON_BLOCKING = 1  # cudaStreamNonBlocking
_NO_TIMING = 2  # cudaEventDisableTiming
_FIXES = {
    2: "use a smaller batch or frame, or close other programs that use the GPU",
    35: "install an NVIDIA driver as new as this CUDA",
    100: "run on a machine with an NVIDIA GPU, or use --target openvino",
    209: "build the engine for this GPU",
    700: "hand in GPU arrays that stay alive until run returns",
}


class Cuda:
    """CUDA calls; addresses, streams, events and graphs are plain handles.

    Raises:
        BackendError: There is no GPU, or cuda-python is not installed; every method raises it when CUDA fails.
    """

    def __init__(self) -> None:
        problem = gpu_problem()
        if problem:
            raise BackendError(
                f"needs an NVIDIA GPU: {problem}",
                fix="run on a machine with an NVIDIA GPU and its driver; here, build for --target openvino",
            )
        self._rt: Any = _bindings()

    def malloc(self, size: int) -> int:
        """Device memory of `size` bytes."""
        return int(self._call("cudaMalloc", size))

    def free(self, pointer: int) -> None:
        """Give device memory back."""
        self._call("cudaFree", pointer)

    def host_alloc(self, size: int) -> tuple[int, NDArray[np.uint8]]:
        """Pinned host memory: its address and a view of it, valid until `host_free`."""
        pointer = int(self._call("cudaHostAlloc", size, 0))
        return pointer, np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(pointer))

    def host_free(self, pointer: int) -> None:
        """Give pinned host memory back."""
        self._call("cudaFreeHost", pointer)

    def stream(self) -> int:
        """A stream that does not wait for the default stream."""
        return int(self._call("cudaStreamCreateWithFlags", _NON_BLOCKING))

    def stream_destroy(self, stream: int) -> None:
        """Destroy a stream."""
        self._call("cudaStreamDestroy", stream)

    def synchronize(self, stream: int) -> None:
        """Wait for a stream."""
        self._call("cudaStreamSynchronize", stream)

    def wait_for(self, stream: int, producer: int) -> None:
        """Let `stream` wait for what `producer` has been given so far."""
        event = self._call("cudaEventCreateWithFlags", _NO_TIMING)
        try:
            self._call("cudaEventRecord", event, producer)
            self._call("cudaStreamWaitEvent", stream, event, 0)
        finally:
            self._call("cudaEventDestroy", event)

    def copy(self, target: int, source: int, size: int, stream: int) -> None:
        """Copy between any two places; CUDA finds out which is host and which device."""
        kind = self._rt.cudaMemcpyKind.cudaMemcpyDefault
        self._call("cudaMemcpyAsync", target, source, size, kind, stream)

    def begin_capture(self, stream: int) -> None:
        """From now on, record what this thread gives to `stream` instead of running it."""
        mode = self._rt.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", stream, mode)

    def end_capture(self, stream: int) -> Any:
        """An executable graph of what was recorded."""
        graph = self._call("cudaStreamEndCapture", stream)
        try:
            return self._call("cudaGraphInstantiate", graph, 0)
        finally:
            self._call("cudaGraphDestroy", graph)

    def abandon_capture(self, stream: int) -> None:
        """End a recording that failed; its graph, if there is one, is thrown away."""
        error, graph = self._rt.cudaStreamEndCapture(stream)
        if not int(error):
            self._call("cudaGraphDestroy", graph)
        self._rt.cudaGetLastError()

    def launch(self, graph: Any, stream: int) -> None:
        """Run a graph."""
        self._call("cudaGraphLaunch", graph, stream)

    def graph_destroy(self, graph: Any) -> None:
        """Destroy an executable graph."""
        self._call("cudaGraphExecDestroy", graph)

    def _call(self, function: str, *arguments: Any) -> Any:
        """Call a function of the runtime API; its results come after its error number."""
        result = getattr(self._rt, function)(*arguments)
        number = int(result[0])
        if number:
            words = self._rt.cudaGetErrorString(result[0])[1]
            text = words.decode() if isinstance(words, bytes) else str(words)
            raise BackendError(
                f"{function} failed with cudaError {number}: {text}",
                fix=_FIXES.get(number, "see `nvidia-smi` for the state of GPU and driver"),
            )
        return result[1] if len(result) > 1 else None


def _bindings() -> Any:
    """cuda-python's runtime bindings, under their new name or the one before 12.8."""
    try:
        return require("cuda.bindings.runtime", install="pip install cuda-python")
    except BackendError as error:
        try:
            return require("cuda.cudart")
        except BackendError:
            raise error from None
