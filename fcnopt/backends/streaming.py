"""The pipeline behind `Runner.stream`: one thread draws frames, one a lane infers, the caller takes results in order.

A lane is a way into the engine that one thread may use while others use theirs. With one lane one frame is in flight:
least latency. With several the runtime works on several at once, and results wait for those before them.

A worker first claims a place for its result, and only then takes frames. What is held at a time is thus bounded by the
frames that wait and the places, however slow the caller is, and under the policy "drop-oldest" no frame grows old in
line.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

from fcnopt.backends.closing import Closing
from fcnopt.backends.outputs import Outputs, check_duration, elapsed_ms
from fcnopt.backends.readahead import Drawn, Policy, Prepare, ReadAhead, ReadOptions, Ready
from fcnopt.errors import UsageError

Lane = Callable[[Sequence[Any]], Outputs]
"""Infers a batch of frames, each uint8 [H, W, 3]."""
_PATIENCE_S = 5.0


@dataclass(frozen=True)
class _Result:
    """What came of a frame.

    Attributes:
        outputs: Of this frame alone.
        drawn: The frame, whose picture is held no longer.
        done: When its labels were there and those of all frames before it, a time of `perf_counter`.
    """

    outputs: Outputs
    drawn: Drawn
    done: float


_Found = list[_Result] | BaseException
"""Results of a batch, one a frame; or the error that came instead."""


@dataclass(frozen=True)
class StreamOptions:
    """How a stream holds frames.

    Attributes:
        prefetch: Most frames held that are not yet taken for inference; at least a batch of them is. With 0 none is
            drawn before the engine is free for it. Under the policy "drop-oldest" one batch, whatever is said here.
        policy: "block" lets the source wait for the engine; "drop-oldest" replaces frames that wait by newer ones.
        batch: Frames that a lane takes at a time; fewer at the source's end.
        max_latency_ms: Results that come later are flagged; under "drop-oldest" frames that waited as long as that
            already are thrown away for newer ones.
        stall_s: Longest time that the source may take for a frame; None waits for ever.
    """

    prefetch: int = 4
    policy: Policy = "block"
    batch: int = 1
    max_latency_ms: float | None = None
    stall_s: float | None = None

    def __post_init__(self) -> None:
        if self.policy not in get_args(Policy):
            raise UsageError(f"stream: policy {self.policy!r} is unknown", fix=f"use {' or '.join(get_args(Policy))}")
        for name, least in (("prefetch", 0), ("batch", 1)):
            if getattr(self, name) < least:
                raise UsageError(f"stream: {name} is {getattr(self, name)}", fix=f"give {least} or more")
        check_duration("stream: max_latency_ms", self.max_latency_ms)
        check_duration("stream: stall_s", self.stall_s)

    @property
    def reading(self) -> ReadOptions:
        """How the source is drawn from."""
        depth = self.batch if self.policy == "drop-oldest" else self.prefetch and max(self.prefetch, self.batch)
        max_age_s = None if self.max_latency_ms is None else self.max_latency_ms / 1e3
        return ReadOptions(depth, self.policy, max_age_s, self.stall_s)


class Stream(Closing, Iterator["Outputs"]):
    """Results of a stream, one `Outputs` a frame, in order; nothing is drawn before the first is asked for.

    Closed by its `with` block, at its end, by an error, when it is no longer referenced, and by `close`, which any
    thread may call: a caller that waits for a result then finds the stream at its end.

    Args:
        source: Frames.
        lanes: At least one.
        options: How to hold frames.
        prepare: Makes a frame of the source ready for a lane, in the source's thread.
    """

    def __init__(
        self, source: Iterable[Any], lanes: Sequence[Lane], options: StreamOptions, prepare: Prepare = Ready
    ) -> None:
        self._pipeline = _Pipeline(source, lanes, options, prepare)
        self._options = options
        self._results: deque[_Result] = deque()
        self._taking = threading.Lock()
        # Threads know the pipeline and not this object, so that one that was dropped half-read ends them, at the
        # interpreter's exit too. The garbage collector may do this in a thread that holds what one of them waits for
        # (a lane of the engine), so that it must not wait for them for ever.
        self._finalizer = weakref.finalize(self, self._pipeline.close, None, _PATIENCE_S)

    def __next__(self) -> Outputs:
        try:
            self._pipeline.check_process()  # before the lock, which a thread that is not in this process may hold
            with self._taking:
                if self._pipeline.closed:
                    self._results.clear()  # what is left of a batch
                if not self._results:
                    self._results.extend(self._pipeline.result())
                result = self._results.popleft()
            return self._finished(result)
        except BaseException:
            self.close()
            raise

    def _finished(self, result: _Result) -> Outputs:
        """The result as the caller gets it. The work on it counts; the wait for the caller where a picture is live."""
        start = time.perf_counter()
        outputs, drawn = result.outputs, result.drawn
        if drawn.ready.finish is not None:
            outputs = drawn.ready.finish(outputs)
        there = start if self._options.policy == "drop-oldest" else result.done
        latency_ms = (there - drawn.at) * 1e3 + elapsed_ms(start)
        return outputs.timed(latency_ms, self._options.max_latency_ms, (drawn.ready.problems,))

    def close(self) -> None:
        """End the stream's threads. Inference under way is waited for, a source that hangs for a while only."""
        self._pipeline.close()

    def abort(self, error: Exception) -> None:
        """Close it from outside: whoever asks for a result, or waits for one now, gets `error`."""
        self._pipeline.close(error)


class _Pipeline:
    """Threads and what is on its way between them.

    Every batch has a number, in the order of the source. Its result, or the error that came instead, is put under that
    number; `result` waits for the next number.
    """

    def __init__(self, source: Iterable[Any], lanes: Sequence[Lane], options: StreamOptions, prepare: Prepare) -> None:
        self._source, self._lanes, self._options, self._prepare = source, tuple(lanes), options, prepare
        self._changed = threading.Condition()
        self._taking = threading.Lock()  # held from taking a batch to numbering it
        self._results: dict[int, _Found] = {}
        # A second place a lane lets it go on while its result waits; a live picture would only grow old there.
        self._places = len(self._lanes) * (2 if options.policy == "block" else 1)
        self._taken = self._given = 0
        self._latest = 0.0  # when the last of the results that were given was done
        self._closed = self._exhausted = False
        self._reason: Exception | None = None
        self._process = os.getpid()
        self._frames: ReadAhead | None = None
        self._workers: list[threading.Thread] = []

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def check_process(self) -> None:
        """Raise `UsageError` in a process that was forked since: the threads are not there."""
        if os.getpid() != self._process:
            raise UsageError(
                f"stream: it belongs to process {self._process}, which forked this one ({os.getpid()})",
                fix='load and stream in each process, after the fork, or start them with multiprocessing\'s "spawn"',
            )

    def result(self) -> list[_Result]:
        """Wait for the next batch's results.

        Raises:
            StopIteration: There are no more.
            BaseException: What the source, or inference, raised in this batch's place, or what it was closed with.
        """
        with self._changed:
            if self._frames is None and not self._closed:
                self._start()
            self._changed.wait_for(lambda: self._given in self._results or self._closed)
            if self._closed:
                reason, self._reason = self._reason, None
                raise reason or StopIteration
            found = self._results.pop(self._given)
            self._given += 1
            self._places += 1
            self._changed.notify_all()
            if isinstance(found, BaseException):
                raise found
            self._latest = max(self._latest, *(result.done for result in found))
            return [replace(result, done=self._latest) for result in found]

    def close(self, reason: Exception | None = None, patience_s: float | None = None) -> None:
        """End all threads. Calling it twice is fine.

        Args:
            reason: What `result` raises next, in place of its end, where it was not closed before.
            patience_s: How long to wait for inference that is under way; None for as long as it takes.
        """
        if os.getpid() != self._process:  # in a forked child there are no threads, and who held a lock is gone
            return
        with self._changed:
            self._reason = self._reason if self._closed else reason
            self._closed = True
            self._results.clear()
            self._changed.notify_all()
        if self._frames is not None:
            self._frames.close()
        for worker in self._workers:
            if worker is not threading.current_thread():
                worker.join(patience_s)
        self._source, self._lanes, self._prepare = (), (), Ready

    def _start(self) -> None:
        self._frames = ReadAhead(self._source, self._options.reading, self._prepare)
        for number, lane in enumerate(self._lanes):
            name = f"fcnopt-stream-lane-{number}"
            worker = threading.Thread(target=self._work, args=(lane, self._frames), name=name, daemon=True)
            worker.start()
            self._workers.append(worker)  # only what runs can be waited for

    def _work(self, lane: Lane, frames: ReadAhead) -> None:
        while self._claim_place():
            with self._taking:
                if self._exhausted:
                    return
                found: _Found
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

    def _put(self, number: int, found: _Found) -> None:
        with self._changed:
            if not self._closed:
                self._results[number] = found
            self._changed.notify_all()


def _inferred(lane: Lane, batch: Sequence[Drawn]) -> _Found:
    """A batch's results, one a frame, or the error that came instead."""
    try:
        outputs = lane([drawn.ready.frame for drawn in batch])
    except BaseException as error:  # noqa: BLE001  (raised again where results are taken)
        return error
    done = time.perf_counter()

    def part(values: Any, place: int) -> Any:
        return None if values is None else values[place : place + 1]

    def result(place: int, drawn: Drawn) -> _Result:
        one = replace(
            outputs,
            labels=part(outputs.labels, place),
            confidence=part(outputs.confidence, place),
            logits=part(outputs.logits, place),
            waited_ms=drawn.waited_s * 1e3,
            index=drawn.index,
            skipped=drawn.skipped,
        )
        return _Result(one, replace(drawn, ready=replace(drawn.ready, frame=None)), done)

    return [result(place, drawn) for place, drawn in enumerate(batch)]
