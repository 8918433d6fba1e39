"""A loaded engine: the status of frames, and what it keeps of them."""

from __future__ import annotations

import gc
import itertools
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fcnopt.backends.base import FrameStatus, Outputs
from fcnopt.backends.onnxruntime import OnnxRuntimeRunner
from fcnopt.backends.openvino import OpenVinoRunner
from fcnopt.backends.readahead import Policy
from fcnopt.errors import UsageError
from fcnopt.plausibility import Plausibility, Watch
from tests.backends.lanes import Lanes, frame
from tests.backends.tiny import tiny_onnx, tiny_spec
from tests.engines import engine_of


@pytest.fixture
def pictures(rng: np.random.Generator) -> NDArray[np.uint8]:
    """Eight smooth random frames of the tiny network's size."""
    coarse = rng.integers(0, 256, (8, 6, 8, 3)).astype(np.uint8)
    return coarse.repeat(4, axis=1).repeat(4, axis=2)


def test_every_frame_of_a_run_and_of_a_stream_has_a_status(tmp_path: Path, pictures: Any) -> None:
    for batch in (1, 3):
        model = tiny_onnx(tmp_path / f"{batch}.onnx", tiny_spec(), batch=batch)
        with engine_of(OnnxRuntimeRunner(model, tiny_spec())) as engine:
            assert engine.run(pictures).status == (FrameStatus(),) * 8
            assert [out.status for out in engine.stream(pictures)] == [(FrameStatus(),)] * 8


def test_run_flags_what_comes_after_the_deadline() -> None:
    with engine_of(Lanes(batch=2, work=lambda number: time.sleep(0.5 if number == 7 else 0))) as engine:
        late = engine.run(np.stack([frame(1), frame(2), frame(7)]), max_latency_ms=400)
        assert [status.late for status in late.status] == [True] * 3
        assert late.latency_ms > 400
        assert not engine.run(frame(1)[None], max_latency_ms=5000).status[0].late
        with pytest.raises(UsageError, match="max_latency_ms is 0"):
            engine.run(frame(1)[None], max_latency_ms=0)


def test_implausible_frames_are_named_in_run_and_stream_and_inferred_all_the_same(pictures: Any) -> None:
    black, white = np.zeros((24, 32, 3), np.uint8), np.full((24, 32, 3), 255, np.uint8)
    frames = [pictures[0], black, white, pictures[1]]
    runner = Lanes()
    runner.spec = tiny_spec()
    with engine_of(runner) as engine:
        want = [(), ("black",), ("overexposed",), ()]
        together = engine.run(np.stack(frames))
        assert [status.problems for status in together.status] == want
        assert not together.status[1].ok
        outs = list(engine.stream(frames))
        assert [out.status[0].problems for out in outs] == want
        np.testing.assert_array_equal(np.concatenate([out.labels for out in outs]), together.labels)
        for out in (engine.run(np.stack(frames), plausibility=None), *engine.stream(frames, plausibility=None)):
            assert all(status == FrameStatus() for status in out.status)


def test_a_watch_remembers_a_camera_s_frames_from_run_to_run(pictures: Any) -> None:
    runner = Lanes()
    runner.spec = tiny_spec()
    with engine_of(runner) as engine:
        watch = Watch(Plausibility(frozen_frames=2))
        seen = [engine.run(pictures[:1], plausibility=watch).status[0].problems for _ in range(4)]
        assert seen == [(), (), ("frozen",), ("frozen",)]
        assert engine.run(pictures[:1]).status[0].ok, "a call without a watch knows nothing of those before it"


def test_a_camera_that_changes_its_size_is_named_and_its_labels_have_the_new_size(pictures: Any) -> None:
    runner = Lanes()
    runner.spec = tiny_spec()
    large = pictures[3].repeat(2, 0).repeat(2, 1)
    with engine_of(runner) as engine:
        outs = list(engine.stream([pictures[0], large, pictures[1], large]))
        assert [out.status[0].problems for out in outs] == [(), ("wrong-size",), (), ("wrong-size",)]
        assert [out.labels.shape for out in outs] == [(1, 24, 32), (1, 48, 64)] * 2
        steady = list(engine.stream([large, large]))
        assert all(out.status[0].ok for out in steady), "a camera of another size than the model is no fault"
        (out,) = engine.stream([large], plausibility=Plausibility(size=(24, 32)))
        assert out.status[0].problems == ("wrong-size",)


class DlpackArray:
    """In GPU memory, and says so by DLPack alone; what reads it on the host fails."""

    shape, dtype = (1, 2, 2, 3), "uint8"

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0


def test_frames_in_gpu_memory_are_not_looked_at() -> None:
    from tests.backends.fakes import FakeCuda, GpuArray

    runner = Lanes()
    runner.infer = lambda _: Outputs(np.zeros((1, 2, 2), np.uint8))  # type: ignore[method-assign]
    with engine_of(runner) as engine:
        for frames in (GpuArray(FakeCuda(), frame(0)[None]), DlpackArray()):
            assert engine.run(frames).status == (FrameStatus(),)
    with engine_of(Lanes(batch=2)) as engine, pytest.raises(UsageError, match="a multiple of 2"):
        engine.run(DlpackArray())


@pytest.mark.parametrize("policy", ["block", "drop-oldest"])
def test_a_camera_may_use_its_memory_again(policy: Policy) -> None:
    def camera() -> Iterator[NDArray[np.uint8]]:
        memory = frame(0)
        for number in range(30):
            memory[:] = number
            yield memory
            time.sleep(0.002)

    with engine_of(Lanes(work=lambda _: time.sleep(0.005))) as engine:
        outs = list(engine.stream(camera(), policy=policy, prefetch=4, plausibility=None))
    assert [int(out.labels[0, 0, 0]) for out in outs] == [out.index for out in outs]
    assert outs[-1].index == 29


def test_confidence_comes_at_the_frame_s_own_size(tmp_path: Path, pictures: Any) -> None:
    spec = tiny_spec(outputs=("labels", "confidence"))
    large = pictures[0].repeat(2, 0).repeat(2, 1)
    with engine_of(OnnxRuntimeRunner(tiny_onnx(tmp_path / "m.onnx", spec), spec)) as engine:
        (out,) = engine.stream([large])
        own = engine.run(pictures[:1])
    assert own.confidence is not None
    assert out.confidence is not None
    assert out.confidence.dtype == np.float32
    np.testing.assert_array_equal(out.labels, own.labels.repeat(2, 1).repeat(2, 2))
    np.testing.assert_array_equal(out.confidence, own.confidence.repeat(2, 1).repeat(2, 2))


def test_thousands_of_frames_leave_memory_and_threads_as_they_were(tmp_path: Path, pictures: Any) -> None:
    from fcnopt.evaluate.memory import resident_mib

    def camera() -> Iterator[NDArray[np.uint8]]:
        """Of two sizes, so that labels are brought back to both."""
        for number in itertools.count():
            yield pictures[number % 8].repeat(1 + number % 2, 0).repeat(1 + number % 2, 1)

    model = tiny_onnx(tmp_path / "tiny.onnx", tiny_spec())
    samples = []
    with engine_of(OpenVinoRunner(model, tiny_spec())) as engine:
        watch, begun = Watch(), threading.active_count()
        stream = engine.stream(camera(), max_latency_ms=1.0)
        for number in range(3000):
            next(stream)
            if number % 3 == 0:
                engine.run(pictures[:1], plausibility=watch)
            if number % 200 == 0:
                samples.append((resident_mib() or 0.0, threading.active_count()))
        stream.close()
    mib = [sample[0] for sample in samples[4:]]
    assert max(mib) - min(mib) < 4, mib
    assert len({sample[1] for sample in samples}) == 1
    assert threading.active_count() == begun, threading.enumerate()


def test_a_caller_that_pauses_makes_a_live_stream_keep_nothing_of_the_frames_it_misses() -> None:
    count = 0

    def camera() -> Iterator[NDArray[np.uint8]]:
        nonlocal count
        for count in itertools.count():
            yield replace_frame(count)

    kept: list[Any] = []

    def replace_frame(number: int) -> NDArray[np.uint8]:
        import weakref

        image = frame(number)
        kept.append(weakref.ref(image))
        return image

    with engine_of(Lanes()) as engine, engine.stream(camera(), policy="drop-oldest") as stream:
        next(stream)
        while count < 2000:
            time.sleep(0.01)
        gc.collect()
        assert sum(ref() is not None for ref in list(kept)) <= 6
        assert next(stream).index is not None
        assert next(stream).skipped > 100
