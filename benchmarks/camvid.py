"""The road from a trained FCN-8s to INT8 engines on CamVid, timed and measured: the numbers in README.md.

    python benchmarks/camvid.py ../shared --out benchmarks/results/camvid

Takes the folder with models/fcn8s_vgg16bn_camvid.pth, data/camvid and data/clips. Calibrates on camvid/train only;
every accuracy comes from camvid/val. Writes OUT.json and OUT.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from fcnopt import bench, build, export
from fcnopt.backends.base import EngineLayer
from fcnopt.backends.machine import describe_machine
from fcnopt.bundle import Bundle
from fcnopt.evaluate.result import BenchResult
from fcnopt.graph import io
from fcnopt.graph.stats import macs_by_node
from fcnopt.report.progress import ConsoleProgress
from fcnopt.settings import BuildSettings

ENGINES = (
    ("fp32", "openvino"),
    ("bf16", "openvino"),
    ("int8", "openvino"),
    ("int8", "onnxruntime"),
    ("fp16", "tensorrt-rtx:sm86,sm89"),
    ("int8", "tensorrt-rtx:sm86,sm89"),
)


def main() -> None:
    """Parse, run, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/camvid"))
    parser.add_argument("--max-frames", type=int, help="bench no more frames a clip (for a quick look)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ConsoleProgress() as progress:
        found = run(args.shared, Path(folder), args.max_frames, progress)
        text = json.dumps(found, indent=1).replace(f"{folder}/", "")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.with_suffix(".json").write_text(text + "\n", encoding="utf-8")
    args.out.with_suffix(".md").write_text(as_markdown(found), encoding="utf-8")
    print(as_markdown(found))


def run(shared: Path, folder: Path, max_frames: int | None, progress: ConsoleProgress) -> dict[str, Any]:
    """Export, build and bench; everything written lands in `folder`."""
    checkpoint = shared / "models/fcn8s_vgg16bn_camvid.pth"
    camvid, clips = shared / "data/camvid", shared / "data/clips"
    seconds: dict[str, float] = {}
    bundles: dict[str, Path] = {}

    start = time.perf_counter()
    model = export(checkpoint, folder / "fcn8s.onnx", classes="camvid", progress=progress).path
    seconds["export"] = time.perf_counter() - start
    settings = BuildSettings(folder=folder, calib=folder / "calib", max_frames=64)
    for precision, target in ENGINES:
        start = time.perf_counter()
        path = build(
            model,
            precision=precision,  # type: ignore[arg-type]
            target=target,
            calibration=camvid / "train",
            settings=settings,
            progress=progress,
        )
        seconds[f"{precision} {target}"] = time.perf_counter() - start
        bundles[f"{precision} {target}"] = path

    here = [path for name, path in bundles.items() if "tensorrt" not in name]
    found: dict[str, Any] = {"machine": describe_machine(), "seconds": seconds}
    found["val"] = bench(
        camvid / "val",
        engines=here,
        labels=camvid / "valannot",
        reference=model,
        max_frames=max_frames,
        progress=progress,
    ).to_dict()
    found["clip"] = bench(
        clips / "camvid_0016E5.mp4",
        engines=here,
        labels=camvid / "valannot",
        reference=checkpoint,
        max_frames=max_frames,
        progress=progress,
    ).to_dict()
    found["other_camera"] = bench(
        clips / "solidWhiteRight.mp4", engines=here, reference=model, max_frames=max_frames, progress=progress
    ).to_dict()
    found["int8_bound"] = int8_bound(bundles["int8 openvino"])
    found["tensorrt"] = {
        name: convolutions(Bundle.read(p).manifest.layers) for name, p in bundles.items() if "rtx" in name
    }
    return found


def int8_bound(bundle: Path, runs: int = 12) -> dict[str, float]:
    """How fast this CPU could run the INT8 engine if every convolution ran as fast as the fastest one does.

    Convolutions timed by OpenVINO's own counters; the median of the runs, on the self-test's frame.
    """
    import openvino

    macs = macs_by_node(io.load(bundle / "model.onnx"))
    compiled = openvino.Core().compile_model(bundle / "engine.xml", "CPU", {"PERF_COUNT": "YES"})
    request = compiled.create_infer_request()
    frame = np.load(bundle / "selftest.npz")["frame"]
    times: dict[str, list[float]] = {}
    for _ in range(runs):
        request.infer({0: frame})
        for layer in request.profiling_info:
            name = layer.node_name.removesuffix("/WithoutBiases")
            if name in macs:
                times.setdefault(name, []).append(layer.real_time.total_seconds())
    rates = {name: macs[name] / statistics.median(seconds) for name, seconds in times.items()}
    fastest = max(rates, key=lambda name: rates[name])
    print(f"fastest convolution: {fastest}, {rates[fastest] / 1e9:.0f} GMAC/s")
    return {
        "fastest_gmacs_per_s": rates[fastest] / 1e9,
        "network_ms_at_that_rate": sum(macs.values()) / rates[fastest] * 1e3,
    }


def convolutions(layers: tuple[EngineLayer, ...]) -> dict[str, str]:
    """Precision of every engine layer that computes a convolution, by the names of its ONNX nodes."""
    helpers = ("kgen", "runtime_function", "maxpool", "constant")
    return {" + ".join(layer.nodes): layer.precision for layer in layers if layer.nodes and layer.kind not in helpers}


def as_markdown(found: dict[str, Any]) -> str:
    """The figures as a page."""
    machine = found["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    cpu = f"{machine['cpu']}, {machine['cores']} cores ({', '.join(machine['isa'])}), {machine['memory_gib']} GiB"
    where = f"{cpu}; {versions}"
    lines = [
        "# FCN-8s on CamVid",
        "",
        where,
        "",
        "`python benchmarks/camvid.py`, 64 calibration frames of camvid/train.",
        "",
        "| step | seconds |",
        "|---|---|",
    ]
    lines += [f"| {name} | {value:.1f} |" for name, value in found["seconds"].items()]
    for key, title in (
        ("val", "camvid/val, images with labels"),
        ("clip", "camvid_0016E5.mp4 with labels, against PyTorch eager FP32"),
        ("other_camera", "solidWhiteRight.mp4, 960x540, no labels (FP32's are the truth)"),
    ):
        lines += ["", f"## {title}", "", *bench_rows(BenchResult.from_json(json.dumps(found[key])))]
    bound, torch_ms = found["int8_bound"], found["clip"]["reference"]["stages"]["inference_ms"]
    rate, least_ms = bound["fastest_gmacs_per_s"], bound["network_ms_at_that_rate"]
    lines += [
        "",
        f"The fastest INT8 convolution of the OpenVINO engine runs at {rate:.0f} GMAC/s. Were all as fast, the network "
        f"would take {least_ms:.1f} ms, {torch_ms / least_ms:.1f} times as fast as PyTorch: the most that direct INT8 "
        "convolutions can reach on this CPU.",
    ]
    lines += ["", "## Convolutions in the TensorRT-RTX engines, by the build log", ""]
    for name, layers in found["tensorrt"].items():
        lines += [
            f"### {name}",
            "",
            "| layer | precision |",
            "|---|---|",
            *(f"| {k} | {v} |" for k, v in layers.items()),
            "",
        ]
    return "\n".join(lines)


def bench_rows(result: BenchResult) -> list[str]:
    """A table with the reference first."""
    lines = [
        "| engine | FPS | x | inference ms | p50 ms | p99 ms | mIoU | drop (95 %) | worst class | equal labels |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for engine in result.rows:
        worst = result.worst_class(engine)
        interval = engine.drop.miou_interval
        cells = [
            engine.name,
            f"{engine.fps:.2f}",
            f"{engine.speedup:.2f}",
            f"{engine.stages.inference_ms:.1f}",
            f"{engine.latency.p50_ms:.1f}",
            f"{engine.latency.p99_ms:.1f}",
            f"{engine.accuracy.miou:.2f}",
            f"{engine.drop.miou:+.2f}" + (f" ({interval[0]:+.2f} to {interval[1]:+.2f})" if interval else ""),
            f"{worst[1]:+.2f} {worst[0]}" if worst else "",
            f"{engine.equal_labels:.2f} %",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    main()
