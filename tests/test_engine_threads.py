"""A loaded engine in the hands of many threads, and its end at any moment."""

from __future__ import annotations

import gc
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fcnopt.backends import streaming
from fcnopt.backends.base import Outputs
from fcnopt.backends.onnxruntime import OnnxRuntimeRunner
from fcnopt.backends.openvino import OpenVinoRunner
from fcnopt.engine import Engine
from fcnopt.errors import UsageError
from tests.backends.lanes import Lanes, frame, labels, numbered, threads
from tests.backends.tiny import tiny_onnx, tiny_spec
from tests.engines import engine_of, in_threads, script

OpenEngine = Callable[..., Engine]


@pytest.fixture(params=["openvino", "openvino throughput", "onnxruntime"])
def open_engine(request: pytest.FixtureRequest, tmp_path: Path) -> OpenEngine:
    """Opens the tiny network as an engine."""

    def opened(batch: int = 1) -> Engine:
        model = tiny_onnx(tmp_path / f"{batch}.onnx", tiny_spec(), batch=batch)
        if request.param == "onnxruntime":
            return engine_of(OnnxRuntimeRunner(model, tiny_spec(), mode="throughput"))
        mode = "throughput" if "throughput" in request.param else "latency"
        return engine_of(OpenVinoRunner(model, tiny_spec(), mode=mode))  # type: ignore[arg-type]

    return opened


@pytest.fixture
def pictures(rng: np.random.Generator) -> NDArray[np.uint8]:
    """Eight smooth random frames of the tiny network's size."""
    coarse = rng.integers(0, 256, (8, 6, 8, 3)).astype(np.uint8)
    return coarse.repeat(4, axis=1).repeat(4, axis=2)


def test_runs_and_streams_of_many_threads_answer_as_one_does(open_engine: OpenEngine, pictures: Any) -> None:
    with open_engine() as engine, open_engine() as other:
        want = [engine.run(picture[None]).labels for picture in pictures]
        assert len({label.tobytes() for label in want}) == 8

        def runs(one: Engine, first: int) -> bool:
            order = [(first + i) % 8 for i in range(40)]
            return all(np.array_equal(one.run(pictures[i][None]).labels, want[i]) for i in order)

        def streams(one: Engine, in_flight: int | None) -> bool:
            outs = one.stream(itertools.islice(itertools.cycle(pictures), 40), in_flight=in_flight)
            return all(np.array_equal(out.labels, want[(out.index or 0) % 8]) for out in outs)

        found = in_threads(
            *(lambda i=i, one=one: runs(one, i) for i in range(3) for one in (engine, other)),
            *(lambda n=n, one=one: streams(one, n) for n in (None, 1, 3) for one in (engine, other)),
        )
        assert found == [True] * 12
    assert not threads()


def test_a_lane_serves_one_thread_at_a_time_and_all_are_used() -> None:
    class Strict(Lanes):
        def lanes(self, count: int) -> Any:
            busy = [threading.Lock() for _ in range(count)]

            def lane(place: int, frames: Any) -> Outputs:
                assert busy[place].acquire(blocking=False), "two threads in one lane"
                try:
                    used.add(place)
                    return self.infer(frames)
                finally:
                    busy[place].release()

            return [lambda frames, place=place: lane(place, frames) for place in range(count)]

    used: set[int] = set()
    runner = Strict(2, work=lambda _: time.sleep(0.002))
    with engine_of(runner) as engine:
        found = in_threads(
            *[lambda: labels([engine.run(frame(3)[None]) for _ in range(20)]) == [3] * 20] * 4,
            *[lambda: labels(list(engine.stream(numbered(20)))) == list(range(20))] * 2,
            lambda: labels(list(engine.stream(numbered(20), in_flight=3))) == list(range(20)),
        )
    assert found == [True] * 7
    assert used == {0, 1, 2}
    assert runner.most_at_once == 3


def test_a_gpu_s_lanes_are_lent_to_threads_one_by_one(rng: np.random.Generator) -> None:
    from fcnopt.backends.tensorrt import TensorRtRunner
    from tests.backends.fakes import FakeCuda, fake_trt

    cuda = FakeCuda()
    images = rng.integers(0, 256, (8, 4, 6, 3), np.uint8)
    trt = fake_trt(cuda)

    def right(outs: list[Outputs]) -> bool:
        return all(np.array_equal(out.labels[0], images[i % 8, ..., 0] % 5) for i, out in enumerate(outs))

    with engine_of(TensorRtRunner(b"plan", tiny_spec(4, 6), cuda=cuda, trt=trt, mode="throughput")) as engine:  # type: ignore[arg-type]
        found = in_threads(
            *[lambda: right([engine.run(images[i % 8][None]) for i in range(40)])] * 3,
            *[lambda n=n: right(list(engine.stream((images[i % 8] for i in range(40)), in_flight=n))) for n in (2, 3)],
        )
    assert found == [True] * 5
    assert len(trt.engine.contexts) == 3, "one more lane for three in flight, and no new ones for each stream"
    assert not cuda.memory
    assert not cuda.streams


def test_a_stream_at_full_speed_does_not_starve_a_thread_that_runs_single_frames() -> None:
    turns: list[int] = []
    with engine_of(Lanes(work=lambda number: turns.append(number) or time.sleep(0.003))) as engine:  # type: ignore[func-returns-value]
        with engine.stream(frame(1) for _ in itertools.count()) as stream:
            reader = threading.Thread(target=lambda: [None for _ in stream], daemon=True)
            reader.start()
            while turns.count(1) < 5:
                time.sleep(0.005)
            before = len(turns)
            for _ in range(20):
                engine.run(frame(2)[None])
            during = turns[before:]
        reader.join(10)
        assert during.count(2) == 20
        assert during.count(1) <= 45, "each waits for at most the one at work and the one before it"


def test_closing_while_others_work_ends_each_of_them_with_a_result_or_one_clear_error(
    open_engine: OpenEngine, pictures: Any
) -> None:
    for delay_s in (0.0, 0.05):
        engine = open_engine()

        def runs(engine: Engine = engine) -> None:
            while True:
                engine.run(pictures[:1])

        def streams(engine: Engine = engine) -> None:
            for out in engine.stream(itertools.cycle(pictures)):
                assert out.labels.shape == (1, 24, 32)

        def close(engine: Engine = engine, delay_s: float = delay_s) -> None:
            time.sleep(delay_s)
            engine.close()

        *found, one, two = in_threads(runs, streams, runs, streams, close, close)
        assert [str(error).split("\n")[0] for error in found] == ["tiny: this engine is closed"] * 4
        assert (one, two) == (None, None)
        assert not threads()
        with pytest.raises(UsageError, match="tiny: this engine is closed"):
            engine.run(pictures[:1])


def test_inference_under_way_is_finished_before_the_runtime_is_freed() -> None:
    class Freed(Lanes):
        closed = 0

        def close(self) -> None:
            assert self.at_once == 0, "it was freed while it ran"
            self.closed += 1

    runner = Freed(work=lambda _: time.sleep(0.2))
    engine = engine_of(runner)
    found = in_threads(
        lambda: labels([engine.run(frame(5)[None])]),
        lambda: (time.sleep(0.05), engine.close()),
        lambda: (time.sleep(0.05), engine.close()),
    )
    assert found[0] == [5]
    assert runner.closed == 1


def test_closing_wakes_a_reader_that_waits_for_a_stalled_camera() -> None:
    release = threading.Event()

    def camera() -> Iterator[NDArray[np.uint8]]:
        yield frame(0)
        release.wait(60)

    engine = engine_of(Lanes())
    stream = engine.stream(camera())
    assert next(stream).index == 0
    threading.Timer(0.1, engine.close).start()
    with pytest.raises(UsageError, match="is closed"):
        next(stream)
    release.set()


def test_streams_that_were_dropped_are_not_remembered() -> None:
    with engine_of(Lanes()) as engine:
        for _ in range(50):
            next(engine.stream(numbered(100)))
        gc.collect()
        assert len(engine._streams) <= 1
        assert not threads()


def test_a_stream_collected_by_a_thread_that_holds_its_lane_does_not_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the garbage collector may do: the stream's thread waits for the lane, and the collector for that thread."""
    monkeypatch.setattr(streaming, "_PATIENCE_S", 0.2)
    held: list[Any] = []

    def work(number: int) -> None:
        if number == 7:
            time.sleep(0.1)  # now the stream's thread waits for this lane
            held.clear()

    with engine_of(Lanes(work=work)) as engine:
        held.append(engine.stream(frame(1) for _ in itertools.count()))
        next(held[0])
        assert in_threads(lambda: labels([engine.run(frame(7)[None])]), within_s=30) == [[7]]
        assert labels([engine.run(frame(3)[None])]) == [3]
    for thread in threading.enumerate():
        if thread.name.startswith("fcnopt-stream"):
            thread.join(10)
    assert not threads()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_in_a_forked_process_an_engine_says_so_and_does_not_hang(tmp_path: Path) -> None:
    done = script(
        """
        import os, warnings
        warnings.simplefilter("ignore")
        runs = iter(lambda: engine.run(frames[:1]), None)
        stream = engine.stream(itertools.cycle(frames))
        next(runs), next(stream)
        child = os.fork()
        if not child:
            try:
                engine.run(frames[:1])
            except UsageError as error:
                print(error.message.split(" (")[0].replace(str(os.getppid()), "PARENT"), flush=True)
            try:
                next(stream), next(stream)  # one result may be there already
            except UsageError as error:
                print(error.message.split(",")[0].replace(str(os.getppid()), "PARENT"), flush=True)
            engine.close()
            raise SystemExit(7)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), len(next(stream).labels), len(next(runs).labels))
        """,
        tmp_path,
    )
    assert done.stdout.splitlines() == [
        "tiny: this engine was loaded by process PARENT before it forked this one",
        "stream: it belongs to process PARENT",
        "7 1 1",
    ], done.stderr
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("ends", ["", "raise SystemExit(0)", "del engine", "camera.clear()"])
def test_the_interpreter_ends_cleanly_with_a_stream_half_read(tmp_path: Path, ends: str) -> None:
    done = script(
        f"""
        camera = list(frames)
        stream = engine.stream(itertools.cycle(camera), in_flight=2)
        print(next(stream).index, next(stream).index, flush=True)
        {ends}
        """,
        tmp_path,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "0 1\n", "")
