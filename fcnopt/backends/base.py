"""The contract every runtime keeps: `Runner` runs an engine, `Builder` makes one.

A runner owns its buffers. What `run` returns is the caller's: it stays valid after the next call. Runners are context
managers; leaving the context frees the engine. One runner serves one thread at a time; `fcnopt.engine.Engine` makes
of it one that any number of threads may use.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fcnopt.backends.closing import Closing
from fcnopt.backends.frames import on_gpu, shape_and_dtype, stacked
from fcnopt.backends.outputs import FrameStatus as FrameStatus
from fcnopt.backends.outputs import Outputs as Outputs
from fcnopt.backends.outputs import check_duration
from fcnopt.backends.outputs import elapsed_ms as elapsed_ms
from fcnopt.backends.readahead import Policy, Prepare, Ready
from fcnopt.backends.streaming import Lane, Stream, StreamOptions
from fcnopt.errors import UsageError
from fcnopt.spec import ModelSpec

Precision = Literal["fp32", "fp16", "bf16", "int8", "fp8"]
FP8_FIX = "use --target tensorrt-rtx:sm89 (or sm120), or --precision int8 here"
"""What to do where FP8 was asked of a runtime or GPU without it."""
Mode = Literal["latency", "throughput"]
"""What an engine is opened for: one batch in flight, done as soon as can be, or several, for most frames a second."""
Progress = Callable[[str, float], None]
"""`progress(step, fraction)`: what is being done, and how much of it is done, 0..1."""


class Runner(Closing):
    """Runs one model on one runtime.

    Attributes:
        name: For tables: "openvino int8".
        spec: What the model takes and gives.
        batch: Frames that the engine computes at once where it is built for one number of them, else None.
        most: Most frames that it computes at once where `batch` is open; None for any number.
        in_flight: Batches that the engine, as it was opened, works on side by side in a stream.
        prefetch: Frames that a stream draws ahead where it is not told: none where the engine was opened for latency
            on a CPU, whose cores decoding would take from it.
    """

    name: str
    spec: ModelSpec
    batch: int | None = None
    most: int | None = None
    in_flight: int = 1
    prefetch: int = 4

    @abstractmethod
    def infer(self, frames: Any) -> Outputs:
        """Run checked frames; see `run`."""

    def run(self, frames: Any, *, max_latency_ms: float | None = None) -> Outputs:
        """Run a batch; an engine that takes fewer runs as often as it takes, a fixed batch filled up at the end.

        Args:
            frames: uint8 [N, H, W, 3] of the spec's size and colour order; NumPy, or on a GPU runtime anything
                with `__cuda_array_interface__` or DLPack.
            max_latency_ms: Labels that come later are flagged: `FrameStatus.late`.

        Raises:
            UsageError: The deadline is not above 0; or the frames have another shape or type than the spec says, or
                lie in GPU memory and are not a multiple of the engine's batch.
            BackendError: The runtime failed.
        """
        start = time.perf_counter()
        check_duration("run: max_latency_ms", max_latency_ms)
        count = self.check(frames)
        step = self.batch or min(count, self.most or count)
        whole = count - count % step
        batches = [frames if step == count else frames[i : i + step] for i in range(0, whole, step)]
        if whole < count:
            batches.append(frames[whole:] if self.batch is None else stacked(list(frames[whole:]), step, self.name))
        outputs = _joined([self.infer(batch) for batch in batches], count)
        return outputs.timed(elapsed_ms(start), max_latency_ms)

    def check(self, frames: Any) -> int:
        """How many `frames` there are; raises `UsageError` unless they fit the spec, and in GPU memory the batch."""
        shape, dtype = shape_and_dtype(frames)
        size = self.spec.frame
        batch = (self.batch or 1) if on_gpu(frames) else 1
        want = ("N" if batch == 1 else f"a multiple of {batch}", size.height or "H", size.width or "W", 3)
        fits = len(shape) == 4 and all(not isinstance(w, int) or s == w for s, w in zip(shape, want, strict=True))
        if not fits or 0 in shape or shape[0] % batch or dtype != "uint8":
            found = f"{dtype} [{', '.join(map(str, shape))}]"
            raise UsageError(
                f"{self.name}: frames must be uint8 [{', '.join(map(str, want))}], found {found}",
                fix="hand in raw frames as the camera gives them; use fcnopt.media.fit_frame for another size",
            )
        return shape[0]

    def lanes(self, count: int) -> Sequence[Callable[[Any], Outputs]]:
        """Ways to `infer`, at most `count`, each for one thread while other threads use the others.

        A runtime that does one thing at a time gives itself alone. Lanes live until the runner is closed, and `run`
        must not be called while they are in use.
        """
        del count
        return [self.infer]

    def stream(
        self,
        source: Iterable[Any],
        *,
        prefetch: int | None = None,
        policy: Policy = "block",
        in_flight: int | None = None,
        max_latency_ms: float | None = None,
        stall_s: float | None = None,
    ) -> Stream:
        """Run frames one by one, in order, while the source decodes ahead and the caller works on the last result.

        The source, each batch in flight and the caller have a thread each. Held are at most `prefetch` frames (a batch
        where that is more), and twice as many batches or their results as are in flight. An engine of a fixed batch
        waits for that many frames; the last batch is filled up with its last frame. Until the stream is exhausted or
        closed the runner belongs to it.

        Args:
            source: Frames uint8 [H, W, 3] of the spec's size.
            prefetch: Most frames held that are not yet inferred; 0 draws none before the engine is free for it, None
                takes `self.prefetch`. "drop-oldest" holds one batch.
            policy: When the source is faster than the engine, "block" lets it wait. "drop-oldest", for a live camera,
                lets newer frames replace those that wait: `Outputs.index` says which came through, `Outputs.skipped`
                how many did not.
            in_flight: Batches that the engine works on side by side, at most; None for `self.in_flight`.
            max_latency_ms: The deadline from frame available to labels available (`Outputs.latency_ms`). Later results
                are flagged: `FrameStatus.late`. Under "drop-oldest" a frame that waited as long as that already is not
                inferred but counted in `Outputs.skipped`, unless it is the last one. An engine that is slower than the
                deadline itself still gives results, all of them flagged.
            stall_s: Longest time that the source may take for a frame, the first one included; None waits for ever.

        Returns:
            An iterator of one `Outputs` with N = 1 a frame, which can be closed from any thread. It raises what the
            source or the engine raises, after the frames before it, and `MediaError` where the source stalls. Of a
            stalled source a thread is left behind, which ends when the source gives a frame.

        Raises:
            UsageError: A choice is not possible.
        """
        ahead = self.prefetch if prefetch is None else prefetch
        options = StreamOptions(ahead, policy, self.batch or 1, max_latency_ms, stall_s)
        return self._open_stream(source, options, in_flight)

    def _open_stream(
        self, source: Iterable[Any], options: StreamOptions, in_flight: int | None, prepare: Prepare = Ready
    ) -> Stream:
        """A stream over this runner's lanes."""
        count = self.in_flight if in_flight is None else in_flight
        if count < 1:
            raise UsageError(f"{self.name}: in_flight is {count}", fix="give 1 or more")
        return Stream(source, [self._lane(infer) for infer in self.lanes(count)], options, prepare)

    def _lane(self, infer: Callable[[Any], Outputs]) -> Lane:
        """`infer`, for frames that are neither checked nor joined."""

        def checked(frames: Sequence[Any]) -> Outputs:
            batch = frames[0][None] if self.batch in (None, 1) else stacked(frames, self.batch, self.name)
            self.check(batch)
            return infer(batch)

        return checked

    def close(self) -> None:
        """Free the engine, where there is something to free. Calling it twice is fine."""


def _joined(parts: list[Outputs], count: int) -> Outputs:
    """The first `count` frames of several batches, as one."""
    if len(parts) == 1 and len(parts[0].labels) == count:
        return parts[0]

    def join(name: str) -> Any:
        values = [getattr(part, name) for part in parts]
        return None if values[0] is None else np.concatenate(values)[:count]

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
