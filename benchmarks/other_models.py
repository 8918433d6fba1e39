"""INT8 by the same calls on other FCNs than the one that fcnopt was measured on first.

    python benchmarks/other_models.py ../shared --out benchmarks/results/other-models

1. `torchfcn-fcn8s`: torchfcn's FCN8s as it is (padding 100, no batch norm, 134 M parameters), with VGG16's ImageNet
   convolutions, random fc6 and fc7, and scores fitted on frames of camvid/train (`fit_scores.py`).
2. `fcn32s`: an FCN-32s with the encoder, fc6 and fc7 of the trained FCN-8s, and a score fitted the same way.

Takes the folder with models/ and data/camvid. Each is exported, optimized, quantized in TensorRT's form with 64 frames
of camvid/train, built for TensorRT-RTX (sm86), and evaluated on camvid/val by the code that evaluates every file in
`accuracy.py`. Writes OUT.json and OUT.md. What is done is kept in `--work`, and done again where what it depends on
changed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import accuracy
import torch
from fit_scores import Fit, fit_scores, spaced
from networks import CLASSES, NETWORKS, Network, offer_torchfcn
from peers.measure import Evaluation, Progress, file_sha256, kept_labels, score
from peers.rows import Inputs

from fcnopt import export
from fcnopt.backends import Target, make_builder
from fcnopt.backends.base import BuildOptions
from fcnopt.backends.machine import describe_machine
from fcnopt.errors import FcnoptError, UsageError
from fcnopt.graph import io
from fcnopt.graph.passes import optimize
from fcnopt.graph.stats import macs_by_node
from fcnopt.quantize import CalibrationFrames
from fcnopt.report.progress import ConsoleProgress
from fcnopt.spec import ModelSpec

METHODS = ("minmax", "mse", "auto")
TARGET = Target.parse("tensorrt-rtx:sm86")
_KEY_LENGTH = 12


@dataclass(frozen=True)
class Options:
    """What to run.

    Attributes:
        shared: Folder of the data and the weights.
        work: Folder of what is kept between runs.
        only: Networks to run; empty for all.
        max_frames: Evaluate on no more frames, evenly spaced.
    """

    shared: Path
    work: Path
    only: tuple[str, ...] = ()
    max_frames: int | None = None

    def __post_init__(self) -> None:
        unknown = [name for name in self.only if name not in NETWORKS]
        if unknown:
            raise UsageError(f"--only: unknown networks {', '.join(unknown)}", fix=f"choose from {', '.join(NETWORKS)}")
        if self.max_frames is not None and self.max_frames < 1:
            raise UsageError("--max-frames: at least one is needed", fix="give a positive number of frames")

    def command(self) -> str:
        """The command line that says the same, without folders of this machine."""
        words = ["python", "benchmarks/other_models.py", "../shared"]
        words += ["--only", ",".join(self.only)] if self.only else []
        words += ["--max-frames", str(self.max_frames)] if self.max_frames is not None else []
        return " ".join(words)


def main() -> None:
    """Parse, run, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/other-models"))
    parser.add_argument("--only", default="", metavar="NAME,...", help=f"of {', '.join(NETWORKS)}")
    parser.add_argument("--max-frames", type=int, metavar="N", help="evaluate on no more frames (for a quick look)")
    parser.add_argument("--work", type=Path, default=accuracy.CACHE / "other-models", help="what is kept between runs")
    args = vars(parser.parse_args())
    out = args.pop("out")
    args["only"] = tuple(name.strip() for name in args["only"].split(",") if name.strip())
    args["work"] = args["work"].absolute()
    try:
        options = Options(**args)
        with ConsoleProgress() as progress:
            found = run(options, progress)
    except FcnoptError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    out.with_suffix(".md").write_text(as_markdown(found), encoding="utf-8")
    print(as_markdown(found))


def run(options: Options, progress: Progress) -> dict[str, Any]:
    """Fit, export, quantize, build and evaluate each network.

    Raises:
        FcnoptError: Data, weights or packages are missing, or one of the steps fails.
    """
    found = {}
    for name in options.only or NETWORKS:
        work = options.work / name
        work.mkdir(parents=True, exist_ok=True)
        found[name] = measured(NETWORKS[name], options, work, progress)
    return {"machine": describe_machine(), "command": options.command(), "networks": found}


def measured(network: Network, options: Options, work: Path, progress: Progress) -> dict[str, Any]:
    """The figures of one network, ready for JSON."""
    checkpoint, facts = fitted(network, options.shared, work, progress)
    if network.options.module is not None:
        offer_torchfcn()
    exported = export(checkpoint, work / "exported.onnx", classes="camvid", options=network.options, progress=progress)
    raw = io.load(exported.path)
    model, _ = optimize(raw, progress=progress)
    path = io.save(model, work / "fp32.onnx")
    spec, camvid = exported.spec, options.shared / "data/camvid"
    frames = CalibrationFrames.collect([camvid / "train"], spec, limit=accuracy.CALIBRATION_FRAMES)
    inputs = Inputs(path, model, spec, accuracy.stored_frames(frames, work), work)
    settings = accuracy.Options(options.shared, work, work, max_frames=options.max_frames)
    evaluation = accuracy.evaluation_of(settings, spec, frames)
    reference = kept_labels(path, file_sha256(path), spec, evaluation, work, progress)
    rows = []
    for method in METHODS:
        row = accuracy.quantized(method, inputs, frames, work, progress)
        file = work / row["file"]
        row |= {"method": method, "tensorrt": built(file, progress)}
        labels = kept_labels(file, row["sha256"], spec, evaluation, work, progress)
        rows.append(row | score(labels, reference, evaluation.truth, spec.classes))
    return {
        "title": network.title,
        "architecture": exported.architecture,
        "fit": facts,
        "gmacs": {"exported": _gmacs(raw), "optimized": _gmacs(model)},
        "fp32_bytes": path.stat().st_size,
        "calibration": {"frames": frames.count, "of": frames.available, "hash": frames.hash},
        **evaluated(evaluation, reference, spec),
        "rows": rows,
    }


def evaluated(evaluation: Evaluation, reference: Sequence[Any], spec: ModelSpec) -> dict[str, Any]:
    """What was evaluated on, and FP32's own figures."""
    return {
        "evaluation": {"title": evaluation.title, "frames": len(evaluation.frames), "hash": evaluation.hash},
        "reference": score(reference, reference, evaluation.truth, spec.classes),
    }


def fitted(network: Network, shared: Path, work: Path, progress: Progress) -> tuple[Path, dict[str, Any]]:
    """The network's checkpoint with fitted scores, made or kept; and how it was made."""
    weights, fit = shared / network.weights, Fit()
    labelled = spaced(shared / "data/camvid", network.frames)
    digest = hashlib.sha256(f"{network.title} {fit} {torch.__version__} {file_sha256(weights)}".encode())
    for code in ("fit_scores.py", "networks.py"):
        digest.update((Path(__file__).parent / code).read_bytes())
    for frame, labels in labelled:
        digest.update(frame.tobytes())
        digest.update(labels.tobytes())
    path = work / f"fitted-{digest.hexdigest()[:_KEY_LENGTH]}.pth"
    record = path.with_suffix(".json")
    if not (path.exists() and record.exists()):
        for old in work.glob(f"fitted-{'?' * _KEY_LENGTH}.*"):  # of other frames, weights or code
            old.unlink()
        start = time.perf_counter()
        net = network.make(weights, labelled)
        fit_scores(net, network.tail, labelled, CLASSES.ignore_index, fit, progress)
        partial = path.with_suffix(".part")
        torch.save(net.state_dict(), partial)
        partial.replace(path)
        seconds = time.perf_counter() - start
        count = sum(value.numel() for value in net.parameters())
        facts = {"frames": len(labelled), "seconds": seconds, "parameters": count, **asdict(fit)}
        record.write_text(json.dumps(facts, indent=1), encoding="utf-8")
    return path, json.loads(record.read_text(encoding="utf-8"))


def built(file: Path, progress: Progress) -> dict[str, Any]:
    """Build a quantized file for TensorRT-RTX, ahead of time; what the builder says of it.

    Raises:
        BuildError: TensorRT-RTX refuses the file.
    """
    options = BuildOptions(precision="int8", compute_capabilities=TARGET.compute_capabilities)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        engine = make_builder(TARGET).build(file, Path(folder), options, progress)
        seconds = time.perf_counter() - start
        size = sum(part.stat().st_size for part in engine.files)
    return {"target": str(TARGET), "runtime": engine.runtime, "seconds": seconds, "bytes": size, "notes": engine.notes}


def _gmacs(model: Any) -> float:
    return float(sum(macs_by_node(model).values())) / 1e9


def as_markdown(found: dict[str, Any]) -> str:
    """The figures as a page."""
    machine = found["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    cpu = f"{machine['cpu']}, {machine['cores']} cores ({', '.join(machine['isa'])}), {machine['memory_gib']} GiB"
    lines = ["# INT8 of other networks", "", f"{cpu}; {versions}", "", f"`{found['command']}`"]
    for network in found["networks"].values():
        lines += ["", *_section(network)]
    lines += [
        "",
        "Drops are points of FP32 less those of the file; every file runs on OpenVINO, with float layers in FP32. "
        "Calibration is the call that calibrates and quantizes. The last column is what the builder for "
        f"{TARGET} says of the engine.",
    ]
    return "\n".join(lines) + "\n"


def _section(network: dict[str, Any]) -> list[str]:
    fit, gmacs = network["fit"], network["gmacs"]
    evaluation, reference = network["evaluation"], network["reference"]
    return [
        f"## {network['title']}",
        "",
        f"{fit['parameters'] / 1e6:.1f} M parameters, {gmacs['exported']:.1f} GMACs a frame as exported, "
        f"{gmacs['optimized']:.1f} optimized. Scores fitted on {fit['frames']} frames of camvid/train in "
        f"{fit['seconds'] / 60:.1f} minutes; {network['calibration']['frames']} calibration frames of camvid/train; "
        f"evaluated on {evaluation['frames']} frames of {evaluation['title']}. FP32: {reference['miou']:.2f} mIoU.",
        "",
        "| ranges | mIoU | drop (95 %) | worst class (95 %) | equal labels | INT8 MACs | calibration s | MB | engine |",
        "|---|---|---|---|---|---|---|---|---|",
        *(_row(row) for row in network["rows"]),
    ]


def _row(row: dict[str, Any]) -> str:
    worst = row["worst_class"]
    cells = [
        row["method"],
        f"{row['miou']:.2f}",
        f"{row['drop']:+.2f}" + _between(row["drop_interval"]),
        f"{worst['drop']:+.2f} {worst['name']}" + _between(worst["interval"]),
        f"{row['equal_labels']:.2f} %",
        f"{row['int8_macs_share']:.1%}",
        f"{row['seconds']:.0f}",
        f"{row['bytes'] / 1e6:.1f}",
        "; ".join(row["tensorrt"]["notes"]),
    ]
    return f"| {' | '.join(cells)} |"


def _between(interval: Sequence[float] | None) -> str:
    return "" if interval is None else f" ({interval[0]:+.2f} to {interval[1]:+.2f})"


if __name__ == "__main__":
    main()
