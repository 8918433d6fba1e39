"""Slice in one form, whether its bounds are attributes (opset 9), constants or computed (opset 10 on)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from fcnopt.graph.passes.view import GraphView, is_onnx

OPEN_END = 2**31 - 1  # exporters write this or more for "to the end"
_MAX = 2**63 - 1
Shape = Sequence[int | str | None] | None
Bounds: TypeAlias = "NDArray[np.int64] | gs.Tensor"
"""Constant bounds, or the tensor that holds computed ones."""


@dataclass(frozen=True)
class Crop:
    """A Slice node.

    Attributes:
        node: The node.
        axes: The axes it cuts, from 0.
        starts: One bound an axis.
        ends: One bound an axis.
        steps: One a cut axis.
    """

    node: gs.Node
    axes: tuple[int, ...]
    starts: Bounds
    ends: Bounds
    steps: tuple[int, ...]

    @property
    def constant(self) -> bool:
        """Whether no bound is computed."""
        return isinstance(self.starts, np.ndarray) and isinstance(self.ends, np.ndarray)

    def ranges(self, shape: Shape) -> dict[int, tuple[int, int]] | None:
        """(start, end) by axis, neither negative.

        Args:
            shape: Of the tensor that is cut. On an axis of unknown length an end of `OPEN_END` or more is its end.

        Returns:
            None where a bound is computed, a step is not 1, or a bound counts from an end that is not known.
        """
        if not isinstance(self.starts, np.ndarray) or not isinstance(self.ends, np.ndarray):
            return None
        if any(step != 1 for step in self.steps):
            return None
        found = {}
        for axis, start, end in zip(self.axes, self.starts.tolist(), self.ends.tolist(), strict=True):
            length = shape[axis] if shape is not None else None
            if isinstance(length, int):
                first, last, _ = slice(start, end).indices(length)
                found[axis] = (first, last)
            elif start < 0 or end < 0:
                return None
            else:
                found[axis] = (start, end)
        return found

    def keeps_everything(self, shape: Shape) -> bool:
        """Whether nothing is cut off a tensor of this shape."""
        ranges = self.ranges(shape)
        if ranges is None:
            return False
        for axis, (start, end) in ranges.items():
            length = shape[axis] if shape is not None else None
            if start != 0 or (end < length if isinstance(length, int) else end < OPEN_END):
                return False
        return True


def crop_of(view: GraphView, node: gs.Node | None) -> Crop | None:
    """A Slice node in one form; None for other nodes, and where axes or steps are not known."""
    if node is None or not is_onnx(node, "Slice"):
        return None
    if len(node.inputs) == 1:
        starts: Bounds = np.array(node.attrs["starts"], np.int64)
        ends: Bounds = np.array(node.attrs["ends"], np.int64)
        axes: Any = node.attrs.get("axes", range(len(starts)))
        steps: Any = [1] * len(starts)
    else:
        starts, ends = (_bounds(view, tensor) for tensor in node.inputs[1:3])
        count = next((len(b) for b in (starts, ends) if isinstance(b, np.ndarray)), None)
        axes = _optional(view, node, 3, None if count is None else list(range(count)))
        steps = _optional(view, node, 4, None if axes is None else [1] * len(axes))
    rank = len(node.inputs[0].shape) if node.inputs[0].shape is not None else None
    if axes is None or steps is None or (rank is None and any(axis < 0 for axis in axes)):
        return None
    return Crop(
        node, tuple(a + rank if a < 0 and rank else a for a in map(int, axes)), starts, ends, tuple(map(int, steps))
    )


def write_crop(
    view: GraphView, node: gs.Node, axes: Sequence[int], bounds: Sequence[Bounds], steps: Sequence[int]
) -> None:
    """Give a Slice node other axes, bounds (starts, ends) and steps, in the form of the graph's opset."""
    starts, ends = bounds
    if view.opset < 10:
        node.attrs.update(axes=list(axes), starts=np.asarray(starts).tolist(), ends=np.asarray(ends).tolist())
        return
    name = node.outputs[0].name
    dtype = next((bound.dtype for bound in bounds if not isinstance(bound, np.ndarray)), np.dtype(np.int64))
    tensors = [
        bound if not isinstance(bound, np.ndarray) else view.constant(f"{name}.{what}", _clipped(bound, dtype))
        for what, bound in (("starts", starts), ("ends", ends), ("axes", np.array(axes)), ("steps", np.array(steps)))
    ]
    data = node.inputs[0]
    node.inputs.clear()
    node.inputs.extend([data, *tensors])


def joined(view: GraphView, stem: str, first: Bounds, second: Bounds) -> Bounds:
    """Two lists of bounds as one, computed by a Concat where one of them is computed."""
    if isinstance(first, np.ndarray) and isinstance(second, np.ndarray):
        return np.concatenate([first, second])
    dtype = next(bound.dtype for bound in (first, second) if not isinstance(bound, np.ndarray))
    parts = [
        view.constant(f"{stem}.bounds", _clipped(bound, dtype)) if isinstance(bound, np.ndarray) else bound
        for bound in (first, second)
    ]
    result = gs.Variable(view.free_name(f"{stem}.joined"), dtype=dtype)
    view.add(gs.Node("Concat", view.free_name(f"{stem}.concat"), {"axis": 0}, parts, [result]))
    return result


def _clipped(values: NDArray[Any], dtype: Any) -> NDArray[Any]:
    limits = np.iinfo(dtype)
    clipped: NDArray[Any] = np.clip(values, limits.min, limits.max).astype(dtype)
    return clipped


def _bounds(view: GraphView, tensor: gs.Tensor) -> Bounds:
    values = view.array(tensor)
    return tensor if values is None else values.astype(np.int64).reshape(-1)


def _optional(view: GraphView, node: gs.Node, index: int, default: list[int] | None) -> list[int] | None:
    if len(node.inputs) <= index or node.inputs[index].is_empty():
        return default
    values = view.array(node.inputs[index])
    return None if values is None else values.reshape(-1).tolist()
