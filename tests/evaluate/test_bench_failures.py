from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fcnopt.backends.base import Outputs
from fcnopt.errors import BackendError, MediaError, UsageError
from fcnopt.evaluate.bench import BenchOptions, bench
from fcnopt.media.clips import Frame
from fcnopt.spec import ClassSpec, FrameSpec, ModelSpec
from tests.evaluate.fakes import CLASSES, SMALL, FakeClip, FakeRunner


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
    assert result.notes[0] == "11 of 12 frames have label maps; accuracy is measured on these."


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
    assert result.notes == (
        "12 frames are few: drops of classes that are rare in them say little.",
        "int8 names its classes differently than the reference; labels are compared by number.",
    )


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
    def _open_stream(self, *arguments: Any, **choices: Any) -> Any:
        return (outputs for outputs in super()._open_stream(*arguments, **choices) if outputs.index != 1)


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
    ("name", "value"), [("max_frames", 0), ("warmup_frames", -1), ("round_frames", 0), ("prefetch", -1)]
)
def test_impossible_options_are_refused(name: str, value: int) -> None:
    with pytest.raises(UsageError, match=f"bench: {name} is {value}"):
        BenchOptions(**{name: value})
