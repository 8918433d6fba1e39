"""Faults that fcnopt has to bear, done on purpose, counted, and held against what is promised.

    python benchmarks/reliability.py CLIP BUNDLE CHECKPOINT --out benchmarks/results/reliability
    python benchmarks/reliability.py CLIP BUNDLE CHECKPOINT --families flips,videos --scale 0.1     # a quick look

BUNDLE is for a CPU, built from the CHECKPOINT; its calibration frames are looked for where it was calibrated, unless
--calibration names others. A row says what was done, how often, what came of it, the worst memory and time, and whether
the promise held. Exits with 1 where one did not. Writes OUT.json and OUT.md.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from faults.cameras import cameras
from faults.commands import Inputs, commands
from faults.disks import full_disks, limited_files, read_only
from faults.endurance import endurance
from faults.flips import flips
from faults.fuzzing import fuzz
from faults.hostile import hostile
from faults.kills import crash_points, kills
from faults.memory import out_of_memory
from faults.outcome import Progress, Tally
from faults.page import as_markdown
from faults.seeds import make_seeds
from faults.served import served
from faults.videos import videos
from trial import names, publish, refuse_unknown

from fcnopt.backends.machine import describe_machine
from fcnopt.bundle import Bundle
from fcnopt.errors import UsageError
from fcnopt.locate import find_reference


@dataclass(frozen=True)
class Options:
    """What to do, and how often.

    Attributes:
        clip: A video.
        bundle: An engine for a CPU.
        checkpoint: The network that it was built from.
        calibration: Frames; None for those that the bundle names.
        families: Some of `FAMILIES`; empty for all.
        scale: All counts are multiplied by it.
        fuzz_python: Of an environment with atheris.
        serve_python: Of an environment with fcnopt[serve].
        seed: Of everything drawn.
    """

    clip: Path
    bundle: Path
    checkpoint: Path
    calibration: Path | None = None
    families: tuple[str, ...] = ()
    scale: float = 1.0
    fuzz_python: Path = Path(sys.executable)
    serve_python: Path | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        refuse_unknown(self.families, FAMILIES, "families")
        if not self.scale > 0:
            raise UsageError(f"--scale: {self.scale:g} is not above 0", fix="give a number above 0")

    def times(self, count: int) -> int:
        """So often, scaled; at least once."""
        return max(1, round(count * self.scale))

    def command(self) -> str:
        """The command line that says the same, without folders of this machine."""
        words = ["python benchmarks/reliability.py", self.clip.name, self.bundle.name, self.checkpoint.name]
        words += ["--families", ",".join(self.families)] if self.families else []
        words += [] if self.scale == 1 else ["--scale", f"{self.scale:g}"]
        return " ".join(words)


@dataclass(frozen=True)
class Work:
    """What families work with.

    Attributes:
        options: What to do.
        folder: For everything that is written; vanishes.
        seeds: Small files of every kind, and a bundle of a small network.
        progress: Called as the work goes on.
    """

    options: Options
    folder: Path
    seeds: Path
    progress: Progress

    def inputs(self) -> Inputs:
        """The network itself, for commands."""
        options, bundle = self.options, Bundle.read(self.options.bundle)
        frame = bundle.manifest.spec.frame
        images = options.calibration or next(map(Path, bundle.manifest.sources.get("calibration_paths", ())), None)
        if images is None:
            raise UsageError(f"{options.bundle}: was not calibrated", fix="give frames with --calibration")
        size = f"{frame.height or 360}x{frame.width or 480}"
        model = find_reference(bundle)
        return Inputs(options.checkpoint, model, options.bundle, options.clip, images, bundle.manifest.target, size)

    def small_inputs(self) -> Inputs:
        """The small network, for commands."""
        return small_inputs(self.seeds)


def small_inputs(seeds: Path) -> Inputs:
    """The small network of `make_seeds`, for commands."""
    made = seeds / "net.pth", seeds / "net.onnx", seeds / "engines" / "net", seeds / "clip.mp4", seeds / "images"
    return Inputs(*made)


def kill_family(work: Work) -> list[Tally]:
    """The network's build; every other command on the small network, at random moments and at every change."""
    options, folder = work.options, work.folder / "kills"
    build = commands(work.inputs())["build"]
    found = [kills(build, folder / "network", options.times(50), options.seed, work.progress)]
    found[0].what += f" ({options.bundle.name})"
    for place, command in enumerate(commands(work.small_inputs()).values()):
        count = options.times(3 if command.name == "slim" else 10)
        found.append(kills(command, folder / f"random-{place}", count, options.seed, work.progress))
        if command.name != "slim":
            found.append(crash_points(command, folder / f"points-{place}", options.times(12), work.progress))
    return found


def disk_family(work: Work) -> list[Tally]:
    """Every command on the small network but slimming, which writes as exports and recipes are written."""
    found = []
    for place, command in enumerate(commands(work.small_inputs()).values()):
        folder, steps = work.folder / "disks" / str(place), work.options.times(6)
        if command.name != "slim":
            found.append(full_disks(command, folder / "full", steps, work.progress))
            found.append(limited_files(command, folder / "limited", work.options.times(3), work.progress))
            found.append(read_only(command, folder / "read-only"))
    return found


def hostile_family(work: Work) -> list[Tally]:
    """Generated input, and input that atheris finds."""
    options = work.options
    rows = hostile(work.seeds, options.times(10_000), options.seed, work.progress)
    return rows + fuzz(work.seeds, options.fuzz_python, options.times(40), work.progress)


FAMILIES: dict[str, Callable[[Work], list[Tally]]] = {
    "kills": kill_family,
    "disks": disk_family,
    "flips": lambda work: flips(
        work.options.bundle, work.options.times(500), every(work), work.options.seed, work.progress
    ),
    "videos": lambda work: videos(
        work.options.clip,
        work.folder / "videos",
        work.options.times(100),
        seed=work.options.seed,
        progress=work.progress,
    ),
    "cameras": lambda work: cameras(work.options.bundle, work.options.times(3), work.progress),
    "memory": lambda work: out_of_memory(work.options.bundle, work.options.times(12), work.progress),
    "hostile": hostile_family,
    "endurance": lambda work: endurance(work.seeds / "engines" / "net", work.options.times(100_000), work.progress),
    "load": lambda work: served(work.options.bundle, work.options.serve_python, 10 * work.options.scale),
}


def every(work: Work) -> int:
    """Which bytes of a manifest are flipped: each, or fewer where all counts are scaled down."""
    return max(1, round(1 / work.options.scale))


def run(options: Options, progress: Progress) -> dict[str, Any]:
    """All families asked for, one after another; what came of it, ready for JSON."""
    start = time.perf_counter()
    rows: list[dict[str, Any]] = []
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="fcnopt-reliability-") as place:
        progress("small files of every kind", 0.0)
        work = Work(options, Path(place), make_seeds(Path(place) / "seeds"), progress)
        for name in options.families or FAMILIES:
            began = time.perf_counter()
            tallies = FAMILIES[name](replace(work, folder=work.folder / name))
            rows += [tally.to_dict() | {"held": tally.held} for tally in tallies]
            seconds[name] = round(time.perf_counter() - began, 1)
    progress("done", 1.0)
    return {
        "bundle": options.bundle.name,
        "clip": options.clip.name,
        "command": options.command(),
        "rows": rows,
        "family_s": seconds,
        "seconds": round(time.perf_counter() - start, 1),
        "machine": describe_machine(),
    }


def main() -> None:
    """Parse, run, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clip", type=Path)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--calibration", type=Path, help="frames for the builds [default: those of the bundle]")
    parser.add_argument("--families", type=names, default=(), help=f"some of {','.join(FAMILIES)} [default: all]")
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies every count")
    parser.add_argument("--fuzz-python", type=Path, default=Path(sys.executable), help="of an environment with atheris")
    parser.add_argument("--serve-python", type=Path, help="of an environment with fcnopt[serve]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/reliability"))
    given = vars(parser.parse_args())
    out = given.pop("out")
    found = publish(lambda progress: run(Options(**given), progress), as_markdown, out)
    sys.exit(1 if any(not row["held"] and not row["verdict"].startswith("not run") for row in found["rows"]) else 0)


if __name__ == "__main__":
    main()
