"""A contender's process, from the side that asks: start it, let it run in its turn, end it."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rivals.environment import last_words

from fcnopt.errors import BackendError
from race.wire import Lap, read_lap, receive, send

_HERE = Path(__file__).parents[1]
_PATIENCE_S = 20.0


class Process:
    """A contender that waits for its turn; a context manager that ends it.

    Attributes:
        start_s: From starting the process to its first frames done, compilation included.
        peak_mib: Most resident memory so far.

    Args:
        command: The program, without the interpreter's `-m race.`: (python, "with_torch", arguments ...).
        log: Where what it prints goes.

    Raises:
        BackendError: It fails to start; the message has the last that it said.
    """

    def __init__(self, command: list[str], log: Path) -> None:
        python, program, *arguments = command
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log, self._what = log, program
        environ = {name: value for name, value in os.environ.items() if name != "PYTHONHOME"}
        environ["PYTHONPATH"] = str(_HERE)  # of the caller's environment nothing must be found
        start = time.perf_counter()
        with log.open("w", encoding="utf-8") as file:
            try:
                self._process = subprocess.Popen(
                    [python, "-m", f"race.{program}", *arguments],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=file,
                    env=environ,
                )
            except OSError as error:
                raise BackendError(f"{program}: cannot be started: {error.strerror}", fix="install it") from error
        self.peak_mib: float | None = None
        self._receive()
        self.start_s = time.perf_counter() - start

    def run(self, frames: int) -> Lap:
        """Let it run the clip's next frames, end to end.

        Raises:
            BackendError: It fails; the message has the last that it said.
        """
        return read_lap(*self._ask({"do": "run", "frames": frames}))

    def network(self, runs: int) -> list[float]:
        """Milliseconds a frame of its network alone.

        Raises:
            BackendError: It fails.
        """
        header, _ = self._ask({"do": "network", "runs": runs})
        found: list[float] = header["network_ms"]
        return found

    def rewind(self) -> None:
        """Let it begin the clip again.

        Raises:
            BackendError: It fails.
        """
        self._ask({"do": "rewind"})

    def close(self) -> None:
        """End it. Calling it twice is fine."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None and not pipe.closed:
                try:
                    pipe.close()
                except BrokenPipeError:  # what was not sent to a process that is gone
                    continue
        try:
            self._process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        assert self._process.stdin is not None  # noqa: S101  (it is a pipe)
        try:
            send(self._process.stdin, request)  # type: ignore[arg-type]  # the pipe is binary
        except BrokenPipeError as error:
            raise self._gone() from error
        return self._receive()

    def _receive(self) -> tuple[dict[str, Any], bytes]:
        assert self._process.stdout is not None  # noqa: S101  (it is a pipe)
        try:
            header, blob = receive(self._process.stdout)  # type: ignore[arg-type]  # the pipe is binary
        except (EOFError, ValueError) as error:
            raise self._gone() from error
        self.peak_mib = header["peak_mib"]
        return header, blob

    def _gone(self) -> BackendError:
        self.close()
        return BackendError(
            f"{self._what} failed: {last_words(self._log, self._process.returncode)}", fix=f"read {self._log}"
        )
