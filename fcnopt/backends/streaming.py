"""The pipeline behind `Runner.stream`: one thread draws frames, one a lane infers, the caller takes results in order.

A lane is a way into the engine that one thread may use while others use theirs. With one lane one frame is in flight:
least latency. With several the runtime works on several at once, and results wait for those before them.

A worker first claims a place for its result, and only then takes frames. What is held at a time is thus bounded by the
frames that wait and the places, however slow the caller is, and under the policy "latest" no frame grows old in line.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, get_args

from fcnopt.backends.closing import Closing
from fcnopt.backends.readahead import Drawn, Policy, ReadAhead
from fcnopt.errors import UsageError

if TYPE_CHECKING:
    from fcnopt.backends.base import Outputs

Lane = Callable[[Sequence[Any]], "Outputs"]
"""Infers a batch of frames, each uint8 [H, W, 3]."""


@dataclass(frozen=True)
class StreamOptions:
    """How a stream holds frames.

    Attributes:
        prefetch: Most frames held that are not yet taken for inference; at least a batch of them is. Under the policy
            "latest" one batch, whatever is said here.
        policy: "block" lets the source wait for the engine; "latest" replaces frames that wait by newer ones.
        batch: Frames that a lane takes at a time; fewer at the source's end.
    """

    prefetch: int = 4
    policy: Policy = "block"
    batch: int = 1

    def __post_init__(self) -> None:
        if self.policy not in get_args(Policy):
            raise UsageError(f"stream: policy {self.policy!r} is unknown", fix=f"use {' or '.join(get_args(Policy))}")
        for name in ("prefetch", "batch"):
            if getattr(self, name) < 1:
                raise UsageError(f"stream: {name} is {getattr(self, name)}", fix="give 1 or more")

    @property
    def depth(self) -> int:
        """Frames that wait at most."""
        return self.batch if self.policy == "latest" else max(self.prefetch, self.batch)


class Stream(Closing, Iterator["Outputs"]):
    """Results of a stream, one `Outputs` a frame, in order; nothing is drawn before the first is asked for.

    Closed by its `with` block, at its end, by an error, when it is no longer referenced, and by `close`, which any
    thread may call: a caller that waits for a result then finds the stream at its end.

    Args:
        source: Frames.
        lanes: At least one.
        options: How to hold frames.
    """

    def __init__(self, source: Iterable[Any], lanes: Sequence[Lane], options: StreamOptions) -> None:
        self._pipeline = _Pipeline(source, lanes, options)
        self._ready: deque[Outputs] = deque()
        self._each: list[Callable[[Outputs], Outputs]] = []
        # Threads know the pipeline and not this object, so that one that was dropped half-read ends them.
        self._finalizer = weakref.finalize(self, self._pipeline.close)

    def map(self, function: Callable[[Outputs], Outputs]) -> Stream:
        """Apply `function` to each result in the caller's thread, while the engine works on; returns this stream."""
        self._each.append(function)
        return self

    def __next__(self) -> Outputs:
        try:
            if not self._ready:
                self._ready.extend(self._pipeline.result())
            outputs = self._ready.popleft()
            for function in self._each:
                outputs = function(outputs)
        except BaseException:
            self.close()
            raise
        return outputs

    def close(self) -> None:
        """End the stream's threads. Inference under way is waited for, a source that hangs for a while only."""
        self._finalizer()


class _Pipeline:
    """Threads and what is on its way between them.

    Every batch has a number, in the order of the source. Its result, or the error that came instead, is put under that
    number; `result` waits for the next number.
    """

    def __init__(self, source: Iterable[Any], lanes: Sequence[Lane], options: StreamOptions) -> None:
        self._source, self._lanes, self._options = source, tuple(lanes), options
        self._changed = threading.Condition()
        self._taking = threading.Lock()  # held from taking a batch to numbering it
        self._results: dict[int, list[Outputs] | BaseException] = {}
        # A second place a lane lets it go on while its result waits; a live picture would only grow old there.
        self._places = len(self._lanes) * (2 if options.policy == "block" else 1)
        self._taken = self._given = 0
        self._closed = self._exhausted = False
        self._frames: ReadAhead | None = None
        self._workers: list[threading.Thread] = []

    def result(self) -> list[Outputs]:
        """Wait for the next batch's results.

        Raises:
            StopIteration: There are no more.
            BaseException: What the source, or inference, raised in this batch's place.
        """
        if self._frames is None and not self._closed:
            self._start()
        with self._changed:
            self._changed.wait_for(lambda: self._given in self._results or self._closed)
            if self._closed:
                raise StopIteration
            found = self._results.pop(self._given)
            self._given += 1
            self._places += 1
            self._changed.notify_all()
        if isinstance(found, BaseException):
            raise found
        return found

    def close(self) -> None:
        """End all threads. Calling it twice is fine."""
        with self._changed:
            self._closed = True
            self._results.clear()
            self._changed.notify_all()
        if self._frames is not None:
            self._frames.close()
        for worker in self._workers:
            if worker is not threading.current_thread():
                worker.join()
        self._source, self._lanes = (), ()

    def _start(self) -> None:
        self._frames = ReadAhead(self._source, self._options.depth, self._options.policy)
        for number, lane in enumerate(self._lanes):
            name = f"fcnopt-stream-lane-{number}"
            self._workers.append(threading.Thread(target=self._work, args=(lane, self._frames), name=name, daemon=True))
            self._workers[-1].start()

    def _work(self, lane: Lane, frames: ReadAhead) -> None:
        while self._claim_place():
            with self._taking:
                if self._exhausted:
                    return
                found: list[Outputs] | BaseException
                try:
                    batch = frames.take(self._options.batch)
                    found = StopIteration()
                except BaseException as error:  # noqa: BLE001  (the source's; raised again where its results are taken)
                    batch, found = [], error
                number = self._taken
                self._taken += 1
                if not batch:
                    self._exhausted = True
            if batch:
                found = _inferred(lane, batch)
                if isinstance(found, BaseException):
                    self._exhausted = True  # nobody will ask for what comes after it
            self._put(number, found)

    def _claim_place(self) -> bool:
        """Wait for a place for a result; False once closed or at the source's end."""
        with self._changed:
            self._changed.wait_for(lambda: self._places > 0 or self._closed or self._exhausted)
            if self._closed or self._exhausted:
                return False
            self._places -= 1
            return True

    def _put(self, number: int, found: list[Outputs] | BaseException) -> None:
        with self._changed:
            if not self._closed:
                self._results[number] = found
            self._changed.notify_all()


def _inferred(lane: Lane, batch: Sequence[Drawn]) -> list[Outputs] | BaseException:
    """A batch's results, one a frame, or the error that came instead."""
    try:
        outputs = lane([drawn.frame for drawn in batch])
    except BaseException as error:  # noqa: BLE001  (raised again where results are taken)
        return error
    done = time.perf_counter()

    def part(values: Any, place: int) -> Any:
        return None if values is None else values[place : place + 1]

    return [
        replace(
            outputs,
            labels=part(outputs.labels, place),
            confidence=part(outputs.confidence, place),
            logits=part(outputs.logits, place),
            latency_ms=(done - drawn.at) * 1e3,
            index=drawn.index,
            skipped=drawn.skipped,
        )
        for place, drawn in enumerate(batch)
    ]
