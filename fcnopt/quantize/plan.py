"""Everything decided about a quantized network, from which its graph can be made, whole or with layers left float."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from fcnopt.backends.targets import Form
from fcnopt.graph.io import import_graph
from fcnopt.quantize.methods import Quantized
from fcnopt.quantize.placement import Placement, place
from fcnopt.quantize.qdq import Grid, Rounded, insert
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
        return replace(
            self,
            placement=place(graph, self.logits, self.unfit, self.precision, floats, form=self.form),
        )

    def graph(self) -> onnx.ModelProto:
        """The graph with Q/DQ, all else FP32."""
        return insert(self.source, self.placement, self.grids, self.form, self.rounded)
