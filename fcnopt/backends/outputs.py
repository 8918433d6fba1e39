"""What an engine says of frames: labels, times, and how far each frame and its result can be trusted."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fcnopt.errors import UsageError

if TYPE_CHECKING:
    from fcnopt.plausibility import Problems


@dataclass(frozen=True)
class FrameStatus:
    """How far a frame and its result can be trusted.

    Attributes:
        late: The labels came later than the deadline that was asked for.
        problems: What is implausible of the frame; it was inferred all the same.
    """

    late: bool = False
    problems: Problems = ()

    @property
    def ok(self) -> bool:
        """In time and plausible."""
        return not self.late and not self.problems


@dataclass(frozen=True)
class Outputs:
    """What an engine says of a batch of frames.

    Attributes:
        labels: uint8 [N, H, W].
        confidence: float32 [N, H, W], softmax probability of the label, where the model gives it.
        logits: float32 [N, C, H, W], where the model gives them.
        inference_ms: Time the runtime worked on this batch, copies to and from the device included.
        latency_ms: From frame available to labels available. `run` counts from its call; `stream` from the moment
            its source gave the frame, so that bringing it to the model's size and waiting behind earlier frames count;
            under the policy "drop-oldest" until the caller has the labels, who may have been late to ask for them.
        waited_ms: Of this, in a `stream`, how long the frame was ready and waited for its turn. A clip that is decoded
            ahead waits in line; a camera that is slower than the engine does not.
        index: The frame's place in the source of a `stream`, from 0; None from `run`.
        skipped: Frames of that source that were thrown away directly before this one, under the policy "drop-oldest".
        status: One a frame, from `run` and `stream`; empty from `Runner.infer`.
    """

    labels: NDArray[np.uint8]
    confidence: NDArray[np.float32] | None = None
    logits: NDArray[np.float32] | None = None
    inference_ms: float = 0.0
    latency_ms: float = 0.0
    waited_ms: float = 0.0
    index: int | None = None
    skipped: int = 0
    status: tuple[FrameStatus, ...] = ()

    def timed(self, latency_ms: float, max_latency_ms: float | None, problems: Sequence[Problems] = ()) -> Outputs:
        """The same with its latency and, by that, its status.

        Args:
            latency_ms: See the attribute.
            max_latency_ms: The deadline; None where there is none.
            problems: Those of each frame; empty where nobody looked.
        """
        late = max_latency_ms is not None and latency_ms > max_latency_ms
        found = problems or ((),) * len(self.labels)
        return replace(self, latency_ms=latency_ms, status=tuple(FrameStatus(late, each) for each in found))


def elapsed_ms(start: float) -> float:
    """Milliseconds since `start`, a value of `time.perf_counter()`."""
    return (time.perf_counter() - start) * 1e3


def check_duration(name: str, value: float | None) -> None:
    """Refuse a duration that is not above 0; None stands for none.

    Raises:
        UsageError: It is 0, negative or not a number.
    """
    if value is not None and not value > 0:
        raise UsageError(f"{name} is {value}", fix="give a number above 0, or None for no limit")
