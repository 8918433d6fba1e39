"""How near a stream comes to what its slowest stage alone allows, and that it holds no more memory after many frames.

    python benchmarks/streaming.py CLIP engines/NAME --size 1280x720 --out benchmarks/results/streaming
    python benchmarks/streaming.py CLIP engines/NAME --frames 10000 --out benchmarks/results/streaming-10000

One run, its parts interleaved: decoding and resizing alone, inference alone in both modes, post-processing alone, and
the whole stream in both modes. Two bounds are printed. The slowest stage alone bounds a stream whose stages have a
processor each, as with a GPU. On a CPU the stages share its cores: then no order of work is faster than
cores / (CPU time of all stages a frame), where that is less. Writes OUT.json and OUT.md.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_args

import cv2
import numpy as np
from numpy.typing import NDArray
from streaming_page import memory_page, rates_page

import fcnopt
from fcnopt.backends.base import Mode, Runner
from fcnopt.backends.machine import describe_machine
from fcnopt.engine import Engine
from fcnopt.evaluate.memory import resident_mib
from fcnopt.media.base import Decoder
from fcnopt.media.clips import Clip, fit_frame, open_clip, restore_labels
from fcnopt.media.writer import write_video

MODES: tuple[Mode, ...] = get_args(Mode)
DECODE, POST = "decode and resize", "post-process"
_WARM_FRAMES = 8
_SAMPLES = 200


@dataclass(frozen=True)
class Turn:
    """What one part did in its turn.

    Attributes:
        frames: How many.
        wall_s: In how long.
        cpu_s: CPU time of the whole process, all threads, in that time.
    """

    frames: int
    wall_s: float
    cpu_s: float


@dataclass
class Part:
    """A part of the run, with all its turns.

    Attributes:
        name: For the table.
        run: Runs so many frames.
        turns: Done so far.
    """

    name: str
    run: Callable[[int], Turn]
    turns: list[Turn] = field(default_factory=list)

    @property
    def fps(self) -> float:
        """The median of the turns' rates."""
        return statistics.median(turn.frames / turn.wall_s for turn in self.turns)

    @property
    def cpu_ms(self) -> float:
        """CPU time a frame, over all turns."""
        return 1e3 * sum(turn.cpu_s for turn in self.turns) / sum(turn.frames for turn in self.turns)


def main() -> None:
    """Parse, run, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clip", type=Path)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--size", help="scale the clip to WIDTHxHEIGHT first")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--round-frames", type=int, default=100)
    parser.add_argument("--frames", type=int, help="stream so many frames instead, the clip repeated, and watch memory")
    parser.add_argument("--mode", choices=MODES, default="latency", help="of the stream with --frames")
    parser.add_argument("--decoder", choices=get_args(Decoder), default="pyav")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = scaled(args.clip, args.size, Path(folder)) if args.size else args.clip
        clip = open_clip(path, decoder=args.decoder)
        if args.frames:
            found = watch_memory(clip, args.bundle, args.frames, args.mode)
        else:
            found = measure(clip, args.bundle, args.rounds, args.round_frames)
    found |= {"clip": args.clip.name, "size": list(clip.size), "bundle": args.bundle.name, "decoder": args.decoder}
    found |= {"machine": describe_machine()}
    page = memory_page(found) if args.frames else rates_page(found)
    print(page)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        args.out.with_suffix(".md").write_text(page, encoding="utf-8")
    sys.exit(0 if found.get("constant", True) else 1)


def scaled(path: Path, size: str, folder: Path) -> Path:
    """The clip at WIDTHxHEIGHT, as H.264."""
    width, height = (int(part) for part in size.split("x"))
    clip = open_clip(path)
    frames = (cv2.resize(f.image, (width, height), interpolation=cv2.INTER_LINEAR) for f in clip.images())
    return write_video(folder / f"{path.stem}-{size}.mp4", (np.asarray(f, np.uint8) for f in frames), clip.fps or 25.0)


def repeated(clip: Clip) -> Iterator[NDArray[np.uint8]]:
    """The clip's images, from the start again after the end."""
    while True:
        for frame in clip.images():
            yield frame.image


def timed(frames: int, work: Callable[[], Any]) -> Turn:
    """Do the work of so many frames."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return Turn(frames, time.perf_counter() - wall, time.process_time() - cpu)


def exhaust(items: Iterable[Any]) -> None:
    """Draw all items, keep none."""
    for _ in items:
        pass


def settled(outputs: Iterator[Any], lead: int, count: int) -> Turn:
    """Time `count` results of a stream that was filled by `lead` before them: as it runs on and on."""
    exhaust(itertools.islice(outputs, lead))
    return timed(count, lambda: exhaust(itertools.islice(outputs, count)))


def measure(clip: Clip, bundle: Path, rounds: int, count: int) -> dict[str, Any]:
    """All parts, in turn, `rounds` times `count` frames each."""
    with fcnopt.load(bundle, mode="latency") as one, fcnopt.load(bundle, mode="throughput") as several:
        engines: dict[Mode, Engine] = {"latency": one, "throughput": several}
        parts = make_parts(clip, engines)
        for part in parts:
            part.run(_WARM_FRAMES)
        for number in range(rounds):
            for place in range(len(parts)):
                part = parts[(number + place) % len(parts)]
                part.turns.append(part.run(count))
        in_flight = {mode: engine.in_flight for mode, engine in engines.items()}
        return summary(parts, in_flight, one.batch or 1) | {"rounds": rounds, "round_frames": count}


def make_parts(clip: Clip, engines: Mapping[Mode, Engine]) -> list[Part]:
    """Every stage alone, and the stream in both modes."""
    spec = engines["latency"].spec.frame
    images = repeated(clip)
    held = [fit_frame(image, spec) for image in itertools.islice(images, 16)]
    labels = [out.labels[0] for out in Runner.stream(engines["latency"], held)]

    def decode(count: int) -> Turn:
        return timed(count, lambda: exhaust(fit_frame(image, spec) for image in itertools.islice(images, count)))

    def post(count: int) -> Turn:
        chosen = itertools.islice(itertools.cycle(labels), count)
        return timed(count, lambda: exhaust(restore_labels(each, clip.size, spec) for each in chosen))

    def infer(engine: Engine) -> Callable[[int], Turn]:
        def run(count: int) -> Turn:
            lead = lead_of(engine)
            source = itertools.islice(itertools.cycle(held), 2 * lead + count)
            with Runner.stream(engine, source) as outputs:  # the runner's own stream: nothing is restored
                return settled(outputs, lead, count)

        return run

    def stream(engine: Engine) -> Callable[[int], Turn]:
        def run(count: int) -> Turn:
            lead = lead_of(engine)
            with engine.stream(itertools.islice(images, 2 * lead + count)) as outputs:
                return settled(outputs, lead, count)

        return run

    return [
        Part(DECODE, decode),
        *(Part(f"infer, {mode}", infer(engine)) for mode, engine in engines.items()),
        Part(POST, post),
        *(Part(f"stream, {mode}", stream(engine)) for mode, engine in engines.items()),
    ]


def lead_of(engine: Engine) -> int:
    """Frames until a stream runs evenly: those in flight, and those that wait before and after them."""
    return 4 + 3 * engine.in_flight * (engine.batch or 1)


def summary(parts: list[Part], in_flight: Mapping[Mode, int], batch: int) -> dict[str, Any]:
    """Rates, bounds and how near the streams come to them."""
    by_name = {part.name: part for part in parts}
    cores = describe_machine()["cores"]
    modes = {}
    for mode in in_flight:
        stages = [by_name[DECODE], by_name[f"infer, {mode}"], by_name[POST]]
        slowest = min(stages, key=lambda part: part.fps)
        cpu_bound = 1e3 * cores / sum(stage.cpu_ms for stage in stages)
        fps, bound = by_name[f"stream, {mode}"].fps, min(slowest.fps, cpu_bound)
        modes[mode] = {
            "in_flight": in_flight[mode],
            "fps": fps,
            "slowest_stage": slowest.name,
            "slowest_fps": slowest.fps,
            "of_slowest": fps / slowest.fps,
            "cpu_bound_fps": cpu_bound,
            "of_bound": fps / bound,
            "stages_share_cores": cpu_bound < slowest.fps,
        }
    rows = {p.name: {"fps": p.fps, "cpu_ms": p.cpu_ms, "turns": [asdict(t) for t in p.turns]} for p in parts}
    return {"batch": batch, "cores": cores, "modes": modes, "parts": rows}


def watch_memory(clip: Clip, bundle: Path, count: int, mode: Mode) -> dict[str, Any]:
    """Stream `count` frames and sample the resident memory of the process.

    The first twentieth of the samples is left out: buffers are still being allocated. What is left has to stay within
    5 % of its first sample.
    """
    every = max(1, count // _SAMPLES)
    samples: list[tuple[int, float]] = []
    start = time.perf_counter()
    with fcnopt.load(bundle, mode=mode) as engine, engine.stream(itertools.islice(repeated(clip), count)) as outputs:
        for done, out in enumerate(outputs, 1):
            if out.index != done - 1 or out.skipped:
                raise SystemExit(f"frame {done - 1} came as {out.index}, {out.skipped} skipped before it")
            if done % every == 0:
                samples.append((done, round(resident_mib() or 0.0, 1)))
                print(f"\r{done} frames, {samples[-1][1]:.0f} MiB", end="", file=sys.stderr)
    print(file=sys.stderr)
    kept = [mib for _, mib in samples[max(1, len(samples) // 20) :]]
    return {
        "mode": mode,
        "frames": samples[-1][0],
        "fps": samples[-1][0] / (time.perf_counter() - start),
        "mib_first": kept[0],
        "mib_least": min(kept),
        "mib_most": max(kept),
        "mib_last": kept[-1],
        "constant": max(kept) <= 1.05 * kept[0] and min(kept) >= 0.95 * kept[0],
        "samples": samples,
    }


if __name__ == "__main__":
    main()
