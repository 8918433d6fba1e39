"""The whole way of a bundle into a car, on a real network and clip: each step done, checked and timed.

    python benchmarks/vehicle.py CLIP BUNDLE --serve-python PYTHON --out benchmarks/results/vehicle
    python benchmarks/vehicle.py CLIP BUNDLE --only sign,run --frames 10             # a quick look

BUNDLE is for a CPU. Every way to labels (`fcnopt.run`, a robot log, C++, the served engine, many threads, a camera) is
held against `engine.run`, label for label. A row says what was done, what its result was held against, and the
figures; what this machine lacks is said as "not run". Exits with 1 where a row is wrong. Writes OUT.json and OUT.md.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trial import names, publish, refuse_unknown
from vehicle_steps import deployed, live, logged, native, recorded, served, signed
from vehicle_steps.page import as_markdown
from vehicle_steps.rows import Progress, Row, Work

from fcnopt.backends.machine import describe_machine
from fcnopt.bundle import Bundle
from fcnopt.errors import UsageError
from fcnopt.media import open_clip

STEPS: dict[str, Callable[[Work], list[Row]]] = {
    signed.STEP: signed.steps,
    recorded.STEP: recorded.steps,
    logged.STEP: logged.steps,
    deployed.STEP: deployed.steps,
    native.STEP: native.steps,
    served.STEP: served.steps,
    live.THREADS: live.threads,
    live.DEADLINES: live.deadlines,
}


@dataclass(frozen=True)
class Options:
    """What to do.

    Attributes:
        clip: A video.
        bundle: An engine for a CPU; it is copied first.
        serve_python: Of an environment with fcnopt[serve]; None does not serve.
        frames: Most frames of the clip; None for all.
        only: Some of `STEPS`; empty for all.
        seconds: How long each load on the server, and each camera, lasts.
    """

    clip: Path
    bundle: Path
    serve_python: Path | None = None
    frames: int | None = None
    only: tuple[str, ...] = ()
    seconds: float = 20.0

    def __post_init__(self) -> None:
        refuse_unknown(self.only, STEPS, "steps")
        if (self.frames is not None and self.frames < 1) or not self.seconds > 0:
            raise UsageError("--frames and --seconds: above 0 is needed", fix="give positive numbers")

    def command(self) -> str:
        """The command line that says the same, without folders of this machine."""
        words = ["python benchmarks/vehicle.py", self.clip.name, self.bundle.name]
        words += [] if self.serve_python is None else ["--serve-python", "PYTHON"]
        words += [] if self.frames is None else ["--frames", str(self.frames)]
        words += ["--only", ",".join(self.only)] if self.only else []
        return " ".join(words + ([] if self.seconds == 20 else ["--seconds", f"{self.seconds:g}"]))


def run(options: Options, progress: Progress) -> dict[str, Any]:
    """Every step, one after another; what came of it, ready for JSON.

    Raises:
        FcnoptError: Clip or bundle cannot be read.
    """
    start = time.perf_counter()
    clip, manifest = open_clip(options.clip), Bundle.read(options.bundle).manifest
    chosen = options.only or tuple(STEPS)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="fcnopt-vehicle-") as place:
        folder = Path(place).resolve()
        bundle = Path(shutil.copytree(options.bundle, folder / "engines" / options.bundle.resolve().name))
        work = Work(
            clip=options.clip,
            given=options.bundle,
            bundle=bundle,
            folder=folder,
            frames=options.frames,
            serve_python=options.serve_python,
            seconds=options.seconds,
            progress=progress,
        )
        for number, name in enumerate(chosen):
            progress(name, number / len(chosen))
            rows += STEPS[name](work)
        frames = len(work.pictures)
    progress("done", 1.0)
    return {
        "bundle": manifest.name,
        "engine": f"{manifest.spec.architecture}, {manifest.precision}, {manifest.runtime}",
        "clip": options.clip.name,
        "frames": frames,
        "size": clip.size,
        "command": options.command(),
        "rows": [row.to_dict() for row in rows],
        "seconds": round(time.perf_counter() - start, 1),
        "machine": describe_machine(),
    }


def main() -> None:
    """Parse, run, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clip", type=Path, metavar="CLIP")
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument(
        "--serve-python", type=lambda text: Path(text).absolute(), help="of an environment with fcnopt[serve]"
    )
    parser.add_argument("--frames", type=int, metavar="N", help="most frames of the clip [default: all]")
    parser.add_argument("--only", type=names, default=(), metavar="STEP,...", help=f"of {', '.join(STEPS)}")
    parser.add_argument("--seconds", type=float, default=20.0, help="how long each load and each camera lasts")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/vehicle"))
    given = vars(parser.parse_args())
    out = given.pop("out")
    found = publish(lambda progress: run(Options(**given), progress), as_markdown, out)
    sys.exit(1 if any(row["fault"] for row in found["rows"]) else 0)


if __name__ == "__main__":
    main()
