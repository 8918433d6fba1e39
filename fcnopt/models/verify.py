"""Does a finished ONNX model answer as the network it was made from? Both are run on the same frames."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from fcnopt.errors import BackendError, GraphError
from fcnopt.graph import io
from fcnopt.spec import ModelSpec, Normalization

Network = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""Logits float32 [N, C, H, W] for normalized pixels float32 [N, 3, H, W]."""

TOLERANCE = 5e-5
"""Most that a logit may be off, relative to the largest one. FP32 kernels that sum in another order stay near 1e-6."""


@dataclass(frozen=True)
class Verification:
    """How far a model is from the network it was made from.

    Attributes:
        frames: On which: "random frames".
        count: On how many.
        max_relative_error: Largest difference of a logit, relative to the largest logit.
        equal_labels: Share of pixels with the same label, 0 to 1.
        tolerance: What `max_relative_error` was held to.
    """

    frames: str
    count: int
    max_relative_error: float
    equal_labels: float
    tolerance: float = TOLERANCE

    def __str__(self) -> str:
        return (
            f"{self.count} {self.frames}: maximum relative error of the logits {self.max_relative_error:.1e} "
            f"(limit {self.tolerance:.0e}), equal labels {self.equal_labels:.2%}"
        )


def verify(
    model: onnx.ModelProto, network: Network, spec: ModelSpec, groups: Sequence[NDArray[np.uint8]], frames: str
) -> Verification:
    """Run `model` in ONNX Runtime and `network` on the same frames.

    Args:
        model: Takes `frames`, gives what `spec` says.
        network: What the model was made from.
        spec: The model's.
        groups: uint8 [N, H, W, 3] each, in the spec's colour order. A model with a fixed batch gets that many at a
            time, the last of them more than once where they do not come out even; one with an open batch gets each
            group's first frame alone and then the group.
        frames: What they are, for people.

    Raises:
        GraphError: Logits differ by more than the tolerance, or a label where it is no near-tie.
        BackendError: ONNX Runtime is missing.
    """
    run = open_session(_with_logits(model))
    worst, equal, pixels, wrong = 0.0, 0, 0, 0
    for batch in _batches(model, groups):
        want = network(normalize(batch, spec))
        outputs = run({"frames": batch})
        largest = float(np.abs(want).max()) or 1.0
        error = np.abs(outputs["logits"] - want)
        if not np.isfinite(error).all():
            raise _different(spec, "logits are NaN or infinite")
        worst = max(worst, float(error.max()) / largest)
        different = outputs["labels"] != want.argmax(1)
        equal += int((~different).sum())
        pixels += different.size
        wrong += int((different & (_margin(want) > 2 * TOLERANCE * largest)).sum())
    result = Verification(frames, sum(map(len, groups)), worst, equal / pixels)
    if worst > TOLERANCE:
        raise _different(spec, str(result))
    if wrong:
        raise _different(spec, f"{result}; {wrong} labels differ that are no near-tie")
    return result


def normalize(frames: NDArray[np.uint8], spec: ModelSpec) -> NDArray[np.float32]:
    """What a network was trained on, float32 [N, 3, H, W], from uint8 [N, H, W, 3]; the textbook's formula."""
    norm: Normalization = spec.frame.normalization
    ordered = frames if spec.frame.color == norm.color else frames[..., ::-1]
    mean, std = np.array(norm.mean, np.float32), np.array(norm.std, np.float32)
    normalized = (ordered.astype(np.float32) * np.float32(norm.scale) - mean) / std
    return np.ascontiguousarray(normalized.transpose(0, 3, 1, 2))


def random_frames(count: int, height: int, width: int) -> NDArray[np.uint8]:
    """Seeded noise, uint8 [count, height, width, 3]."""
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), np.uint8)


def open_session(model: onnx.ModelProto) -> Callable[[dict[str, NDArray[Any]]], dict[str, NDArray[Any]]]:
    """A function that runs `model` in ONNX Runtime on the CPU: inputs by name to outputs by name.

    Raises:
        BackendError: ONNX Runtime is missing, or refuses the model.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendError(
            "onnxruntime is not installed; an exported model is verified with it", fix="pip install onnxruntime"
        ) from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only: its warnings are about its own graph optimizer
    with tempfile.TemporaryDirectory(prefix="fcnopt-verify-") as folder:
        # by way of a file, since a model in memory may not exceed 2 GB
        path = io.save(model, Path(folder) / "model.onnx")
        try:
            session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions have no common base
            raise BackendError(f"ONNX Runtime refuses the model: {error}", fix="export with another opset") from error
    names = [output.name for output in session.get_outputs()]
    return lambda inputs: dict(zip(names, session.run(names, inputs), strict=True))


def _batches(model: onnx.ModelProto, groups: Sequence[NDArray[np.uint8]]) -> Iterator[NDArray[np.uint8]]:
    fixed = model.graph.input[0].type.tensor_type.shape.dim[0].dim_value
    for group in groups:
        if not fixed:
            yield group[:1]
            yield group
            continue
        for start in range(0, len(group), fixed):
            batch = group[start : start + fixed]
            yield np.concatenate([batch, np.repeat(batch[-1:], fixed - len(batch), axis=0)])


def _with_logits(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model, its logits an output."""
    if any(output.name == "logits" for output in model.graph.output):
        return model
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.output.append(next(value for value in copy.graph.value_info if value.name == "logits"))
    return copy


def _margin(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """How far the largest logit is above the second, [N, H, W]."""
    if logits.shape[1] == 1:
        return np.zeros_like(logits[:, 0])
    second, first = np.moveaxis(np.partition(logits, -2, axis=1)[:, -2:], 1, 0)
    margin: NDArray[np.float32] = first - second
    return margin


def _different(spec: ModelSpec, how: str) -> GraphError:
    return GraphError(
        f"the exported {spec.architecture} does not answer as the network does, on {how}; no file was written",
        fix="export with a fixed size and the default opset; if it stays, report it with the network's class",
    )
