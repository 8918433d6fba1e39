"""`fcnopt serve` as a process: start it, wait until it answers, stop it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from fcnopt.errors import BackendError

_START_S = 180.0
_STOP_S = 300.0


class ServeProcess:
    """A running `fcnopt serve`; a context manager that stops it with SIGTERM, or kills it where that is in vain.

    It has a session of its own, so that a signal to its group reaches nothing else.

    Args:
        bundle: What it serves.
        arguments: Options of `fcnopt serve`; the ports are chosen here.
        python: The environment that serves; None for this one.

    Raises:
        BackendError: It ended before it answered; the message has all that it said.

    Attributes:
        process: The process.
        ports: HTTP, gRPC and metrics port.
    """

    def __init__(self, bundle: Path, *arguments: object, python: Path | None = None) -> None:
        self.ports = free_ports(3)
        ports = [f"--{name}-port={port}" for name, port in zip(("http", "grpc", "metrics"), self.ports, strict=True)]
        command = [str(python or sys.executable), "-m", "fcnopt.cli", "serve", str(bundle), *ports]
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115  (it is open as long as the process)
        self.process = subprocess.Popen(
            [*command, *map(str, arguments)],
            stdout=self._said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={name: value for name, value in os.environ.items() if name != "PYTHONHOME"},
        )
        self._wait_until_it_answers()

    @property
    def http(self) -> str:
        """Address for HTTP clients."""
        return f"127.0.0.1:{self.ports[0]}"

    @property
    def grpc(self) -> str:
        """Address for gRPC clients."""
        return f"127.0.0.1:{self.ports[1]}"

    @property
    def said(self) -> str:
        """What it printed so far."""
        self._said.seek(0)
        return self._said.read()

    def stop(self, number: signal.Signals = signal.SIGTERM, *, group: bool = False) -> int:
        """Send a signal to it, or to its whole group as a terminal does, and return its exit code.

        Raises:
            subprocess.TimeoutExpired: It did not end.
        """
        (os.killpg if group else os.kill)(self.process.pid, number)
        return self.process.wait(_STOP_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            try:
                self.stop()
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._said.close()

    def _wait_until_it_answers(self) -> None:
        end = time.monotonic() + _START_S
        while "stop with Ctrl-C" not in self.said:
            if self.process.poll() is not None:
                raise BackendError(f"fcnopt serve ended: {self.said}", fix="see what it said")
            if time.monotonic() > end:
                self.process.kill()
                raise BackendError(f"fcnopt serve did not start: {self.said}", fix="see what it said")
            time.sleep(0.05)


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody listens on."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()
