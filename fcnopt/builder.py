"""From an FP32 ONNX model to a bundle: optimize, set the precision, build the engine, prove it, pack it."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self, get_args

from fcnopt import bundle as bundles
from fcnopt.backends import Target, default_target, make_builder
from fcnopt.backends.base import BuildOptions, Built, Precision, Progress
from fcnopt.backends.machine import describe_machine
from fcnopt.errors import CalibrationError, FcnoptError, UsageError
from fcnopt.graph import io
from fcnopt.graph.passes import PassReport
from fcnopt.graph.passes import optimize as run_passes
from fcnopt.manifest import Manifest
from fcnopt.quantize import PrecisionResult, make_precision
from fcnopt.quantize.frames import CalibrationFrames
from fcnopt.quantize.ranges import Method
from fcnopt.selftest import prove
from fcnopt.spec import ModelSpec
from fcnopt.version import __version__

ENGINES = Path("engines")
CALIB = Path("calib")
_FEW_FRAMES = 32


@dataclass(frozen=True)
class BuildSettings:
    """The less common choices of `build`.

    Attributes:
        method: How int8 ranges are chosen: auto, minmax, percentile, entropy or mse.
        max_frames: Most calibration frames, evenly spaced over all that are given.
        name: The bundle's name; None makes one of model, precision and target.
        folder: Where bundles go, and where the newest model is looked for.
        calib: Where frames are looked for when none are named, and where ranges are kept.
        recalibrate: Measure ranges anew even where kept ones exist, and replace those.
        optimize: Run the graph passes first.
        backend: Choices for the runtime's builder.
    """

    method: Method = "auto"
    max_frames: int = 64
    name: str | None = None
    folder: Path = ENGINES
    calib: Path = CALIB
    recalibrate: bool = False
    optimize: bool = True
    backend: BuildOptions = field(default_factory=BuildOptions)

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise UsageError(f"method {self.method!r} is unknown", fix=f"use one of {', '.join(get_args(Method))}")
        if self.max_frames < 1:
            raise UsageError(f"max_frames is {self.max_frames}", fix="give at least one frame")
        if self.name is not None and (not self.name or Path(self.name).name != self.name or self.name[0] == "."):
            raise UsageError(f"name {self.name!r} is not a folder name", fix="give a plain name without slashes")

    @classmethod
    def parse(
        cls,
        *,
        shapes: str | None = None,
        workspace_mib: int | None = None,
        version_compatible: bool = False,
        hardware_compatible: bool = False,
        timing_cache: Path | None = None,
        no_optimize: bool = False,
        **others: Any,
    ) -> Self:
        """Settings from words: `shapes` as "1x360x480,1x360x480,4x720x960" (min, best, max); others as in the class."""
        if workspace_mib is not None and workspace_mib < 1:
            raise UsageError(f"workspace is {workspace_mib} MiB", fix="give 1 MiB or more")
        backend = BuildOptions(
            shapes=_parse_shapes(shapes) if shapes else None,
            workspace_bytes=None if workspace_mib is None else workspace_mib << 20,
            version_compatible=version_compatible,
            hardware_compatible=hardware_compatible,
            timing_cache=timing_cache,
        )
        return cls(optimize=not no_optimize, backend=backend, **others)


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
        precision: fp32, fp16, bf16 or int8; None takes the best half precision that the target has.
        target: See `Target.parse`; None takes the best that this machine can build and run.
        calibration: Images, folders, videos; None takes calib/ where it exists. int8 needs some.
        settings: The less common choices.
        progress: Called as the build goes on.

    Returns:
        The bundle's folder, engines/NAME.

    Raises:
        UsageError: An argument is wrong, or there is no model.
        CalibrationError: int8 has no frames, or the kept ranges belong to something else.
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
    place = settings.folder / (settings.name or f"{source.stem}-{wanted}-{aim.file_safe}")
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
    rewritten = wanted == "int8" or (wanted != "fp32" and aim.form == "tensorrt")
    drawn = settings if rewritten else replace(settings, max_frames=1)
    frames = calibration_frames(calibration, drawn, spec, needed=wanted == "int8")
    optimized, passes = run_passes(original, progress=report) if settings.optimize else (original, ())
    kept = settings.calib / f"{source.stem}.json"
    range_file = kept.with_suffix(".new.json") if settings.recalibrate else kept
    if settings.recalibrate:
        range_file.unlink(missing_ok=True)
    precise = make_precision(
        optimized,
        spec,
        wanted,
        form=aim.form,
        frames=frames,
        method=settings.method,
        range_file=range_file if wanted == "int8" else None,
        progress=report,
    )
    if range_file != kept and range_file.exists():
        range_file.replace(kept)
    with bundles.staged(place) as folder:
        graph = folder / bundles.MODEL
        io.save(precise.model, graph)
        built = builder.build(graph, folder, backend, report)
        min_agreement = prove(graph, built, aim, wanted, spec, frames, report)
        manifest = describe(place.name, source, aim, wanted, spec, built, precise, frames)
        failed = tuple(f"graph pass {one.name}: {reason}" for one in passes for reason in one.taken_back)
        bundles.finish(folder, replace(manifest, min_agreement=min_agreement, notes=(*failed, *manifest.notes)))
    report("done", 1.0)
    return place


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


def model_file(path: str | Path) -> Path:
    """`path`, unless it is a bundle or a checkpoint.

    Raises:
        UsageError: It is one of these; says what to do instead.
    """
    file = Path(path)
    if (file / bundles.MANIFEST).is_file():
        raise UsageError(f"{file}: is a bundle", fix="give the ONNX model that it was built from")
    if file.suffix in (".pth", ".pt", ".safetensors"):
        raise UsageError(f"{file}: is a checkpoint, not an ONNX model", fix=f"run `fcnopt export {file}` first")
    return file


def newest_model(folder: Path) -> Path:
    """The newest exported ONNX file in `folder`.

    Raises:
        UsageError: There is none.
    """
    models = [p for p in folder.glob("*.onnx") if not p.name.endswith(".opt.onnx")]
    if not models:
        raise UsageError(
            f"no model given, and none in {folder}/", fix="run `fcnopt export CHECKPOINT` first, or name an ONNX file"
        )
    return max(models, key=lambda p: p.stat().st_mtime)


def newest_bundle(folder: Path) -> Path:
    """The newest bundle in `folder`.

    Raises:
        UsageError: There is none.
    """
    manifests = (p.parent for p in folder.glob(f"*/{bundles.MANIFEST}") if not p.parent.name.startswith("."))
    found = [path for path in manifests if (path / bundles.MODEL).is_file()]
    if not found:
        raise UsageError(f"no engine given, and none in {folder}/", fix="run `fcnopt build` first, or name a bundle")
    return max(found, key=lambda p: (p / bundles.MODEL).stat().st_mtime)


def checked_precision(precision: str) -> Precision:
    """`precision` if it is one, else `UsageError`."""
    if precision not in get_args(Precision):
        raise UsageError(f"precision {precision!r} is unknown", fix=f"use one of {', '.join(get_args(Precision))}")
    return precision  # type: ignore[return-value]


def default_precision(target: Target) -> Precision:
    """The half precision that `target` computes fast: fp16 on NVIDIA GPUs, bf16 on CPUs that have it, else fp32."""
    if target.form == "tensorrt" or target.device == "cuda":
        return "fp16"
    return "bf16" if target.runtime == "openvino" and "bf16" in describe_machine()["isa"] else "fp32"


def calibration_frames(
    given: str | Path | Sequence[str | Path] | None, settings: BuildSettings, spec: ModelSpec, *, needed: bool
) -> CalibrationFrames | None:
    """The calibration frames named, else those in calib/; None where there are none and none are needed.

    Raises:
        CalibrationError: There are none, and they are needed.
    """
    if given is not None:
        paths = [Path(given)] if isinstance(given, str | Path) else [Path(p) for p in given]
        return CalibrationFrames.collect(paths, spec, limit=settings.max_frames)
    calib = settings.calib
    if calib.is_dir() and any(p.suffix not in (".json", ".md") for p in calib.iterdir()):
        return CalibrationFrames.collect([calib], spec, limit=settings.max_frames)
    if needed:
        raise CalibrationError(
            "int8 needs calibration frames, and there are none: no --calibration was given and "
            f"{calib}/ has no images, folders or videos",
            fix=f"put 32 or more frames as the car's camera gives them into {calib}/, or give --calibration PATH "
            "(images, a folder, a video). Do not use the clip that you evaluate on",
        )
    return None


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
        notes=(*precise.notes, *_few_frames(precision, frames), *built.notes),
        machine=describe_machine(),
    )


def _few_frames(precision: Precision, frames: CalibrationFrames | None) -> tuple[str, ...]:
    if precision != "int8" or frames is None or frames.count >= _FEW_FRAMES:
        return ()
    return (f"int8: calibrated on {frames.count} frames only; {_FEW_FRAMES} or more, of several drives, are advised",)


def _refuse_unused(options: BuildOptions, target: Target) -> None:
    """Refuse TensorRT's options for a runtime that would leave them unused."""
    given = [
        name
        for name in ("shapes", "workspace_bytes", "version_compatible", "hardware_compatible", "timing_cache")
        if getattr(options, name)
    ]
    if given and not target.runtime.startswith("tensorrt"):
        raise UsageError(f"{target}: {', '.join(given)} cannot be chosen", fix="leave them out: they are TensorRT's")


def find_reference(bundle: bundles.Bundle) -> Path:
    """The FP32 model that `bundle` was built from.

    Raises:
        FcnoptError: It is not where it was, or is another file by now.
    """
    named = Path(str(bundle.manifest.sources["model"]))
    for path in (named, bundle.path.parent / named.name):
        if path.is_file() and bundles.sha256_of(path) == bundle.manifest.sources["model_sha256"]:
            return path
    raise FcnoptError(
        f"{bundle.path}: its FP32 reference {named} is missing or was changed since the build",
        fix="give it with --reference PATH, or build the bundle again",
    )


def _parse_shapes(text: str) -> tuple[tuple[int, int, int], tuple[int, int, int], tuple[int, int, int]]:
    """The (N, H, W) of "1x360x480,1x360x480,4x720x960"."""
    try:
        least, best, most = ([int(number) for number in part.lower().split("x")] for part in text.split(","))
        shapes = (least[0], least[1], least[2]), (best[0], best[1], best[2]), (most[0], most[1], most[2])
    except (ValueError, IndexError) as error:
        raise UsageError(
            f"shapes {text!r} are not three sizes", fix="give MIN,BEST,MAX such as 1x360x480,1x360x480,4x720x960"
        ) from error
    if any(not 1 <= low <= middle <= high for low, middle, high in zip(*shapes, strict=True)):
        raise UsageError(f"shapes {text!r} do not grow from MIN over BEST to MAX", fix="order them by size")
    return shapes
