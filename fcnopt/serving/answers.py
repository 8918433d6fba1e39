"""What the server does with requests: join their frames, run them, and say of each frame how far to trust it."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fcnopt.backends.base import FrameStatus, Outputs
from fcnopt.engine import Engine
from fcnopt.plausibility import Plausibility, Watch

FRAMES = "frames"
"""Name of the input: uint8 [N, H, W, 3], as the camera gives them, in the spec's colour order."""
PROBLEMS = "problems"
"""Name of the output that says how far to trust each frame: uint8 [N, 1], the sum of `BITS` that apply, 0 for none."""
BITS = {"late": 1, "black": 2, "overexposed": 4, "frozen": 8, "wrong-size": 16}
"""What each bit of `PROBLEMS` stands for; see `FrameStatus`."""

CAMERA = "camera"
"""Name of the request parameter that says which camera the frames are from. Frames are compared with those of the same
camera before them, to see whether it is frozen; without it only with those before them in the same request."""
_CAMERAS = 64  # kept at most: clients choose the names
_CAMERA_NAME = 64  # characters


@dataclass(frozen=True)
class Served:
    """What a server did, from start to stop.

    Attributes:
        requests: Answered requests.
        frames: Frames in them.
        runs: Times the engine was run for them; fewer than requests where several were run as one.
        late: Frames whose labels took longer than the deadline.
        implausible: Frames that were flagged as black, over-exposed or frozen.
    """

    requests: int = 0
    frames: int = 0
    runs: int = 0
    late: int = 0
    implausible: int = 0


class Answers:
    """Answers requests with an engine; any number of threads may call it.

    Args:
        engine: Stays the caller's.
        max_latency_ms: See `ServeOptions`.
        plausibility: See `ServeOptions`.
    """

    def __init__(self, engine: Engine, max_latency_ms: float | None, plausibility: Plausibility | None) -> None:
        self._engine, self._max_latency_ms, self._plausibility = engine, max_latency_ms, plausibility
        self._served = Served()
        self._watches: dict[str, Watch] = {}
        self._lock = threading.Lock()

    @property
    def served(self) -> Served:
        """What was done so far."""
        with self._lock:
            return self._served

    def answer(self, requests: Sequence[Any]) -> list[dict[str, NDArray[Any]]]:
        """The outputs that each request asks for.

        Args:
            requests: PyTriton's: `request["frames"]` uint8 [N, H, W, 3], of the same H and W in all, `parameters` and
                `requested_output_names`.

        Raises:
            UsageError: The frames do not fit the engine.
            BackendError: The runtime failed.
        """
        frames = [request[FRAMES] for request in requests]
        joined = frames[0] if len(frames) == 1 else np.concatenate(frames)
        out = self._engine.run(joined, max_latency_ms=self._max_latency_ms, plausibility=None)
        answers, start = [], 0
        for request, own in zip(requests, frames, strict=True):
            part = slice(start, start + len(own))
            status = self._looked_at(own, out.status[part], request.parameters)
            answers.append(_picked(out, part, status, request.requested_output_names))
            self._count(status, start)
            start += len(own)
        return answers

    def _looked_at(
        self, frames: NDArray[np.uint8], status: Sequence[FrameStatus], parameters: Mapping[str, object] | None
    ) -> tuple[FrameStatus, ...]:
        """The status with what is implausible of the frames of one request, which are one camera's."""
        if self._plausibility is None:
            return tuple(status)
        camera = (parameters or {}).get(CAMERA)
        watch = Watch(self._plausibility) if camera is None else self._watch_of(str(camera)[:_CAMERA_NAME])
        return tuple(replace(one, problems=found) for one, found in zip(status, watch.look_at_all(frames), strict=True))

    def _watch_of(self, camera: str) -> Watch:
        """What looks at a camera's frames; of too many, the one that was silent longest is forgotten."""
        assert self._plausibility is not None  # noqa: S101  (asked before)
        with self._lock:
            watch = self._watches.pop(camera, None) or Watch(self._plausibility)
            self._watches[camera] = watch  # at the end: dicts keep their order
            if len(self._watches) > _CAMERAS:
                del self._watches[next(iter(self._watches))]
            return watch

    def _count(self, status: Sequence[FrameStatus], start: int) -> None:
        with self._lock:
            done = self._served
            self._served = Served(
                requests=done.requests + 1,
                frames=done.frames + len(status),
                runs=done.runs + (start == 0),
                late=done.late + sum(one.late for one in status),
                implausible=done.implausible + sum(bool(one.problems) for one in status),
            )


def bits_of(status: FrameStatus) -> int:
    """A frame's status as the output `problems` has it."""
    return sum(BITS[name] for name in (*status.problems, *(("late",) if status.late else ())))


def _picked(
    out: Outputs, part: slice, status: Sequence[FrameStatus], names: Sequence[str] | None
) -> dict[str, NDArray[Any]]:
    """One request's part of a run: only the outputs in `names`, all of them where it is None."""
    problems = np.array([[bits_of(one)] for one in status], np.uint8)
    found: dict[str, NDArray[Any] | None] = {
        "labels": out.labels[part],
        "confidence": out.confidence[part] if out.confidence is not None else None,
        "logits": out.logits[part] if out.logits is not None else None,
        PROBLEMS: problems,
    }
    return {name: value for name, value in found.items() if value is not None and (names is None or name in names)}
