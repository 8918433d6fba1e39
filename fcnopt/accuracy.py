"""Accuracy as an input: the fastest assignment of precisions that keeps a budget on frames that calibration never saw.

What is measured is the very graph that the engine will be compiled from. Where the target runs on this machine its own
runtime runs it as it will run the engine, half precision of float layers included; otherwise a CPU runtime does, with
float layers in FP32: quantization is what is judged, not the rounding of half precision, which costs far less.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fcnopt.backends import Target, open_onnx
from fcnopt.backends.base import Precision, Progress, Runner
from fcnopt.backends.machine import describe_machine
from fcnopt.backends.packages import version_of
from fcnopt.errors import GateError
from fcnopt.evaluate.budget import Budget
from fcnopt.evaluate.claims import claim
from fcnopt.evaluate.validation import Measured, Validation
from fcnopt.graph import io
from fcnopt.graph.passes import CPU_PASSES, optimize
from fcnopt.graph.stats import macs_by_node
from fcnopt.manifest import AccuracyClaim
from fcnopt.media.clips import open_clip
from fcnopt.media.labels import find_labels
from fcnopt.quantize.cost import Costs, layer_costs
from fcnopt.quantize.frames import CalibrationFrames
from fcnopt.quantize.methods import Method
from fcnopt.quantize.precision import PrecisionResult, candidate, finish
from fcnopt.quantize.recipe import Counted
from fcnopt.quantize.search import Sensitivity, sensitivities, shortest
from fcnopt.quantize.sessions import openvino_misreads
from fcnopt.quantize.tune import Tuned
from fcnopt.spec import ModelSpec

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class ValidationSource:
    """What accuracy is measured on.

    Attributes:
        clip: A video, an image, or a folder of images that calibration does not use.
        labels: Folder of label maps; None looks for one in the layout of known data sets, and where there is none
            the FP32 network's labels are the truth.
        budget: What may be lost; None only measures.
        topic: Of a robot log; None takes the only one with images.
    """

    clip: Path
    labels: Path | None = None
    budget: Budget | None = None
    topic: str | None = None


@dataclass(frozen=True)
class Assigned:
    """The assignment found.

    Attributes:
        result: The graph.
        claim: Its accuracy on the validation frames.
    """

    result: PrecisionResult
    claim: AccuracyClaim


class Assignment:
    """One search: the network, the frames, and what is known already.

    Args:
        tuned: The quantized network.
        model: The optimized FP32 graph that it was made from.
        spec: Of the model.
        frames: Calibration frames.
        method: That the user asked for.
        target: What the engine is for.
        source: What accuracy is measured on.
        progress: Called as the search goes on.
    """

    def __init__(
        self,
        tuned: Tuned,
        model: onnx.ModelProto,
        spec: ModelSpec,
        frames: CalibrationFrames,
        method: Method,
        target: Target,
        source: ValidationSource,
        progress: Progress,
    ) -> None:
        self._tuned, self._model, self._spec, self._frames = tuned, model, spec, frames
        self._method, self._target, self._source, self._progress = method, target, source, progress
        self._recipe = tuned.recipe
        self._joins = openvino_misreads(tuned.plan.graph())
        names = {node.output[0]: node.name or node.output[0] for node in model.graph.node}
        self._names = {layer: names[layer] for layer in tuned.plan.placement.layers}
        self._measured: dict[frozenset[str], Measured] = {}
        self._where = ""  # and by what: measurements of one place may be compared

    def run(self, reference: str) -> Assigned:
        """Search, and write the report into the recipe; `reference` names the FP32 model in the claim.

        Raises:
            GateError: No assignment keeps the budget, or the frames cannot show that one does.
            MediaError: The validation clip cannot be used.
            CalibrationError: The graph chosen changes most labels of calibration frames.
        """
        source = self._source
        clip = open_clip(source.clip, source.labels or find_labels(source.clip), topic=source.topic)
        with tempfile.TemporaryDirectory(prefix="fcnopt-search-") as folder:
            place = Path(folder)
            io.save(self._model, place / "fp32.onnx")
            with self._opened(place / "fp32.onnx", "fp32") as runner:
                runtime, _, *device = runner.name.split()
                validation = Validation(
                    clip,
                    self._spec,
                    runner,
                    self._source.budget,
                    calibration=self._calibrated(),
                    progress=lambda done: self._progress("validate FP32", done),
                )
            # A CPU's instruction set decides what is computed in half precision, and where integer sums saturate.
            words = [runtime, str(version_of(runtime)), self._computes, *device, *describe_machine()["isa"]]
            self._where = " ".join(words)
            return self._searched(validation, place, reference)

    def _searched(self, validation: Validation, place: Path, reference: str) -> Assigned:
        def keeps(floats: frozenset[str]) -> bool:
            measured = self._measured.get(floats) or self._measure(floats, validation, place)
            self._measured[floats] = measured
            return measured.verdict.kept

        costs = layer_costs(
            self._tuned.plan.source,  # for a CPU its first layer is another than the model's
            self._names,
            self._target,
            size=self._frames.shape[:2],
            frame=next(iter(self._frames)),
            precision=self._tuned.plan.precision,
        )
        order: tuple[Sensitivity, ...] = ()
        floats: frozenset[str] | None = frozenset()
        if not keeps(frozenset()) and not self._measured[frozenset()].verdict.provable:
            floats = None
        elif not keeps(frozenset()):
            order = sensitivities(
                self._tuned,
                costs,
                self._recipe.sensitivity,
                self._recipe.save,
                lambda done: self._progress("sensitivity of layers", done),
            )
            floats = shortest([entry.layer for entry in order], keeps, costs.total_ms)
        if self._source.budget is not None:
            self._report(self._source.budget, validation, costs, order, floats)
        if floats is None:
            raise self._missed()
        chosen = self._measured[floats]
        return Assigned(
            finish(self._tuned, self._model, self._frames, self._method, floats),
            claim(
                chosen.verdict,
                reference=reference,
                clip=str(self._source.clip),
                frames_sha256=validation.sha256,
                truth=validation.truth,
                equal_labels=chosen.equal_labels,
                date=chosen.date,
            ),
        )

    def _measure(self, floats: Collection[str], validation: Validation, place: Path) -> Measured:
        graph = candidate(self._tuned, frozenset(floats))
        if self._target.form != "tensorrt":  # as the builder does; it proves it there
            graph, _ = optimize(graph, passes=CPU_PASSES, verify=False)
        name = " ".join([validation.key, self._where, io.weights_hash(graph), io.graph_hash(graph)])
        known = self._recipe.counts.get(name)
        if known is not None and validation.fits(known.unpacked()):
            return validation.judged(known.unpacked(), known.equal_labels, known.date)
        step = f"validate with {len(floats)} layers float" if floats else "validate"
        self._progress(step, 0.0)
        path = place / "candidate.onnx"
        io.save(graph, path)
        with self._opened(path, self._computes) as runner:
            measured = validation.measure(runner, lambda done: self._progress(step, done))
        self._recipe.remember(name, Counted.of(measured.counts, measured.equal_labels, measured.date))
        return measured

    def _opened(self, path: Path, precision: Precision) -> Runner:
        runtime = self._target.runtime
        if self._target.device or not (runtime == "openvino" or runtime == "onnxruntime"):
            return open_onnx(path, self._spec, runtime="onnxruntime" if self._joins else None)
        return open_onnx(path, self._spec, precision, runtime)

    @property
    def _computes(self) -> Precision:
        """What candidates are opened for: as the engine, where its runtime runs them."""
        here = not self._target.device and self._target.runtime in ("openvino", "onnxruntime")
        return self._tuned.plan.precision if here else "fp32"

    def _calibrated(self) -> frozenset[str]:
        return frozenset(hashlib.sha256(frame.data).hexdigest() for frame in self._frames)

    def _missed(self) -> GateError:
        nearest = min(self._measured.values(), key=lambda entry: entry.verdict.drop).verdict
        needed, reasons, budget = nearest.frames_needed, "; ".join(nearest.reasons), nearest.budget
        on_mean = ", or judge the mean alone (--budget-on mean)" if budget and budget.on == "interval" else ""
        if not nearest.provable:
            enough = f"about {needed} frames" if needed else "more frames"
            classes = budget is not None and budget.max_class_drop is not None and nearest.worst_class is None
            other = ", or leave --max-class-drop out" if classes else on_mean
            return GateError(
                f"{self._source.clip} cannot show whether the budget is kept: {reasons}",
                fix=f"validate on {enough}{other}",
            )
        more = f"validate on about {needed} frames, which would narrow the interval; or " if needed else ""
        return GateError(
            f"no assignment of precisions keeps the budget on {self._source.clip}, not even with all layers float: "
            f"{reasons}",
            fix=f"{more}allow a larger drop{on_mean}",
        )

    def _report(
        self,
        budget: Budget,
        validation: Validation,
        costs: Costs,
        order: tuple[Sensitivity, ...],
        floats: frozenset[str] | None,
    ) -> None:
        """Write into the recipe what was searched, as `fcnopt.report.search` shows it."""
        macs = macs_by_node(self._model, (self._frames.shape[0], self._frames.shape[1]))
        total = max(1, sum(macs.values()))
        shares = {layer: macs.get(name, 0) / total for layer, name in self._names.items()}
        sources = {cost.source for cost in costs.layers.values()}
        fallback = costs.fallback
        self._recipe.floats = None if floats is None else tuple(sorted(self._names[layer] for layer in floats))
        self._recipe.search = {
            "budget": asdict(budget),
            "validation": {
                "clip": str(self._source.clip),
                "frames": validation.frames,
                "sha256": validation.sha256,
                "truth": validation.truth,
            },
            "cost": {
                "target": str(self._target),
                "family": costs.family,
                "source": sources.pop() if len(sources) == 1 else "mixed",
                "quantized_ms": costs.total_ms(),
                "float_ms": costs.total_ms(tuple(self._names)),
                "fallback": fallback,
                "precision": costs.precision,
            },
            "layers": [
                {
                    "node": self._names[entry.layer],
                    "macs_share": shares[entry.layer],
                    "cost_ms": entry.cost_ms,
                    "divergence": entry.divergence,
                    "gain": entry.gain,
                    "source": costs.layers[entry.layer].source,
                    "precision": fallback if floats and entry.layer in floats else costs.precision,
                }
                for entry in order
            ],
            "candidates": [
                self._candidate(kept_float, measured, costs, shares, chosen=kept_float == floats)
                for kept_float, measured in self._measured.items()
            ],
            "frames_needed": next(
                (m.verdict.frames_needed for f, m in self._measured.items() if f == (floats or frozenset())), None
            ),
        }
        self._recipe.save()

    def _candidate(
        self, floats: frozenset[str], measured: Measured, costs: Costs, shares: dict[str, float], *, chosen: bool
    ) -> dict[str, Any]:
        verdict = measured.verdict
        worst = verdict.worst_class
        return {
            "floats": sorted(self._names[layer] for layer in floats),
            "ms": costs.total_ms(floats),
            "macs_share": sum(share for layer, share in shares.items() if layer not in floats),
            "miou_drop": verdict.drop,
            "interval": verdict.interval,
            "worst_class": worst.name if worst else None,
            "worst_class_drop": worst.drop if worst else None,
            "equal_labels": measured.equal_labels,
            "kept": verdict.kept,
            "chosen": chosen,
            "reasons": list(verdict.reasons),
        }
