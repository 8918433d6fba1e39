"""An engine over a clip, its labels written: `fcnopt.run`."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections import Counter, deque
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fcnopt.backends.base import Mode, Outputs, Progress
from fcnopt.backends.outputs import check_duration
from fcnopt.bundle import load
from fcnopt.engine import Engine
from fcnopt.errors import UsageError
from fcnopt.evaluate.latency import LatencySummary
from fcnopt.media.base import Clip, Decoder, Frame
from fcnopt.media.clips import open_clip
from fcnopt.media.logs import is_log
from fcnopt.media.logs.clip import LogClip
from fcnopt.media.rerun import RerunLog
from fcnopt.media.sinks import LabelSink, LabelSource, open_sink, opened
from fcnopt.signing import TrustedKeys

_Pairs = Generator[tuple[Frame, Outputs], None, None]
_AHEAD = 2  # frames decoded ahead


@dataclass(frozen=True)
class RunOptions:
    """How to run a clip.

    Attributes:
        topic: Of a robot log; None takes the only one with images.
        max_frames: Most frames, from the clip's start; None for all.
        mode: "latency" has one batch in flight, "throughput" as many as pay.
        decoder: Of a video; see `fcnopt.media.open_clip`.
        max_latency_ms: Labels that come later than this after their frame are counted as late; None counts none.
        trusted_keys: Public keys, one of which must have signed the bundle; see `fcnopt.load`.
        rerun: A `.rrd` file for frames, labels and timings too.
        overwrite: Replace the files that are there.
    """

    topic: str | None = None
    max_frames: int | None = None
    mode: Mode = "latency"
    decoder: Decoder = "pyav"
    max_latency_ms: float | None = None
    trusted_keys: TrustedKeys = ()
    rerun: Path | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.max_frames is not None and self.max_frames < 1:
            raise UsageError(f"run: max_frames is {self.max_frames}", fix="give 1 or more")
        check_duration("run: max_latency_ms", self.max_latency_ms)


@dataclass(frozen=True)
class Recording:
    """What `run` wrote.

    Attributes:
        output: Labels: a file or a folder.
        rerun: The Rerun recording, where there is one.
        frames: How many.
        seconds: Time from the first frame asked for to the last label map written.
        latency: From frame available to labels available, as of a camera: a recorded clip is decoded ahead, and what
            its frames wait in line is not in it.
        inference: What the runtime spent on a frame of this.
        late: Frames whose labels came after the deadline; None where none was given.
        problems: Frames by what is implausible of them: "black", "overexposed", "frozen", "wrong-size".
    """

    output: Path
    rerun: Path | None
    frames: int
    seconds: float
    latency: LatencySummary
    inference: LatencySummary
    late: int | None
    problems: dict[str, int]

    @property
    def fps(self) -> float:
        """Frames a second, decoding and writing included."""
        return self.frames / self.seconds

    def describe(self) -> str:
        """A few lines for people."""
        found = ", ".join(f"{count} {name}" for name, count in self.problems.items())
        lines = [
            f"{self.frames} frames, {self.fps:.1f} fps end to end",
            f"latency p50 {self.latency.p50_ms:.1f} ms, p99 {self.latency.p99_ms:.1f} ms "
            f"(inference {self.inference.p50_ms:.1f}, {self.inference.p99_ms:.1f})",
            ("" if self.late is None else f"late: {self.late}, ") + f"implausible: {found or 0}",
            *(f"wrote {path}" for path in (self.output, self.rerun) if path is not None),
        ]
        return "\n".join(lines)


@dataclass
class _Tally:
    """Sums over the frames so far.

    Attributes:
        deadline_ms: Labels that came later are late; None where there is none.
        latencies_ms: One a frame; see `Recording.latency`.
        inferences_ms: The same of the runtime alone.
        late: Frames whose labels were.
        problems: Of frames.
    """

    deadline_ms: float | None = None
    latencies_ms: list[float] = field(default_factory=list)
    inferences_ms: list[float] = field(default_factory=list)
    late: int = 0
    problems: Counter[str] = field(default_factory=Counter)

    def add(self, out: Outputs) -> dict[str, float]:
        """Take over a frame's times, in ms by name, and what is implausible of it."""
        times = {"latency": out.latency_ms - out.waited_ms, "inference": out.inference_ms}
        self.latencies_ms.append(times["latency"])
        self.inferences_ms.append(times["inference"])
        self.late += self.deadline_ms is not None and times["latency"] > self.deadline_ms
        self.problems.update(out.status[0].problems)
        return times


def run(
    clip: str | Path,
    engine: str | Path | Engine,
    output: str | Path,
    *,
    options: RunOptions | None = None,
    progress: Progress | None = None,
) -> Recording:
    """Run a bundle's engine over a clip and write the label maps, each of its frame's size.

    Frames are decoded, inferred and written at the same time, a few of them in memory. When it is interrupted or
    fails, nothing is left of its output, and what was there before is untouched.

    Args:
        clip: A video, a robot log, a picture or a folder of pictures.
        engine: The folder engines/NAME; or a loaded engine, which stays open, and of which `options` says nothing.
        output: `.mkv` for a lossless video of labels, `.mcap` for messages of labels and of an overlay, or a folder
            (no suffix) for PNGs. See `fcnopt.media.sinks`.
        options: Everything else.
        progress: Called as frames are done.

    Raises:
        UsageError: The output has another suffix, or is the clip itself.
        MediaError: The clip cannot be read, or the output not written; it is there already.
        BundleError: The bundle is damaged, not signed by a trusted key, or its engine answers wrongly.
        BackendError: The runtime or the device is missing, or failed.
    """
    options = options or RunOptions()
    source = open_clip(clip, decoder=options.decoder, topic=options.topic)
    sinks = _sinks(Path(clip), Path(output), options)
    tally = _Tally(options.max_latency_ms)
    with contextlib.ExitStack() as stack:
        if not isinstance(engine, Engine):
            engine = stack.enter_context(load(engine, mode=options.mode, trusted_keys=options.trusted_keys))
        about = _about(source, engine)
        stack.enter_context(opened(sinks, about))
        start = time.perf_counter()
        count = min(len(source), options.max_frames or len(source))
        pairs = stack.enter_context(contextlib.closing(_labelled(source, engine, count)))
        for frame, out in pairs:
            times = tally.add(out)
            for sink in sinks:
                sink.write(frame, out.labels[0])
                if isinstance(sink, RerunLog):
                    sink.timings(times)
            if progress is not None:
                progress("run", sinks[0].frames / count)
    return Recording(
        output=Path(output),
        rerun=options.rerun,
        frames=sinks[0].frames,
        seconds=time.perf_counter() - start,
        latency=LatencySummary.of(tally.latencies_ms),
        inference=LatencySummary.of(tally.inferences_ms),
        late=None if options.max_latency_ms is None else tally.late,
        problems=dict(sorted(tally.problems.items())),
    )


def _sinks(clip: Path, output: Path, options: RunOptions) -> list[LabelSink]:
    """Where labels go, the output first; checked before anything slow is done."""
    for path in (output, options.rerun):
        if path is not None and path.exists() and _holds(path, clip):
            raise UsageError(f"{path}: is the clip itself, or a part of it, or holds it", fix="name another output")
    sinks = [open_sink(output, overwrite=options.overwrite)]
    if options.rerun is not None:
        sinks.append(RerunLog(options.rerun, overwrite=options.overwrite))
    return sinks


def _holds(output: Path, clip: Path) -> bool:
    """Whether to replace `output`, which is there, is to lose frames of the clip."""
    inside = clip.is_dir() and is_log(clip) and output.parent.samefile(clip)
    return inside or output.samefile(clip) or output.resolve() in clip.resolve().parents


def _about(clip: Clip, engine: Engine) -> LabelSource:
    if isinstance(clip, LogClip):
        return LabelSource(engine.spec.classes, clip.fps, clip.start_ns, clip.frame_id)
    return LabelSource(engine.spec.classes, clip.fps)


def _labelled(clip: Clip, engine: Engine, count: int) -> _Pairs:
    """The clip's first frames, each with what the engine says of it."""
    waiting: deque[Frame] = deque()  # as many as the stream holds

    def drawn() -> Iterator[Frame]:
        for frame in itertools.islice(clip.images(), count):
            waiting.append(frame)
            yield frame

    with engine.stream(drawn(), prefetch=_AHEAD) as stream:
        for out in stream:
            yield waiting.popleft(), out
