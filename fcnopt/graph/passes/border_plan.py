"""What of each tensor has to be computed, if the constant rest is put around it at a few of them.

From the inputs down, each tensor has a box of elements that depend on the frame. From the outputs up, each has one
that is asked for. Between two tensors at which constants are joined on, all that is asked for is computed; at such a
tensor only what depends on the frame is, and constants make up the rest.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import onnx_graphsurgeon as gs

from fcnopt.graph.passes.view import GraphView, is_onnx
from fcnopt.graph.passes.windows import POOLS, Box, Local, area, clipped, hull, is_empty, local_of, size_of

# What it takes to write one more element of an activation, in multiply-accumulates: several hundred on processors
# whose arithmetic is fast for their memory. A join writes what it puts together.
_WRITE_MACS = 256
_MIN_JOIN = 0.005  # of the network: a join that wins less is not worth its nodes


@dataclass(frozen=True)
class Need:
    """What one input of one node reads.

    Attributes:
        node: The node.
        index: The input.
        box: In the coordinates of the whole tensor, padding left out.
    """

    node: gs.Node
    index: int
    box: Box


@dataclass(frozen=True)
class Tensor:
    """One tensor in a plan.

    Attributes:
        tensor: The tensor.
        computed: What its node writes.
        needs: Who reads what.
        joined: What it is with constants around it; None where none are put on.
    """

    tensor: gs.Tensor
    computed: Box
    needs: tuple[Need, ...]
    joined: Box | None = None

    def source(self, need: Need) -> Box:
        """The box of the tensor that a reader is given: without constants if they are not needed."""
        if self.joined is None or clipped(need.box, self.computed) == need.box:
            return self.computed
        return self.joined

    @property
    def written(self) -> int:
        """How many elements are written to put it together, rows first made whole, and to cut readers' parts out."""
        channels = int(math.prod(self.tensor.shape[:2]))
        cuts = sum(area(need.box) for need in self.needs if need.box != self.source(need) and need.node.op != "Slice")
        if self.joined is None:
            return channels * cuts
        rows, columns = self.computed[0], self.joined[1]
        wide = 0 if columns == self.computed[1] else area((rows, columns))
        return channels * (cuts + wide + (0 if rows == self.joined[0] else area(self.joined)))


@dataclass(frozen=True)
class Plan:
    """What is computed of each tensor.

    Attributes:
        tensors: By `id` of the tensor, those of [N, C, H, W] that local nodes write, or that others write and local
            nodes read a part of.
        locals: By `id` of the node.
        macs: Multiply-accumulates of all convolutions.
        cost: The same, with what putting constants on costs.
    """

    tensors: dict[int, Tensor] = field(repr=False)
    locals: dict[int, Local] = field(repr=False)
    macs: int
    cost: int

    @property
    def joins(self) -> list[Tensor]:
        """Tensors that get constants put on."""
        return [tensor for tensor in self.tensors.values() if tensor.joined is not None]


class Planner:
    """Finds the cheapest plan for a graph.

    Args:
        view: The graph, nodes in order.
    """

    def __init__(self, view: GraphView) -> None:
        self._view = view
        found = ((node, local_of(view, node)) for node in view.graph.nodes)
        self._locals = {id(node): local for node, local in found if local is not None}
        self._moving: dict[int, Box] = {}
        for local in self._locals.values():
            self._follow(local)

    def whole(self) -> Plan:
        """Everything computed, as the graph stands."""
        macs = sum(map(_macs, self._view.graph.nodes))
        return Plan({}, self._locals, macs, macs)

    def best(self) -> Plan:
        """The cheapest plan, found by leaving joins out as long as that helps."""
        joins = [local.node.outputs[0] for local in self._locals.values() if self._may_join(local)]
        plan = self._plan(joins)
        spare = _MIN_JOIN * self.whole().cost
        while joins:
            fewer = [[tensor for tensor in joins if tensor is not out] for out in joins]
            options = [self._plan(rest) for rest in fewer]
            index = min(range(len(options)), key=lambda i: options[i].cost)
            if options[index].cost > plan.cost + spare:
                break
            plan, joins = options[index], fewer[index]
        return plan

    def _follow(self, local: Local) -> None:
        """Find what of a node's output depends on the frame."""
        result = local.node.outputs[0]
        whole = size_of(result)
        moving: Box | None = None
        for index in local.inputs:
            tensor = local.node.inputs[index]
            box = self._moving.get(id(tensor), size_of(tensor))
            if box is not None:
                moving = box if moving is None else hull(moving, box)
        if whole is not None and moving is not None:
            reached = local.reached_from(moving, whole)
            self._moving[id(result)] = whole if is_empty(reached) else reached

    def _may_join(self, local: Local) -> bool:
        """Whether constants may be put on what a node writes: below pools, or where a reader wants to see all.

        Where a pool's result is quantized, they are put on the integers.
        """
        node, tensor = local.node, local.node.outputs[0]
        if self._moving[id(tensor)] == size_of(tensor) or self._view.is_output(tensor):
            return False
        if any(id(reader) not in self._locals for reader in tensor.outputs):
            return True
        if is_onnx(node, *POOLS):
            return not any(is_onnx(reader, "QuantizeLinear") for reader in tensor.outputs)
        above = self._view.producer(node.inputs[0])
        return is_onnx(node, "QuantizeLinear") and above is not None and is_onnx(above, *POOLS)

    def _plan(self, joins: Iterable[gs.Tensor]) -> Plan:
        at = {id(tensor) for tensor in joins}
        asked: dict[int, list[Need]] = {}
        tensors: dict[int, Tensor] = {}
        for node in reversed(self._view.graph.nodes):
            local = self._locals.get(id(node))
            if local is None:
                for index, tensor in enumerate(node.inputs):
                    _ask(asked, node, index, size_of(tensor))
                continue
            result = node.outputs[0]
            made = self._made(result, asked.get(id(result), []), joined=id(result) in at)
            if made is not None:
                tensors[id(result)] = made
                for index in local.inputs:
                    size = size_of(node.inputs[index])
                    _ask(asked, node, index, None if size is None else clipped(local.read_by(made.computed), size))
        for needs in (asked[key] for key in asked.keys() - tensors.keys()):
            root = needs[0].node.inputs[needs[0].index]
            size = size_of(root)
            if size is not None and any(need.box != size for need in needs):
                tensors[id(root)] = Tensor(root, size, tuple(needs))
        macs = sum(_macs(node, tensors.get(id(node.outputs[0]))) for node in self._view.graph.nodes)
        copied = sum(tensor.written for tensor in tensors.values())
        return Plan(tensors, self._locals, macs, macs + _WRITE_MACS * copied)

    def _made(self, tensor: gs.Tensor, needs: list[Need], *, joined: bool) -> Tensor | None:
        """What has to be computed of a tensor for those who read it; None if nobody does."""
        boxes = [need.box for need in needs]
        size = size_of(tensor)
        if self._view.is_output(tensor) and size is not None:
            boxes.append(size)
        if not boxes:
            return None
        wanted, moving = _hull(boxes), self._moving[id(tensor)]
        core = clipped(moving, wanted)
        if is_empty(core):  # nothing of what is wanted moves: a part that reads nothing is no part
            wanted = hull(wanted, moving)
        if not joined or is_empty(core) or core == wanted:
            # without a border along an axis there is nothing to win from computing less than all of it
            rows, columns = (
                whole if part == whole else want for want, part, whole in zip(wanted, moving, size or (), strict=True)
            )
            return Tensor(tensor, (rows, columns), tuple(needs))
        beyond = [box for box in boxes if clipped(box, core) != box]
        return Tensor(tensor, core, tuple(needs), hull(core, _hull(beyond)))


def _hull(boxes: list[Box]) -> Box:
    result = boxes[0]
    for box in boxes[1:]:
        result = hull(result, box)
    return result


def _ask(asked: dict[int, list[Need]], node: gs.Node, index: int, box: Box | None) -> None:
    if box is not None:
        asked.setdefault(id(node.inputs[index]), []).append(Need(node, index, box))


def _macs(node: gs.Node, part: Tensor | None = None) -> int:
    """Multiply-accumulates of a convolution that computes a part of its output; see `stats.macs_by_node`."""
    if node.op not in ("Conv", "ConvTranspose") or node.inputs[1].shape is None:
        return 0
    if node.op == "Conv" and part is not None:
        places = area(part.computed)
        return int(math.prod(node.outputs[0].shape[:2]) * places * math.prod(node.inputs[1].shape[1:]))
    shape = node.outputs[0].shape if node.op == "Conv" else node.inputs[0].shape
    known = shape is not None and all(isinstance(length, int) for length in shape)
    return int(math.prod(shape) * math.prod(node.inputs[1].shape[1:])) if known else 0
