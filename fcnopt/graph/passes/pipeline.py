"""Passes run one after another, each proved against the graph before it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import onnx
import onnx_graphsurgeon as gs

from fcnopt.errors import GraphError
from fcnopt.graph.checks import check_structure, nodes_of
from fcnopt.graph.io import export_graph, import_graph
from fcnopt.graph.passes.base import Outcome, Pass
from fcnopt.graph.passes.proof import BrokenPassError, Prover
from fcnopt.graph.passes.view import GraphView
from fcnopt.graph.shapes import Size, infer, tensor_types
from fcnopt.graph.stats import GraphStats, stats_of

_MAX_ROUNDS = 10

_TAKEN_BACK = "; what it did is taken back"


@dataclass(frozen=True)
class PassReport:
    """What one pass did.

    Attributes:
        name: The pass.
        before: The graph that it found.
        after: The graph that it left; the same object as `before` if it changed nothing.
        changed: One line a rewrite.
        declined: One line a place that it looked at and left, with the reason, as things stand at the end; of a pass
            whose proof failed, how it failed: what the pass did was taken back.
        error: Largest relative error against the graph before; 0.0 where nothing changed or nothing was verified.
    """

    name: str
    before: GraphStats
    after: GraphStats
    changed: tuple[str, ...]
    declined: tuple[str, ...]
    error: float

    @property
    def taken_back(self) -> tuple[str, ...]:
        """How the proof failed, where it did."""
        return tuple(reason for reason in self.declined if reason.endswith(_TAKEN_BACK))


def run_passes(
    model: onnx.ModelProto,
    passes: Sequence[Pass[Any]],
    *,
    verify: bool,
    strict: bool,
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
        strict: Raise where a pass made a graph that is invalid or not equivalent; else take back what it did.
        size: For the statistics of dynamic graphs.
        progress: Told the pass and the share of the passes that is done.

    Raises:
        GraphError: If strict, a pass made a graph that is invalid or not equivalent; the message names the pass. Else
            only if the model does not run as it is.
        BackendError: Verification needs ONNX Runtime and it is not installed.
    """
    holder = next((node for node in nodes_of(model.graph.node) if any(a.HasField("g") for a in node.attribute)), None)
    stats = stats_of(model, size)
    if holder is not None:
        reason = f"{holder.op_type} {holder.name!r} holds a subgraph: graphs with control flow are left as they are"
        return model, tuple(PassReport(p.name, stats, stats, (), (reason,), 0.0) for p in passes)
    prover = Prover(model) if verify else None
    reports: list[PassReport] = []
    for turn in range(_MAX_ROUNDS):
        quiet, declined = True, {}
        for index, one in enumerate(passes):
            progress(f"optimize: {one.name}", index / len(passes) if turn == 0 else 1.0)
            model, outcome, error = _proved(one, model, prover, strict=strict)
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


def _proved(
    one: Pass[Any], model: onnx.ModelProto, prover: Prover | None, *, strict: bool
) -> tuple[onnx.ModelProto, Outcome, float]:
    """Run one pass and prove it; the graph from before it comes back where the proof fails and that is no error."""
    try:
        made, outcome = _apply(one, model)
        if not outcome.changed or prover is None:
            return made, outcome, 0.0
        return made, outcome, prover.accept(one.name, made, moved=one.moves_logits)
    except BrokenPassError as error:
        if strict:
            raise
        return model, Outcome((), (f"{error.message}{_TAKEN_BACK}",)), 0.0


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
        raise BrokenPassError(one.name, error.message) from error
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
