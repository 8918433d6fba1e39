"""Ranges refined against the loss at the logits, one tensor after the other, all others quantized as well.

A method that looks at a tensor alone cannot know which of its values matter: the least squared error keeps the few
large ones, where the labels may hang on the many small. Here the scale of a tensor is narrowed or widened in steps as
long as the divergence at the logits (`choose.Judge`) falls. Tensors that share a scale move together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from fcnopt.quantize.choose import Evidence, Judge
from fcnopt.quantize.placement import Placement
from fcnopt.quantize.qdq import Grid
from fcnopt.quantize.scales import LARGEST, SMALLEST, half_at_least

if TYPE_CHECKING:
    import onnx

STEP = 1.25
_MOST_STEPS = 6  # 1.25 ** 6 = 3.8 times narrower or wider
_SINGLE = np.finfo(np.float32)
_GAIN = 0.998  # a smaller gain is chance, and not worth another run


@dataclass(frozen=True)
class Move:
    """What refining did to a tensor's scale, or to those of a group.

    Attributes:
        tensor: Its name, or the group's.
        factor: The scale is now so many times what it was.
        before: Divergence at the logits before.
        after: And afterwards.
    """

    tensor: str
    factor: float
    before: float
    after: float


def refine(
    quantized: onnx.ModelProto,
    placement: Placement,
    found: Mapping[str, Grid],
    judge: Judge,
    progress: Callable[[float], None],
) -> tuple[dict[str, Grid], Evidence, tuple[Move, ...]]:
    """Search every tensor's scale.

    Args:
        quantized: The graph that `insert` made of `found`; its scales are overwritten as the search goes on, and are
            those of the result afterwards.
        placement: What is quantized in it.
        found: Where to start from.
        judge: On calibration frames.
        progress: Called with the fraction done.

    Returns:
        The grids found, their evidence, and what was moved.
    """
    grids = dict(found)
    scales = _Scales(quantized)
    current = judge("refined", quantized)
    moves = []
    groups: dict[str, list[str]] = {}
    for point in placement.points:
        groups.setdefault(point.group, []).append(point.tensor)
    for count, (group, tensors) in enumerate(groups.items(), start=1):
        before, start = current.divergence, {name: grids[name] for name in tensors}
        factor = 1.0
        for step in (1 / STEP, STEP):
            for power in range(1, _MOST_STEPS + 1):
                tried = {name: times(grid, step**power) for name, grid in start.items()}
                scales.write(tried)
                evidence = judge("refined", quantized)
                if evidence.divergence >= current.divergence * _GAIN:
                    break
                current, factor = evidence, step**power
                grids |= tried
            scales.write({name: grids[name] for name in tensors})
            if factor != 1.0:
                break
        if factor != 1.0:
            moves.append(Move(group, factor, before, current.divergence))
        progress(count / len(groups))
    return grids, current, tuple(moves)


def times(grid: Grid, factor: float) -> Grid:
    """A grid with a wider or narrower scale, of the same kind, as far as its type has such scales."""
    wanted = grid.scale * factor
    if grid.kind == "uint8":
        return replace(grid, scale=float(np.float32(np.clip(wanted, _SINGLE.smallest_normal, _SINGLE.max))))
    return replace(grid, scale=float(half_at_least(min(max(wanted, SMALLEST), LARGEST))))


class _Scales:
    """The scale initializers of a quantized graph, to be overwritten in place."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._initializers = {tensor.name: tensor for tensor in model.graph.initializer}

    def write(self, grids: Mapping[str, Grid]) -> None:
        from onnx import numpy_helper

        for name, grid in grids.items():
            tensor = self._initializers[f"{name}_scale"]
            tensor.CopyFrom(numpy_helper.from_array(np.array(grid.scale, np.float32), tensor.name))
