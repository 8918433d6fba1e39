from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fcnopt.backends.base import Outputs
from fcnopt.evaluate.bench import bench
from fcnopt.evaluate.turns import Entrant
from fcnopt.media.clips import Frame, fit_frame
from fcnopt.spec import FrameSpec
from tests.evaluate.fakes import SMALL, FakeClip, FakeRunner

SMALL_BY_ITSELF = replace(SMALL, round_frames=None)


def test_times_are_what_the_engine_needs() -> None:
    slow, fast = FakeRunner("slow", sleep_s=0.01, inference_ms=10.0), FakeRunner("ref", inference_ms=1.0)
    result = bench(FakeClip(), [slow], fast, SMALL)
    (engine,) = result.engines
    assert engine.fps < 150  # 100, with room for threads that wake late
    assert engine.latency.p50_ms >= 10.0
    assert engine.fps_inference == pytest.approx(100.0)
    assert engine.speedup_inference == pytest.approx(0.1)
    assert engine.speedup == pytest.approx(engine.fps / result.reference.fps)
    assert engine.speedup < 1
    assert engine.stages.inference_ms == pytest.approx(10.0)
    assert result.reference.speedup == 1.0


def test_latency_does_not_count_waiting_in_the_read_ahead_queue() -> None:
    """Every frame of this clip is decoded long before the engine comes to it."""
    result = bench(FakeClip(frames=8), [], FakeRunner(sleep_s=0.02), replace(SMALL, round_frames=8, prefetch=8))
    assert 20.0 <= result.reference.latency.p50_ms < 60.0  # 90 with the waiting


class SlowClip(FakeClip):
    """Decoding a frame takes `read_s`."""

    read_s = 0.03

    def images(self) -> Iterator[Frame]:
        for frame in super().images():
            time.sleep(self.read_s)
            yield frame


def test_latency_does_not_count_waiting_for_the_decoder() -> None:
    result = bench(SlowClip(frames=8), [], FakeRunner(sleep_s=0.002), replace(SMALL, round_frames=8))
    assert result.reference.stages.decode_ms >= 30.0
    assert 2.0 <= result.reference.latency.p50_ms < 15.0  # 32 with the waiting


def test_latency_counts_fitting_the_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow_fit(image: NDArray[np.uint8], spec: FrameSpec) -> NDArray[np.uint8]:
        time.sleep(0.02)
        return fit_frame(image, spec)

    monkeypatch.setattr("fcnopt.evaluate.turns.fit_frame", slow_fit)
    half = FakeRunner("half", size=(12, 16), sleep_s=0.002, inference_ms=2.0)
    row = bench(FakeClip(), [half], FakeRunner(), SMALL).engines[0]
    assert half.frame_sizes == {(12, 16)}
    assert row.stages.preprocess_ms >= 20.0
    assert row.latency.mean_ms >= row.stages.preprocess_ms + row.stages.inference_ms


def test_starting_the_pipeline_is_not_charged_to_every_turn() -> None:
    """Decoding of 120 ms beside inference of 100 ms: 8.3 frames a second, whatever the length of a turn."""
    clip = SlowClip(frames=8)
    clip.read_s = 0.12
    result = bench(clip, [], FakeRunner(sleep_s=0.1, inference_ms=100.0), SMALL)
    assert len(result.reference.fps_rounds) == 2
    assert 7.5 < result.reference.fps < 9.0  # 6.9 with the start of each turn of 4


def test_the_pace_of_a_turn_is_taken_while_the_reader_is_fed() -> None:
    """The last frames are done after the reader has read them all."""
    with contextlib.closing(Entrant(FakeRunner(sleep_s=0.03), "a", FakeClip(frames=20), prefetch=4)) as entrant:
        pace = entrant.run(16).pace
        assert not pace.whole
        assert 1 <= pace.frames < 15
        assert pace.seconds >= 0.03 * pace.frames
        last = entrant.run(16).pace  # the clip's last four, which are all read before the first of them is done
        assert (last.frames, last.whole) == (4, True)


def test_a_turn_timed_whole_is_not_in_the_rate_where_others_are_not() -> None:
    """Of 20 frames the last four are a turn too short to be timed but whole."""
    options = replace(SMALL, round_frames=16)
    result = bench(FakeClip(frames=20), [], FakeRunner(sleep_s=0.03, inference_ms=30.0), options)
    assert len(result.reference.fps_rounds) == 1
    assert result.reference.fps == pytest.approx(result.reference.fps_rounds[0])
    assert result.reference.latency.frames == 20


def test_turns_of_one_frame_are_timed_whole() -> None:
    slow = FakeRunner(sleep_s=0.03, inference_ms=30.0)
    result = bench(SlowClip(frames=3), [], slow, replace(SMALL, round_frames=1))
    assert len(result.reference.fps_rounds) == 3
    assert result.reference.fps < 16.7  # a frame needs 60 ms when none overlaps with it


def test_a_runtime_without_times_has_no_inference_rate() -> None:
    result = bench(FakeClip(), [FakeRunner("a", inference_ms=0.0)], FakeRunner(), SMALL)
    assert result.engines[0].fps_inference is None
    assert result.engines[0].speedup_inference is None


class TwoAtOnce(FakeRunner):
    """Works on two batches side by side, each taking `sleep_s`."""

    in_flight = 2

    def lanes(self, count: int) -> Sequence[Callable[[Any], Outputs]]:
        return [self.infer] * count


def test_labels_in_bursts_do_not_count_as_a_higher_rate() -> None:
    """Two frames side by side, 40 ms each: 50 a second, though the second one comes right after the first."""
    pair = TwoAtOnce("pair", sleep_s=0.04, inference_ms=40.0)
    result = bench(FakeClip(frames=32), [pair], FakeRunner(), replace(SMALL, round_frames=16))
    row = result.engines[0]
    assert (row.mode, row.in_flight, row.batch) == ("throughput", 2, 1)
    assert 35.0 < row.fps < 55.0  # 60 if the clock started at the first frame, of a turn of 16
    assert row.fps_inference == pytest.approx(50.0)
    assert row.latency.p50_ms >= 40.0
    assert (result.reference.mode, result.reference.in_flight) == ("latency", 1)


class BatchOfFour(FakeRunner):
    """Built for four frames at a time, which take 40 ms together."""

    batch = 4

    def infer(self, frames: Any) -> Outputs:
        assert frames.shape[0] == 4
        time.sleep(0.04)
        return Outputs(np.ascontiguousarray(frames[..., 0]), inference_ms=40.0)


def test_an_engine_of_a_batch_is_benched_in_batches() -> None:
    result = bench(FakeClip(frames=32), [BatchOfFour("four")], FakeRunner(), SMALL_BY_ITSELF)
    row = result.engines[0]
    assert result.round_frames % 4 == 0
    assert result.round_frames >= 16
    assert (row.batch, row.in_flight, row.mode) == (4, 1, "latency")
    assert row.accuracy.miou == 100.0
    assert 70.0 < row.fps < 110.0  # 100
    assert row.fps_inference == pytest.approx(100.0)
    assert row.latency.p50_ms >= 40.0
