from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fcnopt.backends.base import Outputs
from fcnopt.evaluate.bench import bench
from fcnopt.evaluate.confusion import ConfusionMatrix, bootstrap_drop
from fcnopt.evaluate.options import BenchOptions
from fcnopt.media.clips import Frame
from tests.engines import engine_of
from tests.evaluate.fakes import CLASSES, SMALL, FakeClip, FakeRunner, wrong_corner


def flip_every_third(labels: NDArray[np.uint8], call: int) -> NDArray[np.uint8]:
    return wrong_corner(labels) if call % 3 == 0 else labels


def test_a_perfect_reference_and_a_faulty_engine_are_told_apart() -> None:
    clip = FakeClip()
    result = bench(clip, [FakeRunner("openvino int8", wrong_corner)], FakeRunner(), SMALL)
    (engine,) = result.engines
    assert (result.truth, result.frames, result.truth_frames, result.size) == ("labels", 12, 12, (24, 32))
    assert (result.reference.accuracy.miou, result.reference.equal_labels) == (100.0, 100.0)
    assert (result.reference.name, result.reference.precision) == ("torch fp32", "fp32")
    assert (engine.name, engine.precision) == ("openvino int8", "int8")

    expected = ConfusionMatrix(CLASSES)
    for index in range(12):
        expected.add(wrong_corner(clip.truth(index).copy()), clip.truth(index))
    assert engine.accuracy.miou == pytest.approx(expected.miou, abs=1e-9)
    assert engine.accuracy.pixel_accuracy == pytest.approx(100 * (1 - 16 / (24 * 32)))
    assert engine.equal_labels == pytest.approx(100 * (1 - 16 / (24 * 32)))
    assert engine.drop.miou == pytest.approx(100 - expected.miou)
    assert engine.drop.miou_interval is not None
    low, high = engine.drop.miou_interval
    assert low <= engine.drop.miou <= high
    assert engine.versus_reference.miou == pytest.approx(expected.miou)
    assert result.reference.drop.miou == 0.0


def test_the_drop_is_against_the_truth_and_equality_against_the_reference() -> None:
    """An engine that is right where the reference is wrong gains accuracy and loses equality."""
    result = bench(FakeClip(), [FakeRunner("openvino int8")], FakeRunner(change=wrong_corner), SMALL)
    (engine,) = result.engines
    assert engine.accuracy.miou == 100.0
    assert engine.drop.miou == pytest.approx(result.reference.accuracy.miou - 100.0)
    assert engine.drop.miou < 0
    assert engine.equal_labels == pytest.approx(100 * (1 - 16 / (24 * 32)))


def test_without_labels_the_reference_is_the_truth_and_the_result_says_so() -> None:
    engines = [FakeRunner("openvino int8", wrong_corner)]
    result = bench(FakeClip(labelled=False), engines, FakeRunner(), SMALL)
    (engine,) = result.engines
    assert result.truth == "reference"
    assert result.reference.accuracy.miou == 100.0
    assert engine.drop.miou == pytest.approx(100.0 - engine.versus_reference.miou)
    assert engine.accuracy == engine.versus_reference
    assert "no label maps" in result.notes[0]


def test_flicker_is_the_share_of_labels_that_change() -> None:
    clip = FakeClip()
    result = bench(clip, [FakeRunner("int8", flip_every_third)], FakeRunner(), replace(SMALL, warmup_frames=3))
    truth = [clip.truth(i) for i in range(12)]
    ours = [flip_every_third(t.copy(), i) for i, t in enumerate(truth)]
    base, own = (100 * np.mean([np.mean(a != b) for a, b in itertools.pairwise(s)]) for s in (truth, ours))
    assert own > base > 0
    assert result.reference.flicker == pytest.approx(base)
    assert result.reference.flicker_excess == 0.0
    assert result.engines[0].flicker == pytest.approx(own)
    assert result.engines[0].flicker_excess == pytest.approx(own - base)


def test_turns_interleave_with_a_rotating_order_after_the_warm_up() -> None:
    log: list[tuple[str, int]] = []
    engines = [FakeRunner(name, log=log) for name in ("a", "b")]
    result = bench(FakeClip(frames=10), engines, FakeRunner("ref", log=log), SMALL)
    assert [name for name, _ in log[:6]] == ["ref", "ref", "a", "a", "b", "b"]
    measured = [name for name, _ in log[6:]]
    rounds = [measured[:12], measured[12:24], measured[24:]]
    assert [list(dict.fromkeys(r)) for r in rounds] == [["ref", "a", "b"], ["a", "b", "ref"], ["b", "ref", "a"]]
    assert [len(r) for r in rounds] == [12, 12, 6]
    assert result.warmup_frames == 2
    assert [len(row.fps_rounds) for row in result.rows] == [3, 3, 3]
    assert [row.latency.frames for row in result.rows] == [10, 10, 10]


def test_each_engine_reads_the_clip_itself() -> None:
    clip = FakeClip()
    bench(clip, [FakeRunner("a"), FakeRunner("b")], FakeRunner("ref"), replace(SMALL, warmup_frames=0))
    assert clip.opened == 2 * 3 + 1  # three engines in warm-up and measurement, and the reader of label maps


def test_intervals_say_how_long_their_blocks_are() -> None:
    """The clip has 15 frames a second; blocks are a second of it, and four of them at least."""
    assert bench(FakeClip(frames=64), [], FakeRunner(), SMALL).interval_block_frames == 15
    assert bench(FakeClip(frames=12), [], FakeRunner(), SMALL).interval_block_frames == 3
    folder = FakeClip(frames=64)
    folder.fps = 0.0
    assert bench(folder, [], FakeRunner(), SMALL).interval_block_frames == 4


def test_blocks_are_counted_in_frames_with_label_maps() -> None:
    clip = FakeClip(frames=128)
    clip._frames = [f if f.index % 2 == 0 else replace(f, labels=None) for f in clip._frames]
    assert bench(clip, [], FakeRunner(), SMALL).interval_block_frames == 8  # of 64, at 7.5 a second


def test_intervals_are_over_the_blocks_named() -> None:
    clip = FakeClip(frames=64)
    engine = FakeRunner("int8", flip_every_third)
    result = bench(clip, [engine], FakeRunner(), replace(SMALL, warmup_frames=3))
    reference, ours = ConfusionMatrix(CLASSES), ConfusionMatrix(CLASSES)
    for index in range(64):
        reference.add(clip.truth(index), clip.truth(index))
        ours.add(flip_every_third(clip.truth(index).copy(), index), clip.truth(index))
    expected = bootstrap_drop(reference.frames, ours.frames, samples=200, block_frames=15)
    assert result.engines[0].drop.miou_interval == expected.miou
    assert result.engines[0].drop.iou_intervals == expected.iou


def test_without_intervals_there_are_no_blocks() -> None:
    assert bench(FakeClip(frames=1), [], FakeRunner(), SMALL).interval_block_frames is None
    assert bench(FakeClip(), [], FakeRunner(), replace(SMALL, bootstrap_samples=0)).interval_block_frames is None


def test_engines_of_other_sizes_are_compared_at_the_clips_size() -> None:
    engines = [FakeRunner("half", size=(12, 16)), FakeRunner("double", size=(48, 64))]
    result = bench(FakeClip(), engines, FakeRunner(), SMALL)
    assert [row.frame_size for row in result.rows] == [(24, 32), (12, 16), (48, 64)]
    assert [e.frame_sizes for e in engines] == [{(12, 16)}, {(48, 64)}]
    assert all(row.equal_labels > 70 for row in result.rows)
    assert result.reference.equal_labels == 100.0


def test_one_frame_is_enough_and_has_no_interval() -> None:
    result = bench(FakeClip(frames=1), [FakeRunner("int8", wrong_corner)], FakeRunner())
    (engine,) = result.engines
    assert engine.drop.miou > 0
    assert engine.drop.miou_interval is None
    assert set(engine.drop.iou_intervals) == {None}
    assert engine.flicker is None
    assert engine.flicker_excess is None


def test_max_frames_stops_early() -> None:
    runner = FakeRunner()
    result = bench(FakeClip(), [], runner, replace(SMALL, max_frames=5, warmup_frames=9))
    assert (result.frames, result.warmup_frames) == (5, 5)
    assert runner.calls == 5 + 5


def test_round_frames_follow_the_fastest_engine() -> None:
    """Counted are 8 to 32; seven more start and drain the pipeline."""
    fast = bench(FakeClip(frames=40), [], FakeRunner())
    slow = bench(FakeClip(frames=16), [], FakeRunner(sleep_s=0.04))
    assert fast.round_frames == 39
    assert slow.round_frames == 15
    assert bench(FakeClip(frames=40), [], FakeRunner(), BenchOptions(prefetch=2)).round_frames == 37


def test_a_turn_is_no_longer_than_the_clip() -> None:
    assert bench(FakeClip(frames=9), [], FakeRunner()).round_frames == 9


def test_engines_of_one_name_are_numbered() -> None:
    result = bench(FakeClip(), [FakeRunner("x"), FakeRunner("x")], FakeRunner("x"), SMALL)
    assert [row.name for row in result.rows] == ["x", "x (2)", "x (3)"]


def test_the_reference_among_the_engines_runs_once() -> None:
    reference = FakeRunner()
    result = bench(FakeClip(), [reference, FakeRunner("int8")], reference, SMALL)
    assert [row.name for row in result.rows] == ["torch fp32", "int8"]


def test_precision_is_read_from_the_name_or_told() -> None:
    options = replace(SMALL, precisions={"mine": "fp16"})
    engines = [FakeRunner(n) for n in ("openvino-int8", "mine", "point8")]
    result = bench(FakeClip(), engines, FakeRunner(), options)
    assert [row.precision for row in result.rows] == ["fp32", "int8", "fp16", ""]


class Watcher:
    def __init__(self) -> None:
        self.seen: list[tuple[int, bool, list[str], float]] = []

    def on_frame(self, frame: Frame, reference: NDArray[np.uint8], engines: Mapping[str, NDArray[np.uint8]]) -> None:
        wrong = float(np.mean(engines["int8"] != reference))
        self.seen.append((frame.index, frame.labels is not None, list(engines), wrong))


def test_observers_see_every_frame_in_order() -> None:
    watcher, steps = Watcher(), list[tuple[str, float]]()
    engines = [FakeRunner("int8", wrong_corner), FakeRunner("b")]
    bench(FakeClip(), engines, FakeRunner(), SMALL, observers=[watcher], progress=lambda s, f: steps.append((s, f)))
    assert [s[0] for s in watcher.seen] == list(range(12))
    assert all(s[1:] == (True, ["int8", "b"], 16 / (24 * 32)) for s in watcher.seen)
    assert steps[:3] == [("warm up", pytest.approx(i / 3)) for i in (1, 2, 3)]
    fractions = [f for s, f in steps if s == "bench"]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0


def test_samples_are_the_middle_frame_and_the_most_different_of_each_stretch() -> None:
    def wrong_at_2_and_11(labels: NDArray[np.uint8], call: int) -> NDArray[np.uint8]:
        return wrong_corner(labels) if call in (2, 11) else labels

    engines = [FakeRunner("int8", wrong_at_2_and_11)]
    options = replace(SMALL, warmup_frames=0, keep_samples=4)
    result = bench(FakeClip(), engines, FakeRunner(), options)
    indices = [s.frame.index for s in result.samples]
    assert len(indices) == 4
    assert {2, 6, 11} < set(indices)
    sample = result.samples[0]
    assert sample.differing == pytest.approx(100 * 16 / (24 * 32))
    assert np.count_nonzero(sample.engines["int8"] != sample.reference) == 16
    assert sample.frame.labels is not None


def test_no_samples_are_kept_unasked() -> None:
    assert bench(FakeClip(), [], FakeRunner(), SMALL).samples == ()


def test_memory_is_the_process_and_its_growth() -> None:
    kept: list[NDArray[np.uint8]] = []

    def hoard(labels: NDArray[np.uint8], call: int) -> NDArray[np.uint8]:
        if call == 0:
            kept.append(np.ones(64 << 20, np.uint8))
        return labels

    result = bench(FakeClip(), [FakeRunner("hoarder", hoard)], FakeRunner(), SMALL)
    memory, base = result.engines[0].memory, result.reference.memory
    if memory.process_peak_mib is None:
        pytest.skip("this system does not tell resident memory (no /proc)")
    assert memory.growth_mib is not None
    assert base.growth_mib is not None
    assert memory.growth_mib > 60 > base.growth_mib
    assert memory.process_peak_mib > 64
    assert len(kept) == 1


class RgbRunner(FakeRunner):
    """Takes RGB, in which the label map of a `FakeClip` is the last channel."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.spec = replace(self.spec, frame=replace(self.spec.frame, color="RGB"))

    def infer(self, frames: Any) -> Outputs:
        return super().infer(frames[..., ::-1])


def test_a_loaded_engine_gets_the_same_frames_as_its_reference_where_the_model_takes_rgb() -> None:
    """A loaded engine's own stream takes BGR as a camera gives it, and turns it itself."""
    with engine_of(RgbRunner("openvino int8")) as engine:
        result = bench(FakeClip(), [engine], RgbRunner("torch fp32"), SMALL)
    assert (result.reference.accuracy.miou, result.reference.equal_labels) == (100.0, 100.0)
    assert (result.engines[0].accuracy.miou, result.engines[0].equal_labels) == (100.0, 100.0)
