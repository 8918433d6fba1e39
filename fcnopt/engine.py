"""A loaded engine: a runner that takes frames of any size in a stream, and gives labels of their size."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fcnopt.backends.base import Outputs, Runner
from fcnopt.backends.readahead import Policy
from fcnopt.backends.streaming import Stream
from fcnopt.errors import UsageError
from fcnopt.manifest import Manifest
from fcnopt.media.clips import Clip, Frame, fit_frame, open_clip, restore_labels


class Engine(Runner):
    """A loaded bundle: a runner that also takes frames of other sizes in `stream`.

    Attributes:
        manifest: What the bundle says of itself.
    """

    def __init__(self, runner: Runner, manifest: Manifest) -> None:
        self._runner = runner
        self._closed = False
        self.batch, self.in_flight = runner.batch, runner.in_flight
        self.manifest = manifest
        self.name = manifest.name
        self.spec = runner.spec

    def infer(self, frames: Any) -> Outputs:
        """Run checked frames."""
        return self._open.infer(frames)

    def lanes(self, count: int) -> Sequence[Callable[[Any], Outputs]]:
        """Those of the runtime."""
        return self._open.lanes(count)

    def stream(
        self,
        source: str | Path | Clip | Iterable[Frame | NDArray[np.uint8]],
        *,
        prefetch: int = 4,
        policy: Policy = "block",
        in_flight: int | None = None,
    ) -> Stream:
        """Run a clip frame by frame, in order, decoding ahead; see `Runner.stream`.

        Args:
            source: A path, a clip, or frames uint8 [H, W, 3] BGR of any size that the spec's `resize` allows. A path
                is decoded by the GPU where it can be (`fcnopt.media.open_clip`, decoder "auto").
            prefetch: Most frames held that are not yet inferred.
            policy: "block", or "latest" for a live camera.
            in_flight: Batches that the engine works on side by side, at most; None for what it was opened for.

        Returns:
            An iterator of one `Outputs` a frame; labels are [1, H, W] at the frame's own size.
        """
        items: Iterable[Frame | NDArray[np.uint8]] = (
            open_clip(source, decoder="auto").images() if isinstance(source, str | Path) else source
        )
        sizes: deque[tuple[int, int, int]] = deque()  # index, height, width of frames on their way, oldest first

        def fitted() -> Iterator[NDArray[np.uint8]]:
            for index, item in enumerate(items):
                image = item.image if isinstance(item, Frame) else item
                sizes.append((index, image.shape[0], image.shape[1]))
                yield fit_frame(image, self.spec.frame)

        def restored(out: Outputs) -> Outputs:
            index, height, width = sizes.popleft()
            while index != out.index:  # those before it were skipped
                index, height, width = sizes.popleft()
            return replace(out, labels=restore_labels(out.labels[0], (height, width), self.spec.frame)[None])

        runner = self._open
        return runner.stream(fitted(), prefetch=prefetch, policy=policy, in_flight=in_flight).map(restored)

    @property
    def _open(self) -> Runner:
        """The runtime's runner.

        Raises:
            UsageError: It was closed.
        """
        if self._closed:
            raise UsageError(
                f"{self.name}: this engine is closed", fix="run it inside its with block, or load it again"
            )
        return self._runner

    def close(self) -> None:
        """Free the engine."""
        self._closed = True
        self._runner.close()
