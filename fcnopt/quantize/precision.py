"""One entry for every precision: an optimized FP32 graph in, the graph that a runtime shall compile out.

    int8:  place -> observe -> (rescale) -> choose the method -> insert Q/DQ -> (half precision for the rest)
    fp16:  observe -> rescale -> casts

Form `tensorrt` states everything in the graph's types, which is all that TensorRT reads. Form `cpu` holds INT8 only:
OpenVINO and ONNX Runtime choose half precision by execution mode.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fcnopt.errors import CalibrationError
from fcnopt.graph.io import import_graph
from fcnopt.graph.shapes import tensor_types
from fcnopt.graph.stats import macs_by_node
from fcnopt.graph.taps import logits_name
from fcnopt.quantize.casts import CastReport, to_half
from fcnopt.quantize.choose import Evidence, best, measure, warnings
from fcnopt.quantize.frames import CalibrationFrames
from fcnopt.quantize.judge import observable
from fcnopt.quantize.methods import METHODS, Method, Rule
from fcnopt.quantize.placement import Placement, place
from fcnopt.quantize.qdq import Form, Grid, grids, insert
from fcnopt.quantize.rangefile import RangeFile
from fcnopt.quantize.ranges import HalfType, Ranges, observe
from fcnopt.quantize.rescale import Rescaled, rescale
from fcnopt.quantize.scales import Unfit, unfit_for_half
from fcnopt.spec import ModelSpec

if TYPE_CHECKING:
    import onnx

Progress = Callable[[str, float], None]
Precision = Literal["fp32", "fp16", "bf16", "int8"]

# Half precision asks for largest magnitudes and rounding noise only; a few frames and the headroom cover those.
_HALF_FRAMES = 16
_EVIDENCE_FRAMES = 8
_NO_FRAMES = "put images or videos of the camera into calib/, or use --calibration PATH"


@dataclass(frozen=True)
class PrecisionResult:
    """A graph of the precision asked for.

    Attributes:
        model: To be compiled.
        report: What was decided and on which evidence, ready for JSON.
        notes: What the user should know, one line each.
        ranges: Of the FP32 graph's tensors, where they were needed.
    """

    model: onnx.ModelProto
    report: dict[str, Any]
    notes: tuple[str, ...]
    ranges: Ranges | None


def make_precision(
    model: onnx.ModelProto,
    spec: ModelSpec,
    precision: Precision,
    *,
    form: Form,
    frames: CalibrationFrames | None,
    method: Method = "auto",
    range_file: Path | None = None,
    progress: Progress | None = None,
) -> PrecisionResult:
    """Rewrite an optimized FP32 graph for a precision.

    Args:
        model: Optimized FP32 graph; unchanged afterwards.
        spec: Of the model.
        precision: fp32 returns the graph as it is.
        form: "tensorrt" or "cpu".
        frames: Calibration frames. int8 needs them; fp16 and bf16 judge weights alone without.
        method: How ranges are chosen for int8.
        range_file: Where ranges are kept: read if it exists, else written.
        progress: Called as the work goes on.

    Raises:
        CalibrationError: int8 has no frames, or nothing to quantize, or changes most labels; frames do not fit the
            spec; the range file is damaged or belongs to something else.
        GraphError: The graph cannot be rewritten.
    """
    report = progress or (lambda _step, _fraction: None)
    if precision == "fp32":
        return PrecisionResult(model, {"precision": precision, "form": form}, (), None)
    if precision == "int8":
        return _int8(model, _fitting(frames, spec), form, method, range_file, report)
    if form == "cpu":
        note = f"{precision}: the graph stays FP32, the runtime is asked to compute in {precision} where it can"
        return PrecisionResult(model, {"precision": precision, "form": form}, (note,), None)
    found = None if frames is None else _half_ranges(model, _fitting(frames, spec), range_file, report)
    return _half(model, found, precision, form)


def _half(model: onnx.ModelProto, ranges: Ranges | None, precision: HalfType, form: Form) -> PrecisionResult:
    notes: tuple[str, ...] = ()
    scaled: tuple[Rescaled, ...] = ()
    source, evidence = model, ranges
    if ranges is None:
        notes = (
            f"{precision}: no calibration frames were given; weights were checked for overflow and precision, "
            "activations were not",
        )
    elif precision == "fp16":
        source, evidence, scaled = rescale(model, ranges)
    result, casts = to_half(source, evidence.tensors if evidence is not None else {}, precision)
    data = {
        "precision": precision,
        "form": form,
        "frames": ranges.frames if ranges is not None else 0,
        "half": _half_data(casts, scaled),
    }
    return PrecisionResult(result, data, notes + _half_notes(casts, scaled), ranges)


def _int8(
    model: onnx.ModelProto,
    frames: CalibrationFrames,
    form: Form,
    method: Method,
    range_file: Path | None,
    progress: Progress,
) -> PrecisionResult:
    logits = logits_name(model)
    wanted = placement = _placed(model, logits)
    ranges, reused = _int8_ranges(model, placement, frames, range_file, progress)
    source, scaled_ranges, scaled = rescale(model, ranges) if form == "tensorrt" else (model, ranges, ())
    if form == "tensorrt":
        placement = _placed(source, logits, unfit_for_half(scaled_ranges))
    rules = METHODS if method == "auto" else (method,)
    candidates = {rule: grids(placement, scaled_ranges, dict.fromkeys(placement.tensors, rule), form) for rule in rules}
    sample = frames.subset(_EVIDENCE_FRAMES)
    evidence = measure(
        source, placement, candidates, sample, logits, form, lambda done: progress("choose ranges", done)
    )
    chosen = best(evidence)
    found = candidates[chosen.method]
    result = insert(source, placement, found, form)
    data = _int8_data(model, frames, placement, found, evidence, chosen.method)
    data |= {"form": form, "requested": method, "ranges_reused": reused}
    notes = warnings(evidence) + _int8_notes(form, chosen, data["int8_macs_share"])
    lost = [entry.node for entry in placement.declined if entry not in wanted.declined]
    if lost:
        notes += (f"int8: {len(lost)} layers stay float, as no float16 scale serves them: {', '.join(lost)}",)
    if form == "tensorrt":
        result, casts = to_half(result, scaled_ranges.tensors, "fp16")
        data["half"] = _half_data(casts, scaled)
        notes += _half_notes(casts, scaled)
    return PrecisionResult(result, data, notes, ranges)


def _placed(model: onnx.ModelProto, logits: str, unfit: Unfit | None = None) -> Placement:
    if any(node.op_type == "QuantizeLinear" for node in model.graph.node):
        raise CalibrationError(
            f"graph {model.graph.name!r} is quantized already", fix="give the FP32 model that it was made from"
        )
    placement = place(import_graph(model), logits, unfit)
    if not placement.layers:
        reasons = "; ".join(f"{entry.node}: {entry.reason}" for entry in placement.declined[:4]) or "it has no Conv"
        raise CalibrationError(
            f"graph {model.graph.name!r}: int8 was asked for, but no layer can be quantized ({reasons})",
            fix="build with --precision fp16 or fp32",
        )
    return placement


def _fitting(frames: CalibrationFrames | None, spec: ModelSpec) -> CalibrationFrames:
    if frames is None:
        raise CalibrationError("int8 needs calibration frames, and none were given", fix=_NO_FRAMES)
    height, width, _ = frames.shape
    if (spec.frame.height or height, spec.frame.width or width) != (height, width):
        raise CalibrationError(
            f"calibration frames are {width}x{height}, the model takes {spec.frame.width}x{spec.frame.height}",
            fix="collect the frames with this model's spec",
        )
    return frames


def _half_ranges(
    model: onnx.ModelProto, frames: CalibrationFrames, range_file: Path | None, progress: Progress
) -> Ranges:
    if range_file is not None and range_file.exists():
        return _reuse(model, frames, range_file)
    return _observe(model, frames.subset(_HALF_FRAMES), (), progress)


def _int8_ranges(
    model: onnx.ModelProto,
    placement: Placement,
    frames: CalibrationFrames,
    range_file: Path | None,
    progress: Progress,
) -> tuple[Ranges, bool]:
    if range_file is not None and range_file.exists():
        return _reuse(model, frames, range_file), True
    ranges = _observe(model, frames, placement.tensors, progress)
    if range_file is not None:
        RangeFile.of(ranges, model, frames).save(range_file)
    return ranges, False


def _reuse(model: onnx.ModelProto, frames: CalibrationFrames, path: Path) -> Ranges:
    stored = RangeFile.load(path)
    stored.check(model, frames, name=str(path))
    return stored.ranges


def _observe(
    model: onnx.ModelProto, frames: CalibrationFrames, quantized: tuple[str, ...], progress: Progress
) -> Ranges:
    types = {name: kind.elem_type for name, kind in tensor_types(model).items()}
    tensors = tuple(dict.fromkeys((*observable(import_graph(model), types), *quantized)))
    progress("calibrate", 0.0)
    return observe(
        model,
        frames,
        tensors=tensors,
        quantized=quantized,
        progress=lambda done: progress("calibrate", done / frames.count),
    )


def _int8_data(
    model: onnx.ModelProto,
    frames: CalibrationFrames,
    placement: Placement,
    found: dict[str, Grid],
    evidence: tuple[Evidence, ...],
    chosen: Rule,
) -> dict[str, Any]:
    names = {node.output[0]: node.name or node.output[0] for node in model.graph.node}
    macs = macs_by_node(model, (frames.shape[0], frames.shape[1]))
    layers = [names[layer] for layer in placement.layers]
    return {
        "precision": "int8",
        "method": chosen,
        "frames": frames.count,
        "evidence": [asdict(entry) for entry in evidence],
        "evidence_frames": min(_EVIDENCE_FRAMES, frames.count),
        "layers": layers,
        "tensors": {name: asdict(grid) for name, grid in found.items()},
        "declined": [asdict(entry) for entry in placement.declined],
        "int8_macs_share": sum(macs.get(layer, 0) for layer in layers) / max(1, sum(macs.values())),
    }


def _int8_notes(form: Form, chosen: Evidence, share: float) -> tuple[str, ...]:
    notes = [
        f"int8: {share:.1%} of the multiplications; ranges by {chosen.method}, with {chosen.equal_labels:.2%} of the "
        "labels of calibration frames unchanged"
    ]
    if form == "cpu":
        notes.append(
            "int8: activations are uint8 and weights int8, for CPUs with VNNI or AMX; ONNX Runtime saturates sums of "
            "such products on x86 CPUs without"
        )
    return tuple(notes)


def _half_data(casts: CastReport, scaled: tuple[Rescaled, ...]) -> dict[str, Any]:
    return {**asdict(casts), "kept": [asdict(entry) for entry in casts.kept], "rescaled": [asdict(s) for s in scaled]}


def _half_notes(casts: CastReport, scaled: tuple[Rescaled, ...]) -> tuple[str, ...]:
    notes = []
    if scaled:
        named = ", ".join(f"{entry.node} ({entry.reach:.6g} / {2**entry.exponent})" for entry in scaled)
        notes.append(f"{casts.dtype}: large results were divided by powers of two, exactly, in the weights: {named}")
    if casts.kept:
        named = ", ".join(entry.node for entry in casts.kept[:6]) + (", ..." if len(casts.kept) > 6 else "")
        notes.append(f"{casts.dtype}: {len(casts.kept)} nodes stay FP32: {named}")
    return tuple(notes)
