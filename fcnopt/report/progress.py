"""Progress of long steps: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_QUIET_S = 2.0
"""Off a terminal, a step that is still going after this long says so, and then ever more rarely."""


class ConsoleProgress:
    """A `Progress` callback for people; writes to standard error, so that results can be piped.

    On a terminal every step has one bar, which pulses until the step tells a fraction. Elsewhere a step gets a line
    when it has taken two seconds, whether it reports by then or not, further lines ever more rarely, and one when it
    ends; steps under two seconds stay silent.
    """

    def __init__(self) -> None:
        self._step = ""
        self._started = 0.0
        self._next_line = 0.0
        self._timer: threading.Timer | None = None
        self._bars: Progress | None = None
        self._task: TaskID | None = None

    def __call__(self, step: str, fraction: float) -> None:
        """Tell that `fraction` (0..1) of `step` is done; the step "done" only closes the one before it."""
        if step == "done":
            self._end()
            return
        if step != self._step:
            self._end()
            self._begin(step)
        if self._bars is not None and self._task is not None:
            self._bars.update(self._task, total=1.0 if fraction > 0 else None, completed=fraction)
        elif 0 < fraction < 1 and (elapsed := time.perf_counter() - self._started) >= self._next_line:
            _say(f"{step}: {fraction:.0%}, {elapsed:.0f} s")
            self._next_line = 2 * elapsed

    def _begin(self, step: str) -> None:
        self._step, self._started, self._next_line = step, time.perf_counter(), 2 * _QUIET_S
        if self._bars is not None:
            self._task = self._bars.add_task(step, total=None)
        else:
            self._timer = threading.Timer(_QUIET_S, _say, [f"{step} ..."])
            self._timer.daemon = True
            self._timer.start()

    def _end(self, *, failed: bool = False) -> None:
        """Close the running step, if there is one."""
        if self._timer is not None:
            self._timer.cancel()
        if self._bars is not None and self._task is not None:
            self._bars.remove_task(self._task)
        elapsed = time.perf_counter() - self._started
        if self._step and self._bars is None and not failed and elapsed >= _QUIET_S:
            _say(f"{self._step}: done in {elapsed:.0f} s")
        self._step, self._timer, self._task = "", None, None

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

            columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
            self._bars = Progress(*columns, console=Console(stderr=True, markup=False), transient=True)
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end(failed=error is not None)
        if self._bars is not None:
            self._bars.stop()


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
