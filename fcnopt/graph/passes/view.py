"""A graph as a pass sees it: constants as arrays, single consumers, names that are free, edits that keep outputs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray


class GraphView:
    """An onnx-graphsurgeon graph with the questions and edits that every pass needs.

    Args:
        graph: Without subgraphs; edited in place.
        unused: Initializers of the file that no node reads; onnx-graphsurgeon does not keep them.
    """

    def __init__(self, graph: gs.Graph, unused: tuple[str, ...] = ()) -> None:
        self.graph = graph
        self.unused = unused
        self._names = set(graph.tensors()) | {node.name for node in graph.nodes} | set(unused)
        self._outputs = {id(tensor) for tensor in graph.outputs}
        self._inputs = {id(tensor) for tensor in graph.inputs}

    @property
    def opset(self) -> int:
        """Version of the standard ONNX operators."""
        return int(self.graph.opset)

    def is_output(self, tensor: gs.Tensor) -> bool:
        """Whether the graph gives this tensor to its caller."""
        return id(tensor) in self._outputs

    def array(self, tensor: gs.Tensor | None) -> NDArray[Any] | None:
        """The value of a constant, None for a tensor that is computed or fed."""
        return np.asarray(tensor.values) if isinstance(tensor, gs.Constant) else None

    def producer(self, tensor: gs.Tensor) -> gs.Node | None:
        """The node that writes a tensor, None for inputs and constants."""
        return tensor.inputs[0] if tensor.inputs else None

    def only_user(self, tensor: gs.Tensor) -> gs.Node | None:
        """The one node that reads a tensor, None where there are more, none, or the caller reads it too."""
        return tensor.outputs[0] if len(tensor.outputs) == 1 and not self.is_output(tensor) else None

    def free_name(self, stem: str) -> str:
        """A name that nothing in the graph has, `stem` itself if possible."""
        name, count = stem, 1
        while name in self._names:
            name, count = f"{stem}_{count}", count + 1
        self._names.add(name)
        return name

    def constant(self, stem: str, values: NDArray[Any]) -> gs.Constant:
        """A new constant."""
        return gs.Constant(self.free_name(stem), np.asarray(values, order="C"))

    def variable(self, stem: str, like: gs.Tensor) -> gs.Variable:
        """A new tensor of the type of `like`, and of a shape still to be inferred."""
        return gs.Variable(self.free_name(stem), dtype=like.dtype)

    def add(self, node: gs.Node) -> None:
        """Put a node into the graph; its place among the others is found later."""
        self.graph.nodes.append(node)

    def redirect(self, old: gs.Tensor, new: gs.Tensor) -> None:
        """Let every node that reads `old` read `new`."""
        for node in list(old.outputs):
            for index, tensor in enumerate(node.inputs):
                if tensor is old:
                    node.inputs[index] = new

    def bypass_refusal(self, node: gs.Node, index: int = 0) -> str:
        """Why `bypass` cannot take this node out, "" if it can."""
        source = node.inputs[index]
        if not self.is_output(node.outputs[0]):
            return ""
        if not source.inputs or self.is_output(source):
            return "its output is the graph's, and its input is an input, a constant or another output of the graph"
        return ""

    def bypass(self, node: gs.Node, index: int = 0) -> None:
        """Take a node out: what read its first output reads the input of this index.

        A graph output keeps its name: the node before then writes it.
        """
        source, result = node.inputs[index], node.outputs[0]
        self.drop(node)
        if not self.is_output(result):
            self.redirect(result, source)
            return
        producer = source.inputs[0]
        index = next(i for i, tensor in enumerate(producer.outputs) if tensor is source)
        producer.outputs[index] = result
        self.redirect(source, result)

    def drop(self, node: gs.Node) -> None:
        """Cut a node off; `tidy` removes it."""
        node.inputs.clear()
        node.outputs.clear()

    def dead(self) -> list[gs.Node]:
        """Nodes that no output of the graph depends on."""
        alive: set[int] = set()
        stack = [node for tensor in self.graph.outputs for node in tensor.inputs]
        while stack:
            node = stack.pop()
            if id(node) not in alive:
                alive.add(id(node))
                stack.extend(producer for tensor in node.inputs for producer in tensor.inputs)
        return [node for node in self.graph.nodes if id(node) not in alive]

    def tidy(self) -> None:
        """Remove dead nodes, and put the others in an order in which each follows what it reads.

        Nodes that are in order stay where they are.
        """
        dead = self.dead()
        for node in dead:
            self.drop(node)
        gone = {id(node) for node in dead}
        self.graph.nodes = _sorted([node for node in self.graph.nodes if id(node) not in gone])


def label(node: gs.Node) -> str:
    """A node as messages call it: operator and name, or its output where it has no name."""
    name = node.name or (node.outputs[0].name if node.outputs else "?")
    return f"{node.op} {name!r}"


def is_onnx(node: gs.Node, *ops: str) -> bool:
    """Whether a node is one of these standard operators."""
    return node.op in ops and node.domain in (None, "", "ai.onnx")


def _sorted(nodes: Iterable[gs.Node]) -> list[gs.Node]:
    order: list[gs.Node] = []
    done: set[int] = set()
    for root in nodes:
        stack = [(root, False)]
        while stack:
            node, ready = stack.pop()
            if id(node) in done:
                continue
            if ready:
                done.add(id(node))
                order.append(node)
                continue
            stack.append((node, True))
            stack.extend((producer, False) for tensor in reversed(node.inputs) for producer in tensor.inputs)
    return order
