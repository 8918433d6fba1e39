"""One runner for many threads: its lanes are lent, first come, first served.

A lane serves one thread at a time. Whoever wants to infer borrows one and gives it back; where all are lent, the next
to come free goes to who has waited longest, so that a stream at full speed does not starve a thread that runs single
frames. The runtime itself is only ever called by who has borrowed a lane, or has all of them: what a runtime does with
two threads in one lane, or with a close in the middle of a run, never comes up.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from fcnopt.backends.base import Outputs, Runner
from fcnopt.errors import UsageError

Infer = Callable[[Any], Outputs]


class SharedLanes:
    """The lanes of a runner, which is used by nobody else from now on.

    Args:
        runner: It is closed by `close`.
        name: For messages.
    """

    def __init__(self, runner: Runner, name: str) -> None:
        self._runner, self._name = runner, name
        self._changed = threading.Condition()
        self._waiting: deque[object] = deque()  # one a thread, that of the longest wait first
        self._asked = runner.in_flight
        self._free: list[Infer] = list(runner.lanes(self._asked))
        self._count = len(self._free)
        self._closed = self._freed = False
        self._process = os.getpid()

    def check(self) -> None:
        """Raise `UsageError` if it is closed, or in a process that was forked from the one that opened it."""
        if os.getpid() != self._process:
            raise UsageError(
                f"{self._name}: this engine was loaded by process {self._process} before it forked this one "
                f"({os.getpid()}), where the runtime's threads do not exist",
                fix='load it in each process, after the fork, or start processes with multiprocessing\'s "spawn"',
            )
        if self._closed:
            raise self.closed()

    def closed(self) -> UsageError:
        """What whoever uses it after `close` gets."""
        return UsageError(f"{self._name}: this engine is closed", fix="run it inside its with block, or load it again")

    @contextmanager
    def borrow(self) -> Iterator[Infer]:
        """A lane, for this thread alone, when one is free.

        Raises:
            UsageError: See `check`; also where it is closed during the wait.
        """
        self.check()
        with self._changed:
            self._wait_for_turn(lambda: bool(self._free))
            lane = self._free.pop()
        try:
            yield lane
        finally:
            with self._changed:
                self._free.append(lane)
                self._changed.notify_all()

    def at_least(self, count: int) -> int:
        """Have `count` lanes, or as many as the runner gives; returns how many of them there are.

        Waits until nobody uses a lane if there have to be more: a runtime makes new ones undisturbed.

        Raises:
            UsageError: See `check`.
            BackendError: There is not enough memory.
        """
        self.check()
        with self._changed:
            if count > self._asked:
                self._wait_for_turn(lambda: len(self._free) == self._count)
                self._free = list(self._runner.lanes(count))
                self._count, self._asked = len(self._free), count
                self._changed.notify_all()
            return min(count, self._count)

    def refuse(self) -> None:
        """Refuse whoever comes from now on, and who waits."""
        self._closed = True
        if os.getpid() == self._process:  # in a forked child, who held the lock may be gone
            with self._changed:
                self._changed.notify_all()

    def close(self) -> None:
        """Refuse all, wait for who has borrowed a lane, and close the runner. Calling it twice is fine."""
        self.refuse()
        if os.getpid() != self._process:
            return  # the runtime is the parent's, and would wait here for threads that do not exist
        with self._changed:
            self._changed.wait_for(lambda: len(self._free) == self._count)
            if not self._freed:
                self._freed = True
                self._runner.close()

    def _wait_for_turn(self, ready: Callable[[], bool]) -> None:
        """Wait, holding the lock, until this thread is the first in line and `ready`."""
        place = object()
        self._waiting.append(place)
        try:
            self._changed.wait_for(lambda: self._closed or (self._waiting[0] is place and ready()))
            if self._closed:
                raise self.closed()
        finally:
            self._waiting.remove(place)
            self._changed.notify_all()
