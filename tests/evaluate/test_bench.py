from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fcnopt.backends.base import Outputs
from fcnopt.errors import BackendError, MediaError, UsageError
from fcnopt.evaluate.bench import BenchOptions, bench
from fcnopt.evaluate.confusion import ConfusionMatrix
from fcnopt.media.clips import Frame
from fcnopt.spec import ClassSpec, FrameSpec, ModelSpec
from tests.evaluate.fakes import CLASSES, FakeClip, FakeRunner, wrong_corner

SMALL = BenchOptions(warmup_frames=2, round_frames=4, bootstrap_samples=200)


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


def test_times_are_what_the_engine_needs() -> None:
    slow, fast = FakeRunner("slow", sleep_s=0.01, inference_ms=10.0), FakeRunner("ref", inference_ms=1.0)
    result = bench(FakeClip(), [slow], fast, SMALL)
    (engine,) = result.engines
    assert engine.fps < 100
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


def test_a_runtime_without_times_has_no_inference_rate() -> None:
    result = bench(FakeClip(), [FakeRunner("a", inference_ms=0.0)], FakeRunner(), SMALL)
    assert result.engines[0].fps_inference is None
    assert result.engines[0].speedup_inference is None


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
    fast = bench(FakeClip(frames=40), [], FakeRunner())
    slow = bench(FakeClip(frames=9), [], FakeRunner(sleep_s=0.04))
    assert fast.round_frames == 32
    assert slow.round_frames == 8


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


# --- what goes wrong ---


def test_zero_frames() -> None:
    with pytest.raises(MediaError, match=r"fake\.mp4: the clip has no frames"):
        bench(FakeClip(frames=0), [], FakeRunner())


def test_a_label_map_of_another_size() -> None:
    clip = FakeClip()
    clip._frames[5] = replace(clip._frames[5], labels=np.zeros((12, 16), np.uint8))
    with pytest.raises(MediaError, match=r"fake\.mp4, frame 5: label map is 16x12, the frame is 32x24"):
        bench(clip, [], FakeRunner(), SMALL)


def test_a_label_map_with_unknown_values() -> None:
    clip = FakeClip()
    clip._frames[3] = replace(clip._frames[3], labels=np.full((24, 32), 9, np.uint8))
    with pytest.raises(MediaError, match=r"fake\.mp4, frame 3: label map has the values 9, expected 0\.\.3"):
        bench(clip, [], FakeRunner(), SMALL)
    assert bench(clip, [], FakeRunner(), replace(SMALL, unknown_labels="ignore")).reference.accuracy.miou == 100.0


def test_a_labelled_clip_without_any_label_map() -> None:
    clip = FakeClip(labelled=False)
    clip.labelled = True
    with pytest.raises(MediaError, match="none of the 12 frames has a label map"):
        bench(clip, [], FakeRunner(), SMALL)


def test_frames_without_label_map_are_left_out_of_the_accuracy() -> None:
    clip = FakeClip()
    clip._frames[5] = replace(clip._frames[5], labels=None)
    result = bench(clip, [FakeRunner("a")], FakeRunner(), SMALL)
    assert (result.frames, result.truth_frames) == (12, 11)
    assert result.notes == ("11 of 12 frames have label maps; accuracy is measured on these.",)


def test_label_maps_with_ignored_pixels_only() -> None:
    clip = FakeClip()
    clip._frames = [replace(f, labels=np.full((24, 32), 255, np.uint8)) for f in clip._frames]
    with pytest.raises(MediaError, match="no pixel of any class"):
        bench(clip, [], FakeRunner(), SMALL)


def test_another_number_of_classes() -> None:
    with pytest.raises(UsageError, match="int8 has 11 classes, the reference torch fp32 has 4"):
        bench(FakeClip(), [FakeRunner("int8", classes=ClassSpec.named("camvid"))], FakeRunner())


def test_other_class_names_are_noted() -> None:
    renamed = replace(CLASSES, names=("a", "b", "c", "d"))
    result = bench(FakeClip(), [FakeRunner("int8", classes=renamed)], FakeRunner(), SMALL)
    assert result.notes == ("int8 names its classes differently than the reference; labels are compared by number.",)


def fail_at(call_to_fail: int, error: Exception) -> Any:
    def change(labels: NDArray[np.uint8], call: int) -> NDArray[np.uint8]:
        if call == call_to_fail:
            raise error
        return labels

    return change


def test_an_engine_that_fails_is_named_with_the_frame() -> None:
    failing = FakeRunner("tensorrt int8", fail_at(2 + 7, BackendError("out of memory", fix="free some")))
    with pytest.raises(BackendError, match="tensorrt int8, frame 7: out of memory") as caught:
        bench(FakeClip(), [failing], FakeRunner(), SMALL)
    assert caught.value.fix == "free some"


def test_a_bug_in_an_engine_keeps_its_type_and_gets_a_note() -> None:
    failing = FakeRunner("tensorrt int8", fail_at(2 + 4, ZeroDivisionError("oops")))
    with pytest.raises(ZeroDivisionError) as caught:
        bench(FakeClip(), [failing], FakeRunner(), SMALL)
    assert caught.value.__notes__ == ["while running tensorrt int8, frame 4"]
    assert caught.value.__cause__ is None


def test_a_frame_that_does_not_fit_an_engine_names_both() -> None:
    strict = FakeRunner("strict")
    strict.spec = ModelSpec(FrameSpec(12, 16, resize="none"), CLASSES)
    with pytest.raises((UsageError, MediaError), match="strict, frame 0"):
        bench(FakeClip(), [strict], FakeRunner(), SMALL)


class TruncatedClip(FakeClip):
    def images(self) -> Iterator[Frame]:
        for frame in super().images():
            if frame.index == 6:
                raise MediaError("fake.mp4, frame 6: truncated", fix="copy the file again")
            yield frame

    def __iter__(self) -> Iterator[Frame]:
        yield from (replace(f, labels=self.truth(f.index)) for f in self.images())


def test_a_broken_clip_is_not_blamed_on_an_engine() -> None:
    with pytest.raises(MediaError) as caught:
        bench(TruncatedClip(), [FakeRunner("a")], FakeRunner(), SMALL)
    assert caught.value.message == "fake.mp4, frame 6: truncated"


class LosingRunner(FakeRunner):
    def stream(self, source: Any, *, prefetch: int = 4) -> Iterator[Outputs]:
        for index, outputs in enumerate(super().stream(source, prefetch=prefetch)):
            if index != 1:
                yield outputs


def test_an_engine_that_loses_a_frame() -> None:
    with pytest.raises(BackendError, match="gave labels for 1 of 2 frames"):
        bench(FakeClip(), [LosingRunner("lossy")], FakeRunner(), SMALL)


class FloatRunner(FakeRunner):
    def infer(self, frames: Any) -> Outputs:
        return Outputs(super().infer(frames).labels.astype(np.int64))


def test_labels_of_the_wrong_type() -> None:
    with pytest.raises(
        BackendError, match=r"odd, frame 0: labels must be uint8 \[1, H, W\], found int64 \[1, 24, 32\]"
    ):
        bench(FakeClip(), [FloatRunner("odd")], FakeRunner(), SMALL)


def test_labels_outside_the_classes() -> None:
    odd = FakeRunner("odd", lambda labels, _: labels + 2)
    with pytest.raises(BackendError, match=r"odd, frame 0: labels have the values 4, 5, expected 0\.\.3"):
        bench(FakeClip(), [odd], FakeRunner(), SMALL)


@pytest.mark.parametrize(
    ("name", "value"), [("max_frames", 0), ("warmup_frames", -1), ("round_frames", 0), ("prefetch", 0)]
)
def test_impossible_options_are_refused(name: str, value: int) -> None:
    with pytest.raises(UsageError, match=f"bench: {name} is {value}"):
        BenchOptions(**{name: value})
