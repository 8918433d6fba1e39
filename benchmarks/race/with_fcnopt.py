"""A bundle of fcnopt's, in either mode, as `fcnopt bench` runs it: `Runner.stream` over the clip."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any

import numpy as np

from fcnopt import load
from fcnopt.backends.base import Runner
from fcnopt.evaluate.turns import Entrant, in_flight
from fcnopt.media import open_clip
from race.scripts import Task, parser_of
from race.wire import Lap, serve

_ANY_SIZE = (360, 480)  # for a bundle that takes any
_STAGES = {"decode": "decode", "prepare": "preprocess", "network": "inference", "finish": "postprocess"}


class Bundle:
    """A loaded bundle and its place in the clip.

    Args:
        runner: The engine.
        clip: The video.
    """

    def __init__(self, runner: Runner, clip: Path) -> None:
        self._runner = runner
        self._clip = open_clip(clip)
        self._entrant = self._enter()

    def _enter(self) -> Entrant:
        return Entrant(self._runner, self._runner.name, self._clip)

    def rewind(self) -> None:
        """Begin the clip again."""
        self._entrant.close()
        self._entrant = self._enter()

    def run(self, frames: int) -> Lap:
        """Run the next frames by `Runner.stream`."""
        start = time.perf_counter()
        turn = self._entrant.run(frames)
        seconds = time.perf_counter() - start
        times = {ours: [getattr(t, f"{theirs}_ms") for t in turn.times] for ours, theirs in _STAGES.items()}
        times["latency"] = [t.latency_ms for t in turn.times]
        return Lap(turn.labels, times, seconds)

    def network(self, runs: int) -> list[float]:
        """Milliseconds a frame of the engine on one frame, normalization and argmax included: they are in its graph."""
        size = self._runner.spec.frame
        shape = size.height or _ANY_SIZE[0], size.width or _ANY_SIZE[1], 3
        frame = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        lead = in_flight(self._runner)
        if lead > 1:
            start = time.perf_counter()
            count = sum(1 for _ in self._runner.stream(itertools.repeat(frame, runs * lead)))
            return [(time.perf_counter() - start) / count * 1e3]
        return [self._runner.infer(frame[None]).inference_ms for _ in range(runs)]


def open_bundle(options: Any) -> Bundle:
    """Load it, with its hashes and its known answer checked."""
    return Bundle(load(options.bundle, mode=options.mode), Path(Task.read(options.task).clip))


def main() -> None:
    """Parse and serve."""
    parser = parser_of(__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--mode", choices=("latency", "throughput"), default="latency")
    options = parser.parse_args()
    serve(lambda: open_bundle(options))


if __name__ == "__main__":
    main()
