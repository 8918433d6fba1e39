"""Load beyond what the engine does: a bounded queue, clear rejections, nothing lost."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from serving.load import Load, Tally, run_load
from serving.memory import MemoryWatch, descendants, tree_mib
from serving.process import ServeProcess

from fcnopt.bundle import load


@pytest.fixture(scope="module")
def frame() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (1, 768, 1024, 3), dtype=np.uint8)


def test_every_request_beyond_capacity_is_answered_or_rejected(triton: None, slow: Path, frame: np.ndarray) -> None:  # noqa: ARG001
    with load(slow) as engine:
        expected = engine.run(frame).labels
    with ServeProcess(slow, "--max-queue", 3) as server:
        watch = MemoryWatch(server.process.pid, every_s=0.1)
        flood = Load(server.grpc, "slow", clients=2, rate=400.0, seconds=0.1)
        tally = run_load(flood, frame, expected=expected, memory=watch)
        assert len(descendants(server.process.pid)) > 2, "Triton and its backend are processes of their own"
        after = run_load(Load(server.grpc, "slow", clients=1, seconds=0.01), frame, expected=expected)
    assert tally.sent == 40
    assert (tally.lost, tally.failed, tally.wrong) == (0, 0, 0)
    assert tally.answered >= 4
    assert tally.rejected >= 20
    assert list(tally.said) == ["StatusCode.UNAVAILABLE: [request id: <id_unknown>] Exceeds maximum queue size"]
    assert np.median(tally.rejections_ms) < np.median(tally.latencies_ms)
    assert watch.peak_mib > 50
    assert (after.answered, after.wrong) == (1, 0)


def test_requests_that_waited_too_long_are_rejected(triton: None, slow: Path, frame: np.ndarray) -> None:  # noqa: ARG001
    with ServeProcess(slow, "--timeout-ms", 20) as server:
        tally = run_load(Load(server.grpc, "slow", clients=1, rate=1000.0, seconds=0.01), frame)
    assert tally.sent == 10
    assert (tally.lost, tally.failed) == (0, 0)
    assert tally.answered >= 1
    assert list(tally.said) == ["StatusCode.UNAVAILABLE: Request timeout expired"]


def test_a_tally_accounts_for_all_that_was_sent() -> None:
    tally, other = Tally(sent=5, answered=3, rejected=1, seconds=2.0), Tally(sent=2, failed=1, seconds=1.0)
    tally.latencies_ms, other.said = [1.0, 3.0], other.said + other.said
    tally.add(other)
    assert (tally.sent, tally.lost, tally.answers_per_s) == (7, 2, 1.5)
    assert tally.summary()["latency_ms"] == {"p50": 2.0, "p90": 2.8, "p99": 2.98, "max": 3.0}
    assert tally.summary()["rejection_ms"] == {}


def test_memory_is_that_of_a_process_with_its_children() -> None:
    program = "import sys, time; x = bytearray(64 << 20); print(len(x), flush=True); time.sleep(60)"
    shell = f"{sys.executable} -c '{program}' & wait"
    with subprocess.Popen(["sh", "-c", shell], stdout=subprocess.PIPE) as tree:
        assert tree.stdout is not None
        tree.stdout.readline()
        assert len(descendants(tree.pid)) == 2
        with MemoryWatch(tree.pid, every_s=0.01) as watch:
            time.sleep(0.2)
        assert 64 < tree_mib(tree.pid) < 128
        for process in reversed(descendants(tree.pid)):
            os.kill(process, 9)
    assert watch.peak_mib > 64
    assert abs(watch.growth_mib) < 1
