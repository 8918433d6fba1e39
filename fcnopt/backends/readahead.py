"""Drawing from a source in a thread of its own, a bounded number of frames ahead, or each only when it is wanted.

What happens when the source is faster than the engine is the `Policy`: "block" lets it wait, so that every frame comes
through; "drop-oldest" throws away frames that wait as newer ones come, so that the engine always works on what a
camera sees now.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from fcnopt.errors import MediaError

if TYPE_CHECKING:
    from fcnopt.backends.outputs import Outputs
    from fcnopt.plausibility import Problems

Policy = Literal["block", "drop-oldest"]
_PATIENCE_S = 2.0


@dataclass(frozen=True)
class Ready:
    """A frame that is ready for inference.

    Attributes:
        frame: As a lane takes it.
        problems: What is implausible of it.
        finish: Makes the caller's result of the engine's, in the caller's thread; None where they are the same.
    """

    frame: Any
    problems: Problems = ()
    finish: Callable[[Outputs], Outputs] | None = None


Prepare = Callable[[Any], Ready]
"""Makes a frame of the source ready, in the source's thread."""


@dataclass(frozen=True)
class Drawn:
    """A frame from the source.

    Attributes:
        ready: What was made of it.
        index: Its place in the source, from 0.
        skipped: Frames directly before it that were thrown away.
        at: When the source gave it, a time of `perf_counter`.
        waited_s: How long it then was ready and nobody took it.
    """

    ready: Ready
    index: int
    skipped: int
    at: float
    waited_s: float


@dataclass(frozen=True)
class _Waiting:
    """A frame that nobody took yet; `since` is when it was ready."""

    ready: Ready
    index: int
    at: float
    since: float


@dataclass(frozen=True)
class ReadOptions:
    """How frames are drawn ahead.

    Attributes:
        depth: Most frames that wait to be taken; the thread has one more in its hand. With 0 the source is asked for a
            frame only while one is waited for.
        policy: What to do with a frame for which there is no room.
        max_age_s: Under "drop-oldest", frames that are older when they are asked for are not taken.
        stall_s: Longest time that the source may take for a frame; None waits for ever.
    """

    depth: int = 4
    policy: Policy = "block"
    max_age_s: float | None = None
    stall_s: float | None = None


class ReadAhead:
    """Draws from a source in a thread that starts at once.

    Args:
        source: Frames. Only the thread touches it; whoever made it closes it.
        options: How to draw them.
        prepare: Makes them ready.
    """

    def __init__(self, source: Iterable[Any], options: ReadOptions, prepare: Prepare = Ready) -> None:
        self._options, self._prepare = options, prepare
        self._waiting: deque[_Waiting] = deque()
        self._changed = threading.Condition()
        self._wanted = 0  # frames that are waited for now
        self._next = 0  # index of the frame after the one taken last
        # when the source was asked for a frame; None: it is not
        self._asked_at: float | None = time.perf_counter() if options.depth else None
        self._drawn = 0
        self._ended = self._closed = self._stalled = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._draw, args=(source,), name="fcnopt-stream-source", daemon=True)
        self._thread.start()

    def take(self, count: int = 1) -> list[Drawn]:
        """Wait for the next `count` frames; fewer at the source's end, none after it or once closed.

        Frames that waited too long already are not taken. One that comes while it is waited for always is, however
        late: so an engine slower than any deadline still gets frames. So does the last frame of all.

        Raises:
            BaseException: What the source raised, in its place: after the frames before it; or `MediaError` where it
                gave no frame for too long.
        """
        with self._changed:
            first = self._first_in_time()
            self._wanted = count
            self._changed.notify_all()
            self._wait_for(lambda: sum(frame.index >= first for frame in self._waiting) >= count)
            self._wanted = 0
            while len(self._waiting) > 1 and self._waiting[0].index < first:
                self._waiting.popleft()
            if not self._waiting and self._error is not None:
                error, self._error = self._error, None
                raise error
            taken: list[Drawn] = []
            now = time.perf_counter()
            while self._waiting and len(taken) < count:
                frame = self._waiting.popleft()
                taken.append(Drawn(frame.ready, frame.index, frame.index - self._next, frame.at, now - frame.since))
                self._next = frame.index + 1
            self._changed.notify_all()
            return taken

    def _first_in_time(self) -> int:
        """Index of the first frame that is not too old now; those that are still to come are in time."""
        if self._options.max_age_s is None or self._options.policy == "block":
            return 0
        oldest = time.perf_counter() - self._options.max_age_s
        return max((frame.index + 1 for frame in self._waiting if frame.at < oldest), default=0)

    def _wait_for(self, enough: Callable[[], bool]) -> None:
        """Wait for enough frames, the end, or until the source has taken too long for one."""
        while not (enough() or self._ended or self._closed):
            left_s = None
            if self._options.stall_s is not None and self._asked_at is not None:
                left_s = self._asked_at + self._options.stall_s - time.perf_counter()
                if left_s <= 0:
                    self._ended = self._stalled = True
                    self._error = self._stall()
                    return
            self._changed.wait(left_s)

    def _stall(self) -> MediaError:
        where = f"after frame {self._drawn - 1}" if self._drawn else "at all"
        return MediaError(
            f"stream: the source stalled: no frame for {self._options.stall_s:g} s {where}",
            fix="see whether the camera and its driver still run and open the source anew, or give a longer stall_s",
        )

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
            self._thread.join(0 if self._stalled else _PATIENCE_S)
            self._stalled = self._thread.is_alive()  # it is waited for once

    def _draw(self, source: Iterable[Any]) -> None:
        error: BaseException | None = None
        try:
            frames = enumerate(source)
            while self._may_ask():
                index, frame = next(frames, (-1, None))
                if index < 0:
                    break
                at = time.perf_counter()
                asked_at, self._asked_at = self._asked_at, None
                stall_s = self._options.stall_s
                if stall_s is not None and asked_at is not None and at - asked_at > stall_s:
                    raise self._stall()  # nobody waited for it then; with a faster engine it would have been given up
                if not self._offer(index, at, self._prepare(frame)):
                    return
        except BaseException as caught:  # noqa: BLE001  (handed to the taker, whatever it is)
            error = caught
        with self._changed:
            if not self._ended:
                self._ended, self._error = True, error
            self._changed.notify_all()

    def _may_ask(self) -> bool:
        """Wait until the source may be asked for a frame; False once closed."""
        if self._options.depth:
            return True
        with self._changed:
            self._changed.wait_for(lambda: len(self._waiting) < self._wanted or self._closed or self._ended)
            self._asked_at = time.perf_counter()
            self._changed.notify_all()  # from now on it can stall
            return not (self._closed or self._ended)

    def _offer(self, index: int, at: float, ready: Ready) -> bool:
        """Let a frame wait to be taken; False once closed, or given up as stalled."""
        since = time.perf_counter()
        with self._changed:
            if self._options.policy == "block" and self._options.depth:
                self._changed.wait_for(lambda: len(self._waiting) < self._options.depth or self._closed)
            if self._closed or self._ended:
                return False
            while self._options.policy == "drop-oldest" and len(self._waiting) >= self._options.depth:
                self._waiting.popleft()
            self._waiting.append(_Waiting(ready, index, at, since))
            self._drawn = index + 1
            self._asked_at = time.perf_counter() if self._options.depth else None  # it is about to be
            self._changed.notify_all()
            return True
