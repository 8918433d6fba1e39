"""A served bundle, as its clients find it: right labels over HTTP and gRPC, times, and a clean stop.

    python -m serving.visit BUNDLE FRAMES.npy LABELS.npy --clients 1,2,4 --seconds 20      (in benchmarks/)

FRAMES are uint8 [N, H, W, 3]; LABELS what the engine says of them elsewhere. Prints what was found as JSON, whatever
it is: the caller judges it.
"""

from __future__ import annotations

import argparse
import json
import time
import urllib.request
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from serving.asker import Asker, Protocol
from serving.load import Load, run_load
from serving.memory import descendants, tree_mib
from serving.process import ServeProcess

_MODEL = "engine"
_STOPPED_S = 10.0
Frames = NDArray[np.uint8]


def visit(bundle: Path, frames: Frames, labels: Frames, clients: list[int], seconds: float) -> dict[str, Any]:
    """Serve, ask, load, stop."""
    start = time.perf_counter()
    with ServeProcess(bundle, "--model-name", _MODEL, "--timeout-ms", 600_000, "--max-queue", 64) as server:
        found: dict[str, Any] = {"start_s": round(time.perf_counter() - start, 2)}
        found["asked"] = {one: asked(server, one, frames, labels) for one in get_args(Protocol)}
        found["ready"] = _health(server)
        found["clients"] = {count: loaded(server, count, seconds, frames[:1], labels[:1]) for count in clients}
        found["mib"] = round(tree_mib(server.process.pid), 1)
        processes = descendants(server.process.pid)
        start = time.perf_counter()
        found["exit_code"] = server.stop()
        found["stop_s"] = round(time.perf_counter() - start, 2)
        found["left"] = _left(processes)
        found["said"] = server.said[-500:]
    return found


def asked(server: ServeProcess, protocol: Protocol, frames: Frames, labels: Frames) -> dict[str, Any]:
    """Each frame in a request of its own, one after another."""
    equal, times_ms = 0, []
    with Asker(server, protocol, _MODEL) as asker:
        asker.ask(frames[:1])
        for frame, expected in zip(frames, labels, strict=True):
            start = time.perf_counter()
            answer = asker.ask(frame[None], outputs=("labels",))["labels"]
            times_ms.append(1e3 * (time.perf_counter() - start))
            equal += bool(np.array_equal(answer[0], expected))
    shares = {f"p{share}": round(float(np.percentile(times_ms, share)), 2) for share in (50, 99)}
    return {"frames": len(frames), "equal": equal, "latency_ms": shares}


def loaded(server: ServeProcess, clients: int, seconds: float, frame: Frames, labels: Frames) -> dict[str, Any]:
    """So many clients, each sending the next request when it has an answer."""
    load = Load(server.grpc, _MODEL, clients=clients, seconds=seconds, patience_s=120.0)
    return run_load(load, frame, expected=labels).summary()


def _health(server: ServeProcess) -> dict[str, bool]:
    """What those who watch a server look at."""
    found = {}
    pages = {"health": f"{server.http}/v2/health/ready", "metrics": f"127.0.0.1:{server.ports[2]}/metrics"}
    for name, page in pages.items():
        with urllib.request.urlopen(f"http://{page}", timeout=30) as answer:
            found[name] = answer.status == 200
    return found


def _left(processes: list[int]) -> int:
    """How many of the server's processes still run some time after it stopped."""
    end = time.monotonic() + _STOPPED_S
    while (left := sum(1 for one in processes if Path(f"/proc/{one}").exists())) and time.monotonic() < end:
        time.sleep(0.05)
    return left


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("frames", type=Path)
    parser.add_argument("labels", type=Path)
    parser.add_argument("--clients", default="1,2,4", help="how many at once, one number after another")
    parser.add_argument("--seconds", type=float, default=20.0, help="how long each load lasts")
    given = parser.parse_args()
    frames, labels = (np.load(path, allow_pickle=False) for path in (given.frames, given.labels))
    counts = [int(count) for count in given.clients.split(",")]
    print(json.dumps(visit(given.bundle, frames, labels, counts, given.seconds)))


if __name__ == "__main__":
    main()
