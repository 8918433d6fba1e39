"""The contract every runtime keeps: `Runner` runs an engine, `Builder` makes one.

A runner owns its buffers. What `run` returns is the caller's: it stays valid after the next call. Runners are context
managers; leaving the context frees the engine. One runner serves one thread at a time.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from fcnopt.backends.frames import shape_and_dtype
from fcnopt.backends.readahead import read_ahead
from fcnopt.errors import UsageError
from fcnopt.spec import ModelSpec

Precision = Literal["fp32", "fp16", "bf16", "int8", "fp8"]
FP8_FIX = "use --target tensorrt-rtx:sm89 (or sm120), or --precision int8 here"
"""What to do where FP8 was asked of a runtime or GPU without it."""
Progress = Callable[[str, float], None]
"""`progress(step, fraction)`: what is being done, and how much of it is done, 0..1."""


@dataclass(frozen=True)
class Outputs:
    """What an engine says of a batch of frames.

    Attributes:
        labels: uint8 [N, H, W].
        confidence: float32 [N, H, W], softmax probability of the label, where the model gives it.
        logits: float32 [N, C, H, W], where the model gives them.
        inference_ms: Time the runtime worked on this batch, copies to and from the device included.
        latency_ms: From frame available to labels available. `run` counts from its call; `stream` from the moment
            its source gave the frame, so that waiting behind earlier frames counts.
    """

    labels: NDArray[np.uint8]
    confidence: NDArray[np.float32] | None = None
    logits: NDArray[np.float32] | None = None
    inference_ms: float = 0.0
    latency_ms: float = 0.0


class Runner(ABC):
    """Runs one model on one runtime.

    Attributes:
        name: For tables: "openvino int8".
        spec: What the model takes and gives.
        batch: Frames that the engine computes at once where it is built for one number of them, else None.
    """

    name: str
    spec: ModelSpec
    batch: int | None = None

    @abstractmethod
    def infer(self, frames: Any) -> Outputs:
        """Run checked frames; see `run`."""

    def run(self, frames: Any) -> Outputs:
        """Run a batch; an engine of a fixed batch runs several times where N is a multiple of it.

        Args:
            frames: uint8 [N, H, W, 3] of the spec's size and colour order; NumPy, or on a GPU runtime anything
                with `__cuda_array_interface__` or DLPack.

        Raises:
            UsageError: The frames have another shape or type than the spec says.
            BackendError: The runtime failed.
        """
        start = time.perf_counter()
        count = self.check(frames)
        step = self.batch or count
        outputs = _joined(
            [self.infer(frames[i : i + step] if step != count else frames) for i in range(0, count, step)]
        )
        return replace(outputs, latency_ms=elapsed_ms(start))

    def check(self, frames: Any) -> int:
        """How many `frames` there are; raises `UsageError` unless they fit the spec and the engine's batch."""
        shape, dtype = shape_and_dtype(frames)
        size, batch = self.spec.frame, self.batch or 1
        want = ("N" if batch == 1 else f"a multiple of {batch}", size.height or "H", size.width or "W", 3)
        fits = len(shape) == 4 and all(not isinstance(w, int) or s == w for s, w in zip(shape, want, strict=True))
        if not fits or 0 in shape or shape[0] % batch or dtype != "uint8":
            found = f"{dtype} [{', '.join(map(str, shape))}]"
            raise UsageError(
                f"{self.name}: frames must be uint8 [{', '.join(map(str, want))}], found {found}",
                fix="hand in raw frames as the camera gives them; use fcnopt.media.fit_frame for another size",
            )
        return shape[0]

    def stream(self, source: Iterable[NDArray[np.uint8]], *, prefetch: int = 4) -> Iterator[Outputs]:
        """Run frames one by one, in order, while the source decodes ahead and the caller works on the last result.

        Decoding, inference and the caller run in three threads. At most `prefetch` frames wait for inference and one
        result waits for the caller. Until the iterator is exhausted or closed the runner belongs to it.

        Args:
            source: Frames uint8 [H, W, 3] of the spec's size.
            prefetch: Most frames held that are not yet inferred: the bound on memory.

        Yields:
            One `Outputs` with N = 1 a frame.
        """
        inferred = self._infer_each(source, prefetch)
        try:
            with closing(read_ahead(inferred, 1)) as outputs:
                yield from outputs
        finally:
            inferred.close()

    def _infer_each(self, source: Iterable[NDArray[np.uint8]], prefetch: int) -> Generator[Outputs, None, None]:
        """Infer frame by frame; runs in the thread that `stream` starts."""
        timed = ((time.perf_counter(), frame) for frame in source)
        with closing(read_ahead(timed, prefetch)) as frames:
            for start, frame in frames:
                outputs = self.run(frame[None])
                yield replace(outputs, latency_ms=elapsed_ms(start))

    def close(self) -> None:  # noqa: B027  (a runner without resources has nothing to free)
        """Free the engine. Calling it twice is fine."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _joined(parts: list[Outputs]) -> Outputs:
    """One batch of several."""
    if len(parts) == 1:
        return parts[0]

    def join(name: str) -> Any:
        values = [getattr(part, name) for part in parts]
        return None if values[0] is None else np.concatenate(values)

    spent_ms = sum(part.inference_ms for part in parts)
    return Outputs(join("labels"), join("confidence"), join("logits"), inference_ms=spent_ms)


@dataclass(frozen=True)
class BuildOptions:
    """How to build an engine.

    Attributes:
        precision: Of the graph handed in; CPU runtimes also take their execution mode from it.
        compute_capabilities: For TensorRT-RTX ahead of time, such as ("sm86", "sm89") or ("8.6", "8.9"); empty for
            this machine's GPU.
        shapes: (min, best, max) sizes as (N, H, W) for a graph with dynamic axes.
        workspace_bytes: Most scratch memory an engine may use, None for the runtime's default.
        version_compatible: TensorRT: run on later minor versions too.
        hardware_compatible: TensorRT: run on later GPU generations too.
        timing_cache: TensorRT: file that keeps kernel timings between builds.
    """

    precision: Precision = "fp32"
    compute_capabilities: tuple[str, ...] = ()
    shapes: tuple[tuple[int, int, int], tuple[int, int, int], tuple[int, int, int]] | None = None
    workspace_bytes: int | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False
    timing_cache: Path | None = None


@dataclass(frozen=True)
class EngineLayer:
    """One layer of a built engine, as the runtime reports it.

    Attributes:
        name: The runtime's name.
        kind: The runtime's operation name, such as Convolution.
        precision: What it computes in: "int8", "fp16", "fp32", ...
        nodes: ONNX nodes fused into it.
    """

    name: str
    kind: str
    precision: str
    nodes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Built:
    """What a builder made.

    Attributes:
        files: Engine files written, the one to load first.
        device: What the engine is for: "sm86+sm89", "CPU", "NVIDIA H100 (9.0)".
        runtime: Name and version, such as "tensorrt_rtx 1.7.1".
        layers: The engine's layers where the runtime tells them.
        notes: Anything the user should know, one line each.
    """

    files: tuple[Path, ...]
    device: str
    runtime: str
    layers: tuple[EngineLayer, ...] = ()
    notes: tuple[str, ...] = field(default=())


class Builder(ABC):
    """Makes an engine from a precision ONNX file."""

    @abstractmethod
    def check(self, options: BuildOptions) -> None:
        """Refuse at once, before any work, what `build` could not do on this machine.

        Raises:
            UsageError: The options contradict the runtime.
            BackendError: The runtime, its device, or the precision is not to be had here.
        """

    @abstractmethod
    def build(self, model: Path, folder: Path, options: BuildOptions, progress: Progress) -> Built:
        """Build `model` into files in `folder`.

        Raises:
            BuildError: The runtime refused the graph; the message names node and fix.
            BackendError: The runtime is not installed or lacks its device.
        """


def elapsed_ms(start: float) -> float:
    """Milliseconds since `start`, a value of `time.perf_counter()`."""
    return (time.perf_counter() - start) * 1e3
