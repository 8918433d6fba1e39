"""What a benchmark found, as data: `BenchResult` and its parts, to JSON and back, and the gates on it.

All shares (IoU, accuracy, equal labels, flicker) are in points 0..100, all times in milliseconds, all memory in MiB.
`benchmark.schema.json` beside this file describes the JSON; it is checked against these classes by a test.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any, Literal

from fcnopt.backends.base import Mode
from fcnopt.codec import decode, plain, schema
from fcnopt.errors import GateError, UsageError
from fcnopt.evaluate.budget import why_unjudged
from fcnopt.evaluate.latency import LatencySummary
from fcnopt.evaluate.observe import FrameSample

SCHEMA_VERSION = 2
# Version 1 did not have these: a result read from there does not know them.
_SINCE_2 = ("frames_sha256", "truth_pixels", "truth_blocks")

Truth = Literal["labels", "reference"]


@dataclass(frozen=True)
class Accuracy:
    """How well labels agree with a truth.

    Attributes:
        miou: Mean IoU over the classes present in the truth.
        iou: IoU a class; None where the class is neither in the truth nor in the labels.
        pixel_accuracy: Share of the pixels labelled right, ignored ones left out.
    """

    miou: float
    iou: tuple[float | None, ...]
    pixel_accuracy: float


@dataclass(frozen=True)
class Drop:
    """What an engine loses against the reference: reference minus engine. Negative is a gain.

    Attributes:
        miou: Of the mIoU.
        miou_interval: 95 % paired bootstrap interval over blocks of `BenchResult.interval_block_frames` frames; None
            with fewer than two frames.
        iou: A class; None where the class is not in the truth.
        iou_intervals: The same of each class.
    """

    miou: float
    miou_interval: tuple[float, float] | None
    iou: tuple[float | None, ...]
    iou_intervals: tuple[tuple[float, float] | None, ...]


@dataclass(frozen=True)
class Stages:
    """Mean time of a frame in each stage. Stages run side by side, so that their sum can exceed the time a frame.

    Attributes:
        decode_ms: Reading and decoding the clip.
        preprocess_ms: Bringing the frame to the engine's size and colour order.
        inference_ms: Inside the runtime, copies to and from the device included; of the frame's whole batch.
        postprocess_ms: Bringing labels to the frame's size.
    """

    decode_ms: float
    preprocess_ms: float
    inference_ms: float
    postprocess_ms: float


@dataclass(frozen=True)
class Memory:
    """Main memory of the process, in which all engines of a run live together.

    Attributes:
        process_peak_mib: Most resident memory of the whole process while this engine had its turns; None where the
            system does not tell.
        growth_mib: Largest rise within one of its turns, warm-up included: buffers that the engine allocates when
            it runs. What it took when it was loaded came before and is not in it.
    """

    process_peak_mib: float | None
    growth_mib: float | None


@dataclass(frozen=True)
class EngineResult:
    """One engine's figures.

    Attributes:
        name: Unique within the result.
        precision: "fp32", "int8", ...; empty where unknown.
        frame_size: (height, width) that the engine computed at.
        fps: Frames a second end to end: decode, preprocess, inference and postprocess, overlapped as in use.
            Taken while the pipeline is neither filling nor draining; see `evaluate.turns`.
        fps_inference: Frames a second of inference alone, all batches in flight; None where the runtime gives no times.
        speedup: `fps` over the reference's.
        speedup_inference: `fps_inference` over the reference's.
        fps_rounds: `fps` of each round long enough to be timed without its start and end (of all rounds where none
            is), in order: how steady the machine was.
        latency: From frame available to labels available.
        stages: Where the time goes.
        memory: What it takes.
        accuracy: Against the truth.
        versus_reference: Against the reference's labels.
        equal_labels: Share of all pixels whose label is the reference's.
        drop: Loss of accuracy against the truth.
        flicker: Share of pixels whose label changes from one frame to the next; None with one frame.
        flicker_excess: `flicker` minus the reference's.
        mode: "latency" had one batch in flight, "throughput" several.
        in_flight: Batches in flight, of `batch` frames each.
        batch: Frames in a batch.
    """

    name: str
    precision: str
    frame_size: tuple[int, int]
    fps: float
    fps_inference: float | None
    speedup: float
    speedup_inference: float | None
    fps_rounds: tuple[float, ...]
    latency: LatencySummary
    stages: Stages
    memory: Memory
    accuracy: Accuracy
    versus_reference: Accuracy
    equal_labels: float
    drop: Drop
    flicker: float | None
    flicker_excess: float | None
    mode: Mode = field(default="latency", metadata={"optional": True})
    in_flight: int = field(default=1, metadata={"optional": True})
    batch: int = field(default=1, metadata={"optional": True})


@dataclass(frozen=True)
class BenchResult:
    """A benchmark of engines against a reference on one clip.

    Attributes:
        schema_version: Of the JSON.
        clip: Its name.
        size: (height, width) of its frames; all labels are compared at this size.
        frames: How many were measured.
        truth: What accuracy is measured against: the clip's `labels`, or the `reference`'s labels where the clip
            has none; then a drop is 100 points minus the agreement with the reference.
        truth_frames: Frames that have a truth.
        frames_sha256: SHA-256 over the frames as the reference takes them, in order; None where unknown.
        truth_pixels: Pixels of truth a class, over all frames; None where unknown. `unjudged` says where they are too
            few.
        truth_blocks: Blocks of frames, as the intervals are resampled in, that show a class; None where unknown.
        classes: Names, in label order.
        palette: (R, G, B) a class.
        warmup_frames: Run first by every engine, in no figure.
        round_frames: Frames that an engine runs before the next one has its turn.
        interval_block_frames: Consecutive frames that the intervals of the drop are resampled in; None where there are
            no intervals.
        reference: Figures of the reference.
        engines: Figures of the others, in the order given.
        notes: What a reader should know, one line each.
        machine: Facts on the machine, as `fcnopt doctor` shows them.
        versions: Of the libraries used.
        command: As typed.
        date: When, as handed in (ISO 8601).
        samples: Frames kept for a report; not in the JSON, so that a result read from there has none.
    """

    schema_version: int
    clip: str
    size: tuple[int, int]
    frames: int
    truth: Truth
    truth_frames: int
    frames_sha256: str | None
    truth_pixels: tuple[int, ...] | None
    truth_blocks: tuple[int, ...] | None
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    warmup_frames: int
    round_frames: int
    interval_block_frames: int | None
    reference: EngineResult
    engines: tuple[EngineResult, ...]
    notes: tuple[str, ...]
    machine: dict[str, Any]
    versions: dict[str, str]
    command: str
    date: str
    samples: tuple[FrameSample, ...] = field(default=(), compare=False, repr=False, metadata={"json": False})

    @property
    def rows(self) -> tuple[EngineResult, ...]:
        """The reference, then the engines."""
        return (self.reference, *self.engines)

    def speedup_range(self, engine: EngineResult) -> tuple[float, float] | None:
        """The least and the most `speedup` of any round; None where fewer than two rounds timed both."""
        own, base = engine.fps_rounds, self.reference.fps_rounds
        if len(own) != len(base) or len(own) < 2:
            return None
        ratios = [fps / reference for fps, reference in zip(own, base, strict=True)]
        return min(ratios), max(ratios)

    def worst_class(self, engine: EngineResult) -> tuple[str, float] | None:
        """The class that loses most, with its drop in points; None where no class is in the truth."""
        known = [(drop, name) for name, drop in zip(self.classes, engine.drop.iou, strict=True) if drop is not None]
        if not known:
            return None
        drop, name = max(known)
        return name, drop

    @property
    def unjudged(self) -> tuple[str, ...]:
        """Why the drop of a class says little, a class; empty where it says enough or that is unknown."""
        if self.truth_pixels is None or self.truth_blocks is None:
            return ("",) * len(self.classes)
        return tuple(why_unjudged(*found) for found in zip(self.truth_pixels, self.truth_blocks, strict=True))

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists, numbers and strings."""
        return dict(plain(self))

    def to_json(self) -> str:
        """Indented JSON."""
        return json.dumps(plain(self), indent=2, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> BenchResult:
        """Read what `to_json` wrote, now or in schema version 1.

        Raises:
            UsageError: It is not JSON, of another schema version, or a field is missing or of the wrong type.
        """
        try:
            data = json.loads(text)
            version = data.get("schema_version") if isinstance(data, dict) else None
            if version == 1:
                data = {**dict.fromkeys(_SINCE_2), **data, "schema_version": SCHEMA_VERSION}
                version = SCHEMA_VERSION
            if version != SCHEMA_VERSION:
                raise UsageError(
                    f"bench result has schema version {version!r}, this fcnopt reads {SCHEMA_VERSION}",
                    fix="run the benchmark again with this version of fcnopt",
                )
            return decode(cls, data)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"bench result cannot be read: {error}", fix="run the benchmark again") from error


def result_schema() -> dict[str, Any]:
    """The JSON schema of `BenchResult.to_json`."""
    described = schema(BenchResult)
    described["properties"]["schema_version"] = {"const": SCHEMA_VERSION}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "fcnopt benchmark result", **described}


def check_gates(
    result: BenchResult,
    *,
    max_miou_drop: float | None = None,
    max_class_drop: float | None = None,
    min_fps: float | None = None,
) -> None:
    """Hold every engine but the reference to limits; None sets no limit.

    Args:
        result: What was measured.
        max_miou_drop: Most points of mIoU an engine may lose.
        max_class_drop: Most points of IoU it may lose in any class.
        min_fps: Fewest frames a second, end to end.

    Raises:
        UsageError: A limit is nan, or `min_fps` is negative: it would let everything pass.
        GateError: An engine misses a limit; every miss is named, with what was measured and what was wanted.
    """
    check_limits(max_miou_drop=max_miou_drop, max_class_drop=max_class_drop, min_fps=min_fps)
    misses: list[str] = []
    for engine in result.engines:
        drop, worst = engine.drop, result.worst_class(engine)
        if max_miou_drop is not None and drop.miou > max_miou_drop:
            interval = drop.miou_interval
            sure = f" (95 % interval {interval[0]:.2f} to {interval[1]:.2f})" if interval else ""
            misses.append(f"{engine.name}: mIoU drop {drop.miou:.2f} points{sure}, at most {max_miou_drop:g} wanted")
        if max_class_drop is not None and worst is not None and worst[1] > max_class_drop:
            misses.append(
                f"{engine.name}: IoU drop of class {worst[0]} {worst[1]:.2f} points, at most {max_class_drop:g} wanted"
            )
        if min_fps is not None and engine.fps < min_fps:
            misses.append(f"{engine.name}: {engine.fps:.1f} FPS end to end, at least {min_fps:g} wanted")
    if misses:
        raise GateError("; ".join(misses), fix="build with another precision, method or target, or loosen the gate")


def check_limits(**limits: float | None) -> None:
    """Raise `UsageError` for a limit of `check_gates` that no engine could miss."""
    for name, limit in limits.items():
        if limit is not None and (math.isnan(limit) or (name == "min_fps" and limit < 0)):
            raise UsageError(
                f"gate {name} is {limit:g}, expected {'a rate of 0 or more' if name == 'min_fps' else 'a number'}",
                fix=f"give {name} a limit that an engine can miss, or leave the gate out",
            )
