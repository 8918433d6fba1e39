from __future__ import annotations

import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("openvino", reason="the script runs on it")

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from race import with_openvino
from race.scripts import Task

_BUSY_S = 0.05


class _OneRequest:
    """A queue of one request: what starts waits for the frame before it, and every frame takes as long."""

    def __init__(self, _compiled: Any, _jobs: int) -> None:
        self._under_way: list[tuple[float, Any]] = []

    def set_callback(self, callback: Any) -> None:
        self._callback = callback

    def start_async(self, _inputs: Any, data: Any) -> None:
        self.wait_all()
        self._under_way.append((time.perf_counter(), data))

    def wait_all(self) -> None:
        output = SimpleNamespace(data=np.zeros((1, 2, 4, 6), np.float32))
        for start, data in self._under_way:
            time.sleep(max(0.0, start + _BUSY_S - time.perf_counter()))
            self._callback(SimpleNamespace(latency=_BUSY_S * 1e3, get_output_tensor=lambda _: output), data)
        self._under_way = []


def test_waiting_for_a_free_request_is_no_latency(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is it of fcnopt's streams: a camera's frames do not queue up."""
    monkeypatch.setattr(with_openvino.ov, "AsyncInferQueue", _OneRequest)
    compiled = SimpleNamespace(create_infer_request=lambda: None)
    task = Task("", (4, 6), "RGB", 1.0, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    monkeypatch.setattr(Task, "frames", lambda _: iter([np.zeros((4, 6, 3), np.uint8)] * 8))
    lap = with_openvino.OpenVinoQueue(task, compiled, in_graph=False).run(8)
    assert len(lap.labels) == 8
    assert lap.seconds > 8 * _BUSY_S
    assert min(lap.times_ms["latency"]) >= _BUSY_S * 1e3
    assert np.median(lap.times_ms["latency"]) < 1.6 * _BUSY_S * 1e3


def test_latency_counts_preparation_work_and_the_order() -> None:
    def trip(decoded: float, prepared: float, done: float, worked: float) -> with_openvino.Trip:
        return with_openvino.Trip(decoded, prepared, done, worked)

    # alone; decoded ahead, waits for the first; overtakes the one before it, whose labels are handed on first
    found = with_openvino.latencies_ms(
        [trip(0.0, 1.0, 5.0, 4.0), trip(1.0, 2.0, 9.0, 4.0), trip(3.0, 4.0, 8.0, 3.0), trip(10.0, 11.0, 14.0, 3.0)]
    )
    assert found == [5e3, 5e3, 4e3, 4e3]
