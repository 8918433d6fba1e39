"""A plan written into the graph: paddings for parts of tensors, constants joined on, parts cut out.

A runtime sees an INT8 layer by the DequantizeLinear before it. Constants joined on behind that would make the layer
float, so they are joined on before it, as uint8. Where a MaxPool stands between, it is taken before it too: it moves
values and changes none, and a scale is positive, so

    MaxPool(DequantizeLinear(q))  =  DequantizeLinear(MaxPool(q))
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from fcnopt.graph.passes.border_plan import Need, Plan, Tensor
from fcnopt.graph.passes.slices import crop_of, write_crop
from fcnopt.graph.passes.view import GraphView, is_onnx
from fcnopt.graph.passes.windows import POOLS, SPATIAL, Box, Local, clipped, size_of

Maps = Mapping[int, NDArray[Any]]


def pool_integers(view: GraphView, plan: Plan) -> bool:
    """Let each MaxPool that constants are to be joined on below read integers, where it reads what was some.

    Args:
        view: The graph that was planned for; edited in place, with shapes.
        plan: Of no use afterwards if anything was changed.

    Returns:
        Whether anything was changed.
    """
    pools: list[gs.Node] = []
    for join in plan.joins:
        node = view.producer(join.tensor)
        while node is not None and is_onnx(node, "MaxPool"):
            pools.append(node)
            node = view.producer(node.inputs[0])
    # those above first: each finds the DequantizeLinear that the one above has passed on
    return sum(_swap(view, pool) for pool in reversed(pools)) > 0


def _swap(view: GraphView, pool: gs.Node) -> bool:
    """A MaxPool behind a DequantizeLinear of uint8 before it; False where it is not behind one."""
    back, result = view.producer(pool.inputs[0]), pool.outputs[0]
    if back is None or not is_onnx(back, "DequantizeLinear") or back.inputs[0].dtype != np.uint8:
        return False
    data, *grid = back.inputs
    whole = view.variable(f"{result.name}_quantized", data)
    whole.shape = list(result.shape)
    pool.inputs[0], pool.outputs[0] = data, whole
    name = view.free_name(f"{result.name}_dequantize")
    moved = gs.Node("DequantizeLinear", name, dict(back.attrs), [whole, *grid], [result])
    place = next(index for index, node in enumerate(view.graph.nodes) if node is pool)
    view.graph.nodes.insert(place + 1, moved)  # a planner reads nodes in order
    return True


def write_plan(view: GraphView, plan: Plan, maps: Maps) -> None:
    """Let the graph compute what a plan says, and nothing of it twice.

    Args:
        view: The graph that was planned for; edited in place, its tensors' shapes too.
        plan: With boxes in coordinates of the tensors as they are now.
        maps: What the joined tensors hold outside of what is computed of them, by `id`.
    """
    # first all paddings: they are told by the shapes that the tensors still have
    for made in plan.tensors.values():
        local = plan.locals.get(id(view.producer(made.tensor)))
        if local is not None and is_onnx(local.node, "Slice"):
            _move_crop(view, plan, local.node, made)
        elif local is not None and is_onnx(local.node, "Conv", *POOLS):
            _set_padding(local, made)
    for made in plan.tensors.values():
        _give(view, made, maps.get(id(made.tensor)))
    for made in plan.tensors.values():
        _set_size(made.tensor, made.computed)


def _set_padding(local: Local, made: Tensor) -> None:
    """Pad by what the windows of a part of the output reach over the edges of the whole input."""
    node = local.node
    size = size_of(node.inputs[0])
    read = local.read_by(made.computed)
    if size is None or (made.computed == size_of(made.tensor) and clipped(read, size) == size):
        return
    begins = [max(0, whole[0] - part[0]) for whole, part in zip(size, read, strict=True)]
    ends = [max(0, part[1] - whole[1]) for whole, part in zip(size, read, strict=True)]
    node.attrs["pads"] = [*begins, *ends]
    node.attrs.pop("auto_pad", None)
    if node.attrs.get("ceil_mode", 0):
        node.attrs["ceil_mode"] = 0


def _move_crop(view: GraphView, plan: Plan, node: gs.Node, made: Tensor) -> None:
    """Let a crop keep a part of its output, counted from where what it is given begins."""
    crop = crop_of(view, node)
    source = plan.tensors.get(id(node.inputs[0]))
    ranges = crop.ranges(node.inputs[0].shape) if crop is not None else None
    size = size_of(node.inputs[0])
    if ranges is None or size is None:
        raise ValueError("rewrite of a match that was not checked")
    given = source.source(_need(source, node)) if source is not None else size
    if given == size and made.computed == size_of(made.tensor):
        return
    for axis, part, (origin, _) in zip(SPATIAL, made.computed, given, strict=True):
        start = ranges[axis][0] if axis in ranges else 0
        ranges[axis] = (start + part[0] - origin, start + part[1] - origin)
    bounds = [np.array([pair[side] for pair in ranges.values()], np.int64) for side in (0, 1)]
    write_crop(view, node, tuple(ranges), bounds, (1,) * len(ranges))


def _need(source: Tensor, node: gs.Node) -> Need:
    return next(need for need in source.needs if need.node is node)


def _give(view: GraphView, made: Tensor, whole: NDArray[Any] | None) -> None:
    """Let each reader read what it needs: the computed part, that with constants around it, or a cut of one."""
    tensors = {made.computed: made.tensor}
    if made.joined is not None and whole is not None:
        tensors[made.joined] = _join(view, made, made.joined, whole)
    cuts: dict[Box, gs.Tensor] = {}
    for need in made.needs:
        box = made.source(need)
        tensor = tensors[box]
        if need.box != box and not is_onnx(need.node, "Slice"):
            tensor = cuts.setdefault(need.box, _cut(view, tensor, box, need.box))
        if need.node.inputs[need.index] is not tensor:
            need.node.inputs[need.index] = tensor


def _join(view: GraphView, made: Tensor, box: Box, whole: NDArray[Any]) -> gs.Tensor:
    """The computed part with constants left and right of it, then above and below."""
    (top, bottom), (left, right) = made.computed
    rows, columns = box
    middle = whole[:, :, top:bottom]
    sides = middle[:, :, :, columns[0] : left], middle[:, :, :, right : columns[1]]
    wide = whole[:, :, :, columns[0] : columns[1]]
    ends = wide[:, :, rows[0] : top], wide[:, :, bottom : rows[1]]
    name = made.tensor.name
    inner = _concat(view, made.tensor, f"{name}.wide", 3, sides, ((top, bottom), columns))
    return _concat(view, inner, f"{name}.bordered", 2, ends, box)


def _concat(
    view: GraphView, tensor: gs.Tensor, name: str, axis: int, ends: tuple[NDArray[Any], NDArray[Any]], box: Box
) -> gs.Tensor:
    """A tensor with constants put on at both ends of an axis; itself where both are empty."""
    before, after = (
        [view.constant(f"{name}.{side}", end)] if end.size else []
        for side, end in zip(("from", "to"), ends, strict=True)
    )
    if not before and not after:
        return tensor
    result = view.variable(name, tensor)
    result.shape = list(tensor.shape)
    _set_size(result, box)
    view.add(gs.Node("Concat", view.free_name(f"{name}.join"), {"axis": axis}, [*before, tensor, *after], [result]))
    return result


def _cut(view: GraphView, tensor: gs.Tensor, of: Box, box: Box) -> gs.Tensor:
    result = view.variable(f"{tensor.name}.part", tensor)
    result.shape = list(tensor.shape)
    _set_size(result, box)
    node = gs.Node("Slice", view.free_name(f"{tensor.name}.cut"), {}, [tensor], [result])
    starts, ends = (
        np.array([part[side] - origin[0] for part, origin in zip(box, of, strict=True)], np.int64) for side in (0, 1)
    )
    write_crop(view, node, SPATIAL, (starts, ends), (1, 1))
    view.add(node)
    return result


def _set_size(tensor: gs.Tensor, box: Box) -> None:
    tensor.shape = [*tensor.shape[:2], *(end - first for first, end in box)]
