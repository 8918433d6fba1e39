"""The calibration method chosen by measurement, at the logits, on calibration frames.

Every method's graph runs beside the FP32 one. What counts is the share of labels that stay the same; the noise that
quantization adds to the logits, relative to them, breaks ties and is recorded too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fcnopt.errors import CalibrationError
from fcnopt.quantize.methods import Rule
from fcnopt.quantize.placement import Placement
from fcnopt.quantize.qdq import Form, Grid, insert
from fcnopt.quantize.ranges import decibels
from fcnopt.quantize.sessions import Session

if TYPE_CHECKING:
    import onnx

GOOD_LABELS = 0.9  # below this share of equal labels the user is warned
USABLE_LABELS = 0.5  # below this one the graph is no longer the network that was given
_FIX = "build with --precision fp16, or calibrate with more or other frames of the camera (--calibration PATH)"
_PIXELS = 1 << 16  # of a frame that are compared; what is kept of the reference stays small at any frame size


@dataclass(frozen=True)
class Evidence:
    """What a candidate costs in accuracy.

    Attributes:
        method: The calibration method.
        logits_db: Signal to quantization noise at the logits, in decibels: more is better.
        equal_labels: Share of pixels whose label is the FP32 graph's, 0..1.
    """

    method: Rule
    logits_db: float
    equal_labels: float


def measure(
    model: onnx.ModelProto,
    placement: Placement,
    candidates: Mapping[Rule, Mapping[str, Grid]],
    frames: Iterable[NDArray[np.uint8]],
    logits: str,
    form: Form,
    progress: Callable[[float], None],
) -> tuple[Evidence, ...]:
    """Compare candidates with the FP32 graph.

    Args:
        model: FP32.
        placement: What is quantized in every candidate.
        candidates: The grid of every tensor, by method.
        frames: uint8 [1, H, W, 3] each; read once a candidate.
        logits: Name of the logits.
        form: Of the grids.
        progress: Called with the fraction done.

    Returns:
        One entry a candidate, in order.

    Raises:
        CalibrationError: A quantized graph's logits are not finite.
    """
    reference = _logits(model, frames, logits)
    found = []
    for count, (method, grids) in enumerate(candidates.items(), start=1):
        progress(count / (len(candidates) + 1))
        quantized = insert(model, placement, grids, form)
        values = _logits(quantized, frames, logits)
        if not all(np.isfinite(entry).all() for entry in values):
            raise CalibrationError(
                f"int8 with ranges by {method}: {logits!r} is not finite on calibration frames", fix=_FIX
            )
        found.append(_compare(method, reference, values))
    progress(1.0)
    return tuple(found)


def best(evidence: Sequence[Evidence]) -> Evidence:
    """The method that changes the fewest labels; of equals the one with the least noise at the logits."""
    return max(evidence, key=lambda entry: (entry.equal_labels, entry.logits_db))


def warnings(evidence: Sequence[Evidence]) -> tuple[str, ...]:
    """What the user must know of the best method before anything else: nothing if it is good.

    Raises:
        CalibrationError: It changes so many labels that the graph is of no use.
    """
    chosen = best(evidence)
    found = f"int8 with ranges by {chosen.method} leaves only {chosen.equal_labels:.1%} of the labels of calibration"
    fix = _FIX + ("; every --method was tried" if len(evidence) > 1 else ", or with --method auto")
    if chosen.equal_labels < USABLE_LABELS:
        raise CalibrationError(f"{found} frames unchanged, {USABLE_LABELS:.0%} are the least", fix=fix)
    if chosen.equal_labels < GOOD_LABELS:
        return (f"WARNING: {found} frames unchanged: {fix}",)
    return ()


def _logits(model: onnx.ModelProto, frames: Iterable[NDArray[np.uint8]], name: str) -> list[NDArray[np.float32]]:
    """The logits of every frame at `_PIXELS` evenly spaced pixels, [C, pixels]."""
    kept = []
    with Session(model, (name,)) as session:
        for frame in frames:
            (values,) = session.run(frame)
            flat = values[0].reshape(values.shape[1], -1)
            stride = -(-flat.shape[1] // _PIXELS) | 1
            kept.append(flat[:, ::stride].copy())
    return kept


def _compare(method: Rule, reference: list[NDArray[np.float32]], found: list[NDArray[np.float32]]) -> Evidence:
    signal = noise = 0.0
    equal = []
    for want, have in zip(reference, found, strict=True):
        signal += float(np.sum(want.astype(np.float64) ** 2))
        noise += float(np.sum((have.astype(np.float64) - want) ** 2))
        equal.append(float(np.mean(want.argmax(axis=0) == have.argmax(axis=0))))
    return Evidence(method, decibels(signal, noise), float(np.mean(equal)))
