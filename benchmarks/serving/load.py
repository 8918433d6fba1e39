"""Clients that ask a served engine for labels: at a fixed rate, whatever it answers, or as fast as it answers.

A client is a process of its own with one gRPC channel. At a fixed rate its requests leave on schedule even when none
is answered, as cameras' frames do; so a server that is too slow sees all of them. Every request is accounted for:
answered, rejected (the server said that it is overloaded), failed (anything else that it said), or lost.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.memory import MemoryWatch

_OVERLOADED = "StatusCode.UNAVAILABLE"


@dataclass(frozen=True)
class Load:
    """What is asked of a server.

    Attributes:
        address: Of its gRPC port, such as "127.0.0.1:8001".
        model: Its model's name.
        clients: Processes, each with a channel.
        rate: Requests a second of all clients together; None lets each send the next when it has an answer.
        seconds: How long they send.
        patience_s: How long they wait for the last answers; what has not come then is lost.
    """

    address: str
    model: str
    clients: int = 2
    rate: float | None = None
    seconds: float = 10.0
    patience_s: float = 30.0


@dataclass
class Tally:
    """What became of requests.

    Attributes:
        sent: Requests.
        answered: Those that got labels.
        wrong: Answered ones whose labels are not the expected ones.
        rejected: Those that the server did not take because it was overloaded.
        failed: Those that the server refused for any other reason.
        latencies_ms: Of the answered ones, from sending to labels.
        rejections_ms: Of the rejected ones.
        seconds: From the first request to the last answer, of the client that took longest.
        said: What the server said when it did not answer, and how often.
    """

    sent: int = 0
    answered: int = 0
    wrong: int = 0
    rejected: int = 0
    failed: int = 0
    latencies_ms: list[float] = field(default_factory=list)
    rejections_ms: list[float] = field(default_factory=list)
    seconds: float = 0.0
    said: Counter[str] = field(default_factory=Counter)

    @property
    def lost(self) -> int:
        """Requests of which nothing was heard."""
        return self.sent - self.answered - self.rejected - self.failed

    @property
    def answers_per_s(self) -> float:
        """Answered requests a second."""
        return self.answered / self.seconds

    def add(self, other: Tally) -> None:
        """Take in another client's."""
        for name in ("sent", "answered", "wrong", "rejected", "failed", "latencies_ms", "rejections_ms", "said"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.seconds = max(self.seconds, other.seconds)

    def summary(self) -> dict[str, Any]:
        """Counts, rates and percentiles, for JSON."""
        counts = {name: getattr(self, name) for name in ("sent", "answered", "wrong", "rejected", "failed", "lost")}
        return {
            **counts,
            "seconds": round(self.seconds, 2),
            "answers_per_s": round(self.answers_per_s, 2),
            "latency_ms": _percentiles(self.latencies_ms),
            "rejection_ms": _percentiles(self.rejections_ms),
            "said": dict(self.said),
        }


def run_load(
    load: Load,
    frames: NDArray[np.uint8],
    *,
    expected: NDArray[np.uint8] | None = None,
    memory: MemoryWatch | None = None,
) -> Tally:
    """Put a load on a server and account for every request.

    Args:
        load: What to ask of it.
        frames: uint8 [N, H, W, 3]: what each request holds.
        expected: uint8 [N, H, W]: their labels; None does not compare.
        memory: Watches the server's processes meanwhile.
    """
    context = multiprocessing.get_context("spawn")  # gRPC does not survive a fork
    total = Tally()
    with ProcessPoolExecutor(load.clients, mp_context=context) as pool, memory or contextlib.nullcontext():
        tasks = [pool.submit(_client, load, number, frames, expected) for number in range(load.clients)]
        for task in tasks:
            total.add(task.result())
    return total


class OpenLoop:
    """One channel and what became of its requests; answers come in gRPC's thread.

    Args:
        load: Address, model and patience.
        frames: See `run_load`.
        expected: See `run_load`.

    Attributes:
        tally: What became of the requests so far.
    """

    def __init__(self, load: Load, frames: NDArray[np.uint8], expected: NDArray[np.uint8] | None) -> None:
        import tritonclient.grpc as grpc

        self._load, self._expected = load, expected
        self._client = grpc.InferenceServerClient(load.address)
        self._input = grpc.InferInput("frames", list(frames.shape), "UINT8")
        self._input.set_data_from_numpy(frames)
        self._outputs = [grpc.InferRequestedOutput("labels")]
        self._changed = threading.Condition()
        self.tally = Tally()

    def send(self) -> None:
        """Send a request, and do not wait for its answer."""
        with self._changed:
            self.tally.sent += 1
        done = partial(self._done, start=time.perf_counter())
        self._client.async_infer(self._load.model, [self._input], done, outputs=self._outputs)

    def wait(self) -> None:
        """Wait until nothing is outstanding, as long as is patient."""
        with self._changed:
            self._changed.wait_for(lambda: self.tally.lost == 0, self._load.patience_s)

    def close(self) -> None:
        """Close the channel."""
        self._client.close()

    def _done(self, result: Any, error: Any, start: float) -> None:
        elapsed_ms = (time.perf_counter() - start) * 1e3
        same = error is not None or self._expected is None or self._is_expected(result)
        with self._changed:
            if error is None:
                self.tally.answered += 1
                self.tally.wrong += not same
                self.tally.latencies_ms.append(elapsed_ms)
            else:
                self._refused(error, elapsed_ms)
            self._changed.notify_all()

    def _is_expected(self, result: Any) -> bool:
        return bool(np.array_equal(result.as_numpy("labels"), self._expected))

    def _refused(self, error: Any, elapsed_ms: float) -> None:
        if error.status() == _OVERLOADED:
            self.tally.rejected += 1
            self.tally.rejections_ms.append(elapsed_ms)
        else:
            self.tally.failed += 1
        self.tally.said[f"{error.status()}: {error.message().splitlines()[0]}"] += 1


def _client(load: Load, number: int, frames: NDArray[np.uint8], expected: NDArray[np.uint8] | None) -> Tally:
    client = OpenLoop(load, frames, expected)
    start = time.perf_counter()
    if load.rate is None:
        while time.perf_counter() - start < load.seconds:
            client.send()
            client.wait()
    else:
        for turn in range(round(load.rate * load.seconds / load.clients)):
            due = start + (turn * load.clients + number) / load.rate
            time.sleep(max(0.0, due - time.perf_counter()))
            client.send()
        client.wait()
    client.tally.seconds = time.perf_counter() - start
    client.close()
    return client.tally


def _percentiles(values: Sequence[float]) -> dict[str, float]:
    if not values:
        return {}
    shares = {"p50": 50, "p90": 90, "p99": 99, "max": 100}
    return {name: round(float(np.percentile(values, share)), 2) for name, share in shares.items()}
