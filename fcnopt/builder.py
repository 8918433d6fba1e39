"""From an FP32 ONNX model to a bundle: optimize, set the precision, build the engine, prove it, pack it."""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fcnopt import bundle as bundles
from fcnopt.accuracy import Assignment
from fcnopt.backends import Target, default_target, make_builder
from fcnopt.backends.base import BuildOptions, Built, Precision, Progress
from fcnopt.backends.machine import describe_machine
from fcnopt.backends.targets import Form
from fcnopt.calibration import calibration_frames
from fcnopt.errors import UsageError
from fcnopt.graph import io
from fcnopt.graph.batch import with_batch
from fcnopt.graph.passes import CPU_PASSES, PassReport
from fcnopt.graph.passes import optimize as run_passes
from fcnopt.graph.prepost import batch_of
from fcnopt.locate import ENGINES, model_file, newest_model
from fcnopt.manifest import AccuracyClaim, Manifest
from fcnopt.origin import Origin
from fcnopt.quantize import PrecisionResult, make_precision
from fcnopt.quantize.frames import CalibrationFrames
from fcnopt.quantize.methods import Quantized
from fcnopt.quantize.precision import checked_frames, finish
from fcnopt.quantize.qdq import activation_kind
from fcnopt.quantize.rangefile import RangeFile
from fcnopt.quantize.recipe import Recipe
from fcnopt.quantize.tune import tune
from fcnopt.selftest import prove
from fcnopt.settings import BuildSettings, checked_precision
from fcnopt.spec import ModelSpec
from fcnopt.version import __version__

if TYPE_CHECKING:
    import onnx

_FEW_FRAMES = 32


def build(
    model: str | Path | None = None,
    *,
    precision: Precision | None = None,
    target: str | None = None,
    calibration: str | Path | Sequence[str | Path] | None = None,
    settings: BuildSettings | None = None,
    progress: Progress | None = None,
) -> Path:
    """Build an engine and pack it as a bundle.

    Args:
        model: An ONNX file that `export` wrote; None takes the newest in engines/.
        precision: fp32, fp16, bf16, int8 or fp8; None takes the best half precision that the target has.
        target: See `Target.parse`; None takes the best that this machine can build and run.
        calibration: Images, folders, videos; None takes calib/ where it exists. int8 and fp8 need some.
        settings: The less common choices.
        progress: Called as the build goes on.

    Returns:
        The bundle's folder, engines/NAME.

    Raises:
        UsageError: An argument is wrong, there is no model, or it takes several frames at a time where each is judged.
        CalibrationError: int8 or fp8 has no frames, or the kept ranges belong to something else.
        BuildError: The runtime refused the graph, or the engine does not agree with it.
    """
    settings = settings or BuildSettings()
    report = progress or (lambda _step, _fraction: None)
    source = model_file(model) if model is not None else newest_model(settings.folder)
    aim = Target.parse(target) if target else default_target()
    wanted = checked_precision(precision) if precision else default_precision(aim)

    backend = replace(settings.backend, precision=wanted, compute_capabilities=aim.compute_capabilities)
    builder = make_builder(aim)
    builder.check(backend)
    _refuse_unused(settings.backend, aim)
    if settings.validation is not None and wanted not in ("int8", "fp8"):
        raise UsageError(
            f"--validation was given, but {wanted} leaves nothing to search",
            fix="add --precision int8, or bench instead",
        )
    several = f"-b{settings.batch}" if settings.batch is not None and settings.batch > 1 else ""
    place = settings.folder / (settings.name or f"{source.stem}-{wanted}-{aim.file_safe}{several}")
    bundles.prepare(place)
    report("load", 0.0)
    original = io.load(source)
    if any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in original.graph.node):
        raise UsageError(f"{source}: is quantized already", fix="give the FP32 model that it was made from")
    spec = io.read_spec(original)
    if spec is None:
        raise UsageError(
            f"{source}: does not say how frames are normalized nor what its labels mean",
            fix=f"run `fcnopt export {source} --classes ... --normalize ...` first: it adds both to the graph",
        )
    # Only a rewritten graph is decided from frames; for the others one will do, for the known answer.
    quantized = wanted in ("int8", "fp8")
    rewritten = quantized or (wanted != "fp32" and aim.form == "tensorrt")
    batch = batch_of(original) or 1
    drawn = settings if rewritten and batch == 1 else replace(settings, max_frames=1, select="even")
    needed = quantized and batch == 1  # to be asked for frames and refused then would be worse
    frames = calibration_frames(calibration, drawn, spec, original, needed=needed, progress=report)
    if batch > 1 and (quantized or (rewritten and frames is not None)):
        raise _takes_several(source, batch, wanted)
    ranges = settings.calib / f"{source.stem}.json"
    if quantized and not settings.recalibrate and ranges.exists():  # before the passes, which take their time
        RangeFile.load(ranges).check(None, frames, name=str(ranges))
    optimized, passes = run_passes(original, progress=report) if settings.optimize else (original, ())
    work = _Work(source, optimized, spec, wanted, aim, frames, settings, report)
    precise, recipe, accuracy = _quantized(work) if quantized else (_rewritten(work), None, None)
    if settings.optimize and aim.form != "tensorrt":
        last, more = run_passes(precise.model, passes=CPU_PASSES, progress=report)
        precise, passes = replace(precise, model=last), (*passes, *more)
    if settings.batch is not None:
        precise = replace(precise, model=with_batch(precise.model, settings.batch))
    with bundles.staged(place) as folder:
        graph = folder / bundles.MODEL
        io.save(precise.model, graph)
        if recipe is not None:
            bundles.write_text(folder / bundles.RECIPE, json.dumps(recipe.to_dict(), indent=1) + "\n")
        built = builder.build(graph, folder, backend, report)
        min_agreement = prove(graph, built, aim, wanted, spec, frames, report)
        manifest = describe(place.name, source, aim, wanted, spec, built, precise, frames)
        sized = {"shapes": backend.shapes} if backend.shapes else {}  # of a graph with dynamic axes: (min, best, max)
        failed = tuple(f"graph pass {one.name}: {reason}" for one in passes for reason in one.taken_back)
        bundles.finish(
            folder,
            replace(
                manifest,
                min_agreement=min_agreement,
                notes=(*failed, *manifest.notes),
                accuracy=accuracy,
                sources=manifest.sources | sized,
            ),
        )
    report("done", 1.0)
    return place


@dataclass(frozen=True)
class _Work:
    """What the precision step works on."""

    source: Path
    model: onnx.ModelProto
    spec: ModelSpec
    precision: Precision
    target: Target
    frames: CalibrationFrames | None
    settings: BuildSettings
    progress: Progress


def _rewritten(work: _Work) -> PrecisionResult:
    return make_precision(
        work.model, work.spec, work.precision, form=work.target.form, frames=work.frames, progress=work.progress
    )


def _quantized(work: _Work) -> tuple[PrecisionResult, Recipe, AccuracyClaim | None]:
    """The graph, every decision about it, and its accuracy where validation frames were given."""
    settings, form = work.settings, work.target.form
    precision: Quantized = "fp8" if work.precision == "fp8" else "int8"
    activation_kind(form, precision)  # refuses fp8 for CPUs before any work
    frames = checked_frames(work.frames, work.spec, precision)
    kept = settings.calib / f"{work.source.stem}.json", recipe_place(settings.calib, work.source, precision, form)
    # What is decided anew replaces what was kept when it is whole, not before.
    used = tuple(path.with_name(f".new-{path.name}") if settings.recalibrate else path for path in kept)
    if settings.recalibrate:
        for path in used:
            path.unlink(missing_ok=True)
    tuned = tune(work.model, frames, precision, form, settings.method, used[0], work.progress, None, used[1])
    if settings.recalibrate:
        for new, old in zip(used, kept, strict=True):
            new.replace(old)
        tuned.recipe.path = kept[1]
    recipe, validation = tuned.recipe, settings.validation
    if validation is None or validation.budget is None:  # a search that an earlier build kept is not this one's
        recipe = replace(recipe, floats=None, search=None)
    if validation is None:
        return finish(tuned, work.model, frames, settings.method), recipe, None
    search = Assignment(tuned, work.model, work.spec, frames, settings.method, work.target, validation, work.progress)
    found = search.run(str(work.source))
    return found.result, recipe, found.claim


def recipe_place(calib: Path, model: Path, precision: Precision, form: Form) -> Path:
    """Where decisions about a model are kept."""
    return calib / f"{model.stem}-{precision}-{form}.recipe.json"


def optimize(
    model: str | Path | None = None, output: str | Path | None = None, *, progress: Progress | None = None
) -> tuple[Path, tuple[PassReport, ...]]:
    """Run the graph passes on an ONNX file, each verified against the graph before it.

    Args:
        model: Any ONNX file; None takes the newest in engines/.
        output: Where to write; None writes NAME.opt.onnx beside the model.
        progress: Called as passes end.

    Returns:
        The path written and one report a pass.

    Raises:
        GraphError: The file cannot be used. A pass that changed its results is taken back, and its report says so.
    """
    source = model_file(model) if model is not None else newest_model(ENGINES)
    place = Path(output) if output is not None else source.with_suffix(".opt.onnx")
    optimized, reports = run_passes(io.load(source), progress=progress)
    io.save(optimized, place)
    return place, reports


def default_precision(target: Target) -> Precision:
    """The half precision that `target` computes fast: fp16 on NVIDIA GPUs, bf16 on CPUs that have it, else fp32."""
    if target.form == "tensorrt" or target.device == "cuda":
        return "fp16"
    return "bf16" if target.runtime == "openvino" and "bf16" in describe_machine()["isa"] else "fp32"


def describe(
    name: str,
    source: Path,
    target: Target,
    precision: Precision,
    spec: ModelSpec,
    built: Built,
    precise: PrecisionResult,
    frames: CalibrationFrames | None,
) -> Manifest:
    """The manifest of a bundle that was just built, file hashes not yet in it."""
    sources: dict[str, Any] = {"model": str(source), "model_sha256": bundles.sha256_of(source)}
    origin = Origin.find(precise.model.metadata_props, source)
    if origin is not None:
        sources["slimmed_from"] = asdict(origin)
    if frames is not None and precise.ranges is not None:
        sources |= {"calibration": frames.describe(), "frames": precise.ranges.frames, "frames_sha256": frames.hash}
        sources["calibration_paths"] = [str(Path(path).resolve()) for path in frames.sources]
    return Manifest(
        name=name,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        fcnopt=__version__,
        spec=spec,
        target=str(target),
        precision=precision,
        device=built.device,
        runtime=built.runtime,
        engine=tuple(p.name for p in built.files),
        files={},
        sources=sources,
        min_agreement=1.0,
        quantization=precise.report,
        layers=built.layers,
        notes=(*precise.notes, *(frames.notes if frames else ()), *_few_frames(precision, frames), *built.notes),
        machine=describe_machine(),
    )


def _few_frames(precision: Precision, frames: CalibrationFrames | None) -> tuple[str, ...]:
    if precision not in ("int8", "fp8") or frames is None or frames.count >= _FEW_FRAMES:
        return ()
    return (
        f"{precision}: calibrated on {frames.count} frames only; {_FEW_FRAMES} or more, of several drives, are advised",
    )


def _takes_several(source: Path, batch: int, precision: Precision) -> UsageError:
    return UsageError(
        f"{source}: takes {batch} frames at a time, but frames for {precision} are judged one by one",
        fix=f"make the network's ONNX file with a batch of 1, export it again, and add --batch {batch} here",
    )


def _refuse_unused(options: BuildOptions, target: Target) -> None:
    """Refuse TensorRT's options for a runtime that would leave them unused."""
    given = [
        name
        for name in ("shapes", "workspace_bytes", "version_compatible", "hardware_compatible", "timing_cache")
        if getattr(options, name)
    ]
    if given and not target.runtime.startswith("tensorrt"):
        raise UsageError(f"{target}: {', '.join(given)} cannot be chosen", fix="leave them out: they are TensorRT's")
