"""Drawing from a source in a thread of its own, a bounded number of frames ahead.

What happens when the source is faster than the engine is the `Policy`: "block" lets it wait, so that every frame comes
through; "latest" throws away frames that wait as newer ones come, so that the engine always works on what a camera
sees now.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

Policy = Literal["block", "latest"]
_PATIENCE_S = 2.0


@dataclass(frozen=True)
class Drawn:
    """A frame from the source.

    Attributes:
        frame: As the source gave it.
        index: Its place in the source, from 0.
        skipped: Frames directly before it that were thrown away.
        at: When the source gave it, a time of `perf_counter`.
    """

    frame: Any
    index: int
    skipped: int
    at: float


class ReadAhead:
    """Draws from a source in a thread that starts at once.

    Args:
        source: Frames. Only the thread touches it; whoever made it closes it.
        depth: Most frames that wait to be taken; the thread has one more in its hand.
        policy: What to do with a frame for which there is no room.
    """

    def __init__(self, source: Iterable[Any], depth: int, policy: Policy = "block") -> None:
        self._depth, self._policy = max(1, depth), policy
        self._waiting: deque[tuple[int, float, Any]] = deque()
        self._changed = threading.Condition()
        self._next = 0  # index of the frame after the one taken last
        self._ended = self._closed = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._draw, args=(source,), name="fcnopt-stream-source", daemon=True)
        self._thread.start()

    def take(self, count: int = 1) -> list[Drawn]:
        """Wait for the next `count` frames; fewer at the source's end, none after it or once closed.

        Raises:
            BaseException: What the source raised, in its place: after the frames before it.
        """
        with self._changed:
            self._changed.wait_for(lambda: len(self._waiting) >= count or self._ended or self._closed)
            if not self._waiting and self._error is not None:
                error, self._error = self._error, None
                raise error
            taken: list[Drawn] = []
            while self._waiting and len(taken) < count:
                index, at, frame = self._waiting.popleft()
                taken.append(Drawn(frame, index, index - self._next, at))
                self._next = index + 1
            self._changed.notify_all()
            return taken

    def close(self) -> None:
        """End the thread. A source that is about to give a frame is waited for, one that hangs only for a while.

        A thread that hangs in its source is left behind: it ends when the source gives a frame, or with the process.
        Calling it twice is fine.
        """
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._changed.notify_all()
        if self._thread is not threading.current_thread():
            self._thread.join(_PATIENCE_S)

    def _draw(self, source: Iterable[Any]) -> None:
        error: BaseException | None = None
        try:
            for index, frame in enumerate(source):
                if not self._offer(index, frame):
                    return
        except BaseException as caught:  # noqa: BLE001  (handed to the taker, whatever it is)
            error = caught
        with self._changed:
            self._ended, self._error = True, error
            self._changed.notify_all()

    def _offer(self, index: int, frame: Any) -> bool:
        """Let a frame wait to be taken; False once closed."""
        at = time.perf_counter()
        with self._changed:
            if self._policy == "block":
                self._changed.wait_for(lambda: len(self._waiting) < self._depth or self._closed)
            while len(self._waiting) >= self._depth:
                self._waiting.popleft()
            if not self._closed:
                self._waiting.append((index, at, frame))
                self._changed.notify_all()
            return not self._closed
