"""The whole road on what ships with the package: a rendered driving clip and a small FCN-8s."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fcnopt.backends import default_target
from fcnopt.backends.base import Progress
from fcnopt.benchmark import BenchFiles, bench
from fcnopt.builder import build, default_precision, optimize
from fcnopt.bundle import Bundle
from fcnopt.errors import BackendError
from fcnopt.evaluate.bench import BenchResult
from fcnopt.exporter import export
from fcnopt.graph.passes import PassReport
from fcnopt.media.synth import SceneOptions, SynthClip
from fcnopt.settings import BuildSettings

CLIP_SEED, CALIBRATION_SEED = 7, 8  # the network was trained on seeds from 1000 on
RTX_TARGET = "tensorrt-rtx:sm86,sm89"


@dataclass(frozen=True)
class DemoResult:
    """What the demo made.

    Attributes:
        passes: What each graph pass did.
        bundles: Engines built, in order: those for this machine, then TensorRT-RTX.
        skipped: Engines that could not be built, with the reason.
        bench: The measurement on the clip.
    """

    passes: tuple[PassReport, ...]
    bundles: tuple[Path, ...]
    skipped: tuple[str, ...]
    bench: BenchResult


def demo(folder: Path, *, say: Callable[[str], None], progress: Progress | None = None, frames: int = 90) -> DemoResult:
    """Render a clip, export, optimize, build engines, bench them, write report and overlay into `folder`.

    Args:
        folder: For everything that is written.
        say: Called with one line a step.
        progress: Called as steps go on.
        frames: Length of the clip.
    """
    folder.mkdir(parents=True, exist_ok=True)
    say(f"1. render a driving clip of {frames} frames with exact labels, and 48 other frames for calibration")
    clip, labels, calibration = folder / "clip.mp4", folder / "labels", folder / "calib"
    scene = SynthClip(SceneOptions(seed=CLIP_SEED, frames=frames))
    scene.write_video(clip)
    scene.write_labels(labels)
    SynthClip(SceneOptions(seed=CALIBRATION_SEED, frames=48)).write_images(calibration)

    say("2. export the embedded FCN-8s to ONNX and verify it against PyTorch")
    engines = folder / "engines"
    exported = export(None, engines / "demo_fcn8s.onnx", progress=progress)
    say(exported.describe())

    say("3. optimize the graph, each pass verified")
    _, passes = optimize(exported.path, progress=progress)

    here = default_target()
    half = default_precision(here)
    wanted = [("fp32", str(here)), (half, str(here)), ("int8", str(here)), ("fp16", RTX_TARGET), ("int8", RTX_TARGET)]
    say("4. build engines")
    built, skipped = [], []
    for precision, target in dict.fromkeys(wanted):
        say(f"   {precision} for {target}")
        try:
            path = build(
                exported.path,
                precision=precision,
                target=target,
                calibration=calibration,
                settings=BuildSettings(folder=engines, calib=folder / "ranges"),
                progress=progress,
            )
        except BackendError as error:  # a runtime that is not installed; anything else is a fault of ours
            skipped.append(f"{precision} for {target}: {error.message}")
        else:
            built.append(path)

    say("5. bench those that run here, interleaved, against the FP32 engine")
    reference, *others = [path for path in built if Bundle.read(path).target.runs_here()]
    files = BenchFiles(folder / "bench.json", folder / "report.html", folder / "overlay.mp4", record=True)
    result = bench(clip, engines=others, labels=labels, reference=reference, files=files, progress=progress)
    return DemoResult(passes, tuple(built), tuple(skipped), result)
