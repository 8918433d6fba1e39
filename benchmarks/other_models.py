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
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from fit_scores import Fit, fit_scores, spaced
from ingredients import KEY_LENGTH
from networks import CLASSES, NETWORKS, Network, offer_torchfcn
from rivals.measure import Progress, file_sha256
from rivals.page import figures, machine_line
from trial import CACHE, Selection, Trial, names, publish, refuse_unknown

from fcnopt import export
from fcnopt.backends import Target, make_builder
from fcnopt.backends.base import BuildOptions
from fcnopt.backends.machine import describe_machine
from fcnopt.graph import io
from fcnopt.graph.stats import macs_by_node

METHODS = ("minmax", "mse", "auto")
TARGET = Target.parse("tensorrt-rtx:sm86")


@dataclass(frozen=True)
class Options:
    """What to run.

    Attributes:
        shared: Folder of the data and the weights.
        work: Folder of what is kept between runs.
        only: Networks to run; empty for all.
        frames: Which frames.
    """

    shared: Path
    work: Path
    only: tuple[str, ...] = ()
    frames: Selection = field(default_factory=Selection)

    def __post_init__(self) -> None:
        refuse_unknown(self.only, NETWORKS, "networks")

    def command(self) -> str:
        """The command line that says the same, without folders of this machine."""
        words = ["--only", ",".join(self.only)] if self.only else []
        return " ".join(["python", "benchmarks/other_models.py", "../shared", *words, *self.frames.words()])


def main() -> None:
    """Parse, run, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/other-models"))
    parser.add_argument("--only", type=names, default=(), metavar="NAME,...", help=f"of {', '.join(NETWORKS)}")
    parser.add_argument("--max-frames", type=int, metavar="N", help="evaluate on no more frames (for a quick look)")
    parser.add_argument("--work", type=Path, default=CACHE / "other-models", help="what is kept between runs")
    args = parser.parse_args()

    def measured_all(progress: Progress) -> dict[str, Any]:
        frames = Selection(most=args.max_frames)
        return run(Options(args.shared, args.work.absolute(), args.only, frames), progress)

    publish(measured_all, as_markdown, args.out)


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
    trial = Trial.prepare(exported, options.shared / "data/camvid", work, work, options.frames, progress)
    rows = []
    for method in METHODS:
        row = trial.row(method)
        rows.append({"method": method, **row, "tensorrt": built(work / row["file"], progress)})
    return {
        "title": network.title,
        "architecture": exported.architecture,
        "fit": facts,
        "gmacs": {"exported": _gmacs(io.load(exported.path)), "optimized": _gmacs(trial.inputs.model)},
        "fp32_bytes": trial.inputs.path.stat().st_size,
        **trial.facts(),
        "rows": rows,
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
    path = work / f"fitted-{digest.hexdigest()[:KEY_LENGTH]}.pth"
    record = path.with_suffix(".json")
    if not (path.exists() and record.exists()):
        for old in work.glob(f"fitted-{'?' * KEY_LENGTH}.*"):  # of other frames, weights or code
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
    lines = ["# INT8 of other networks", "", machine_line(found["machine"]), "", f"`{found['command']}`"]
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
    return f"| {' | '.join([row['method'], *figures(row), '; '.join(row['tensorrt']['notes'])])} |"


if __name__ == "__main__":
    main()
