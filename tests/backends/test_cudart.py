"""The CUDA calls: their order and their errors, on bindings made of Python; their signatures, where cuda-python is."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fcnopt.backends import cudart
from fcnopt.backends.cudart import Cuda
from fcnopt.errors import BackendError


class Bindings:
    """Answers every call with (0, 1000 + number of calls), or with the error set for it."""

    cudaMemcpyKind = SimpleNamespace(cudaMemcpyDefault=4)  # noqa: N815  (CUDA's names)
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)  # noqa: N815

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.errors: dict[str, int] = {}
        self.host = (ctypes.c_uint8 * 64)()

    def cudaGetErrorString(self, number: int) -> tuple[int, bytes]:  # noqa: N802
        return 0, f"text of {number}".encode()

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> tuple[int, ...]:
            self.calls.append((name, arguments))
            if name in self.errors:
                return self.errors[name], 0
            return 0, ctypes.addressof(self.host) if name == "cudaHostAlloc" else 1000 + len(self.calls)

        return call


@pytest.fixture
def bindings(monkeypatch):
    made = Bindings()
    monkeypatch.setattr(cudart, "gpu_problem", lambda: "")
    monkeypatch.setattr(cudart, "_bindings", lambda: made)
    return made


def names(bindings):
    return [name for name, _ in bindings.calls]


def test_a_failed_call_is_named_with_number_text_and_fix(bindings):
    bindings.errors["cudaMalloc"] = 2
    with pytest.raises(BackendError, match="cudaMalloc failed with cudaError 2: text of 2") as caught:
        Cuda().malloc(2**40)
    assert "smaller batch" in caught.value.fix


def test_pinned_memory_is_seen_as_an_array(bindings):
    pointer, view = Cuda().host_alloc(64)
    view[:] = np.arange(64)
    assert pointer == ctypes.addressof(bindings.host)
    assert list(bindings.host) == list(range(64))


def test_waiting_records_on_the_producer_and_waits_on_ours(bindings):
    Cuda().wait_for(5, 1)
    assert names(bindings) == [
        "cudaEventCreateWithFlags",
        "cudaEventRecord",
        "cudaStreamWaitEvent",
        "cudaEventDestroy",
    ]
    event = 1001
    assert bindings.calls[1][1] == (event, 1)
    assert bindings.calls[2][1] == (5, event, 0)
    assert bindings.calls[3][1] == (event,)


def test_the_event_is_freed_when_waiting_fails(bindings):
    bindings.errors["cudaStreamWaitEvent"] = 400
    with pytest.raises(BackendError, match="cudaError 400"):
        Cuda().wait_for(5, 1)
    assert names(bindings)[-1] == "cudaEventDestroy"


def test_a_capture_becomes_an_executable_graph_and_the_recording_is_freed(bindings):
    cuda = Cuda()
    cuda.begin_capture(5)
    graph = cuda.end_capture(5)
    assert graph == 1003
    assert names(bindings) == [
        "cudaStreamBeginCapture",
        "cudaStreamEndCapture",
        "cudaGraphInstantiate",
        "cudaGraphDestroy",
    ]
    assert bindings.calls[2][1] == (1002, 0)
    cuda.launch(graph, 5)
    assert bindings.calls[-1] == ("cudaGraphLaunch", (1003, 5))


def test_an_abandoned_capture_clears_the_error(bindings):
    bindings.errors["cudaStreamEndCapture"] = 901
    Cuda().abandon_capture(5)
    assert names(bindings) == ["cudaStreamEndCapture", "cudaGetLastError"]


def test_without_a_gpu_the_error_says_so(monkeypatch):
    monkeypatch.setattr(cudart, "gpu_problem", lambda: "cudaError 35 (cudaErrorInsufficientDriver): no driver")
    with pytest.raises(BackendError, match="needs an NVIDIA GPU: cudaError 35"):
        Cuda()


def test_without_cuda_python_the_error_says_how_to_install_it(monkeypatch):
    import sys

    monkeypatch.setattr(cudart, "gpu_problem", lambda: "")
    monkeypatch.setitem(sys.modules, "cuda", None)
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    monkeypatch.setitem(sys.modules, "cuda.cudart", None)
    with pytest.raises(BackendError, match=r"cuda\.bindings\.runtime is not installed") as caught:
        Cuda()
    assert caught.value.fix == "run: pip install cuda-python"


def test_cuda_python_has_every_function_under_its_name():
    runtime = pytest.importorskip("cuda.bindings.runtime", reason="needs cuda-python")
    import inspect
    import re

    used = set(re.findall(r"\bcuda[A-Z]\w+", inspect.getsource(cudart))) - {"cudaError"}
    calls = {name for name in used if not name.startswith(("cudaErr", "cudaStreamLegacy", "cudaStreamNonB"))}
    calls -= {"cudaEventDisableTiming", "cudaMemcpyDefault", "cudaStreamCaptureModeThreadLocal"}
    assert len(calls) > 15
    assert not [name for name in calls if not hasattr(runtime, name)]
