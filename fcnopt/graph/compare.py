"""Whether two graphs compute the same.

Both run in ONNX Runtime with its own optimizations off, so that what is compared is the graphs as they stand; in
ONNX's slow reference implementation where their opset is newer than what ONNX Runtime knows.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from fcnopt.errors import BackendError, GraphError
from fcnopt.graph import io
from fcnopt.graph.checks import tensors_of
from fcnopt.graph.shapes import Size, graph_inputs, input_shapes, is_dynamic, value_type
from fcnopt.graph.taps import expose, logits_name

Feeds = Mapping[str, NDArray[Any]]
LOGITS = "logits"
# Two sizes for a dynamic graph: one that pooling divides evenly, one that it does not.
DYNAMIC_SIZES: tuple[Size, ...] = ((96, 128), (75, 101))


@dataclass(frozen=True)
class Equivalence:
    """How far two graphs are apart.

    Attributes:
        max_relative_error: Over all float outputs and the logits: max |a - b| / max |a|, the largest of all samples.
        equal_labels: Share of the elements of integer outputs that are the same, 1.0 where there are none.
        worst_output: The output with the largest error.
    """

    max_relative_error: float
    equal_labels: float
    worst_output: str


@dataclass(frozen=True)
class Observation:
    """What a graph answered to one set of inputs, by output; the logits are under `LOGITS` too."""

    outputs: Mapping[str, NDArray[Any]]


def compare(
    before: onnx.ModelProto,
    after: onnx.ModelProto,
    frames: Sequence[NDArray[Any]] | None = None,
    *,
    seed: int = 0,
    samples: int = 2,
) -> Equivalence:
    """Run two graphs on the same inputs and measure how far their answers are apart.

    Args:
        before: The reference.
        after: A graph with the same inputs and outputs.
        frames: Batches for the graph's one input, shaped as it wants them; None makes random inputs.
        seed: Of the random inputs.
        samples: How many random inputs; a dynamic graph takes them at changing sizes.

    Raises:
        GraphError: One of the graphs does not run, or their outputs differ in name or shape.
        BackendError: ONNX Runtime is not installed.
    """
    feeds: list[Feeds]
    if frames is None:
        feeds = list(random_feeds(before, seed=seed, samples=samples))
    else:
        feeds = [{graph_inputs(before)[0].name: batch} for batch in frames]
    return difference(observe(before, feeds), observe(after, feeds))


def random_feeds(model: onnx.ModelProto, *, seed: int = 0, samples: int = 2) -> Iterator[Feeds]:
    """Random inputs for a model: uniform pixels for uint8, standard normal numbers for floats.

    Args:
        model: Its dynamic axes are given lengths from `DYNAMIC_SIZES` in turn.
        seed: The same seed gives the same inputs.
        samples: How many sets of inputs.
    """
    rng = np.random.default_rng(seed)
    for index in range(samples):
        shapes = input_shapes(model, DYNAMIC_SIZES[index % len(DYNAMIC_SIZES)])
        yield {
            value.name: _random(rng, value_type(value).elem_type, shapes[value.name]) for value in graph_inputs(model)
        }


def default_samples(model: onnx.ModelProto) -> int:
    """How many random inputs prove a rewrite: one for each size of a dynamic graph, one for a static graph."""
    return len(DYNAMIC_SIZES) if is_dynamic(model) else 1


def observe(model: onnx.ModelProto, feeds: Sequence[Feeds]) -> list[Observation]:
    """Run a graph on the CPU, without the runtime's optimizations.

    Args:
        model: Any ONNX graph; its logits are looked at too where it has some (see `taps.logits_name`).
        feeds: Sets of inputs.

    Raises:
        GraphError: ONNX Runtime cannot run it.
        BackendError: ONNX Runtime is not installed.
    """
    names = [value.name for value in model.graph.output]
    logits = _logits(model)
    probed = model if logits is None or logits in names else expose(model, [logits])
    with tempfile.TemporaryDirectory(prefix="fcnopt-") as folder:
        session = _session(probed, Path(folder))
        wanted = [value.name for value in probed.graph.output]
        try:
            answers = [session.run(wanted, dict(feed)) for feed in feeds]
        except Exception as error:
            raise GraphError(
                f"graph {model.graph.name!r} does not run in ONNX Runtime: {error}",
                fix="check that the graph's inputs have the lengths that it was made for",
            ) from error
    keys = [*names, *([LOGITS] if len(wanted) > len(names) else [])]
    return [Observation(dict(zip(keys, map(np.asarray, answer), strict=True))) for answer in answers]


def difference(before: Sequence[Observation], after: Sequence[Observation]) -> Equivalence:
    """The distance between what two graphs answered to the same inputs.

    Raises:
        GraphError: An output is missing, or has another shape or type.
    """
    errors = {"": 0.0}
    equal = total = 0
    for one, two in zip(before, after, strict=True):
        for name in one.outputs.keys() | two.outputs.keys():
            a, b = _pair(one, two, name)
            if np.issubdtype(a.dtype, np.integer) or a.dtype == np.bool_:
                equal, total = equal + int((a == b).sum()), total + a.size
            else:
                errors[name] = max(errors.get(name, 0.0), _relative_error(a, b))
    worst = max(errors, key=lambda name: (errors[name], name))
    return Equivalence(errors[worst], equal / total if total else 1.0, worst)


def _pair(one: Observation, two: Observation, name: str) -> tuple[NDArray[Any], NDArray[Any]]:
    try:
        a, b = one.outputs[name], two.outputs[name]
    except KeyError:
        raise GraphError(
            f"output {name!r} is in one graph and not in the other", fix="compare graphs with the same outputs"
        ) from None
    if a.shape != b.shape or a.dtype != b.dtype:
        raise GraphError(
            f"output {name!r} was {a.dtype} {list(a.shape)} and is {b.dtype} {list(b.shape)}",
            fix="compare graphs with the same outputs",
        )
    return a, b


def _relative_error(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Largest |a - b| over largest |a|, of the finite elements; infinite where the others are not the same."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    finite = np.isfinite(a)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True) or not np.isfinite(b[finite]).all():
        return float("inf")
    apart = float(np.abs(a[finite] - b[finite]).max(initial=0.0))
    scale = float(np.abs(a[finite]).max(initial=0.0))
    if apart == 0.0:
        return 0.0
    return apart / scale if scale else float("inf")


def _logits(model: onnx.ModelProto) -> str | None:
    if not any(node.op_type == "ArgMax" for node in model.graph.node):
        return None
    try:
        return logits_name(model)
    except GraphError:
        return None  # several ArgMax: the outputs alone are compared


def _session(model: onnx.ModelProto, folder: Path) -> Any:
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise BackendError(
            "ONNX Runtime is not installed: it proves that a rewritten graph computes the same",
            fix="install it with: pip install onnxruntime",
        ) from error
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    large = sum(len(tensor.raw_data) for tensor in tensors_of(model)) > io.EXTERNAL_ABOVE_BYTES
    source = str(io.save(model, folder / "model.onnx")) if large else model.SerializeToString()
    try:
        return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        if "opset" in str(error).lower() and not large:
            return ReferenceEvaluator(model)  # of an opset that this ONNX Runtime does not know yet: slow, but right
        raise GraphError(
            f"graph {model.graph.name!r} does not load in ONNX Runtime: {error}",
            fix="update onnxruntime, or export the model with standard operators of an older opset",
        ) from error


def _random(rng: np.random.Generator, elem_type: int, shape: tuple[int, ...]) -> NDArray[Any]:
    dtype = onnx.helper.tensor_dtype_to_np_dtype(elem_type)
    if dtype == np.bool_:
        return rng.integers(0, 2, shape).astype(np.bool_)
    if np.issubdtype(dtype, np.integer):
        return rng.integers(0, 256 if dtype == np.uint8 else 100, shape).astype(dtype)
    return rng.standard_normal(shape).astype(dtype)
