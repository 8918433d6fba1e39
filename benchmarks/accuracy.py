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
import hashlib
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto
from peers.int8_share import int8_share
from peers.measure import Evaluation, Progress, file_sha256, kept_labels, parts, score, write_whole
from peers.page import as_markdown
from peers.rows import PEERS, Inputs, Made

import fcnopt
from fcnopt import export
from fcnopt.backends.machine import describe_machine
from fcnopt.errors import BackendError, FcnoptError, UsageError
from fcnopt.graph import io
from fcnopt.graph.hashes import graph_hash, weights_hash
from fcnopt.graph.passes import optimize
from fcnopt.media import open_clip
from fcnopt.quantize import CalibrationFrames, Method, make_precision
from fcnopt.quantize.tune import Tuning
from fcnopt.report.progress import ConsoleProgress
from fcnopt.spec import ModelSpec

Ingredient = Callable[[onnx.ModelProto, ModelSpec, CalibrationFrames], onnx.ModelProto]
CACHE = Path.home() / ".cache" / "fcnopt"
CALIBRATION_FRAMES = 64
_KEY_LENGTH = 12


def by_method(method: Method, model: onnx.ModelProto, spec: ModelSpec, frames: CalibrationFrames) -> onnx.ModelProto:
    """INT8 in TensorRT's form, ranges by one method."""
    return make_precision(model, spec, "int8", form="tensorrt", frames=frames, method=method, tuning=_NONE).model


def with_ingredients(tuning: Tuning, model: ModelProto, spec: ModelSpec, frames: CalibrationFrames) -> ModelProto:
    """Ranges by the best method, and these ingredients."""
    return make_precision(model, spec, "int8", form="tensorrt", frames=frames, method="auto", tuning=tuning).model


_NONE = Tuning(equalize=False, refine=False, rounding=False, bias=False)
INGREDIENTS: Mapping[str, Ingredient] = {
    "minmax": partial(by_method, "minmax"),
    "percentile": partial(by_method, "percentile"),
    "entropy": partial(by_method, "entropy"),
    "mse": partial(by_method, "mse"),
    "equalize": partial(with_ingredients, replace(_NONE, equalize=True)),
    "bias": partial(with_ingredients, replace(_NONE, bias=True)),
    "rounding": partial(with_ingredients, replace(_NONE, rounding=True)),
    "refine": partial(with_ingredients, replace(_NONE, refine=True)),
    "rounding+bias": partial(with_ingredients, replace(_NONE, rounding=True, bias=True)),
    "equalize+rounding": partial(with_ingredients, replace(_NONE, equalize=True, rounding=True)),
    "equalize+rounding+bias": partial(with_ingredients, Tuning(refine=False)),
    "equalize+rounding+refine": partial(with_ingredients, Tuning(bias=False)),
    "auto": partial(with_ingredients, Tuning()),
}
"""fcnopt's own rows: from the optimized FP32 model, its spec and calibration frames to the quantized model."""


@dataclass(frozen=True)
class Options:
    """What to run.

    Attributes:
        shared: Folder of the data and the network.
        envs: Folder of the other quantizers' environments.
        work: Folder of what is kept between runs.
        only: Rows to run; empty for all.
        tune: Evaluate on frames of camvid/train instead of camvid/val.
        calibration_frames: How many frames of camvid/train every quantizer gets.
        max_frames: Evaluate on no more frames, evenly spaced.
    """

    shared: Path
    envs: Path
    work: Path
    only: tuple[str, ...] = ()
    tune: bool = False
    calibration_frames: int = CALIBRATION_FRAMES
    max_frames: int | None = None

    def __post_init__(self) -> None:
        known = [*INGREDIENTS, *PEERS]
        unknown = [name for name in self.only if name not in known]
        if unknown:
            raise UsageError(f"--only: unknown rows {', '.join(unknown)}", fix=f"choose from {', '.join(known)}")
        if self.calibration_frames < 1 or (self.max_frames is not None and self.max_frames < 1):
            raise UsageError("frames: at least one is needed", fix="give positive numbers of frames")

    def command(self) -> str:
        """The command line that says the same, without folders of this machine."""
        words = ["python", "benchmarks/accuracy.py", "../shared"]
        words += ["--only", ",".join(self.only)] if self.only else []
        words += ["--tune"] if self.tune else []
        if self.calibration_frames != CALIBRATION_FRAMES:
            words += ["--calibration-frames", str(self.calibration_frames)]
        words += ["--max-frames", str(self.max_frames)] if self.max_frames is not None else []
        return " ".join(words)


def main() -> None:
    """Parse, run, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path)
    parser.add_argument("--out", type=Path, help="default benchmarks/results/accuracy, with --tune accuracy-tune")
    parser.add_argument("--only", default="", metavar="NAME,...", help=f"of {', '.join([*INGREDIENTS, *PEERS])}")
    parser.add_argument("--tune", action="store_true", help="evaluate on held-out frames of camvid/train, not on val")
    parser.add_argument("--calibration-frames", type=int, default=CALIBRATION_FRAMES, metavar="N")
    parser.add_argument("--max-frames", type=int, metavar="N", help="evaluate on no more frames (for a quick look)")
    parser.add_argument("--envs", type=Path, default=CACHE / "peers", help="the other quantizers' environments")
    parser.add_argument("--work", type=Path, default=CACHE / "accuracy", help="what is kept between runs")
    args = vars(parser.parse_args())
    out = args.pop("out") or Path("benchmarks/results", "accuracy-tune" if args["tune"] else "accuracy")
    args["only"] = tuple(name.strip() for name in args["only"].split(",") if name.strip())
    args["envs"], args["work"] = args["envs"].absolute(), args["work"].absolute()
    try:
        with ConsoleProgress() as progress:
            found = run(Options(**args), progress)
    except FcnoptError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    out.with_suffix(".md").write_text(as_markdown(found), encoding="utf-8")
    print(as_markdown(found))


def run(options: Options, progress: Progress) -> dict[str, Any]:
    """Prepare, then quantize and evaluate row by row; each is kept as soon as it is done.

    Raises:
        FcnoptError: Data or network are missing, or one of fcnopt's own rows fails.
    """
    options.work.mkdir(parents=True, exist_ok=True)
    camvid = options.shared / "data/camvid"
    model, spec, path = optimized(options, progress)
    frames = CalibrationFrames.collect([camvid / "train"], spec, limit=options.calibration_frames)
    inputs = Inputs(path, model, spec, stored_frames(frames, options.work), options.envs)
    evaluation = evaluation_of(options, spec, frames)
    reference = kept_labels(path, file_sha256(path), spec, evaluation, options.work, progress)
    rows = []
    for name in options.only or (*INGREDIENTS, *PEERS):
        row: dict[str, Any] = {"name": name, "title": title_of(name)}
        try:
            row |= quantized(name, inputs, frames, options.work, progress)
            file = options.work / row["file"]
            labels = kept_labels(file, row["sha256"], spec, evaluation, options.work, progress)
            row |= score(labels, reference, evaluation.truth, spec.classes)
        except BackendError as error:
            if name not in PEERS:
                raise
            row["skipped"] = error.message
        rows.append(row)
    return {
        "machine": describe_machine(),
        "command": options.command(),
        "evaluation": {"title": evaluation.title, "frames": len(evaluation.frames), "hash": evaluation.hash},
        "calibration": {"frames": frames.count, "of": frames.available, "hash": frames.hash},
        "reference": score(reference, reference, evaluation.truth, spec.classes),
        "rows": rows,
    }


def optimized(options: Options, progress: Progress) -> tuple[onnx.ModelProto, ModelSpec, Path]:
    """The network, exported and optimized, with its spec and its file in `work`."""
    raw = options.work / "fp32-exported.onnx"
    checkpoint = options.shared / "models/fcn8s_vgg16bn_camvid.pth"
    spec = export(checkpoint, raw, classes="camvid", progress=progress).spec
    model, _ = optimize(io.load(raw), progress=progress)
    return model, spec, io.save(model, options.work / "fp32.onnx")


def stored_frames(frames: CalibrationFrames, work: Path) -> Path:
    """The frames as one .npy file, uint8 [N, H, W, 3], for quantizers that run elsewhere."""
    path = work / f"frames-{frames.count}-{frames.hash[:16]}.npy"
    if not path.exists():
        buffer = BytesIO()
        np.save(buffer, np.concatenate(list(frames)))
        write_whole(path, buffer.getvalue())
    return path


def evaluation_of(options: Options, spec: ModelSpec, frames: CalibrationFrames) -> Evaluation:
    """All of camvid/val; or, to tune by, what lies in the middle between two calibration frames of camvid/train."""
    folder, title = options.shared / "data/camvid", "camvid/val"
    places: Sequence[int] | None = None
    if options.tune:
        title = "camvid/train that calibration leaves out"
        places = held_out(frames.count, frames.available)
    if options.max_frames is not None:
        count = len(places) if places is not None else len(open_clip(folder / "val"))
        taken = min(options.max_frames, count)
        chosen = [index * count // taken for index in range(taken)]
        places = chosen if places is None else [places[index] for index in chosen]
    name = "train" if options.tune else "val"
    return Evaluation.read(folder / name, folder / f"{name}annot", spec, places, title)


def held_out(count: int, available: int) -> list[int]:
    """Places in the middle between the `count` evenly spaced ones that calibration takes of `available`."""
    taken = {index * available // count for index in range(count)}
    middles = dict.fromkeys((2 * index + 1) * available // (2 * count) for index in range(count))
    return [place for place in middles if place not in taken]


def quantized(name: str, inputs: Inputs, frames: CalibrationFrames, work: Path, progress: Progress) -> dict[str, Any]:
    """Quantize by one row, or take what an earlier run kept; the facts about the file, ready for JSON.

    Raises:
        FcnoptError: It fails.
    """
    stem = work / f"{name}-{frames.count}-{key(name, inputs.model, frames)}"
    record = stem.with_suffix(".json")
    if record.exists():
        kept: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
        if all(part.exists() for part in parts(work / kept["file"])):
            return kept
    for old in work.glob(f"{name}-{frames.count}-{'?' * _KEY_LENGTH}.*"):  # of other code or another model
        old.unlink()
    progress(f"quantize {name}", 0.0)
    made = PEERS[name].make(inputs, stem) if name in PEERS else _ingredient(name, inputs, frames, stem)
    facts = {
        "file": made.path.name,
        "sha256": file_sha256(made.path),
        "bytes": sum(part.stat().st_size for part in parts(made.path)),
        "seconds": made.seconds,
        "versions": made.versions,
        "int8_macs_share": int8_share(made.path),
    }
    write_whole(record, json.dumps(facts, indent=1).encode())
    return facts


def _ingredient(name: str, inputs: Inputs, frames: CalibrationFrames, stem: Path) -> Made:
    start = time.perf_counter()
    model = INGREDIENTS[name](inputs.model, inputs.spec, frames)
    seconds = time.perf_counter() - start
    return Made(io.save(model, stem.with_suffix(".onnx")), seconds, {"fcnopt": fcnopt.__version__})


def key(name: str, model: onnx.ModelProto, frames: CalibrationFrames) -> str:
    """Of all that a row's file depends on: model, frames, and the code and versions that make it."""
    recipe = PEERS[name].recipe if name in PEERS else own_source()
    words = (name, recipe, weights_hash(model), graph_hash(model), frames.hash, str(frames.count))
    return hashlib.sha256("|".join(words).encode()).hexdigest()[:_KEY_LENGTH]


def own_source() -> str:
    """A hash of the code that fcnopt's rows depend on: its graph and quantize packages, and this file."""
    package = Path(fcnopt.__file__).parent
    files = sorted(path for room in ("graph", "quantize") for path in (package / room).rglob("*.py"))
    digest = hashlib.sha256()
    for path in (*files, Path(__file__)):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def title_of(name: str) -> str:
    """What the table calls a row."""
    return PEERS[name].title if name in PEERS else f"fcnopt, {name}"


if __name__ == "__main__":
    main()
