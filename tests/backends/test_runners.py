"""What every runner must do, on each CPU runtime."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from fcnopt.backends.base import Outputs
from fcnopt.errors import UsageError
from tests.backends.tiny import CLASSES, tiny_spec

ALL = ("labels", "confidence", "logits")


def workers() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("fcnopt-stream")]


@pytest.mark.parametrize("color", ["BGR", "RGB"])
def test_labels_confidence_and_logits_are_the_network_s(open_tiny, frames, reference, color):
    spec = tiny_spec(outputs=ALL, color=color)
    want = reference(spec, frames[:1])
    with open_tiny(spec) as runner:
        out = runner.run(frames[:1])
    assert out.labels.dtype == np.uint8
    assert out.labels.shape == (1, 24, 32)
    assert len(np.unique(out.labels)) > 2, "a network that always says the same proves nothing"
    np.testing.assert_array_equal(out.labels, want.argmax(1))
    np.testing.assert_allclose(out.logits, want, rtol=1e-4, atol=1e-4)
    soft = np.exp(want - want.max(1, keepdims=True))
    np.testing.assert_allclose(out.confidence, (soft / soft.sum(1, keepdims=True)).max(1), rtol=1e-4)
    assert out.confidence.dtype == out.logits.dtype == np.float32
    assert out.logits.shape == (1, CLASSES, 24, 32)


def test_only_the_spec_s_outputs_are_given(open_tiny, frames):
    with open_tiny() as runner:
        out = runner.run(frames[:1])
    assert out.confidence is None
    assert out.logits is None
    assert 0 < out.inference_ms <= out.latency_ms


def test_a_dynamic_model_takes_any_batch_and_size(open_tiny, frames, reference):
    spec = tiny_spec(None, None)
    with open_tiny(spec, batch=None) as runner:
        for some in (frames[:3], frames[:2, :16, :20], frames[:1]):
            np.testing.assert_array_equal(runner.run(some).labels, reference(spec, some).argmax(1))


def test_outputs_stay_valid_after_the_next_run(open_tiny, frames):
    with open_tiny(tiny_spec(outputs=ALL)) as runner:
        first = runner.run(frames[:1])
        labels, logits = first.labels.copy(), first.logits.copy()
        second = runner.run(frames[1:2])
    assert not np.array_equal(second.labels, labels)
    np.testing.assert_array_equal(first.labels, labels)
    np.testing.assert_array_equal(first.logits, logits)


def test_frames_may_be_read_only_or_strided_and_are_not_changed(open_tiny, frames):
    with open_tiny() as runner:
        want = runner.run(frames[:1]).labels
        wide = np.zeros((1, 24, 64, 3), np.uint8)
        wide[:, :, ::2] = frames[:1]
        np.testing.assert_array_equal(runner.run(wide[:, :, ::2]).labels, want)
        before = frames.copy()
        frames.flags.writeable = False
        np.testing.assert_array_equal(runner.run(frames[:1]).labels, want)
        np.testing.assert_array_equal(frames, before)


@pytest.mark.parametrize(
    ("bad", "found"),
    [
        (np.zeros((1, 24, 33, 3), np.uint8), "uint8 [1, 24, 33, 3]"),
        (np.zeros((24, 32, 3), np.uint8), "uint8 [24, 32, 3]"),
        (np.zeros((1, 24, 32, 4), np.uint8), "uint8 [1, 24, 32, 4]"),
        (np.zeros((0, 24, 32, 3), np.uint8), "uint8 [0, 24, 32, 3]"),
        (np.zeros((1, 24, 32, 3), np.float32), "float32 [1, 24, 32, 3]"),
        ("a path", "str []"),
        (None, "NoneType []"),
    ],
)
def test_wrong_frames_are_named_with_what_was_expected(open_tiny, bad, found):
    with open_tiny() as runner, pytest.raises(UsageError, match="frames must be uint8") as caught:
        runner.run(bad)
    assert f"found {found}" in caught.value.message
    assert "24, 32, 3]" in caught.value.message


def test_frames_in_gpu_memory_are_not_copied_behind_the_user_s_back(open_tiny, frames):
    from tests.backends.fakes import FakeCuda, GpuArray

    with open_tiny() as runner, pytest.raises(UsageError, match=r"must be in host memory, found .*GpuArray"):
        runner.run(GpuArray(FakeCuda(), frames[:1]))


def test_a_torch_tensor_on_the_cpu_is_taken(open_tiny, frames):
    import torch

    with open_tiny() as runner:
        want = runner.run(frames[:1]).labels
        np.testing.assert_array_equal(runner.run(torch.from_numpy(frames[:1])).labels, want)


def test_an_engine_of_one_frame_runs_several_one_by_one(open_tiny, frames):
    with open_tiny() as runner:
        assert runner.batch in (1, None)  # torch has none
        together = runner.run(frames[:3])
        apart = [runner.run(frames[i : i + 1]) for i in range(3)]
    for name in ("labels", "confidence", "logits"):
        if getattr(together, name) is not None:
            joined = np.concatenate([getattr(part, name) for part in apart])
            np.testing.assert_allclose(getattr(together, name), joined, rtol=1e-4, atol=1e-5)


def test_a_fixed_batch_runs_as_often_as_it_takes_and_its_last_one_is_filled_up(frames, monkeypatch, open_tiny):
    from tests.backends.fakes import FakeCuda, GpuArray

    with open_tiny() as runner:
        seen = []
        monkeypatch.setattr(runner, "batch", 2)
        monkeypatch.setattr(runner, "infer", lambda part: seen.append(len(part)) or Outputs(part[..., 0]))
        for count in (4, 3, 1):
            np.testing.assert_array_equal(runner.run(frames[:count]).labels, frames[:count, ..., 0])
        assert seen == [2, 2, 2, 2, 2]
        with pytest.raises(UsageError, match=r"\[a multiple of 2, 24, 32, 3\], found uint8 \[3, 24, 32, 3\]"):
            runner.run(GpuArray(FakeCuda(), frames[:3]))


def test_stream_gives_what_run_gives_in_order(open_tiny, frames):
    with open_tiny() as runner:
        want = [runner.run(f[None]).labels for f in frames]
        got = list(runner.stream(iter(frames), prefetch=2))
        assert not workers()
        again = runner.run(frames[:1])
    assert len(got) == len(frames)
    for out, labels in zip(got, want, strict=True):
        np.testing.assert_array_equal(out.labels, labels)
        assert 0 < out.inference_ms <= out.latency_ms
    np.testing.assert_array_equal(again.labels, want[0])


def test_an_empty_stream_ends(open_tiny):
    with open_tiny() as runner:
        assert list(runner.stream([])) == []


def test_stream_draws_a_bounded_number_of_frames_ahead(open_tiny, frames):
    drawn = 0

    def endless() -> Iterator[np.ndarray]:
        nonlocal drawn
        for frame in itertools.cycle(frames):
            drawn += 1
            yield frame

    with open_tiny() as runner:
        stream = runner.stream(endless(), prefetch=2)
        next(stream)
        time.sleep(0.3)
        # Taken: 1. Waiting: 2 prefetched and 1 result; in work: 2 drawn but not yet put, 2 in the runtime.
        assert 2 <= drawn <= 9
        stream.close()
        assert not workers()
        seen = drawn
        time.sleep(0.1)
        assert drawn == seen


def test_the_source_s_error_comes_after_the_frames_before_it(open_tiny, frames):
    class BrokenError(RuntimeError):
        pass

    def source() -> Iterator[np.ndarray]:
        yield from frames[:3]
        raise BrokenError("camera unplugged")

    got = []
    with open_tiny() as runner:
        with pytest.raises(BrokenError, match="camera unplugged"):
            got.extend(runner.stream(source()))
        assert not workers()
        runner.run(frames[:1])


def test_a_wrong_frame_in_a_stream_is_an_error(open_tiny, frames):
    with open_tiny() as runner, pytest.raises(UsageError, match="frames must be uint8"):
        list(runner.stream([frames[0], frames[0][:5]]))
    assert not workers()


def test_closing_twice_is_fine(open_tiny):
    runner = open_tiny()
    runner.close()
    runner.close()


def test_latency_counts_from_the_moment_the_source_gave_the_frame(open_tiny, frames):
    with open_tiny() as runner:
        stream = runner.stream(iter(frames), prefetch=8)
        next(stream)
        time.sleep(0.2)
        rest = list(stream)
    # Two results at most were ready before the pause; the frames behind them waited through it.
    assert rest[-1].latency_ms > 150
    assert rest[-1].latency_ms > rest[-1].inference_ms
