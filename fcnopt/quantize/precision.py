"""One entry for every precision: an optimized FP32 graph in, the graph that a runtime shall compile out.

    int8, fp8:  tune (see there) -> insert Q/DQ -> (half precision for the rest)
    fp16:  observe -> rescale -> casts

Form `tensorrt` states everything in the graph's types, which is all that TensorRT reads. The forms for CPUs
hold INT8 only: OpenVINO and ONNX Runtime choose half precision by execution mode.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fcnopt.backends.targets import Form
from fcnopt.errors import CalibrationError
from fcnopt.graph.optimizers import NARROW
from fcnopt.graph.stats import macs_by_node
from fcnopt.quantize.calibrate import Progress, ranges_for_half
from fcnopt.quantize.casts import CastReport, to_half
from fcnopt.quantize.choose import Evidence, warnings
from fcnopt.quantize.frames import CalibrationFrames
from fcnopt.quantize.methods import Method
from fcnopt.quantize.plan import Plan
from fcnopt.quantize.qdq import activation_kind, weight_levels
from fcnopt.quantize.ranges import HalfType, Ranges
from fcnopt.quantize.rescale import Rescaled, rescale
from fcnopt.quantize.settle import Settled
from fcnopt.quantize.tune import Tuned, Tuning, tune
from fcnopt.spec import ModelSpec

if TYPE_CHECKING:
    import onnx

Precision = Literal["fp32", "fp16", "bf16", "int8", "fp8"]

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
    recipe_file: Path | None = None,
    tuning: Tuning | None = None,
    progress: Progress | None = None,
) -> PrecisionResult:
    """Rewrite an optimized FP32 graph for a precision.

    Args:
        model: Optimized FP32 graph; unchanged afterwards.
        spec: Of the model.
        precision: fp32 returns the graph as it is.
        form: As `Target.form`.
        frames: Calibration frames. int8 and fp8 need them; fp16 and bf16 judge weights alone without.
        method: How ranges are chosen for int8 and fp8.
        range_file: Where ranges of int8 and fp8 are kept: read if it exists, else written.
        recipe_file: Where decisions of int8 and fp8 are kept, in the same way.
        tuning: Ingredients of int8; None takes all for auto, and nothing but equalization for a method named.
        progress: Called as the work goes on.

    Raises:
        CalibrationError: int8 or fp8 has no frames, or nothing to quantize, or changes most labels; fp8 is for a
            CPU, or by entropy; frames do not fit the spec; the range file is damaged or belongs to something else.
        GraphError: The graph cannot be rewritten.
    """
    report = progress or (lambda _step, _fraction: None)
    if precision == "fp32":
        return PrecisionResult(model, {"precision": precision, "form": form}, (), None)
    if precision == "int8" or precision == "fp8":  # not `in`: mypy narrows by these alone
        activation_kind(form, precision)  # refuses fp8 for CPUs before any work
        fitting = checked_frames(frames, spec, precision)
        tuned = tune(model, fitting, precision, form, method, range_file, report, tuning, recipe_file)
        return finish(tuned, model, fitting, method)
    if form != "tensorrt":
        note = f"{precision}: the graph stays FP32, the runtime is asked to compute in {precision} where it can"
        return PrecisionResult(model, {"precision": precision, "form": form}, (note,), None)
    found = None if frames is None else ranges_for_half(model, checked_frames(frames, spec, precision), report)
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


def finish(
    tuned: Tuned,
    model: onnx.ModelProto,
    frames: CalibrationFrames,
    requested: Method,
    floats: AbstractSet[str] = frozenset(),
) -> PrecisionResult:
    """Write the graph that was decided upon.

    Args:
        tuned: The decisions.
        model: The FP32 graph they were made for.
        frames: The calibration frames.
        requested: The method that the user asked for.
        floats: First outputs of layers that a budget leaves float.

    Raises:
        CalibrationError: The result changes most labels.
    """
    plan = tuned.plan.without(floats)
    result = plan.graph()
    chosen = tuned.chosen if not floats else tuned.judge("with layers left float", result)
    data = _quantized_data(tuned, plan, chosen, model, frames) | {"requested": requested}
    notes = warnings(chosen, plan.precision, alone=requested != "auto")
    notes += _quantized_notes(tuned, plan, chosen, data)
    if tuned.ranges[0].settled is not None and plan.precision == "int8":
        notes += (tuned.ranges[0].settled.note(tuned.rule, frames.available),)
    if tuned.lost:
        notes += (
            f"{plan.precision}: {len(tuned.lost)} layers stay float, as no float16 scale serves them: "
            f"{', '.join(tuned.lost)}",
        )
    result, casts = _rest(tuned, plan, result)
    if casts is not None:
        data["half"] = _half_data(casts, tuned.rescaled)
        notes += _half_notes(casts, tuned.rescaled)
    return PrecisionResult(result, data, notes, tuned.ranges[0])


def candidate(tuned: Tuned, floats: AbstractSet[str]) -> onnx.ModelProto:
    """The graph that `finish` would write, before anything is known of its accuracy."""
    plan = tuned.plan.without(floats)
    return _rest(tuned, plan, plan.graph())[0]


def _rest(tuned: Tuned, plan: Plan, graph: onnx.ModelProto) -> tuple[onnx.ModelProto, CastReport | None]:
    """A graph with Q/DQ whose other layers are in half precision, where the form states that."""
    return to_half(graph, tuned.ranges[1].tensors, "fp16") if plan.form == "tensorrt" else (graph, None)


def checked_frames(frames: CalibrationFrames | None, spec: ModelSpec, precision: Precision) -> CalibrationFrames:
    """The frames, if there are any and they fit the model; else `CalibrationError`."""
    if frames is None:
        raise CalibrationError(f"{precision} needs calibration frames, and none were given", fix=_NO_FRAMES)
    height, width, _ = frames.shape
    if (spec.frame.height or height, spec.frame.width or width) != (height, width):
        raise CalibrationError(
            f"calibration frames are {width}x{height}, the model takes {spec.frame.width}x{spec.frame.height}",
            fix="collect the frames with this model's spec",
        )
    return frames


def _quantized_data(
    tuned: Tuned, plan: Plan, chosen: Evidence, model: onnx.ModelProto, frames: CalibrationFrames
) -> dict[str, Any]:
    names = {node.output[0]: node.name or node.output[0] for node in model.graph.node}
    macs = macs_by_node(model, (frames.shape[0], frames.shape[1]))
    layers = [names[layer] for layer in plan.placement.layers]
    groups, weights = {point.group for point in plan.placement.points}, _weights(plan)
    settled = tuned.ranges[0].settled
    times = {move.tensor: move.factor for move in tuned.recipe.moves}
    return {
        "precision": plan.precision,
        "form": plan.form,
        "method": tuned.rule,
        "frames": frames.count,
        "ranges_reused": tuned.reused,
        "settled": None if settled is None else _settled_data(settled),
        "evidence": [asdict(entry) for entry in tuned.recipe.evidence],
        "chosen": asdict(chosen),
        "refined": [asdict(move) for move in tuned.recipe.moves if move.tensor in groups],
        "rounded": sorted(weights.intersection(plan.rounded)),
        "layers": layers,
        "tensors": {
            point.tensor: {
                **asdict(plan.grids[point.tensor]),
                "method": tuned.rule,
                "times": times.get(point.group, 1.0),
            }
            for point in plan.placement.points
        },
        "declined": [asdict(entry) for entry in plan.placement.declined],
        "int8_macs_share": sum(macs.get(layer, 0) for layer in layers) / max(1, sum(macs.values())),
    }


def _weights(plan: Plan) -> set[str]:
    """Names of the weights of the layers that are quantized."""
    layers = set(plan.placement.layers)
    return {node.input[1] for node in plan.source.graph.node if layers.intersection(node.output)}


def _settled_data(settled: Settled) -> dict[str, Any]:
    return {**asdict(settled), "steps": [asdict(step) for step in settled.steps]}


def _quantized_notes(tuned: Tuned, plan: Plan, chosen: Evidence, data: dict[str, Any]) -> tuple[str, ...]:
    how = f"ranges by {tuned.rule}"
    how += ", refined at the logits" if data["refined"] else ""
    how += ", weights rounded together" if data["rounded"] else ""
    notes = [
        f"{plan.precision}: {data['int8_macs_share']:.1%} of the multiplications; {how}: {chosen.equal_labels:.2%} of "
        "the labels of calibration frames unchanged"
    ]
    if plan.form != "tensorrt":
        notes.append(_weights_note(weight_levels(plan.form, plan.precision)))
    return tuple(notes)


def _weights_note(most: int) -> str:
    if most == NARROW:
        return (
            f"int8: this CPU has no VNNI, and its int8 sums would saturate: weights have {2 * most + 1} levels, whose "
            "sums cannot, instead of 255; for a CPU with VNNI, build on one"
        )
    return "int8: activations are uint8 and weights int8, for CPUs with VNNI or AMX"


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
