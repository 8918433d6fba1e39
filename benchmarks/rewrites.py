"""What each target-specific rewrite is worth: a network's time with it and without, in turns.

    python benchmarks/rewrites.py MODEL CLIP --out benchmarks/results/rewrites

Takes an ONNX file that `fcnopt export` wrote, and a clip or folder of frames. Every pair of graphs runs on the same
frames, one frame each in turn, so that what else the machine does meets both; the ratio is the median over frames of
one pair's ratios, with the 2.5 % and 97.5 % points of 1000 bootstrap resamples. Graphs are compared with the labels
of the graph without the rewrite. An INT8 graph is quantized by the rules of one runtime and runs on that one, as
engines do. Constant borders are found in networks with a wide padding alone, such as the FCN8s of torchfcn that
`other_models.py` keeps: its MACs with and without them, and the error of the logits, come with MODEL

    ~/.cache/fcnopt/other-models/torchfcn-fcn8s/exported.onnx
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from rivals.measure import Progress
from rivals.page import machine_line
from trial import publish

from fcnopt.backends import open_onnx
from fcnopt.backends.base import Precision
from fcnopt.backends.machine import describe_machine
from fcnopt.backends.targets import Form
from fcnopt.errors import UsageError
from fcnopt.graph import io
from fcnopt.graph.compare import compare
from fcnopt.graph.passes import PASSES, Pass, optimize
from fcnopt.graph.passes.border import BorderPass
from fcnopt.graph.passes.phases import PhasesPass
from fcnopt.graph.stats import stats_of
from fcnopt.media import fit_frame, open_clip
from fcnopt.quantize import CalibrationFrames, PrecisionResult, make_precision
from fcnopt.quantize.tune import Tuning
from fcnopt.spec import ModelSpec

_SAMPLES = 1000
_CALIBRATION = 16
_ROUNDED = Tuning(equalize=False, refine=False, rounding=True, bias=False)
RUNTIMES: tuple[Form, ...] = ("openvino", "onnxruntime")


@dataclass(frozen=True, eq=False)
class Pair:
    """A graph without a rewrite and with it.

    Attributes:
        name: Of the rewrite.
        precision: Of both graphs.
        before: Without.
        after: With it.
        runtimes: What both run on; a quantized graph is made for one.
    """

    name: str
    precision: Precision
    before: onnx.ModelProto
    after: onnx.ModelProto
    runtimes: tuple[Form, ...] = RUNTIMES
    same_logits: bool = False
    """Whether both hold the logits in one layout, and they should be equal."""


def main() -> None:
    """Parse, run, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("clip", type=Path)
    parser.add_argument("--frames", type=int, default=30, metavar="N", help="pairs of runs (default 30)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/rewrites"))
    args = parser.parse_args()
    publish(lambda progress: run(args.model, args.clip, args.frames, progress), as_markdown, args.out)


def run(model: Path, clip: Path, count: int, progress: Progress) -> dict[str, Any]:
    """Make every pair, and time it on every runtime that its graphs are for.

    Raises:
        FcnoptError: The model or clip cannot be used, or a runtime fails.
    """
    original = io.load(model)
    spec = io.read_spec(original)
    if spec is None or count < 2:
        raise UsageError(f"{model}: has no spec, or --frames {count} is below 2", fix="export it with `fcnopt export`")
    taken = itertools.islice(open_clip(clip).images(), count)
    frames = [fit_frame(frame.image, spec.frame)[None] for frame in taken]
    rows = [
        {"rewrite": pair.name, "precision": pair.precision, "runtime": runtime}
        | facts
        | _timed(pair, runtime, spec, frames, progress)
        for pair in pairs(original, spec, clip, progress)
        for facts in [_macs(pair) | {"logits_error": _logits_error(pair, frames[0])}]
        for runtime in pair.runtimes
    ]
    command = f"python benchmarks/rewrites.py {model.name} {clip.name} --frames {count}"
    return {"machine": describe_machine(), "command": command, "frames": len(frames), "rows": rows}


def pairs(original: onnx.ModelProto, spec: ModelSpec, clip: Path, progress: Progress) -> Iterator[Pair]:
    """The rewrites that are made for some targets or networks only; the others are part of every graph."""

    def optimized(passes: Sequence[Pass[Any]], model: onnx.ModelProto = original) -> onnx.ModelProto:
        return optimize(model, passes=passes, progress=progress)[0]

    whole, last = optimized(PASSES), (PhasesPass(),)
    borders = (BorderPass(),)
    yield from _differing(Pair(BorderPass.name, "fp32", whole, optimized(borders, whole), same_logits=True))
    yield from _differing(Pair(PhasesPass.name, "fp32", whole, optimized(last, whole)))
    frames = CalibrationFrames.collect([clip], spec, limit=_CALIBRATION)
    with tempfile.TemporaryDirectory(prefix="fcnopt-") as folder:
        quantized = partial(
            make_precision,
            whole,
            spec,
            "int8",
            frames=frames,
            method="mse",
            range_file=Path(folder) / "ranges.json",  # measured once: ranges are those of all forms
            progress=progress,
        )
        for runtime in RUNTIMES:
            for pair in _integer_pairs(partial(quantized, form=runtime), progress):
                yield from _differing(replace(pair, runtimes=(runtime,)))


def _integer_pairs(quantized: Callable[..., PrecisionResult], progress: Progress) -> Iterator[Pair]:
    """The rewrites of INT8, in graphs that are quantized by one runtime's rules; `quantized` takes the tuning."""
    nearest, rounded = (quantized(tuning=tuning).model for tuning in (replace(_ROUNDED, rounding=False), _ROUNDED))
    bordered, both = (optimize(rounded, passes=(last,), progress=progress)[0] for last in (BorderPass(), PhasesPass()))
    yield Pair("raw frames into the first convolution", "int8", nearest, rounded)
    yield Pair(BorderPass.name, "int8", rounded, bordered, same_logits=True)
    yield Pair(PhasesPass.name, "int8", rounded, both)
    yield Pair("both of INT8", "int8", nearest, both)


def _differing(pair: Pair) -> Iterator[Pair]:
    """The pair, unless the rewrite found nothing to do."""
    if len(pair.before.graph.node) != len(pair.after.graph.node) or io.graph_hash(pair.before) != io.graph_hash(
        pair.after
    ):
        yield pair


def _macs(pair: Pair) -> dict[str, float]:
    return {"gmacs_before": stats_of(pair.before).macs / 1e9, "gmacs_after": stats_of(pair.after).macs / 1e9}


def _logits_error(pair: Pair, frame: Any) -> float | None:
    """Largest difference of the logits over the largest of them, both graphs run as they stand by ONNX Runtime."""
    return compare(pair.before, pair.after, [frame]).max_relative_error if pair.same_logits else None


def _timed(pair: Pair, runtime: Any, spec: ModelSpec, frames: Sequence[Any], progress: Progress) -> dict[str, Any]:
    """Times in turns; the first run of each, which allocates, does not count."""
    with tempfile.TemporaryDirectory(prefix="fcnopt-") as folder:
        files = [io.save(graph, Path(folder) / f"{i}.onnx") for i, graph in enumerate((pair.before, pair.after))]
        with (
            open_onnx(files[0], spec, pair.precision, runtime) as first,
            open_onnx(files[1], spec, pair.precision, runtime) as second,
        ):
            times, equal = [], []
            for index, frame in enumerate(frames):
                one, two = first.run(frame), second.run(frame)
                equal.append(float((one.labels == two.labels).mean()))
                if index:
                    times.append((one.inference_ms, two.inference_ms))
                progress(f"{pair.name}, {pair.precision} on {runtime}", (index + 1) / len(frames))
    measured = np.array(times)
    low, ratio, high = _interval(lambda rows: float(np.median(rows[:, 0] / rows[:, 1])), measured)
    before, after = (float(value) for value in np.median(measured, axis=0))
    return {
        "ms_before": before,
        "ms_after": after,
        "speedup": ratio,
        "speedup_95": [low, high],
        "equal_labels": float(np.mean(equal)),
    }


def _interval(statistic: Callable[[Any], float], rows: Any) -> tuple[float, float, float]:
    rng = np.random.default_rng(0)
    drawn = [statistic(rows[rng.integers(0, len(rows), len(rows))]) for _ in range(_SAMPLES)]
    low, high = np.quantile(drawn, (0.025, 0.975))
    return float(low), statistic(rows), float(high)


def as_markdown(found: dict[str, Any]) -> str:
    """The figures as a page."""
    lines = [
        "# What target-specific rewrites are worth",
        "",
        machine_line(found["machine"]),
        "",
        f"`{found['command']}`: network alone, raw frames to labels, {found['frames'] - 1} frames in turns.",
        "",
        "| rewrite | precision | runtime | GMACs | ms | times as fast (95 %) | logits error | equal labels |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['rewrite']} | {row['precision']} | {row['runtime']} | {row['gmacs_before']:.1f} to "
        f"{row['gmacs_after']:.1f} | {row['ms_before']:.1f} to {row['ms_after']:.1f} | {row['speedup']:.3f} "
        f"({row['speedup_95'][0]:.3f} to {row['speedup_95'][1]:.3f}) | {_shown(row['logits_error'])} | "
        f"{100 * row['equal_labels']:.3f} % |"
        for row in found["rows"]
    ]
    lines += [
        "",
        "Equal labels are those of the graph without the rewrite; the logits' error is the largest difference over the "
        "largest logit, both graphs run by ONNX Runtime as they stand. A rewrite is exact but for the order of sums; "
        "in INT8, 'raw frames' also rounds the first convolution's weights.",
    ]
    return "\n".join(lines) + "\n"


def _shown(error: float | None) -> str:
    return "" if error is None else f"{error:.1e}" if error else "0"


if __name__ == "__main__":
    main()
