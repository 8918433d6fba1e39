"""Serving: NVIDIA Triton answers for a bundle's engine over HTTP and gRPC.

The bundle is checked and opened first (signature, hashes, known answer), and only then is there anything to connect
to. Requests hold frames as the camera gives them; frames of several requests are run as one batch, in the order in
which they came. A queue that is full rejects at once; what was accepted is answered, also when the server is stopped.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from fcnopt.bundle import load
from fcnopt.serving.answers import BITS, CAMERA, FRAMES, PROBLEMS, Answers, Served
from fcnopt.serving.model import ServedModel
from fcnopt.serving.options import ServeOptions
from fcnopt.serving.place import optional
from fcnopt.serving.server import TritonServer

__all__ = ["BITS", "CAMERA", "FRAMES", "PROBLEMS", "ServeOptions", "Served", "ServedModel", "serve"]

_LOOK_S = 0.5  # between two looks at whether the server still runs


def serve(
    bundle: str | Path,
    *,
    options: ServeOptions | None = None,
    ready: Callable[[ServedModel], None] | None = None,
    stop: threading.Event | None = None,
) -> Served:
    """Serve a bundle until it is stopped: by `stop`, or in the main thread by SIGTERM or SIGINT.

    Stopping, it refuses new requests and answers those that it had accepted.

    Args:
        bundle: The folder engines/NAME.
        options: Where it listens, and how.
        ready: Called once it answers.
        stop: Set it from another thread to stop.

    Returns:
        What it did.

    Raises:
        BundleError: The bundle is damaged, not signed by a trusted key, or its engine answers wrongly.
        BackendError: nvidia-pytriton, the runtime or the device is missing; a port is in use; Triton did not start, or
            ended by itself.
        UsageError: A choice is not possible.
    """
    options = options or ServeOptions()
    optional("pytriton")
    stop = stop or threading.Event()
    with load(bundle, mode=options.mode, trusted_keys=options.trusted_keys) as engine, _stopped_by_signals(stop):
        model = ServedModel.of(engine, options)
        answers = Answers(engine, options.max_latency_ms, options.plausibility)
        with TritonServer(model, answers.answer, options) as server:
            if ready is not None:
                ready(model)
            while not stop.wait(_LOOK_S):
                if not server.is_alive():
                    raise server.failed("ended")
    return answers.served


@contextlib.contextmanager
def _stopped_by_signals(stop: threading.Event) -> Iterator[None]:
    """Let SIGTERM and SIGINT set `stop`, the first time; a second one does what it did before."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def handle(_number: int, _frame: FrameType | None) -> None:
        stop.set()
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in before:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
