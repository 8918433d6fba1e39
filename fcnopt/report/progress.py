"""Progress of long steps: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_QUIET_S = 2.0
"""Off a terminal, a step that is still going after this long says so, and then again each time as long."""


class ConsoleProgress:
    """A `Progress` callback for people; writes to standard error, so that results can be piped.

    On a terminal every step has one bar. Elsewhere a step gets a line when it has taken two seconds, further lines
    ever more rarely, and one when it ends; steps under two seconds stay silent.
    """

    def __init__(self) -> None:
        self._step = ""
        self._started = 0.0
        self._next_line = 0.0
        self._bars: Progress | None = None
        self._task: TaskID | None = None

    def __call__(self, step: str, fraction: float) -> None:
        """Tell that `fraction` (0..1) of `step` is done."""
        if step != self._step:
            self._begin(step)
        if self._bars is not None and self._task is not None:
            self._bars.update(self._task, completed=fraction)
            return
        elapsed = time.perf_counter() - self._started
        if elapsed >= self._next_line:
            line = f"{step}: done in {elapsed:.0f} s" if fraction >= 1 else f"{step}: {fraction:.0%}, {elapsed:.0f} s"
            print(line, file=sys.stderr, flush=True)
            self._next_line = elapsed * 2

    def _begin(self, step: str) -> None:
        self._step, self._started, self._next_line = step, time.perf_counter(), _QUIET_S
        if self._bars is not None:
            if self._task is not None:
                self._bars.remove_task(self._task)
            self._task = self._bars.add_task(step, total=1.0)

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

            columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
            self._bars = Progress(*columns, console=Console(stderr=True), transient=True)
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()
