"""A loaded engine: a runner for any number of threads, that takes frames of any size in a stream and watches them.

Every thread may call every method at any time. `run` and each lane of each stream take turns where the engine works on
fewer batches at once than are asked for. An engine does not survive a fork: a forked child gets a `UsageError`.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fcnopt.backends.base import Outputs, Runner
from fcnopt.backends.frames import as_numpy, on_gpu
from fcnopt.backends.outputs import check_duration, elapsed_ms
from fcnopt.backends.readahead import Policy, Ready
from fcnopt.backends.sharing import SharedLanes
from fcnopt.backends.streaming import Stream, StreamOptions
from fcnopt.manifest import Manifest
from fcnopt.media.clips import Clip, Frame, fit_frame, open_clip, restore_labels
from fcnopt.plausibility import DEFAULT, Plausibility, Problems, Watch


class Engine(Runner):
    """A loaded bundle: a runner for many threads that also takes frames of other sizes in `stream`.

    Args:
        runner: The runtime's; nobody else uses it from now on.
        manifest: Of the bundle.

    Attributes:
        manifest: What the bundle says of itself.
    """

    def __init__(self, runner: Runner, manifest: Manifest) -> None:
        self.batch, self.most = runner.batch, runner.most
        self.in_flight, self.prefetch = runner.in_flight, runner.prefetch
        self.manifest = manifest
        self.name = manifest.name
        self.spec = runner.spec
        self._lanes = SharedLanes(runner, self.name)
        self._streams: weakref.WeakSet[Stream] = weakref.WeakSet()
        self._streams_change = threading.Lock()

    def infer(self, frames: Any) -> Outputs:
        """Run checked frames when a lane is free."""
        with self._lanes.borrow() as infer:
            return infer(frames)

    def lanes(self, count: int) -> Sequence[Callable[[Any], Outputs]]:
        """Ways to `infer`, as many as the runtime has, at most `count`; any thread may use any of them."""
        return [self.infer] * self._lanes.at_least(count)

    def run(
        self,
        frames: Any,
        *,
        max_latency_ms: float | None = None,
        plausibility: Plausibility | Watch | None = DEFAULT,
    ) -> Outputs:
        """Run a batch; see `Runner.run`.

        Args:
            frames: uint8 [N, H, W, 3] of the spec's size and colour order.
            max_latency_ms: Labels that come later are flagged: `FrameStatus.late`.
            plausibility: When frames are flagged as implausible. They are compared with those before them in the
                batch; give a `Watch`, one a camera, to compare them with those of earlier calls too. Frames in GPU
                memory are not looked at; None looks at none.

        Raises:
            UsageError: As `Runner.run`; or the engine is closed, or was loaded before this process was forked.
            BackendError: The runtime failed.
        """
        start = time.perf_counter()
        check_duration("run: max_latency_ms", max_latency_ms)
        self._lanes.check()
        self.check(frames)
        problems = self._problems(frames, plausibility)
        return super().run(frames).timed(elapsed_ms(start), max_latency_ms, problems)

    def stream(
        self,
        source: str | Path | Clip | Iterable[Frame | NDArray[np.uint8]],
        *,
        prefetch: int | None = None,
        policy: Policy = "block",
        in_flight: int | None = None,
        max_latency_ms: float | None = None,
        stall_s: float | None = None,
        plausibility: Plausibility | Watch | None = DEFAULT,
    ) -> Stream:
        """Run a clip frame by frame, in order, decoding ahead; see `Runner.stream`.

        Args:
            source: A path, a clip, or frames uint8 [H, W, 3] BGR of any size that the spec's `resize` allows. A path
                is decoded by the GPU where it can be (`fcnopt.media.open_clip`, decoder "auto").
            prefetch: Most frames held that are not yet inferred; None for `self.prefetch`.
            policy: "block", or "drop-oldest" for a live camera.
            in_flight: Batches that the engine works on side by side, at most; None for what it was opened for.
            max_latency_ms: Results that come later than this after their frame are flagged: `FrameStatus.late`. Under
                "drop-oldest" frames that waited as long already make way for newer ones.
            stall_s: Longest time that the source may take for a frame; None waits for ever.
            plausibility: When frames are flagged as implausible; None looks at none.

        Returns:
            An iterator of one `Outputs` a frame; labels and confidence are [1, H, W] at the frame's own size, logits at
            the model's. It raises `UsageError` when the engine is closed, and `MediaError` when the source stalls.

        Raises:
            UsageError: A choice is not possible; or the engine is closed, or was loaded before this process was
                forked.
        """
        items: Iterable[Frame | NDArray[np.uint8]] = (
            open_clip(source, decoder="auto").images() if isinstance(source, str | Path) else source
        )
        ahead = self.prefetch if prefetch is None else prefetch
        options = StreamOptions(ahead, policy, self.batch or 1, max_latency_ms, stall_s)
        watch = Watch(plausibility) if isinstance(plausibility, Plausibility) else plausibility
        stream = self._open_stream(items, options, in_flight, partial(self._fitted, watch=watch))
        with self._streams_change:
            self._streams.add(stream)
        return stream

    def _fitted(self, item: Frame | NDArray[np.uint8], watch: Watch | None) -> Ready:
        """A frame as the model takes it, and how its labels come back to its own size."""
        image = item.image if isinstance(item, Frame) else item
        fitted = fit_frame(image, self.spec.frame)
        if fitted is image and not isinstance(item, Frame):  # a camera may write its next frame there
            fitted = image.copy()
        problems = watch.look(image) if watch is not None else ()
        return Ready(fitted, problems, partial(self._restored, size=(image.shape[0], image.shape[1])))

    def _restored(self, out: Outputs, size: tuple[int, int]) -> Outputs:
        spec = self.spec.frame
        sure = None if out.confidence is None else restore_labels(out.confidence[0], size, spec)[None]
        return replace(out, labels=restore_labels(out.labels[0], size, spec)[None], confidence=sure)

    def _problems(self, frames: Any, plausibility: Plausibility | Watch | None) -> tuple[Problems, ...]:
        """What is implausible of each of a batch of frames; () where nobody looks."""
        if plausibility is None or on_gpu(frames):
            return ()
        watch = Watch(plausibility) if isinstance(plausibility, Plausibility) else plausibility
        return watch.look_at_all(as_numpy(frames, self.name))

    def close(self) -> None:
        """Free the engine; any thread may do this at any time, and calling it twice is fine.

        Inference that is under way is waited for. Threads that wait for their turn, or for a result of a stream, get
        a `UsageError`.
        """
        self._lanes.refuse()
        with self._streams_change:
            streams = list(self._streams)
        for stream in streams:
            stream.abort(self._lanes.closed())
        self._lanes.close()
