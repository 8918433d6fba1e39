"""Passes run one after another, each proved against the graph before it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import onnx
import onnx_graphsurgeon as gs

from fcnopt.errors import GraphError
from fcnopt.graph.checks import check_structure, nodes_of
from fcnopt.graph.compare import Feeds, Observation, default_samples, difference, observe, random_feeds
from fcnopt.graph.io import export_graph, import_graph
from fcnopt.graph.passes.base import Outcome, Pass
from fcnopt.graph.passes.view import GraphView
from fcnopt.graph.shapes import Size, infer, tensor_types
from fcnopt.graph.stats import GraphStats, stats_of

TOLERANCE = 1e-5
_COARSE: dict[int, float] = {
    onnx.TensorProto.FLOAT16: 2e-3,
    onnx.TensorProto.BFLOAT16: 2e-2,
}  # two roundings of the type
# Nearly equal scores may swap places; more than that is another label map.
_MIN_EQUAL_LABELS = 0.99
_MAX_ROUNDS = 10


@dataclass(frozen=True)
class PassReport:
    """What one pass did.

    Attributes:
        name: The pass.
        before: The graph that it found.
        after: The graph that it left; the same object as `before` if it changed nothing.
        changed: One line a rewrite.
        declined: One line a place that it looked at and left, with the reason, as things stand at the end.
        error: Largest relative error against the graph before; 0.0 where nothing changed or nothing was verified.
    """

    name: str
    before: GraphStats
    after: GraphStats
    changed: tuple[str, ...]
    declined: tuple[str, ...]
    error: float


def run_passes(
    model: onnx.ModelProto,
    passes: Sequence[Pass[Any]],
    *,
    verify: bool,
    size: Size | None,
    progress: Callable[[str, float], None],
) -> tuple[onnx.ModelProto, tuple[PassReport, ...]]:
    """Run the passes in order, again and again until a whole round changes nothing.

    The first round is reported whole, of later rounds only the passes that found something new to do. That the last
    round changed nothing is what makes optimizing twice the same as optimizing once.

    Args:
        model: Unchanged afterwards.
        passes: In the order in which they run.
        verify: Compare with the graph before after every pass that changed something.
        size: For the statistics of dynamic graphs.
        progress: Told the pass and the share of the passes that is done.

    Raises:
        GraphError: A pass made a graph that is invalid or not equivalent; the message names the pass.
        BackendError: Verification needs ONNX Runtime and it is not installed.
    """
    holder = next((node for node in nodes_of(model.graph.node) if any(a.HasField("g") for a in node.attribute)), None)
    stats = stats_of(model, size)
    if holder is not None:
        reason = f"{holder.op_type} {holder.name!r} holds a subgraph: graphs with control flow are left as they are"
        return model, tuple(PassReport(p.name, stats, stats, (), (reason,), 0.0) for p in passes)
    prover = _Prover(model) if verify else None
    reports: list[PassReport] = []
    for turn in range(_MAX_ROUNDS):
        quiet, declined = True, {}
        for index, one in enumerate(passes):
            progress(f"optimize: {one.name}", index / len(passes) if turn == 0 else 1.0)
            model, outcome = _apply(one, model)
            error = prover.accept(one.name, model) if outcome.changed and prover is not None else 0.0
            after = stats_of(model, size) if outcome.changed else stats
            if turn == 0 or outcome.changed:
                reports.append(PassReport(one.name, stats, after, outcome.changed, (), error))
            declined[one.name] = outcome.declined
            stats, quiet = after, quiet and not outcome.changed
        if quiet:
            progress("optimize", 1.0)
            return model, _with_declined(reports, declined)
    raise GraphError(
        f"the passes still change the graph after {_MAX_ROUNDS} rounds: {reports[-1].name} {reports[-1].changed}",
        fix="report this model: two passes undo each other; leave one of them out until then",
    )


class _Prover:
    """Runs each graph once, on the same inputs, and holds it against the one before."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._model: onnx.ModelProto | None = model
        self._feeds: list[Feeds] = list(random_feeds(model, samples=default_samples(model)))
        self._seen: list[Observation] = []
        types = {kind.elem_type for kind in tensor_types(model).values()}
        self._tolerance = max((_COARSE[kind] for kind in types & _COARSE.keys()), default=TOLERANCE)

    def accept(self, name: str, model: onnx.ModelProto) -> float:
        """The relative error of a graph, which is what the next one is held against."""
        if self._model is not None:
            self._seen, self._model = observe(self._model, self._feeds), None
        seen = observe(model, self._feeds)
        try:
            found = difference(self._seen, seen)
        except GraphError as error:
            raise _broken(name, error.message) from error
        if not found.max_relative_error < self._tolerance:
            raise _broken(
                name,
                f"output {found.worst_output!r} is {found.max_relative_error:.1e} off, "
                f"relative to its largest value; expected below {self._tolerance:.0e}",
            )
        if found.equal_labels < _MIN_EQUAL_LABELS:
            raise _broken(name, f"only {found.equal_labels:.2%} of the labels are the same")
        self._seen = seen
        return found.max_relative_error


def _apply(one: Pass[Any], model: onnx.ModelProto) -> tuple[onnx.ModelProto, Outcome]:
    """Run one pass; the model itself comes back if it changed nothing."""
    graph = _graph_with_types(model)
    outcome = one.run(GraphView(graph, _unused(model)))
    if not outcome.changed:
        return model, outcome
    for tensor in graph.tensors().values():
        if isinstance(tensor, gs.Variable) and not any(tensor is io for io in (*graph.inputs, *graph.outputs)):
            tensor.shape = None  # may have changed, and is inferred again
    result = export_graph(graph, like=model)
    del result.graph.value_info[:]
    try:
        check_structure(result, "graph")
    except GraphError as error:
        raise _broken(one.name, error.message) from error
    result.graph.value_info.extend(infer(result).graph.value_info)
    return result, outcome


def _graph_with_types(model: onnx.ModelProto) -> gs.Graph:
    graph = import_graph(model)
    types = tensor_types(model)
    for name, tensor in graph.tensors().items():
        kind = types.get(name)
        if isinstance(tensor, gs.Variable) and kind is not None and kind.elem_type:
            tensor.dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
            tensor.shape = None if kind.shape is None else list(kind.shape)
    return graph


def _unused(model: onnx.ModelProto) -> tuple[str, ...]:
    read = {name for node in model.graph.node for name in node.input} | {value.name for value in model.graph.output}
    return tuple(tensor.name for tensor in model.graph.initializer if tensor.name not in read)


def _with_declined(reports: list[PassReport], declined: dict[str, tuple[str, ...]]) -> tuple[PassReport, ...]:
    """The reports, the last of each pass with what it left at the end."""
    last = {report.name: index for index, report in enumerate(reports)}
    return tuple(
        replace(report, declined=declined[report.name] if last[report.name] == index else ())
        for index, report in enumerate(reports)
    )


def _broken(name: str, what: str) -> GraphError:
    return GraphError(
        f"pass {name!r}: the graph it made is not the one before: {what}",
        fix="leave the pass out, and report this model: it should not happen",
    )
