"""Many threads and two engines in one process; deadlines; a camera that is faster than the engine."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from faults.case import Fault
from numpy.typing import NDArray

import fcnopt
from fcnopt.backends.base import Outputs
from fcnopt.engine import Engine
from fcnopt.evaluate.memory import resident_mib
from vehicle_steps.rows import Figures, Labels, Row, Work, demand_equal, equal_labels, median, tried

THREADS, DEADLINES = "threads", "deadlines"
_WORKERS = 4
_CAMERA_FPS = 30
_TIGHT, _WIDE = 0.5, 10.0  # deadlines, in times the engine's own latency


def threads(work: Work) -> list[Row]:
    """Rows of the step `threads`."""
    return [
        tried(
            THREADS,
            f"{_WORKERS} threads, each on two engines (latency, throughput), every second one by a stream",
            "label maps equal to those of one thread",
            lambda: _threads(work),
        )
    ]


def _threads(work: Work) -> Figures:
    before = {thread.ident for thread in threading.enumerate()}
    start_mib = resident_mib() or 0.0
    with fcnopt.load(work.bundle) as one, fcnopt.load(work.bundle, mode="throughput") as several:
        engines = (one, several)
        alone = [[engine.run(frame[None]).labels[0] for frame in work.fitted] for engine in engines]
        demand_equal(alone[0], work.raw_labels)
        start = time.perf_counter()
        with ThreadPoolExecutor(_WORKERS) as pool:
            parts = pool.map(lambda number: _labelled(work, engines, number), range(_WORKERS))
            found = [labels for part in parts for labels in part]
        seconds = time.perf_counter() - start
        figures = demand_equal(found, _expected(alone))
        loaded_mib = (resident_mib() or 0.0) - start_mib
    left = [thread.name for thread in threading.enumerate() if thread.ident not in before]
    if left:
        raise Fault(f"threads are left after both engines were closed: {', '.join(left)}")
    return {
        **figures,
        "fps together": round(len(found) / seconds, 1),
        "labels equal in both modes": f"{equal_labels(alone[1], alone[0]):.5%}",
        "MiB of both engines": round(loaded_mib),
        "threads left": 0,
    }


def _expected(alone: list[list[Labels]]) -> list[Labels]:
    """What `_labelled` of all threads gives, in order."""
    return [labels for _ in range(_WORKERS) for each in alone for labels in each]


def _labelled(work: Work, engines: tuple[Engine, Engine], number: int) -> list[Labels]:
    """All frames by both engines, one after another."""
    if number % 2:
        return [engine.run(frame[None]).labels[0] for engine in engines for frame in work.fitted]
    found: list[Labels] = []
    for engine in engines:
        with engine.stream(iter(_as_camera(engine, work.fitted))) as outputs:
            found += [out.labels[0] for out in outputs]
    return found


def _as_camera(engine: Engine, fitted: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    """Frames in the order of a camera, BGR, which a stream takes."""
    return list(fitted if engine.spec.frame.color == "BGR" else np.ascontiguousarray(fitted[..., ::-1]))


def deadlines(work: Work) -> list[Row]:
    """Rows of the step `deadlines`."""
    rows = [
        tried(
            DEADLINES,
            f"max_latency_ms at {times:g} times the engine's median latency",
            "flagged late are exactly the results above it, none is withheld",
            lambda times=times: _late(work, times),
        )
        for times in (_TIGHT, _WIDE)
    ]
    for options in ({}, {"max_latency_ms": 100.0}):
        words = f", max_latency_ms {options['max_latency_ms']:g}" if options else ""
        rows.append(
            tried(
                DEADLINES,
                f"a camera of {_CAMERA_FPS} fps, drop-oldest{words}",
                "every frame came through or is counted as skipped; label maps equal to engine.run's",
                lambda options=options: _camera(work, options),
            )
        )
    return rows


def _late(work: Work, times: float) -> Figures:
    with fcnopt.load(work.bundle) as engine:
        usual = float(np.median([engine.run(frame[None]).latency_ms for frame in work.fitted]))
        limit = times * usual
        with engine.stream((frame.image for frame in work.pictures), max_latency_ms=limit) as stream:
            outputs = list(stream)
    demand_equal([out.labels[0] for out in outputs], work.labels)
    late = [out.status[0].late for out in outputs]
    if late != [out.latency_ms > limit for out in outputs]:
        raise Fault("flags and latencies disagree")
    if (times < 1) != (np.mean(late) > 0.5):
        raise Fault(f"{np.mean(late):.0%} were late")
    return {
        "median ms": round(usual, 1),
        "deadline ms": round(limit, 1),
        "frames": len(late),
        "late": f"{np.mean(late):.0%}",
        "latency ms": _spread([out.latency_ms for out in outputs]),
    }


def _camera(work: Work, options: dict[str, float]) -> Figures:
    count = max(len(work.pictures), round(_CAMERA_FPS * work.seconds))
    given_at: list[float] = []
    outputs: list[Outputs] = []
    ages_ms: list[float] = []
    with (
        fcnopt.load(work.bundle) as engine,
        engine.stream(_paced(work, count, given_at), policy="drop-oldest", stall_s=5.0, **options) as stream,  # type: ignore[arg-type]
    ):
        for out in stream:
            ages_ms.append(1e3 * (time.perf_counter() - given_at[out.index or 0]))
            outputs.append(out)
    _accounted(outputs, count)
    if any(out.latency_ms > age for out, age in zip(outputs, ages_ms, strict=True)):
        raise Fault("a result says that it is younger than its frame")
    known = work.labels
    demand_equal([out.labels[0] for out in outputs], [known[(out.index or 0) % len(known)] for out in outputs])
    skipped = sum(out.skipped for out in outputs)
    return {
        "frames": count,
        "skipped": f"{skipped / count:.0%}",
        "late": f"{np.mean([out.status[0].late for out in outputs]):.0%}",
        "age of results ms": _spread(ages_ms),
        "inference ms": _spread([out.inference_ms for out in outputs]),
    }


def _paced(work: Work, count: int, given_at: list[float]) -> Iterator[NDArray[np.uint8]]:
    """A camera: frames on its schedule, whatever became of those before; notes when it gave each."""
    start = time.perf_counter()
    for number, frame in enumerate(itertools.islice(itertools.cycle(work.pictures), count)):
        time.sleep(max(0.0, start + number / _CAMERA_FPS - time.perf_counter()))
        given_at.append(time.perf_counter())
        yield frame.image


def _accounted(outputs: list[Outputs], count: int) -> None:
    """Raise `Fault` unless every frame is a result or counted as skipped before one."""
    place = -1
    for out in outputs:
        place += 1 + out.skipped
        if out.index != place:
            raise Fault(f"result {out.index} came as {place}")
    if place != count - 1:
        raise Fault(f"the last result is of frame {place}, the camera gave {count}")


def _spread(values: list[float]) -> dict[str, float]:
    return {"p50": median(values), "p99": round(float(np.percentile(values, 99)), 2), "max": round(max(values), 2)}
