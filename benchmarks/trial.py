"""A trial: one network, its calibration frames, and the frames that every file made of it is evaluated on.

`publish` runs a benchmark program and writes what it found.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Self

import numpy as np
from ingredients import quantized
from numpy.typing import NDArray
from rivals.measure import Evaluation, Progress, file_sha256, kept_labels, score, write_whole
from rivals.rows import Inputs

from fcnopt.errors import FcnoptError, UsageError
from fcnopt.exporter import ExportResult
from fcnopt.graph import io
from fcnopt.graph.passes import optimize
from fcnopt.media import open_clip
from fcnopt.quantize import CalibrationFrames
from fcnopt.report.progress import ConsoleProgress
from fcnopt.spec import ModelSpec

CACHE = Path.home() / ".cache" / "fcnopt"
CALIBRATION_FRAMES = 64


@dataclass(frozen=True)
class Selection:
    """Which frames of CamVid.

    Attributes:
        calibration: How many of camvid/train every quantizer gets.
        tune: Evaluate on frames of camvid/train instead of camvid/val.
        most: Evaluate on no more frames, evenly spaced.
    """

    calibration: int = CALIBRATION_FRAMES
    tune: bool = False
    most: int | None = None

    def __post_init__(self) -> None:
        if self.calibration < 1 or (self.most is not None and self.most < 1):
            raise UsageError("frames: at least one is needed", fix="give positive numbers of frames")

    def words(self) -> list[str]:
        """The options that say the same."""
        words = ["--tune"] if self.tune else []
        words += [] if self.calibration == CALIBRATION_FRAMES else ["--calibration-frames", str(self.calibration)]
        return words + ([] if self.most is None else ["--max-frames", str(self.most)])


@dataclass(frozen=True, eq=False)
class Trial:
    """What every file is made from and judged by.

    Attributes:
        inputs: What a quantizer gets.
        frames: Calibration frames.
        evaluation: Frames with label maps that files are evaluated on.
        reference: Labels of the FP32 model on these, uint8 [h, w] each.
        work: Folder of what is kept between runs.
        progress: Called as the work goes on.
    """

    inputs: Inputs
    frames: CalibrationFrames
    evaluation: Evaluation
    reference: Sequence[NDArray[np.uint8]]
    work: Path
    progress: Progress

    @classmethod
    def prepare(
        cls, exported: ExportResult, camvid: Path, work: Path, envs: Path, selection: Selection, progress: Progress
    ) -> Self:
        """Optimize an exported network, read the frames, and run FP32 on them.

        Args:
            exported: The network.
            camvid: Folder of the data.
            work: Folder of what is kept between runs.
            envs: Folder of the other quantizers' environments.
            selection: Which frames.
            progress: Called as the work goes on.

        Raises:
            FcnoptError: Data are missing, or a step fails.
        """
        spec = exported.spec
        model, _ = optimize(io.load(exported.path), progress=progress)
        path = io.save(model, work / "fp32.onnx")
        frames = CalibrationFrames.collect([camvid / "train"], spec, limit=selection.calibration)
        inputs = Inputs(path, model, spec, stored_frames(frames, work), envs)
        evaluation = evaluation_of(camvid, spec, frames, selection)
        reference = kept_labels(path, file_sha256(path), spec, evaluation, work, progress)
        return cls(inputs, frames, evaluation, reference, work, progress)

    def row(self, name: str) -> dict[str, Any]:
        """Quantize by one row and evaluate the file; facts and figures, ready for JSON.

        Raises:
            FcnoptError: It fails.
        """
        row = quantized(name, self.inputs, self.frames, self.work, self.progress)
        spec, file = self.inputs.spec, self.work / row["file"]
        labels = kept_labels(file, row["sha256"], spec, self.evaluation, self.work, self.progress)
        return row | score(labels, self.reference, self.evaluation.truth, spec.classes)

    def facts(self) -> dict[str, Any]:
        """The frames, and FP32's own figures, ready for JSON."""
        frames, evaluation, classes = self.frames, self.evaluation, self.inputs.spec.classes
        return {
            "evaluation": {"title": evaluation.title, "frames": len(evaluation.frames), "hash": evaluation.hash},
            "calibration": {"frames": frames.count, "of": frames.available, "hash": frames.hash},
            "reference": score(self.reference, self.reference, evaluation.truth, classes),
        }


def stored_frames(frames: CalibrationFrames, work: Path) -> Path:
    """The frames as one .npy file, uint8 [N, H, W, 3], for quantizers that run elsewhere."""
    path = work / f"frames-{frames.count}-{frames.hash[:16]}.npy"
    if not path.exists():
        buffer = BytesIO()
        np.save(buffer, np.concatenate(list(frames)))
        write_whole(path, buffer.getvalue())
    return path


def evaluation_of(camvid: Path, spec: ModelSpec, frames: CalibrationFrames, selection: Selection) -> Evaluation:
    """All of camvid/val; or, to tune by, what lies in the middle between two calibration frames of camvid/train."""
    title = "camvid/val"
    places: Sequence[int] | None = None
    if selection.tune:
        title = "camvid/train that calibration leaves out"
        places = held_out(frames.count, frames.available)
    if selection.most is not None:
        count = len(places) if places is not None else len(open_clip(camvid / "val"))
        taken = min(selection.most, count)
        chosen = [index * count // taken for index in range(taken)]
        places = chosen if places is None else [places[index] for index in chosen]
    name = "train" if selection.tune else "val"
    return Evaluation.read(camvid / name, camvid / f"{name}annot", spec, places, title)


def held_out(count: int, available: int) -> list[int]:
    """Places in the middle between the `count` evenly spaced ones that calibration takes of `available`."""
    taken = {index * available // count for index in range(count)}
    middles = dict.fromkeys((2 * index + 1) * available // (2 * count) for index in range(count))
    return [place for place in middles if place not in taken]


def names(text: str) -> tuple[str, ...]:
    """The names in "NAME,..."."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def refuse_unknown(only: Sequence[str], known: Collection[str], what: str) -> None:
    """Refuse names given to --only that are not known."""
    unknown = [name for name in only if name not in known]
    if unknown:
        raise UsageError(f"--only: unknown {what} {', '.join(unknown)}", fix=f"choose from {', '.join(known)}")


def publish(
    run: Callable[[Progress], dict[str, Any]], as_markdown: Callable[[dict[str, Any]], str], out: Path
) -> dict[str, Any]:
    """Run a benchmark, write what it found as OUT.json and OUT.md, print the page, and return it; a mistake exits."""
    try:
        with ConsoleProgress() as progress:
            found = run(progress)
    except FcnoptError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    out.with_suffix(".md").write_text(as_markdown(found), encoding="utf-8")
    print(as_markdown(found))
    return found
