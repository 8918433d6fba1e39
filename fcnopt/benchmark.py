"""Bench engines on a clip: open what the user named, measure it all in one run, write what was asked for."""

from __future__ import annotations

import contextlib
import datetime
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from fcnopt.backends import open_onnx
from fcnopt.backends.base import Mode, Progress, Runner
from fcnopt.backends.machine import describe_machine
from fcnopt.bundle import MANIFEST, MODEL, Bundle, load, sha256_of, write_text
from fcnopt.errors import UsageError
from fcnopt.evaluate.bench import BenchOptions, BenchResult, EngineResult
from fcnopt.evaluate.bench import bench as measure
from fcnopt.evaluate.claims import claim_notes
from fcnopt.graph import io
from fcnopt.locate import ENGINES, find_reference, newest_bundle
from fcnopt.media.base import Decoder
from fcnopt.media.clips import open_clip
from fcnopt.media.labels import find_labels
from fcnopt.signing import TrustedKeys
from fcnopt.spec import ModelSpec

if TYPE_CHECKING:
    from fcnopt.models.fcn import Padding

_CHECKPOINTS = (".pth", ".pt", ".safetensors")
_MODES_FIX = f"use {' or '.join(get_args(Mode))}, or both"


@dataclass(frozen=True)
class BenchFiles:
    """What `bench` writes beside its result; None leaves a file out.

    Attributes:
        json: The result, as data.
        html: One self-contained page.
        overlay: A video (mp4) of the clip with the first engine's labels.
        record: Keep the figures in the manifests of the bundles benched.
    """

    json: Path | None = None
    html: Path | None = None
    overlay: Path | None = None
    record: bool = False

    def __post_init__(self) -> None:
        # A bench can take an hour: a wrong folder must not be found out when it ends.
        for path in (self.json, self.html, self.overlay):
            if path is None:
                continue
            if not path.parent.is_dir():
                raise UsageError(f"{path}: the folder {path.parent} does not exist", fix="make the folder first")
            if path.is_dir() or not os.access(path.parent, os.W_OK):
                raise UsageError(f"{path}: is a folder, or lies in one that cannot be written", fix="give another file")


def bench(
    clip: str | Path,
    *,
    engines: str | Path | Sequence[str | Path] = (),
    labels: str | Path | None = None,
    reference: str | Path = "fp32",
    max_frames: int | None = None,
    padding: Padding | None = None,
    modes: Sequence[Mode] = ("latency",),
    decoder: Decoder = "pyav",
    topic: str | None = None,
    trusted_keys: TrustedKeys = (),
    files: BenchFiles | None = None,
    show: Callable[[BenchResult], None] | None = None,
    progress: Progress | None = None,
) -> BenchResult:
    """Measure engines and their FP32 reference on a clip, interleaved in one run.

    Args:
        clip: A video, a robot log, an image, or a folder of images.
        engines: Bundles, ONNX files, or checkpoints (run by PyTorch, eager FP32); none takes the newest bundle.
        labels: Folder of label maps; None looks for one where known data sets have it, and where there is none the
            reference's labels are the truth.
        reference: "fp32" for the model that the first bundle was built from, or an ONNX file or checkpoint.
        max_frames: Most frames, from the clip's start.
        padding: For checkpoints without BatchNorm: same or caffe.
        modes: "latency" has one batch in flight, "throughput" as many as pay. With both, every engine is benched in
            each, side by side; the reference runs in the first.
        decoder: Of a video; see `open_clip`.
        topic: Of a robot log; None takes the only one with images.
        trusted_keys: Which keys must have signed the bundles; see `fcnopt.load`. ONNX files and checkpoints have no
            signature.
        files: What to write.
        show: Called with the result before anything is written, so that a full disk does not cost it.
        progress: Called as the bench goes on.

    Raises:
        UsageError: Nothing to bench, no way to tell the spec, or an unknown mode.
        MediaError: The clip or its labels cannot be used.
        BundleError: A bundle is damaged, not signed as required, or signed where figures are to be recorded in it, or
            its engine answers wrongly.
        BackendError: A runtime is missing or failed.
    """
    files = files or BenchFiles()
    given = [engines] if isinstance(engines, str | Path) else engines
    named = [_existing(Path(engine)) for engine in given] or [newest_bundle(ENGINES)]
    modes = _checked(modes)
    _admit((*named, Path(reference)), trusted_keys, to_record=named if files.record else ())
    found = find_labels(Path(clip)) if labels is None else None
    source = open_clip(clip, labels if labels is not None else found, decoder=decoder, topic=topic)
    with contextlib.ExitStack() as stack:
        base = _reference_path(reference, named)
        spec = _spec_of([*named, base])
        truth = stack.enter_context(_open(base, spec, padding, modes[0], trusted_keys))
        entries = [(path, mode) for path in named for mode in modes]
        runners = [stack.enter_context(_open(path, spec, padding, mode, trusted_keys)) for path, mode in entries]
        for (path, mode), runner in zip(entries, runners, strict=True):
            runner.name = _label(path, mode, runner)
        observers = []
        if files.overlay is not None:
            from fcnopt.report.overlay import OverlayWriter

            observers.append(stack.enter_context(OverlayWriter(files.overlay, spec.classes, fps=source.fps)))
        result = measure(
            source,
            runners,
            truth,
            BenchOptions(max_frames=max_frames, keep_samples=4 if files.html else 0),
            machine=describe_machine(),
            command=shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            observers=observers,
            progress=progress,
        )
    notes = [f"The reference is {base}."]
    if found is not None:
        notes.append(f"Label maps were found in {found}.")
    notes += [
        f"{path.name} was calibrated on this clip: its accuracy here proves little." for path in _seen(named, clip)
    ]
    benched = [path for path, _ in entries]
    notes += _claims(result, benched, base)
    result = replace(result, notes=(*result.notes, *notes))
    if show is not None:
        show(result)
    _write(files, result, benched)
    return result


def _checked(modes: Sequence[Mode]) -> tuple[Mode, ...]:
    """`modes`, each once.

    Raises:
        UsageError: There is none, or one is unknown.
    """
    unknown = [mode for mode in modes if mode not in get_args(Mode)]
    if unknown or not modes:
        raise UsageError(f"mode {unknown[0]!r} is unknown" if unknown else "no mode was given", fix=_MODES_FIX)
    return tuple(dict.fromkeys(modes))


def _label(path: Path, mode: Mode, runner: Runner) -> str:
    """An engine's name in the tables."""
    name = runner.name
    if path.suffix == ".onnx":  # a file's precision is not known, so its name stands for it
        label = f"{path.parent.name}/{path.name}" if path.name == MODEL else path.name
        name = f"{label} on {runner.name.split()[0]}"
    return name if mode == "latency" else f"{name}, {mode}"


def _existing(path: Path) -> Path:
    """`path` if it can be benched.

    Raises:
        UsageError: It does not exist, or is something else.
    """
    if (path / MANIFEST).is_file() or (path.is_file() and path.suffix in (*_CHECKPOINTS, ".onnx")):
        return path
    what = "is no bundle, ONNX file or checkpoint" if path.exists() else "does not exist"
    raise UsageError(f"{path}: {what}", fix="give a folder engines/NAME, an .onnx file, or a .pth or .safetensors file")


def _admit(paths: Sequence[Path], trusted_keys: TrustedKeys, to_record: Sequence[Path]) -> None:
    """Check bundles' signatures before anything of them is used, and that figures can be kept in those `to_record`."""
    for path in paths:
        if (path / MANIFEST).is_file():
            bundle = Bundle.read_trusted(path, trusted_keys)
            if path in to_record:
                bundle.check_recordable()


def _seen(named: Sequence[Path], clip: str | Path) -> list[Path]:
    """The bundles that were calibrated on frames of `clip`."""
    place = Path(clip).resolve()

    def seen(path: Path) -> bool:
        sources = Bundle.read(path).manifest.sources.get("calibration_paths", ()) if path.is_dir() else ()
        return any(place.is_relative_to(source) or Path(source).is_relative_to(place) for source in sources)

    return [path for path in named if seen(path)]


def _claims(result: BenchResult, named: Sequence[Path], base: Path) -> list[str]:
    """What the bundles' claims of accuracy come to on this clip.

    A claim says what a bundle loses against the model that it was built from. Against any other it is not held.
    """
    notes: list[str] = []
    for path, engine in zip(named, result.engines, strict=True):
        manifest = Bundle.read(path).manifest if path.is_dir() else None
        if manifest is None or manifest.accuracy is None:
            continue
        if base.is_file() and sha256_of(base) == manifest.sources.get("model_sha256"):
            notes += claim_notes(manifest.accuracy, result, engine)
    return notes


def _write(files: BenchFiles, result: BenchResult, named: Sequence[Path]) -> None:
    if files.json is not None:
        write_text(files.json, result.to_json())
    if files.html is not None:
        from fcnopt.report.html import render

        write_text(files.html, render(result))
    if files.record:
        for path, engine in zip(named, result.engines, strict=True):
            if (path / MANIFEST).is_file():
                Bundle.read(path).record(_summary(result, engine))


def _summary(result: BenchResult, engine: EngineResult) -> dict[str, Any]:
    """What a manifest keeps of a bench: accuracy with its interval, speed, and on what both were measured."""
    return {
        "clip": result.clip,
        "frames": result.frames,
        "frames_sha256": result.frames_sha256,
        "truth": result.truth,
        "date": result.date,
        "cpu": result.machine.get("cpu"),
        "gpus": [gpu.get("name") for gpu in result.machine.get("gpus", ())],
        "reference": result.reference.name,
        "fps": engine.fps,
        "speedup": engine.speedup,
        "mode": engine.mode,
        "in_flight": engine.in_flight,
        "batch": engine.batch,
        "latency_p50_ms": engine.latency.p50_ms,
        "latency_p99_ms": engine.latency.p99_ms,
        "miou": engine.accuracy.miou,
        "miou_drop": engine.drop.miou,
        "miou_drop_interval": engine.drop.miou_interval,
        "equal_labels": engine.equal_labels,
    }


def _open(path: Path, spec: ModelSpec, padding: Padding | None, mode: Mode, trusted_keys: TrustedKeys) -> Runner:
    if path.suffix in _CHECKPOINTS:
        from fcnopt.backends.torch import TorchRunner
        from fcnopt.models import checkpoint

        return TorchRunner(checkpoint.load(path, padding=padding).module, spec)
    if path.suffix == ".onnx":
        return open_onnx(path, io.read_spec(io.load(path)) or spec, mode=mode)
    return load(path, mode=mode, trusted_keys=trusted_keys)


def _reference_path(reference: str | Path, named: Sequence[Path]) -> Path:
    if str(reference) != "fp32":
        return _existing(Path(reference))
    for path in named:
        if (path / MANIFEST).is_file():
            return find_reference(Bundle.read(path))
    raise UsageError(
        "the FP32 reference is unknown: none of the engines is a bundle",
        fix="give --reference with the FP32 ONNX file or the checkpoint",
    )


def _spec_of(paths: Sequence[Path]) -> ModelSpec:
    for path in paths:
        if (path / MANIFEST).is_file():
            return Bundle.read(path).manifest.spec
        if path.suffix == ".onnx":
            spec = io.read_spec(io.load(path))
            if spec is not None:
                return spec
    raise UsageError(
        "no engine or reference says how frames are normalized",
        fix="bench a bundle, or an ONNX file that `fcnopt export` wrote",
    )
