"""Everything decided about a quantized network, from which its graph can be made, whole or with layers left float."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from fcnopt.backends.machine import describe_machine
from fcnopt.graph.io import import_graph
from fcnopt.quantize.methods import Quantized
from fcnopt.quantize.placement import Placement, place
from fcnopt.quantize.qdq import Form, Grid, Rounded, insert
from fcnopt.quantize.scales import Unfit

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class Plan:
    """A quantized network before it is written.

    Attributes:
        source: FP32, equalized, its large tensors rescaled.
        logits: Name of its logits.
        precision: Of quantized layers.
        form: Of the graphs to be made.
        placement: What is quantized.
        grids: The numbers of every quantized tensor.
        rounded: Weights not rounded to nearest, by name.
        unfit: Layers that must stay float, whatever else is decided.
    """

    source: onnx.ModelProto
    logits: str
    precision: Quantized
    form: Form
    placement: Placement
    grids: Mapping[str, Grid]
    rounded: Mapping[str, Rounded]
    unfit: Unfit | None = None

    def without(self, floats: AbstractSet[str]) -> Plan:
        """The same plan with these layers, named by their first outputs, left float."""
        if not floats:
            return self
        graph = import_graph(self.source)
        return replace(self, placement=place(graph, self.logits, self.unfit, self.precision, floats))

    def graph(self) -> onnx.ModelProto:
        """The graph with Q/DQ, all else FP32."""
        return insert(self.source, self.placement, self.grids, self.form, self.rounded)

    def measurable(self) -> onnx.ModelProto:
        """The graph with the same values in the form that this CPU runs fastest.

        CPUs multiply uint8 by int8. An int8 tensor with zero point 0 has the same values as a uint8 one with zero point
        128, and ONNX Runtime runs it three times as fast. Without VNNI the sums of such products may saturate, so
        that the graph stays as it is there.
        """
        grids = on_cpu(self.grids)
        return insert(self.source, self.placement, grids, self.form, self.rounded)


def on_cpu(grids: Mapping[str, Grid]) -> dict[str, Grid]:
    """The grids with int8 as uint8 around 128 where this CPU gains by it; see `Plan.measurable`."""
    if not _has_vnni():
        return dict(grids)
    return {
        name: replace(grid, zero=128, kind="uint8") if grid.kind == "int8" else grid for name, grid in grids.items()
    }


@functools.cache
def _has_vnni() -> bool:
    """Looked up once: describing the machine runs a program where there is a GPU."""
    return "vnni" in describe_machine()["isa"]
