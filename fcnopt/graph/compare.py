"""Whether two graphs compute the same.

Both run in ONNX Runtime with its own optimizations off, so that what is compared is the graphs as they stand; in
ONNX's slow reference implementation where ONNX Runtime has no kernel for a type (double, bfloat16) or does not know
their opset yet.
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
from fcnopt.graph.taps import decisive, expose

Feeds = Mapping[str, NDArray[Any]]
# Two sizes for a dynamic graph: one that pooling divides evenly, one that it does not; and one and two frames.
DYNAMIC_SIZES: tuple[Size, ...] = ((96, 128), (75, 101))
_DYNAMIC_BATCHES = (1, 2)


@dataclass(frozen=True)
class Equivalence:
    """How far two graphs are apart.

    Attributes:
        errors: By float output and decisive tensor: max |a - b| / max |a|, the largest of all samples.
        labels: By integer output: share of the elements that are the same, the smallest of all samples.
    """

    errors: Mapping[str, float]
    labels: Mapping[str, float]

    @property
    def max_relative_error(self) -> float:
        """The largest error, 0.0 where nothing is a float."""
        return max(self.errors.values(), default=0.0)

    @property
    def equal_labels(self) -> float:
        """The smallest share of equal integers, 1.0 where there are none."""
        return min(self.labels.values(), default=1.0)

    @property
    def worst_output(self) -> str:
        """The output with the largest error, "" where nothing is a float."""
        return max(self.errors, key=lambda name: (self.errors[name], name), default="")


@dataclass(frozen=True)
class Observation:
    """What a graph answered to one set of inputs, by output; decisive tensors (see `taps.decisive`) are among them."""

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
        model: Its dynamic axes are given lengths from `DYNAMIC_SIZES` in turn, a dynamic batch one and two frames.
        seed: The same seed gives the same inputs.
        samples: How many sets of inputs.
    """
    rng = np.random.default_rng(seed)
    for index in range(samples):
        turn = index % len(DYNAMIC_SIZES)
        shapes = input_shapes(model, DYNAMIC_SIZES[turn], batch=_DYNAMIC_BATCHES[turn])
        yield {
            value.name: _random(rng, value_type(value).elem_type, shapes[value.name]) for value in graph_inputs(model)
        }


def default_samples(model: onnx.ModelProto) -> int:
    """How many random inputs prove a rewrite: one for each size of a dynamic graph, one for a static graph."""
    return len(DYNAMIC_SIZES) if is_dynamic(model) else 1


def observe(model: onnx.ModelProto, feeds: Sequence[Feeds]) -> list[Observation]:
    """Run a graph on the CPU, without the runtime's optimizations.

    Args:
        model: Any ONNX graph; what decides its labels is looked at too (see `taps.decisive`).
        feeds: Sets of inputs.

    Raises:
        GraphError: Neither ONNX Runtime nor ONNX's reference implementation can run it.
        BackendError: ONNX Runtime is not installed.
    """
    inputs = {value.name for value in graph_inputs(model)}
    wanted = {value.name: value.name for value in model.graph.output} | decisive(model)
    inner = [name for name in dict.fromkeys(wanted.values()) if name not in inputs]
    probed = expose(model, inner)
    with tempfile.TemporaryDirectory(prefix="fcnopt-") as folder:
        session = _session(probed, Path(folder))
        answers = [_run(session, model.graph.name, inner, feed) for feed in feeds]
    return [
        Observation({key: np.asarray(found[name]) for key, name in wanted.items()})
        for found in ({**feed, **answer} for feed, answer in zip(feeds, answers, strict=True))
    ]


def difference(before: Sequence[Observation], after: Sequence[Observation]) -> Equivalence:
    """The distance between what two graphs answered to the same inputs.

    Raises:
        GraphError: An output is missing, or has another shape or type.
    """
    errors: dict[str, float] = {}
    labels: dict[str, float] = {}
    for one, two in zip(before, after, strict=True):
        for name in one.outputs.keys() | two.outputs.keys():
            a, b = _pair(one, two, name)
            if np.issubdtype(a.dtype, np.integer) or a.dtype == np.bool_:
                labels[name] = min(labels.get(name, 1.0), float((a == b).mean()) if a.size else 1.0)
            else:
                errors[name] = max(errors.get(name, 0.0), _relative_error(a, b))
    return Equivalence(errors, labels)


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


def _session(model: onnx.ModelProto, folder: Path) -> Any:
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise BackendError(
            "ONNX Runtime is not installed: it proves that a rewritten graph computes the same",
            fix="install it with: pip install onnxruntime",
        ) from error
    if any(
        value_type(value).elem_type == onnx.TensorProto.BFLOAT16 for value in (*model.graph.input, *model.graph.output)
    ):
        return _reference(model, "ONNX Runtime takes no bfloat16 from Python")
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    large = sum(len(tensor.raw_data) for tensor in tensors_of(model)) > io.EXTERNAL_ABOVE_BYTES
    source = str(io.save(model, folder / "model.onnx")) if large else model.SerializeToString()
    try:
        return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        if "NOT_IMPLEMENTED" in str(error) or "opset" in str(error).lower():
            return _reference(model, str(error))
        raise GraphError(
            f"graph {model.graph.name!r} does not load in ONNX Runtime: {error}",
            fix="update onnxruntime, or export the model with standard operators of an older opset",
        ) from error


def _reference(model: onnx.ModelProto, reason: str) -> ReferenceEvaluator:
    """Slow, but right: for what ONNX Runtime cannot run."""
    try:
        return ReferenceEvaluator(model)
    except Exception as error:
        raise GraphError(
            f"graph {model.graph.name!r} runs neither in ONNX Runtime ({reason}) nor in ONNX's reference "
            f"implementation ({error})",
            fix="export the model as float32 with standard operators; or optimize it without verification",
        ) from error


def _run(session: Any, graph: str, names: Sequence[str], feed: Feeds) -> dict[str, NDArray[Any]]:
    try:
        return dict(zip(names, session.run(list(names), dict(feed)), strict=True))
    except Exception as error:
        where = "ONNX's reference implementation" if isinstance(session, ReferenceEvaluator) else "ONNX Runtime"
        raise GraphError(
            f"graph {graph!r} does not run in {where}: {error}",
            fix="check that the graph's inputs have the lengths that it was made for",
        ) from error


def _random(rng: np.random.Generator, elem_type: int, shape: tuple[int, ...]) -> NDArray[Any]:
    dtype = onnx.helper.tensor_dtype_to_np_dtype(elem_type)
    if dtype == np.bool_:
        return rng.integers(0, 2, shape).astype(np.bool_)
    if np.issubdtype(dtype, np.integer):
        return rng.integers(0, 256 if dtype == np.uint8 else 100, shape).astype(dtype)
    return rng.standard_normal(shape).astype(dtype)
