"""What a quantized graph costs in accuracy, measured at the logits on calibration frames.

A candidate runs beside the FP32 graph. What counts is how far its class probabilities part from FP32's,

    KL(p || q) = sum_c p_c (log p_c - log q_c),   p = softmax(FP32's logits), q = softmax(the candidate's)

to second order the noise of the logits weighted by how much it matters (Fisher's information), most where two classes
are close, not at all where one is certain. It moves smoothly where the share of equal labels jumps by chance. Half of
it counts in the mean over pixels, as equal labels do, and half in the mean over (FP32's) classes, as mIoU does:
a pole has few pixels and as much weight as the road. The share of equal labels and the noise itself are recorded too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fcnopt.errors import CalibrationError
from fcnopt.quantize.ranges import CLEAN_DB, decibels
from fcnopt.quantize.sessions import judging

if TYPE_CHECKING:
    import onnx

GOOD_LABELS = 0.9  # below this share of equal labels the user is warned
USABLE_LABELS = 0.5  # below this one the graph is no longer the network that was given
_FIX = "build with --precision fp16, or calibrate with more or other frames of the camera (--calibration PATH)"
NOT_FINITE = float(np.finfo(np.float32).max)  # the divergence of logits that are not: more than any others have
_CLASS_PIXELS = 1000  # over all frames: fewer say little about their class
_PIXELS = 1 << 16  # of a frame that are compared; what is kept of the reference stays small at any frame size


@dataclass(frozen=True)
class Evidence:
    """What a candidate costs in accuracy.

    Attributes:
        name: Of the candidate, such as a calibration method.
        divergence: Kullback-Leibler divergence of its class probabilities from FP32's, in nats a pixel: the average of
            the means over pixels and over classes. `NOT_FINITE` where its logits are not.
        logits_db: Signal to quantization noise at the logits, in decibels: more is better.
        equal_labels: Share of pixels whose label is the FP32 graph's, 0..1.
    """

    name: str
    divergence: float
    logits_db: float
    equal_labels: float


class Judge:
    """Compares candidates with the FP32 graph on the same frames.

    Args:
        model: FP32.
        frames: uint8 [1, H, W, 3] each; read once now and once a candidate.
        logits: Name of the logits, [N, C, H, W].

    Raises:
        CalibrationError: The FP32 graph's logits are not finite.
    """

    def __init__(self, model: onnx.ModelProto, frames: Iterable[NDArray[np.uint8]], logits: str) -> None:
        self._frames = frames
        self._name = logits
        self._reference = list(self._logits(model))
        if not all(np.isfinite(entry).all() for entry in self._reference):
            raise CalibrationError(
                f"{logits!r} of the FP32 network is not finite on calibration frames",
                fix="check the weights and the normalization",
            )

    def __call__(self, name: str, candidate: onnx.ModelProto) -> Evidence:
        """Run a candidate; one whose logits are not finite is worse than any other."""
        signal = noise = 0.0
        equal = []
        diverged = np.zeros((2, self._reference[0].shape[0]))  # sums and pixels, a class of FP32's labels
        for want, have in zip(self._reference, self._logits(candidate), strict=True):
            if not np.isfinite(have).all():
                return Evidence(name, NOT_FINITE, -CLEAN_DB, 0.0)
            signal += float(np.sum(want.astype(np.float64) ** 2))
            noise += float(np.sum((have.astype(np.float64) - want) ** 2))
            diverged += _divergence(want, have)
            equal.append(float(np.mean(want.argmax(axis=0) == have.argmax(axis=0))))
        return Evidence(name, _mean(diverged), decibels(signal, noise), float(np.mean(equal)))

    def _logits(self, model: onnx.ModelProto) -> Iterable[NDArray[np.float32]]:
        """The logits of every frame at `_PIXELS` evenly spaced pixels, [C, pixels]."""
        with judging(model, self._name) as session:
            for frame in self._frames:
                (values,) = session.run(frame)
                flat = values[0].reshape(values.shape[1], -1)
                stride = -(-flat.shape[1] // _PIXELS) | 1
                yield flat[:, ::stride].copy()


def measure(
    judge: Judge, candidates: Mapping[str, Callable[[], onnx.ModelProto]], progress: Callable[[float], None]
) -> tuple[Evidence, ...]:
    """Judge every candidate; one is made at a time.

    Returns:
        One entry a candidate, in order.
    """
    found = []
    for count, (name, make) in enumerate(candidates.items(), start=1):
        found.append(judge(name, make()))
        progress(count / len(candidates))
    return tuple(found)


def best(evidence: Sequence[Evidence]) -> Evidence:
    """The candidate nearest to FP32."""
    return min(evidence, key=lambda entry: entry.divergence)


def warnings(chosen: Evidence, precision: str, *, alone: bool) -> tuple[str, ...]:
    """What the user must know before anything else: nothing if the result is good.

    Args:
        chosen: Evidence of the final graph.
        precision: That was asked for.
        alone: Whether nothing but one calibration method was tried.

    Raises:
        CalibrationError: It changes so many labels that the graph is of no use.
    """
    if chosen.divergence >= NOT_FINITE:
        raise CalibrationError(
            f"{precision} by {chosen.name}: the logits are not finite on calibration frames", fix=_FIX
        )
    found = f"{precision} by {chosen.name} leaves only {chosen.equal_labels:.1%} of the labels of calibration"
    fix = _FIX + (", or with --method auto" if alone else "; every --method was tried")
    if chosen.equal_labels < USABLE_LABELS:
        raise CalibrationError(f"{found} frames unchanged, {USABLE_LABELS:.0%} are the least", fix=fix)
    if chosen.equal_labels < GOOD_LABELS:
        return (f"WARNING: {found} frames unchanged: {fix}",)
    return ()


def _divergence(want: NDArray[np.float32], have: NDArray[np.float32]) -> NDArray[np.float64]:
    """KL(softmax(want) || softmax(have)), both [C, pixels], summed over the pixels of each class; and those: [2, C]."""
    first, second = _log_softmax(want), _log_softmax(have)
    each = np.maximum(np.sum(np.exp(first) * (first - second), axis=0), 0.0)
    labels, classes = want.argmax(axis=0), len(want)
    return np.stack([np.bincount(labels, each, classes), np.bincount(labels, minlength=classes)])


def _mean(diverged: NDArray[np.float64]) -> float:
    """The average of the mean over pixels and the mean over classes of enough pixels, from [2, C]."""
    total, pixels = diverged
    enough = pixels >= min(_CLASS_PIXELS, pixels.max())
    return float((total.sum() / pixels.sum() + np.mean(total[enough] / pixels[enough])) / 2)


def _log_softmax(values: NDArray[np.float32]) -> NDArray[np.float32]:
    shifted = values - values.max(axis=0)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=0)))
