"""How an engine is served."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from fcnopt.backends.base import Mode
from fcnopt.engine import Engine
from fcnopt.errors import UsageError
from fcnopt.plausibility import DEFAULT, Plausibility
from fcnopt.signing import TrustedKeys

_MODEL_NAME = re.compile(r"[A-Za-z0-9._-]{1,60}")  # the limit leaves room in the name of a socket
_FRAMES_A_REQUEST = 8


@dataclass(frozen=True)
class ServeOptions:
    """How an engine is served.

    Attributes:
        host: Address to listen on: "127.0.0.1" for this machine alone, "0.0.0.0" for all that reach it. There is
            neither encryption nor login: let nobody reach it but who may.
        http_port: For HTTP requests and health.
        grpc_port: For gRPC requests and health.
        metrics_port: For Prometheus metrics.
        model_name: What clients call the model; None for the bundle's name.
        max_batch: Most frames in a request, and in what is made of several requests. None for 8, or the engine's own
            batch where that is more.
        max_queue: Most requests that wait; those beyond are rejected at once.
        max_queue_delay_ms: How long a request may wait for others to be run with, while the engine is free.
        timeout_ms: Requests that waited longer are rejected. A client may ask for less, not for more.
        max_latency_ms: Frames whose labels took the engine longer are flagged as late; waiting in the queue is not
            counted in, since `timeout_ms` bounds that.
        mode: "latency" runs one batch at a time, "throughput" as many side by side as pay.
        plausibility: When frames are flagged as implausible; None looks at none. A camera is told from others by the
            request parameter `camera`.
        trusted_keys: Public keys of which one must have signed the bundle; see `fcnopt.load`.
        log: File for what Triton logs; None keeps none.
    """

    host: str = "127.0.0.1"
    http_port: int = 8000
    grpc_port: int = 8001
    metrics_port: int = 8002
    model_name: str | None = None
    max_batch: int | None = None
    max_queue: int = 16
    max_queue_delay_ms: float = 0.0
    timeout_ms: float = 10_000.0
    max_latency_ms: float | None = None
    mode: Mode = "latency"
    plausibility: Plausibility | None = DEFAULT
    trusted_keys: TrustedKeys = ()
    log: Path | None = None

    def __post_init__(self) -> None:
        ports = self.ports
        for name, port in ports.items():
            self._demand(name, port, 1 <= port <= 65535, "a port, 1 to 65535")
        if len(set(ports.values())) < len(ports):
            raise UsageError(f"serve: ports {', '.join(map(str, ports.values()))}", fix="give three different ports")
        self._demand("max_batch", self.max_batch, self.max_batch is None or self.max_batch >= 1, "1 or more")
        self._demand("max_queue", self.max_queue, self.max_queue >= 1, "1 or more")
        delay, timeout, latency = self.max_queue_delay_ms, self.timeout_ms, self.max_latency_ms
        self._demand("max_queue_delay_ms", delay, 0 <= delay < timeout, f"0 or more, below timeout_ms ({timeout})")
        self._demand("timeout_ms", timeout, 1 <= timeout <= 3_600_000, "1 to 3600000")
        self._demand("max_latency_ms", latency, latency is None or latency > 0, "a number above 0")
        if self.model_name is not None and not _MODEL_NAME.fullmatch(self.model_name):
            raise UsageError(
                f"serve: model name {self.model_name!r}", fix="give up to 60 letters, digits, dots, dashes, underscores"
            )

    @property
    def ports(self) -> dict[str, int]:
        """The three ports, by option."""
        return {name: getattr(self, name) for name in ("http_port", "grpc_port", "metrics_port")}

    def name_for(self, engine: Engine) -> str:
        """What clients call the model."""
        return self.model_name or re.sub(r"[^A-Za-z0-9._-]", "-", engine.name)[:60]

    def batch_for(self, engine: Engine) -> int:
        """Most frames in a request."""
        return self.max_batch or max(_FRAMES_A_REQUEST, engine.batch or 1)

    @staticmethod
    def _demand(name: str, value: object, holds: bool, what: str) -> None:
        if not holds:
            raise UsageError(f"serve: {name} is {value}", fix=f"give {what}")
