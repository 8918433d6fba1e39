"""Dead code: nodes that no output depends on, and initializers that no node reads."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_graphsurgeon as gs

from fcnopt.graph.passes.base import Outcome, Pass
from fcnopt.graph.passes.view import GraphView, label


class DeadCodePass(Pass[gs.Node]):
    """Remove what nothing uses."""

    name = "dead code"

    def match(self, view: GraphView, node: gs.Node) -> Iterator[gs.Node]:
        """A node whose results nothing reads."""
        if not any(tensor.outputs or view.is_output(tensor) for tensor in node.outputs):
            yield node

    def check(self, view: GraphView, match: gs.Node) -> str:  # noqa: ARG002  (nothing can speak against it)
        """Nothing that is dead has to stay."""
        return ""

    def rewrite(self, view: GraphView, match: gs.Node) -> str:
        """Cut the node off."""
        done = f"removed {label(match)}"
        view.drop(match)
        return done

    def run(self, view: GraphView) -> Outcome:
        """Remove dead nodes, readers before writers, and report initializers that the import left out as unread."""
        changed = [f"removed initializer {name!r}" for name in view.unused]
        for node in reversed(view.graph.nodes):
            changed += [self.rewrite(view, match) for match in self.match(view, node)]
        view.tidy()
        return Outcome(tuple(changed), ())
