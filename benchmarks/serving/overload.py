"""A served engine at a multiple of what it can do: nothing lost, the queue bounded, rejections clear, memory flat.

    python -m serving.overload BUNDLE --minutes 10 --times 2 --out overload.json      (in benchmarks/)

First clients ask as fast as they are answered: that is the capacity. Then requests leave on schedule at `--times` that
rate. Prints what became of them as JSON; exits with 1 where a request was lost, failed or answered wrongly, or the
memory grew.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fcnopt.backends.machine import describe_machine
from fcnopt.bundle import Bundle
from fcnopt.selftest import SELFTEST
from serving.load import Load, run_load
from serving.memory import MemoryWatch
from serving.process import ServeProcess

_CAPACITY_S = 20.0
_GROWTH = 0.02  # of the memory at the start, that still counts as flat
_GROWTH_MIB = 8.0  # and at least this: what allocators keep


@dataclass(frozen=True)
class Overload:
    """What is to be done.

    Attributes:
        bundle: What is served; its known-answer frame is what each request holds.
        seconds: How long it is overloaded.
        times: Rate of requests, in times the capacity.
        clients: Processes that ask.
        max_queue: Of the server.
    """

    bundle: Path
    seconds: float
    times: float = 2.0
    clients: int = 4
    max_queue: int = 16


def measure(work: Overload) -> dict[str, Any]:
    """Serve, measure the capacity, overload, and stop; see the module."""
    bundle = Bundle.read(work.bundle)
    with np.load(work.bundle / SELFTEST, allow_pickle=False) as known:
        frame = known["frame"]
    options = ("--model-name", "engine", "--timeout-ms", 600_000, "--max-queue", work.max_queue)
    with ServeProcess(work.bundle, *options) as server:
        asked = {"address": server.grpc, "model": "engine", "clients": work.clients, "patience_s": 300.0}
        capacity = run_load(Load(**asked, seconds=min(_CAPACITY_S, work.seconds)), frame)
        rate = work.times * capacity.answers_per_s
        watch = MemoryWatch(server.process.pid, every_s=max(0.2, work.seconds / 300))
        found = run_load(Load(**asked, rate=rate, seconds=work.seconds), frame, memory=watch)
        code = server.stop()
    return {
        "bundle": bundle.manifest.name,
        "size": list(frame.shape[1:3]),
        "clients": work.clients,
        "times": work.times,
        "max_queue": work.max_queue,
        "capacity": capacity.summary(),
        "overload": found.summary(),
        "memory_mib": {
            "first": round(watch.samples[0][1], 1),
            "peak": round(watch.peak_mib, 1),
            "growth": round(watch.growth_mib, 1),
            "flat": is_flat(watch),
            "samples": [[round(value, 1) for value in sample] for sample in watch.samples[:: _thinned(watch)]],
        },
        "exit_code": code,
        "machine": describe_machine(),
    }


def _thinned(watch: MemoryWatch) -> int:
    """The step that leaves at most sixty samples."""
    return -(-len(watch.samples) // 60)


def is_flat(watch: MemoryWatch) -> bool:
    """Whether memory stayed where it was, but for what allocators keep."""
    return watch.growth_mib <= max(_GROWTH_MIB, _GROWTH * watch.samples[0][1])


def is_good(found: dict[str, Any]) -> bool:
    """Whether every request was answered or rejected, memory was flat, and the server stopped well."""
    load = found["overload"]
    sound = not any(load[name] for name in ("lost", "failed", "wrong")) and load["answered"] and load["rejected"]
    return bool(sound and found["memory_mib"]["flat"] and found["exit_code"] == 0)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--times", type=float, default=2.0)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--out", type=Path, help="write the JSON here too")
    given = parser.parse_args()
    found = measure(Overload(given.bundle, 60 * given.minutes, given.times, given.clients))
    text = json.dumps(found, indent=1)
    print(text)
    if given.out is not None:
        given.out.write_text(text + "\n", encoding="utf-8")
    sys.exit(0 if is_good(found) else 1)


if __name__ == "__main__":
    main()
