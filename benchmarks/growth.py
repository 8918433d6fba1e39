"""How time and memory grow with frame size, batch and classes, and what share of the machine's peak is used.

    python benchmarks/growth.py --out benchmarks/results/growth

Exports the network anew for every size and number of classes, builds it as `fcnopt build` does (FP32, and INT8
with the ranges of one frame: speed does not depend on them) and runs each engine in a process of its own. Peaks are
measured: matrix products in the runtime's own kernels, and copies in memory. Writes OUT.json and OUT.md.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx
from growing.page import as_markdown
from growing.peaks import Peaks, roofline_ms, slope
from growing.variants import Sources, Variant, make
from rivals.measure import Progress
from trial import names, publish, refuse_unknown

from fcnopt.backends.base import Precision
from fcnopt.backends.machine import describe_machine
from fcnopt.errors import BackendError, FcnoptError
from fcnopt.graph.stats import macs_by_node

_SHARED = Path("../shared")
SIZES = ((240, 320), (360, 480), (480, 640), (540, 960), (720, 1280), (1080, 1920))
BATCHES = (1, 2, 4, 8)
CLASSES = (2, 11, 19, 40, 80, 150)
BASE = (360, 480)
AXES: dict[str, tuple[Variant, ...]] = {
    "size": tuple(Variant("size", size) for size in SIZES),
    "batch": tuple(Variant("batch", BASE, batch=count) for count in BATCHES),
    "classes": tuple(Variant("classes", BASE, classes=count) for count in CLASSES),
}
PRECISIONS: tuple[Precision, ...] = ("fp32", "int8")


@dataclass(frozen=True)
class Options:
    """What to measure.

    Attributes:
        checkpoint: The trained network.
        calibration: Folder of frames.
        target: A CPU target.
        axes: What grows; empty for everything.
        runs: Timed runs of each engine.
        largest: Leave out variants with more pixels in a batch; None for none.
    """

    checkpoint: Path
    calibration: Path
    target: str = "openvino"
    axes: tuple[str, ...] = ()
    runs: int = 10
    largest: int | None = None

    def __post_init__(self) -> None:
        refuse_unknown(self.axes, AXES, "axes")
        refuse_unknown((self.target,), ("openvino", "onnxruntime"), "targets")

    def variants(self) -> list[Variant]:
        """Everything to measure, in order."""
        found = [variant for axis in self.axes or AXES for variant in AXES[axis]]
        limit = self.largest or sys.maxsize
        return [one for one in found if one.batch * one.size[0] * one.size[1] <= limit]

    def command(self) -> str:
        """The command line that says the same, without folders of this machine."""
        words = ["python", "benchmarks/growth.py"]
        words += [] if self.target == "openvino" else ["--target", self.target]
        words += ["--only", ",".join(self.axes)] if self.axes else []
        return " ".join(words + ([] if self.largest is None else ["--largest", str(self.largest)]))


def main() -> None:
    """Parse, run, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=_SHARED / "models/fcn8s_vgg16bn_camvid.pth")
    parser.add_argument("--calibration", type=Path, default=_SHARED / "data/camvid/train")
    parser.add_argument("--target", default="openvino", help="openvino or onnxruntime")
    parser.add_argument("--only", type=names, default=(), dest="axes", metavar="AXIS,...", help=f"of {', '.join(AXES)}")
    parser.add_argument("--runs", type=int, default=10, help="timed runs of each engine")
    parser.add_argument("--largest", type=int, metavar="PIXELS", help="leave out batches with more (for a quick look)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/growth"))
    args = vars(parser.parse_args())
    out = args.pop("out")
    publish(lambda progress: run(Options(**args), progress), as_markdown, out)


def run(options: Options, progress: Progress) -> dict[str, Any]:
    """Measure peaks, then every variant; figures ready for JSON.

    Raises:
        FcnoptError: The network or the frames cannot be used.
    """
    progress("measure peaks", 0.0)
    peaks = Peaks.measured()
    points: list[dict[str, Any]] = []
    skipped: list[dict[str, str]] = []
    with tempfile.TemporaryDirectory(prefix="fcnopt-growth-") as folder:
        sources = Sources(options.checkpoint, options.calibration, options.target, Path(folder), progress)
        for variant, precision in itertools.product(options.variants(), PRECISIONS):
            progress(f"== {variant.axis} {variant.text}, {precision}", 0.0)
            try:
                points.append(measure(variant, precision, sources, peaks, options.runs))
            except FcnoptError as error:
                skipped.append({"text": variant.text, "precision": precision, "skipped": error.message})
    return {
        "machine": describe_machine(),
        "command": options.command(),
        "target": options.target,
        "peaks": asdict(peaks),
        "points": points,
        "slopes": slopes(points),
        "skipped": skipped,
    }


def measure(variant: Variant, precision: Precision, sources: Sources, peaks: Peaks, runs: int) -> dict[str, Any]:
    """Make one engine and time it; figures ready for JSON.

    Raises:
        FcnoptError: It cannot be made or fails.
    """
    folder, model = make(variant, precision, sources)
    found = in_own_process(folder, runs)
    shutil.rmtree(folder)  # an engine of an FCN-8s has up to 0.3 GB
    return asdict(variant) | {
        "text": variant.text,
        "amount": variant.amount,
        "precision": precision,
        **found,
        **shares(model, precision, peaks, found["ms"]),
    }


def shares(model: onnx.ModelProto, precision: Precision, peaks: Peaks, ms: float) -> dict[str, float]:
    """What share of the measured peaks an engine uses that runs this graph in `ms`."""
    gmacs = sum(macs_by_node(model).values()) / 1e9
    least = roofline_ms(model, precision, peaks)
    return {
        "gmacs": gmacs,
        "of_gemm": gmacs / (ms / 1e3) / peaks.gmacs[precision],
        "roofline_ms": least,
        "of_roofline": least / ms,
    }


def in_own_process(folder: Path, runs: int) -> dict[str, float]:
    """Time and memory of the engine in `folder`, in a process that holds nothing else.

    Raises:
        BackendError: It fails.
    """
    environ = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-m", "growing.engine", str(folder), "--runs", str(runs)]
    done = subprocess.run(command, capture_output=True, text=True, env=environ, check=False)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip() and not line.strip().startswith("fix:")]
        last = (said or [f"exit code {done.returncode}"])[-1]
        raise BackendError(f"{folder.name}: the engine failed: {last}", fix="run it by `fcnopt bench`")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def slopes(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """How time, memory and multiply-accumulates grow along each axis, in logarithms; of two points or more."""
    found = []
    for axis in AXES:
        for precision in PRECISIONS:
            own = [p for p in points if p["axis"] == axis and p["precision"] == precision]
            if len(own) < 2:
                continue
            amounts = [p["amount"] for p in own]
            grown = {name: slope(amounts, [p[name] for p in own]) for name in ("ms", "peak_mib", "gmacs")}
            found.append({"axis": axis, "precision": precision, **grown})
    return found


if __name__ == "__main__":
    main()
