"""Cameras that stall, change or die, and runtimes that fail in the middle of a stream."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import fcnopt
from faults.case import Fault, judged
from faults.outcome import Progress, Tally
from faults.standin import Failing, StandInRunner, engine_of
from faults.watching import MemoryRise, within
from fcnopt.backends.readahead import Policy
from fcnopt.engine import Engine
from fcnopt.errors import BackendError

FAMILY = "cameras and runtimes"
_FRAMES, _AT = 30, 12
_STALL_S = 0.2
_PATIENCE_S = 60.0
_THREADS = "fcnopt-stream"
Frames = Iterator[Any]


class CameraGoneError(Exception):
    """What a driver raises."""


@dataclass(frozen=True)
class Scene:
    """A camera, and what a stream of it comes to.

    Attributes:
        what: For the table.
        camera: Frames of a size.
        ends: Name of the error that ends the stream; empty where it goes on to the last frame.
        says: Words that the error has.
        least: Frames that come before the end, at least, under the policy "block".
        problem: What a frame is flagged as.
        failing: Of the runtime.
        leaves: Whether a thread may be left behind in the camera.
    """

    what: str
    camera: Callable[[int, int], Frames]
    ends: str = ""
    says: str = ""
    least: int = 0
    problem: str = ""
    failing: Failing | None = None
    leaves: bool = False


def _frame(height: int, width: int, number: int) -> Any:
    return np.random.default_rng(number).integers(60, 180, (height, width, 3), np.uint8)


def _steady(height: int, width: int) -> Frames:
    for number in range(_FRAMES):
        yield _frame(height, width, number)


def _paced(height: int, width: int) -> Frames:
    """Slow enough that none is dropped."""
    for frame in _steady(height, width):
        time.sleep(0.01)
        yield frame


def _stalls(height: int, width: int) -> Frames:
    yield from (_frame(height, width, number) for number in range(_AT))
    time.sleep(4 * _STALL_S)
    yield _frame(height, width, 0)


def _silent(height: int, width: int) -> Frames:
    time.sleep(4 * _STALL_S)
    yield _frame(height, width, 0)


def _grows(height: int, width: int) -> Frames:
    for number in range(_FRAMES):
        factor = 2 if number >= _AT else 1
        yield _frame(factor * height, factor * width, number)


def _dies(height: int, width: int) -> Frames:
    yield from (_frame(height, width, number) for number in range(_AT))
    raise CameraGoneError("no device")


def _gives(what: Callable[[Any], Any], height: int, width: int) -> Frames:
    for number in range(_FRAMES):
        frame = _frame(height, width, number)
        yield what(frame) if number == _AT else frame


ODD: dict[str, Callable[[Any], Any]] = {
    "floats": lambda frame: frame.astype(np.float32),
    "16 bits": lambda frame: frame.astype(np.uint16),
    "one channel": lambda frame: frame[..., 0],
    "four channels": lambda frame: np.concatenate([frame, frame[..., :1]], axis=2),
    "no pixels": lambda frame: frame[:0],
    "nothing": lambda _: None,
    "words": lambda _: "frame",
    "a list": lambda frame: frame.tolist(),
}
SCENES = (
    Scene("nothing wrong", _steady, least=_FRAMES),
    Scene("stalls in mid-stream", _stalls, "MediaError", "stalled", least=_AT, leaves=True),
    Scene("gives no frame at all", _silent, "MediaError", "stalled", leaves=True),
    Scene("changes its size in mid-stream", _grows, least=_FRAMES, problem="wrong-size"),
    Scene("dies in mid-stream", _dies, "CameraGoneError", "no device", least=_AT),
    *(
        Scene(f"gives {name} in mid-stream", partial(_gives, make), "MediaError|UsageError", least=_AT)
        for name, make in ODD.items()
    ),
    Scene(
        "a runtime that fails in mid-stream",
        _paced,
        "BackendError",
        "lost",
        least=_AT // 2,
        failing=Failing(_AT // 2, lambda: BackendError("the device was lost", fix="load the engine again")),
    ),
    Scene(
        "a runtime out of memory in mid-stream",
        _paced,
        "MemoryError",
        "",
        least=_AT // 2,
        failing=Failing(_AT // 2, MemoryError),
    ),
)
_PROMISE = (
    "the frames before it come, then the error that names the cause, or the stream goes on where its policy says so; "
    "nothing hangs, no thread is left but one that hangs in its camera, and the engine works afterwards"
)


def cameras(bundle: Path | None = None, times: int = 5, progress: Progress | None = None) -> list[Tally]:
    """Every scene under both policies, `times` each.

    Args:
        bundle: An engine for the cameras; faults of runtimes, and everything where it is None, take a stand-in.
        times: How often.
        progress: Called as they go by.
    """
    found = []
    real = fcnopt.load(bundle) if bundle is not None else None
    try:
        for place, scene in enumerate(SCENES):
            tally = Tally(FAMILY, scene.what, _PROMISE)
            for number in range(2 * times):
                policy: Policy = "drop-oldest" if number % 2 else "block"
                engine = real if real is not None and scene.failing is None else _stand_in(scene)
                _one(engine, scene, policy, tally)
                if engine is not real:
                    engine.close()
            found.append(tally)
            if progress is not None:
                progress(FAMILY, (place + 1) / len(SCENES))
    finally:
        if real is not None:
            real.close()
    return found


def _stand_in(scene: Scene) -> Engine:
    return engine_of(StandInRunner(failing=scene.failing))


def _one(engine: Engine, scene: Scene, policy: Policy, tally: Tally) -> None:
    before = _threads()
    start = time.perf_counter()
    with MemoryRise() as rise:
        ended, found = within(_PATIENCE_S, lambda: judged(lambda: _streamed(engine, scene, policy)))
    seconds = time.perf_counter() - start
    outcome, fault = found if ended else ("hangs", f"no end after {_PATIENCE_S:g} s")
    if ended and not fault:
        fault = _left(before, scene) or _works(engine)
    tally.add(outcome, seconds=seconds, mib=rise.mib, fault=f"{policy}: {fault}" if fault else "")


def _streamed(engine: Engine, scene: Scene, policy: Policy) -> str:
    """What the stream came to; raises `Fault` where that is not what the scene says."""
    size = engine.spec.frame
    source = scene.camera(size.height or 64, size.width or 96)
    frames, problems, error = 0, set(), None
    try:
        for out in engine.stream(source, policy=policy, stall_s=_STALL_S):
            frames += 1 + out.skipped
            problems |= {problem for status in out.status for problem in status.problems}
    except Exception as caught:  # noqa: BLE001  (compared with what the scene says)
        error = caught
    name = type(error).__name__ if error is not None else ""
    if name not in scene.ends.split("|"):
        raise Fault(f"ended with {name or 'no error'} ({error}), expected {scene.ends or 'none'}")
    if error is not None and scene.says not in str(error):
        raise Fault(f"the error does not say {scene.says!r}: {error}")
    if policy == "block" and frames < scene.least:
        raise Fault(f"{frames} frames came, expected {scene.least}")
    if scene.problem and scene.problem not in problems:
        raise Fault(f"no frame was flagged as {scene.problem}: {sorted(problems)}")
    return f"ended by {name}" if name else "went on"


def _threads() -> set[int | None]:
    return {thread.ident for thread in threading.enumerate() if thread.name.startswith(_THREADS)}


def _left(before: set[int | None], scene: Scene) -> str:
    """Threads that are still there soon after; a camera's own may be, until it gives a frame."""
    end = time.perf_counter() + (10 * _STALL_S if scene.leaves else 2.0)
    while left := _threads() - before:
        if time.perf_counter() > end:
            return f"{len(left)} threads are left"
        time.sleep(0.01)
    return ""


def _works(engine: Engine) -> str:
    size = engine.spec.frame
    ended, found = within(_PATIENCE_S, lambda: engine.run(_frame(size.height or 64, size.width or 96, 0)[None]))
    return "" if ended and not isinstance(found, BaseException) else f"the engine does not work afterwards: {found}"
