"""What a pass is: places that look right (`match`), whether they are (`check`), and the edit (`rewrite`).

The three stay apart so that a place that was left alone has a reason that can be shown, and so that an edit can rely
on everything that was checked.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

import onnx_graphsurgeon as gs

from fcnopt.graph.passes.view import GraphView, label

M = TypeVar("M")


@dataclass(frozen=True)
class Outcome:
    """What a pass did to a graph.

    Attributes:
        changed: One line a rewrite.
        declined: One line a place that matched and was left, with the reason.
    """

    changed: tuple[str, ...]
    declined: tuple[str, ...]


class Pass(ABC, Generic[M]):
    """One family of exact rewrites. Passes hold no state: the same instance serves every graph."""

    name: ClassVar[str]
    moves_logits: ClassVar[bool] = False
    """Whether what labels are decided by has another layout afterwards, so that only outputs can be compared."""

    @abstractmethod
    def match(self, view: GraphView, node: gs.Node) -> Iterable[M]:
        """The ways in which this pass could rewrite the graph at `node`, the best first."""

    @abstractmethod
    def check(self, view: GraphView, match: M) -> str:
        """Why this match has to be left, as a clause; "" if it may be rewritten."""

    @abstractmethod
    def rewrite(self, view: GraphView, match: M) -> str:
        """Edit the graph at a match that `check` found nothing against, and say in one line what was done."""

    def run(self, view: GraphView) -> Outcome:
        """Rewrite until nothing matches any more, and leave the graph sorted and without dead nodes."""
        changed: list[str] = []
        while True:
            before = len(changed)
            declined: list[str] = []
            for node in list(view.graph.nodes):
                if node.outputs:
                    self._visit(view, node, changed, declined)
            view.tidy()
            if len(changed) == before:
                return Outcome(tuple(changed), tuple(declined))

    def _visit(self, view: GraphView, node: gs.Node, changed: list[str], declined: list[str]) -> None:
        reasons = []
        for match in self.match(view, node):
            reason = self.check(view, match)
            if not reason:
                changed.append(self.rewrite(view, match))
                return
            reasons.append(reason)
        if reasons:
            declined.append(f"{label(node)}: {'; '.join(dict.fromkeys(reasons))}")
