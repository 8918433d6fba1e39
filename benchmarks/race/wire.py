"""What a contender and the program that times it say to each other, over a pipe.

A message is one line of JSON and then as many bytes as its "bytes" says. The contender speaks first, when it is ready;
from then on it answers requests until its input ends:

    {"do": "run", "frames": n}    ->  the next n frames of the clip, end to end; the labels are the bytes
    {"do": "network", "runs": n}  ->  the network alone, on one frame that is ready for it
    {"do": "rewind"}              ->  nothing; the clip begins again

This module needs NumPy alone: it runs in every contender's environment.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

STAGES = ("decode", "prepare", "network", "finish", "latency")
"""Of a frame, timed in ms; "latency" is from the decoded frame to its labels."""


@dataclass
class Lap:
    """What a contender did with a few frames.

    Attributes:
        labels: uint8 [h, w] a frame, at the frame's own size, in order.
        times_ms: Of each frame, by stage; a stage that is not apart from others is empty.
        seconds: From the first frame asked for to the last one done: filling and draining a pipeline is in it.
        peak_mib: Most resident memory of the process so far; None where the system does not tell.
    """

    labels: list[NDArray[np.uint8]] = field(default_factory=list)
    times_ms: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in STAGES})
    seconds: float = 0.0
    peak_mib: float | None = None


class Contender(Protocol):
    """What a contender's program gives to `serve`."""

    def rewind(self) -> None:
        """Begin the clip again."""

    def run(self, frames: int) -> Lap:
        """Run the clip's next frames, end to end; fewer at its end."""

    def network(self, runs: int) -> list[float]:
        """Milliseconds a frame of the network alone, on a frame that is ready for it."""


def serve(open_contender: Callable[[], Contender], warm_up_frames: int = 2) -> None:
    """Open a contender, warm it up, and answer requests on standard input until it ends.

    What the contender's libraries print goes to standard error.
    """
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    contender = open_contender()
    if warm_up_frames:
        contender.run(warm_up_frames)
        contender.rewind()
    send(answers, {"ready": True, "peak_mib": peak_mib()})
    for line in sys.stdin.buffer:
        request = json.loads(line)
        if request["do"] == "network":
            send(answers, {"network_ms": contender.network(request["runs"]), "peak_mib": peak_mib()})
        elif request["do"] == "rewind":
            contender.rewind()
            send(answers, {"peak_mib": peak_mib()})
        else:
            _send_lap(answers, contender.run(request["frames"]))


def _send_lap(answers: BinaryIO, lap: Lap) -> None:
    header = {"shapes": [labels.shape for labels in lap.labels], "times_ms": lap.times_ms, "seconds": lap.seconds}
    blob = b"".join(np.ascontiguousarray(labels).tobytes() for labels in lap.labels)
    send(answers, header | {"peak_mib": peak_mib()}, blob)


def read_lap(header: dict[str, Any], blob: bytes) -> Lap:
    """The lap that `serve` sent."""
    lap = Lap(times_ms=header["times_ms"], seconds=header["seconds"], peak_mib=header["peak_mib"])
    start = 0
    for height, width in header["shapes"]:
        flat = np.frombuffer(blob, np.uint8, height * width, start)
        lap.labels.append(flat.reshape(height, width))
        start += height * width
    return lap


def send(stream: BinaryIO, header: dict[str, Any], blob: bytes = b"") -> None:
    """Send a message."""
    stream.write(json.dumps(header | {"bytes": len(blob)}).encode() + b"\n" + blob)
    stream.flush()


def receive(stream: BinaryIO) -> tuple[dict[str, Any], bytes]:
    """The next message.

    Raises:
        EOFError: The other end is gone.
    """
    line = stream.readline()
    if not line.endswith(b"\n"):
        raise EOFError
    header: dict[str, Any] = json.loads(line)
    blob = stream.read(header["bytes"])
    if len(blob) != header["bytes"]:
        raise EOFError
    return header, blob


def peak_mib() -> float | None:
    """Most resident memory that this process had, in MiB; None where the system does not tell.

    Linux's VmHWM is of the program alone; `getrusage` would count what started it.
    """
    try:
        found = re.search(r"^VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text("ascii"), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) / 1024 if found else None
