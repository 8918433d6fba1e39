"""The proof of a pass: the graph it made answers like the one before, on the same inputs.

Every float output, and every float tensor that labels or other integers are decided by, stays within a tolerance of
its own: that of float32, or of a half type if it was rounded to one on its way. Of each integer output nearly all
elements are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet

import onnx

from fcnopt.errors import GraphError
from fcnopt.graph.compare import (
    Equivalence,
    Feeds,
    Observation,
    default_samples,
    difference,
    observe,
    random_feeds,
)
from fcnopt.graph.shapes import tensor_types
from fcnopt.graph.taps import decisive

TOLERANCE = 1e-5
_COARSE: dict[int, float] = {
    onnx.TensorProto.FLOAT16: 2e-3,
    onnx.TensorProto.BFLOAT16: 2e-2,
}  # two roundings of the type
# Nearly equal scores may swap places; more than that is another label map.
_MIN_EQUAL_LABELS = 0.99


class BrokenPassError(GraphError):
    """A pass made a graph that is invalid or not equivalent."""

    def __init__(self, name: str, what: str) -> None:
        super().__init__(
            f"pass {name!r}: the graph it made is not the one before: {what}",
            fix="leave the pass out, and report this model: it should not happen",
        )


class Prover:
    """Runs each graph once, on the same inputs, and holds it against the last one that was accepted.

    Args:
        model: The graph before all passes.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self._model: onnx.ModelProto | None = model
        self._feeds: list[Feeds] = list(random_feeds(model, samples=default_samples(model)))
        self._seen: list[Observation] = []
        self._tolerances = tolerances(model)

    def accept(self, name: str, model: onnx.ModelProto, *, moved: bool = False) -> float:
        """The relative error of the graph that a pass made, which is what the next one is held against.

        Args:
            name: Of the pass.
            model: The graph that it made.
            moved: Whether the pass gives what labels are decided by another layout: outputs alone are compared then.

        Raises:
            BrokenPassError: It is not equivalent.
            GraphError: The graph before all passes does not run.
            BackendError: ONNX Runtime is not installed.
        """
        if self._model is not None:
            self._seen, self._model = observe(self._model, self._feeds), None
        try:
            seen = observe(model, self._feeds)
            names = {value.name for value in model.graph.output} if moved else None
            found = difference(_only(self._seen, names), _only(seen, names))
        except GraphError as error:
            raise BrokenPassError(name, error.message) from error
        self._hold(name, found)
        self._seen = seen
        return found.max_relative_error

    def _hold(self, name: str, found: Equivalence) -> None:
        excess = {key: error / self._tolerances[key] for key, error in found.errors.items()}
        worst = max(excess, key=lambda key: (excess[key], key), default="")
        if worst and not excess[worst] < 1:
            raise BrokenPassError(
                name,
                f"output {worst!r} is {found.errors[worst]:.1e} off, "
                f"relative to its largest value; expected below {self._tolerances[worst]:.0e}",
            )
        for key, share in sorted(found.labels.items()):
            if share < _MIN_EQUAL_LABELS:
                raise BrokenPassError(name, f"only {share:.2%} of the labels of output {key!r} are the same")


def _only(seen: Sequence[Observation], names: AbstractSet[str] | None) -> Sequence[Observation]:
    """What was seen of these names; of all without."""
    if names is None:
        return seen
    return [Observation({key: one.outputs[key] for key in one.outputs.keys() & names}) for one in seen]


def tolerances(model: onnx.ModelProto) -> dict[str, float]:
    """How far each output and decisive tensor may be off: as far as the coarsest type rounds that it went through.

    Args:
        model: Any graph.

    Returns:
        Relative errors, by the names that `compare.Observation` has.
    """
    types = tensor_types(model)
    coarse: dict[str, float] = {}
    for node in model.graph.node:
        above = max((coarse.get(name, TOLERANCE) for name in node.input), default=TOLERANCE)
        for name in node.output:
            own = _COARSE.get(types[name].elem_type, TOLERANCE) if name in types else TOLERANCE
            coarse[name] = max(above, own)
    names = {value.name: value.name for value in model.graph.output} | decisive(model)
    return {key: coarse.get(name, TOLERANCE) for key, name in names.items()}
