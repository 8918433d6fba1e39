"""The road to a quantized network, ingredient by ingredient, each judged by the divergence at the logits.

    equalize channels -> ranges by each method -> the best of them -> round weights -> refine tensor by tensor

Weights come before ranges are refined: their noise, which rounding takes away, would drown what a range changes.

An ingredient that makes it worse on these frames is left out again. All frames are calibration frames.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from fcnopt.backends.targets import Form
from fcnopt.errors import CalibrationError
from fcnopt.graph.io import import_graph
from fcnopt.graph.optimizers import NARROW
from fcnopt.graph.passes import WHOLE_FRAMES, optimize
from fcnopt.graph.taps import logits_name
from fcnopt.quantize.calibrate import Progress, ranges_for_integers
from fcnopt.quantize.choose import Evidence, Judge, best, measure
from fcnopt.quantize.frames import CalibrationFrames
from fcnopt.quantize.methods import Method, Quantized, Rule, check_method, methods_of
from fcnopt.quantize.placement import Placement, place
from fcnopt.quantize.plan import Plan
from fcnopt.quantize.qdq import grids, weight_levels
from fcnopt.quantize.ranges import Ranges
from fcnopt.quantize.recipe import Recipe, key_of
from fcnopt.quantize.refine import refine
from fcnopt.quantize.rescale import Rescaled, rescale
from fcnopt.quantize.rounding import round_weights
from fcnopt.quantize.scales import Unfit, unfit_for_half

if TYPE_CHECKING:
    import onnx

_JUDGE_FRAMES = 8
_ROUNDING_FRAMES = 12


@dataclass(frozen=True)
class Tuning:
    """Which ingredients are used.

    Attributes:
        equalize: Equalize channels (`equalize`).
        refine: Refine ranges against the loss (`refine`).
        rounding: Round weights so that errors cancel (`rounding`).
        bias: Correct biases (`rounding`).
    """

    equalize: bool = True
    refine: bool = True
    rounding: bool = True
    bias: bool = True


PLAIN = Tuning(refine=False, rounding=False, bias=False)
"""For a calibration method that the user named: ranges by it, weights to nearest."""


@dataclass(frozen=True)
class Tuned:
    """What the road led to.

    Attributes:
        plan: The quantized network.
        judge: On calibration frames, for further decisions.
        recipe: The decisions with their evidence, to be gone on with.
        rule: The calibration method that ranges started from.
        chosen: Evidence of the plan.
        ranges: Of the equalized network's tensors, before and after rescaling.
        rescaled: What was rescaled for float16.
        reused: Whether ranges come from a file.
        lost: Layers that no float16 scale serves, by name.
    """

    plan: Plan
    judge: Judge
    recipe: Recipe
    rule: Rule
    chosen: Evidence
    ranges: tuple[Ranges, Ranges]
    rescaled: tuple[Rescaled, ...]
    reused: bool
    lost: tuple[str, ...]


def tune(
    model: onnx.ModelProto,
    frames: CalibrationFrames,
    precision: Quantized,
    form: Form,
    method: Method,
    range_file: Path | None,
    progress: Progress,
    tuning: Tuning | None = None,
    recipe_file: Path | None = None,
) -> Tuned:
    """Decide everything about a quantized network but which layers a budget leaves float.

    Args:
        model: Optimized FP32 graph; unchanged afterwards.
        frames: Calibration frames.
        precision: int8 or fp8.
        form: Of the graph to be made.
        method: How ranges are chosen; auto tries all.
        range_file: Where ranges are kept.
        progress: Called as the work goes on.
        tuning: Ingredients; None takes all for auto, and `PLAIN` for a method named.
        recipe_file: Where decisions are kept: those that belong to all of this are taken as they are.

    Raises:
        CalibrationError: Nothing can be quantized, a file belongs to something else, or values are not finite.
    """
    if method != "auto":
        check_method(method, precision)
    used = tuning or (Tuning() if method == "auto" else PLAIN)
    logits = logits_name(model)
    # What int8 would quantize, fp8's layers among it: one range file serves both.
    everything = _placed(model, logits, "int8")
    elsewhere = _tensors_elsewhere(model, logits)  # a range file serves every form
    wanted = _placed(model, logits, precision)
    equal, ranges, reused = ranges_for_integers(
        model, everything, frames, range_file, progress, also=elsewhere, equalized=used.equalize
    )
    source, scaled, rescaled = rescale(equal, ranges) if form == "tensorrt" else (equal, ranges, ())
    # Rounded to nearest, the first layer's weights would cost more labels than its speed is worth (0.1 % on CamVid).
    if form != "tensorrt" and precision == "int8" and used.rounding:
        source, _ = optimize(source, passes=WHOLE_FRAMES)
    unfit = unfit_for_half(scaled, precision) if form == "tensorrt" else None
    placement = _placed(source, logits, precision, unfit, form=form)
    judge = Judge(source, frames.subset(_JUDGE_FRAMES), logits)
    key = key_of(model, frames, precision, form, method) | {"tuning": str(used)}
    if (most := weight_levels(form, precision)) == NARROW:  # decided on a CPU that has to have it
        key |= {"weight_levels": str(most)}
    recipe = Recipe.open(recipe_file, key)

    plan = Plan(source, logits, precision, form, placement, {}, {}, unfit)
    plan, rule = _with_ranges(plan, scaled, judge, recipe, progress)
    plan = _with_weights(plan, frames, judge, recipe, used, progress)
    plan = _refined(plan, judge, recipe, used, progress)
    declined = {entry.node for entry in wanted.declined}
    return Tuned(
        plan,
        judge,
        recipe,
        rule,
        best(recipe.evidence),
        (ranges, scaled),
        rescaled,
        reused,
        tuple(entry.node for entry in placement.declined if entry.node not in declined),
    )


def _with_ranges(plan: Plan, ranges: Ranges, judge: Judge, recipe: Recipe, progress: Progress) -> tuple[Plan, Rule]:
    """The plan with a grid for every tensor, by the best method; and that method."""

    def by(rule: Rule) -> Plan:
        choice = dict.fromkeys(plan.placement.tensors, rule)
        return replace(plan, grids=grids(plan.placement, ranges, choice, plan.form, plan.precision))

    if recipe.rule is not None:
        return by(recipe.rule), recipe.rule
    rules = methods_of(plan.precision)
    asked = tuple(rule for rule in rules if recipe.key["method"] in (rule, "auto"))
    candidates: dict[str, Callable[[], onnx.ModelProto]] = {rule: by(rule).graph for rule in asked}
    recipe.evidence = measure(judge, candidates, partial(progress, "choose ranges"))
    chosen = next(rule for rule in asked if rule == best(recipe.evidence).name)
    recipe.rule = chosen
    recipe.save()
    return by(chosen), chosen


def _with_weights(
    plan: Plan, frames: CalibrationFrames, judge: Judge, recipe: Recipe, tuning: Tuning, progress: Progress
) -> Plan:
    """The plan with weights rounded together, if that brings it nearer to FP32."""
    if plan.precision != "int8" or not (tuning.rounding or tuning.bias) or recipe.rounded is False:
        return plan
    progress("round weights", 0.0)
    rounded = round_weights(
        plan.source,
        plan.placement,
        plan.grids,
        frames.subset(_ROUNDING_FRAMES),
        plan.form,
        partial(progress, "round weights"),
        rounding=tuning.rounding,
        shift=tuning.bias,
    )
    tried = replace(plan, rounded=rounded)
    if recipe.rounded is None:
        entry = judge("rounded", tried.graph())
        recipe.rounded = entry.divergence < best(recipe.evidence).divergence
        recipe.evidence = (*recipe.evidence, entry)
        recipe.save()
    return tried if recipe.rounded else plan


def _refined(plan: Plan, judge: Judge, recipe: Recipe, tuning: Tuning, progress: Progress) -> Plan:
    """The plan with ranges refined at the logits."""
    if plan.precision != "int8" or not tuning.refine:  # the steps of fp8 are relative: its scales hardly matter
        return plan
    if set(recipe.grids) != set(plan.grids):
        found, entry, moves = refine(
            plan.graph(), plan.placement, plan.grids, judge, partial(progress, "refine ranges")
        )
        recipe.grids, recipe.moves, recipe.evidence = found, moves, (*recipe.evidence, entry)
        recipe.save()
    return replace(plan, grids=recipe.grids)


def _tensors_elsewhere(model: onnx.ModelProto, logits: str) -> tuple[str, ...]:
    """Tensors that ONNX Runtime reads quantized, the first layer float or integer: then scores may read it so."""
    whole, _ = optimize(model, passes=WHOLE_FRAMES, verify=False)  # for names alone; what is built on is verified
    placed = (place(import_graph(form), logits, form="onnxruntime").tensors for form in (model, whole))
    there = import_graph(model).tensors()
    return tuple(name for tensors in placed for name in tensors if name in there)


def _placed(
    model: onnx.ModelProto,
    logits: str,
    precision: Quantized,
    unfit: Unfit | None = None,
    *,
    form: Form = "tensorrt",
) -> Placement:
    if any(node.op_type == "QuantizeLinear" for node in model.graph.node):
        raise CalibrationError(
            f"graph {model.graph.name!r} is quantized already", fix="give the FP32 model that it was made from"
        )
    placement = place(import_graph(model), logits, unfit, precision, form=form)
    if not placement.layers:
        reasons = "; ".join(f"{entry.node}: {entry.reason}" for entry in placement.declined[:4]) or "it has no Conv"
        raise CalibrationError(
            f"graph {model.graph.name!r}: {precision} was asked for, but no layer can be quantized ({reasons})",
            fix="build with --precision fp16 or fp32",
        )
    return placement
