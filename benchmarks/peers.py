"""fcnopt beside its peers on one clip: speed, accuracy, time to build, memory; one machine, one run, by turns.

    python benchmarks/peers.py ../shared/data/clips/camvid_0016E5.mp4 --labels ../shared/data/camvid/valannot

PyTorch, ONNX Runtime, OpenVINO, NNCF and Model Optimizer, each as its own documentation says to use it, and fcnopt's
bundles; on a GPU also what runs there. NNCF and Model Optimizer live in environments of their own (see README.md).
Label maps are evaluated on, never tuned by: calibration takes frames of --calibration alone. Writes OUT.json, OUT.md
and, with matplotlib, OUT.png. Files are kept in --work between runs.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from race.contenders import CONTENDERS, REFERENCE, Contender, Ready, of_bundles
from race.making import Kitchen, plain_onnx, tensors_of
from race.page import as_markdown
from race.plot import draw
from race.process import Process
from race.rounds import Course, race, results
from race.scripts import Task
from rivals.measure import Progress
from trial import CACHE, CALIBRATION_FRAMES, names, publish, refuse_unknown

from fcnopt import ExportOptions, export
from fcnopt.backends.machine import describe_machine
from fcnopt.errors import BackendError, UsageError
from fcnopt.media import open_clip
from fcnopt.quantize import CalibrationFrames

_SHARED = Path("../shared")


@dataclass(frozen=True)
class Options:
    """What to race.

    Attributes:
        clip: A video.
        labels: Folder of its label maps; None takes PyTorch's labels for the truth.
        checkpoint: The trained network.
        classes: As `fcnopt export` takes them.
        calibration: Folder of calibration frames.
        envs: Folder of the peers' own environments.
        work: Folder of what is kept between runs.
        only: Contenders to run; empty for all. The reference always runs.
        bundles: Bundles that take part too.
        size: (height, width) that the network takes; None for what `fcnopt export` chooses.
        calibration_frames: How many.
        max_frames: Of the clip; None for all.
        round_frames: In a contender's turn.
        laps: How often the clip is run.
    """

    clip: Path
    labels: Path | None
    checkpoint: Path
    classes: str
    calibration: Path
    envs: Path
    work: Path
    only: tuple[str, ...] = ()
    bundles: tuple[Path, ...] = ()
    size: tuple[int, int] | None = None
    calibration_frames: int = CALIBRATION_FRAMES
    max_frames: int | None = None
    round_frames: int = 26
    laps: int = 1

    def __post_init__(self) -> None:
        refuse_unknown(self.only, CONTENDERS, "contenders")
        if min(self.calibration_frames, self.round_frames, self.laps, self.max_frames or 1) < 1:
            raise UsageError("frames and laps: at least one is needed", fix="give positive numbers")

    def command(self) -> str:
        """The command line that says the same, without folders of this machine."""
        words = ["python", "benchmarks/peers.py", self.clip.name]
        words += [] if self.labels is None else ["--labels", self.labels.name]
        words += ["--only", ",".join(self.only)] if self.only else []
        words += ["--bundles", *(path.name for path in self.bundles)] if self.bundles else []
        words += [] if self.max_frames is None else ["--max-frames", str(self.max_frames)]
        return " ".join(words + ([] if self.laps == 1 else ["--laps", str(self.laps)]))


def main() -> None:
    """Parse, run, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clip", type=Path, metavar="CLIP")
    parser.add_argument("--labels", type=Path, help="folder of the clip's label maps; else PyTorch's are the truth")
    parser.add_argument("--checkpoint", type=Path, default=_SHARED / "models/fcn8s_vgg16bn_camvid.pth")
    parser.add_argument("--classes", default="camvid")
    parser.add_argument("--calibration", type=Path, default=_SHARED / "data/camvid/train")
    parser.add_argument("--size", type=_size, metavar="HxW", help="that the network takes")
    parser.add_argument("--only", type=names, default=(), metavar="NAME,...", help=f"of {', '.join(CONTENDERS)}")
    parser.add_argument("--bundles", type=Path, nargs="+", default=[], help="bundles that take part too")
    parser.add_argument("--calibration-frames", type=int, default=CALIBRATION_FRAMES, metavar="N")
    parser.add_argument("--max-frames", type=int, metavar="N", help="race over no more frames (for a quick look)")
    parser.add_argument("--round-frames", type=int, default=26, metavar="N", help="in a contender's turn")
    parser.add_argument("--laps", type=int, default=1, metavar="N", help="run the clip N times")
    parser.add_argument("--envs", type=Path, default=CACHE / "peers", help="the peers' own environments")
    parser.add_argument("--work", type=Path, default=CACHE / "race", help="what is kept between runs")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/peers"))
    args = vars(parser.parse_args())
    out, places = args.pop("out"), {name: args[name].absolute() for name in ("envs", "work", "checkpoint")}

    def measured(progress: Progress) -> dict[str, Any]:
        found = run(Options(**args | places | {"bundles": tuple(args["bundles"])}), progress)
        return found | {"picture": picture(found, out.with_suffix(".png"))}

    publish(measured, as_markdown, out)


def picture(found: dict[str, Any], path: Path) -> str:
    """Draw it where that can be done; for the page."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        draw(found, path)
    except UsageError as error:
        return f"No picture: {error.message}."
    return f"![time a frame and loss of accuracy]({path.name})"


def run(options: Options, progress: Progress) -> dict[str, Any]:
    """Make all files, then race; figures ready for JSON.

    Raises:
        FcnoptError: Clip, network or calibration frames are missing, or the reference fails.
    """
    options.work.mkdir(parents=True, exist_ok=True)
    clip = open_clip(options.clip, options.labels)
    kitchen = prepare(options, progress)
    field: dict[str, Contender] = {**CONTENDERS, **of_bundles(options.bundles)}
    wanted = [
        name for name in field if not options.only or name in (*options.only, REFERENCE) or name not in CONTENDERS
    ]
    ready, skipped = get_ready({name: field[name] for name in wanted}, kitchen)
    frames = min(len(clip), options.max_frames or len(clip))
    starters = {name: partial(Process, one.command, options.work / f"{name}.log") for name, one in ready.items()}
    runners, out = race(starters, Course(frames, options.round_frames, laps=options.laps), progress)
    truth = _truth(options, frames)
    figures = results(runners, REFERENCE, truth, kitchen.exported.spec.classes)
    skipped |= out
    rows = []
    for name in wanted:
        row: dict[str, Any] = {"name": name, "title": field[name].title, "ours": field[name].ours}
        made = ready[name].made if name in ready else None
        row |= {"skipped": skipped[name]} if name in skipped else figures[name] | _built(made)
        rows.append(row)
    return {
        "machine": describe_machine(),
        "command": options.command(),
        "clip": clip.name,
        "size": clip.size,
        "frames": frames,
        "truth": "PyTorch's labels" if truth is None else "label maps",
        "calibration": kitchen.frames,
        "rows": rows,
    }


def prepare(options: Options, progress: Progress) -> Kitchen:
    """Export the network, for fcnopt and for its peers, and read the calibration frames.

    Raises:
        FcnoptError: Network or frames cannot be used.
    """
    work = options.work
    sized = ExportOptions(size=options.size)
    exported = export(
        options.checkpoint, work / "network.onnx", classes=options.classes, options=sized, progress=progress
    )
    frame = exported.spec.frame
    if frame.height is None or frame.width is None:
        raise UsageError("the network has no size of its own", fix="give --size")
    size, norm = (frame.height, frame.width), frame.normalization
    task = Task(str(options.clip.absolute()), size, norm.color, norm.scale, norm.mean, norm.std)
    (work / "task.json").write_text(json.dumps(asdict(task)), encoding="utf-8")
    progress("export by torch.onnx", 0.0)
    plain_s = plain_onnx(options.checkpoint, size, work / "plain.onnx")
    frames = CalibrationFrames.collect([options.calibration], exported.spec, limit=options.calibration_frames)
    tensors_of(frames, task, work / "calibration.npy")
    return Kitchen(
        checkpoint=options.checkpoint,
        exported=exported,
        plain=work / "plain.onnx",
        plain_s=plain_s,
        task=task,
        calibration=options.calibration,
        frames=frames.count,
        tensors=work / "calibration.npy",
        envs=options.envs,
        work=work,
        progress=progress,
    )


def get_ready(field: dict[str, Contender], kitchen: Kitchen) -> tuple[dict[str, Ready], dict[str, str]]:
    """Who can start, with its file made, and who cannot, with the reason; by name."""
    ready: dict[str, Ready] = {}
    skipped: dict[str, str] = {}
    for name, contender in field.items():
        missing = contender.missing()
        if missing:
            skipped[name] = missing
            continue
        try:
            ready[name] = contender.ready(kitchen)
        except BackendError as error:
            skipped[name] = error.message
    return ready, skipped


def _truth(options: Options, frames: int) -> list[NDArray[np.uint8]] | None:
    """Label maps of the clip's first frames, where it has them."""
    if options.labels is None:
        return None
    found = [frame.labels for frame, _ in zip(open_clip(options.clip, options.labels), range(frames), strict=False)]
    return [labels for labels in found if labels is not None]


def _built(made: Any) -> dict[str, Any]:
    """How a contender's file was made."""
    return {"build_s": made.seconds if made else 0.0, "versions": made.versions if made else {}}


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    return int(height), int(width)


if __name__ == "__main__":
    main()
