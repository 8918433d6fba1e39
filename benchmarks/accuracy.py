"""INT8 of the trained FCN-8s by fcnopt's ingredients and by other quantizers: accuracy, side by side.

    python benchmarks/accuracy.py ../shared --out benchmarks/results/accuracy

Takes the folder with models/fcn8s_vgg16bn_camvid.pth and data/camvid. Every quantizer gets the same optimized FP32
model and the same frames of camvid/train; every file is evaluated by the same code on camvid/val, or with --tune on
frames of camvid/train that calibration leaves out. NNCF and NVIDIA Model Optimizer are installed into environments of
their own (`--envs`; the environment variable PIP_ARGS is handed to pip); where that fails, the table says so. Writes
OUT.json and OUT.md. What is done is kept in `--work`: a run that was cut goes on where it stopped, and what depends on
changed code, frames or versions is done again.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ingredients import INGREDIENTS, title_of
from rivals.measure import Progress
from rivals.page import as_markdown
from rivals.rows import PEERS
from trial import CACHE, CALIBRATION_FRAMES, Selection, Trial, names, publish, refuse_unknown

from fcnopt import export
from fcnopt.backends.machine import describe_machine
from fcnopt.errors import BackendError

ROWS = (*INGREDIENTS, *PEERS)


@dataclass(frozen=True)
class Options:
    """What to run.

    Attributes:
        shared: Folder of the data and the network.
        envs: Folder of the other quantizers' environments.
        work: Folder of what is kept between runs.
        only: Rows to run; empty for all.
        frames: Which frames.
    """

    shared: Path
    envs: Path
    work: Path
    only: tuple[str, ...] = ()
    frames: Selection = field(default_factory=Selection)

    def __post_init__(self) -> None:
        refuse_unknown(self.only, ROWS, "rows")

    def command(self) -> str:
        """The command line that says the same, without folders of this machine."""
        words = ["--only", ",".join(self.only)] if self.only else []
        return " ".join(["python", "benchmarks/accuracy.py", "../shared", *words, *self.frames.words()])


def main() -> None:
    """Parse, run, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path)
    parser.add_argument("--out", type=Path, help="default benchmarks/results/accuracy, with --tune accuracy-tune")
    parser.add_argument("--only", type=names, default=(), metavar="NAME,...", help=f"of {', '.join(ROWS)}")
    parser.add_argument("--tune", action="store_true", help="evaluate on held-out frames of camvid/train, not on val")
    parser.add_argument("--calibration-frames", type=int, default=CALIBRATION_FRAMES, metavar="N")
    parser.add_argument("--max-frames", type=int, metavar="N", help="evaluate on no more frames (for a quick look)")
    parser.add_argument("--envs", type=Path, default=CACHE / "peers", help="the other quantizers' environments")
    parser.add_argument("--work", type=Path, default=CACHE / "accuracy", help="what is kept between runs")
    args = parser.parse_args()

    def measured(progress: Progress) -> dict[str, Any]:
        frames = Selection(args.calibration_frames, args.tune, args.max_frames)
        return run(Options(args.shared, args.envs.absolute(), args.work.absolute(), args.only, frames), progress)

    out = args.out or Path("benchmarks/results", "accuracy-tune" if args.tune else "accuracy")
    publish(measured, as_markdown, out)


def run(options: Options, progress: Progress) -> dict[str, Any]:
    """Prepare, then quantize and evaluate row by row; each is kept as soon as it is done.

    Raises:
        FcnoptError: Data or network are missing, or one of fcnopt's own rows fails.
    """
    options.work.mkdir(parents=True, exist_ok=True)
    checkpoint = options.shared / "models/fcn8s_vgg16bn_camvid.pth"
    exported = export(checkpoint, options.work / "exported.onnx", classes="camvid", progress=progress)
    camvid = options.shared / "data/camvid"
    trial = Trial.prepare(exported, camvid, options.work, options.envs, options.frames, progress)
    rows = []
    for name in options.only or ROWS:
        row: dict[str, Any] = {"name": name, "title": title_of(name)}
        try:
            row |= trial.row(name)
        except BackendError as error:
            if name not in PEERS:
                raise
            row["skipped"] = error.message
        rows.append(row)
    return {"machine": describe_machine(), "command": options.command(), **trial.facts(), "rows": rows}


if __name__ == "__main__":
    main()
