"""The benchmark: engines and their reference on one clip, interleaved, timed end to end and scored frame by frame.

The clip is cut into rounds of a few frames. In each round every engine, the reference among them, runs the same
frames from its own reader of the clip; the order turns by one each round, so that a machine that slows down or
speeds up favours none. Scores are taken between turns and cost no engine time.
"""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

from fcnopt.backends.base import Progress, Runner
from fcnopt.errors import MediaError, UsageError
from fcnopt.evaluate.observe import BenchObserver, FrameSample, FrameSampler
from fcnopt.evaluate.options import BenchOptions
from fcnopt.evaluate.result import SCHEMA_VERSION, BenchResult, EngineResult, check_gates
from fcnopt.evaluate.rounds import Rounds
from fcnopt.evaluate.turns import Entrant, Pace, Turn, in_flight, uncounted
from fcnopt.media.clips import Clip

__all__ = ["BenchObserver", "BenchOptions", "BenchResult", "EngineResult", "FrameSample", "bench", "check_gates"]

# Of the frames of a turn that its rate is taken from; those that start and drain the pipeline come on top of them.
_TURN_S = 0.25
_COUNTED_FRAMES = (8, 32)
_COUNTED_LEADS = 4  # at least as many times the frames in flight
_ROUND_BYTES = 256 << 20
_FEW_FRAMES = 30
# Rates of rounds that differ by more are not the engine's doing.
_UNSTEADY = 1.3
_LIBRARIES = ("fcnopt", "numpy", "torch", "onnx", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "cv2", "av")
_DISTRIBUTIONS = {"cv2": "opencv-python-headless", "tensorrt_rtx": "tensorrt-rtx"}


def bench(
    clip: Clip,
    engines: Sequence[Runner],
    reference: Runner,
    options: BenchOptions | None = None,
    *,
    machine: Mapping[str, Any] | None = None,
    versions: Mapping[str, str] | None = None,
    command: str = "",
    date: str = "",
    observers: Sequence[BenchObserver] = (),
    progress: Progress | None = None,
) -> BenchResult:
    """Measure engines and their reference on a clip, in one run.

    Args:
        clip: Where it has label maps, they are the truth; else the reference's labels are.
        engines: Open runners; the caller closes them. The reference among them is not run twice.
        reference: What the engines are compared with, usually FP32.
        options: How to measure.
        machine: Facts on the machine, for the result.
        versions: Of libraries, for the result; None for those of the libraries loaded.
        command: As typed, for the result.
        date: For the result.
        observers: See every frame with its labels.
        progress: Called after each turn.

    Raises:
        UsageError: The engines have other classes than the reference.
        MediaError: The clip has no frames, cannot be read, or has a label map of the wrong size or values.
        FcnoptError: An engine failed; the message names engine and frame.
    """
    options = options or BenchOptions()
    others = [engine for engine in engines if engine is not reference]
    _check_classes(reference, others)
    frames = min(len(clip), options.max_frames or len(clip))
    if frames < 1:
        raise MediaError(f"{clip.name}: the clip has no frames", fix="give a clip with at least one frame")
    names = _unique_names([reference, *others])
    warm = _warm_up(clip, [reference, *others], names, options, progress)
    lead = max(in_flight(runner) for runner in [reference, *others])
    ahead = max(runner.prefetch for runner in [reference, *others]) if options.prefetch is None else options.prefetch
    size = _round_frames(options, warm, frames, clip, lead, ahead)
    sampler = FrameSampler(options.keep_samples, frames)
    run = Rounds(clip, [reference, *others], names, options, [sampler, *observers])
    for contender, turn in zip(run.contenders, warm, strict=True):
        contender.remember_memory(turn)
    run.measure(frames, size, progress)
    return BenchResult(
        schema_version=SCHEMA_VERSION,
        clip=clip.name,
        size=clip.size,
        frames=run.frames,
        truth=run.truth,
        truth_frames=run.truth_frames,
        frames_sha256=run.hasher.sha256,
        truth_pixels=run.truth_pixels,
        truth_blocks=run.truth_blocks,
        classes=reference.spec.classes.names,
        palette=reference.spec.classes.palette,
        warmup_frames=min(options.warmup_frames, frames),
        round_frames=size,
        interval_block_frames=run.interval_block_frames,
        reference=run.result(0),
        engines=tuple(run.result(i) for i in range(1, len(names))),
        notes=_notes(run, [reference, *others], names),
        machine=dict(machine or {}),
        versions=dict(_versions() if versions is None else versions),
        command=command,
        date=date,
        samples=sampler.samples,
    )


def _warm_up(
    clip: Clip, runners: Sequence[Runner], names: Sequence[str], options: BenchOptions, progress: Progress | None
) -> list[Turn]:
    """Run the clip's first frames on every engine; the turns tell how fast each one is and what memory it takes."""
    turns = []
    for place, (runner, name) in enumerate(zip(runners, names, strict=True)):
        with contextlib.closing(Entrant(runner, name, clip, prefetch=options.prefetch)) as entrant:
            turns.append(entrant.run(min(options.warmup_frames, options.max_frames or options.warmup_frames)))
        if progress is not None:
            progress("warm up", (place + 1) / len(runners))
    return turns


def _round_frames(options: BenchOptions, warm: Sequence[Turn], frames: int, clip: Clip, lead: int, ahead: int) -> int:
    """Frames a turn: as asked for; else so many that the fastest engine's rate is taken over a while, within bounds.

    They are a multiple of `lead`, the frames in flight, so that no batch is filled up within the clip; `ahead` of
    them are read before they are wanted.
    """
    if options.round_frames is not None:
        return min(options.round_frames, frames)
    fewest, most = (max(bound, _COUNTED_LEADS * lead) for bound in _COUNTED_FRAMES)
    fastest = min((min(t.latency_ms for t in turn.times) / 1e3 for turn in warm if turn.times), default=_TURN_S)
    counted = min(max(math.ceil(_TURN_S / max(fastest, 1e-6)), fewest), most)
    wanted = math.ceil((counted + uncounted(ahead, lead)) / lead) * lead
    height, width = clip.size
    fitting = _ROUND_BYTES // max(1, height * width * len(warm))  # a round's labels are held until they are scored
    return max(1, min(wanted, fitting, frames))


def _check_classes(reference: Runner, others: Sequence[Runner]) -> None:
    wanted = len(reference.spec.classes)
    for engine in others:
        found = len(engine.spec.classes)
        if found != wanted:
            raise UsageError(
                f"{engine.name} has {found} classes, the reference {reference.name} has {wanted}",
                fix="bench engines that were built from the reference's model",
            )


def _unique_names(runners: Sequence[Runner]) -> list[str]:
    names: list[str] = []
    for runner in runners:
        name, number = runner.name, 2
        while name in names:
            name, number = f"{runner.name} ({number})", number + 1
        names.append(name)
    return names


def _notes(run: Rounds, runners: Sequence[Runner], names: Sequence[str]) -> tuple[str, ...]:
    notes = []
    if run.truth == "reference":
        notes.append(
            "The clip has no label maps: accuracy is measured against the reference's labels, "
            "and a drop is 100 minus that agreement."
        )
    elif run.truth_frames < run.frames:
        notes.append(f"{run.truth_frames} of {run.frames} frames have label maps; accuracy is measured on these.")
    if run.frames < _FEW_FRAMES:
        notes.append(f"{run.frames} frames are few: drops of classes that are rare in them say little.")
    disturbed = [found for one in run.contenders if (found := unsteady(one.entrant.name, one.paces))]
    if disturbed:
        told = ", ".join(disturbed)
        notes.append(f"The machine was disturbed: from round to round {told}. Measure again with nothing beside it.")
    classes = runners[0].spec.classes.names
    for runner, name in zip(runners, names, strict=True):
        if runner.spec.classes.names != classes:
            notes.append(f"{name} names its classes differently than the reference; labels are compared by number.")
    return tuple(notes)


def unsteady(name: str, paces: Sequence[Pace]) -> str:
    """An engine's slowest and fastest round where they differ more than it does by itself; else empty."""
    rates = [pace.frames / pace.seconds for pace in paces if pace.seconds >= _TURN_S]
    if len(rates) < 2 or max(rates) <= _UNSTEADY * min(rates):
        return ""
    return f"{name} ran at {min(rates):.3g} to {max(rates):.3g} FPS"


def _versions() -> dict[str, str]:
    """Versions of those libraries of interest that are loaded."""
    found = {}
    for module in _LIBRARIES:
        if module in sys.modules:
            name = _DISTRIBUTIONS.get(module, module)
            with contextlib.suppress(metadata.PackageNotFoundError):
                found[name] = metadata.version(name)
    return found
