"""What a layer costs in each precision: what a search for the fastest assignment goes by.

Times come from the roofline of the target's family. Where the target is a CPU runtime of this machine they are
measured instead, by the runtime's own clock, in the graph with all layers quantized and in the one with none, each as
it would be built. Where precisions meet, tensors are written wider or once more (`Border`), which the table's
bandwidth prices. Every layer says where its numbers come from.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from fcnopt.backends.layertimes import layer_timer
from fcnopt.backends.targets import Form, Target
from fcnopt.graph.passes import CPU_PASSES, optimize
from fcnopt.quantize.methods import Quantized
from fcnopt.quantize.placement import Placement
from fcnopt.quantize.qdq import Grid, insert
from fcnopt.quantize.rates import BYTES, Fallback, check_rate, fallback_of, rates_of
from fcnopt.quantize.roofline import Border, Network, move_ms

if TYPE_CHECKING:
    import onnx

    from fcnopt.graph.shapes import Size

Source = Literal["measured", "table"]

_RUNS = 16
# Times hang on no value, so any grid will do; with this one values neither vanish nor all saturate.
_ANY_GRID = Grid(0.05, 0, "uint8")


@dataclass(frozen=True)
class LayerCost:
    """One layer that can be quantized.

    Attributes:
        macs: Multiply-accumulates for one frame.
        ms: For one frame, by precision: the quantized one and the fallback.
        source: Where `ms` comes from. "table" among measured layers is scaled by what those take of theirs.
    """

    macs: int
    ms: Mapping[str, float]
    source: Source


@dataclass(frozen=True)
class Costs:
    """Estimated times of a graph's precision assignments on one target.

    Attributes:
        target: As it is written.
        family: Whose rates the table's numbers are.
        precision: Of quantized layers.
        fallback: Of the others.
        layers: By the layer's first output, as in `Placement`.
        borders: Tensors between them.
        base_ms: The whole graph with every layer quantized.
        gbytes: Memory bandwidth in 1e9 bytes a second, which prices the borders.
        whole_ms: Measured: all layers of the runtime's graph together, by precision; empty where nothing was.
    """

    target: str
    family: str
    precision: Quantized
    fallback: Fallback
    layers: Mapping[str, LayerCost]
    borders: tuple[Border, ...]
    base_ms: float
    gbytes: float
    whole_ms: Mapping[str, float] = field(default_factory=dict)

    def total_ms(self, floats: Collection[str] = ()) -> float:
        """The whole graph with these layers in the fallback precision and the others quantized.

        Raises:
            KeyError: One of `floats` is no layer that can be quantized.
        """
        slower = sum(self.layers[name].ms[self.fallback] - self.layers[name].ms[self.precision] for name in floats)
        return self.base_ms + (slower + (self.borders_ms(floats) - self.borders_ms()))  # nothing added is exactly that

    def fallback_ms(self, layer: str, floats: Collection[str] = ()) -> float:
        """What it costs to run one more layer in the fallback precision; negative where that is faster.

        Args:
            layer: By its first output.
            floats: Layers that already do.
        """
        return self.total_ms({*floats, layer}) - self.total_ms(floats)

    def borders_ms(self, floats: Collection[str] = ()) -> float:
        """The part of it that tensors cost where precisions meet."""
        width = BYTES[self.fallback]
        return move_ms(sum(border.moved_bytes(floats, width) for border in self.borders), self.gbytes)


def layer_costs(
    model: onnx.ModelProto,
    layers: Iterable[str],
    target: Target,
    *,
    size: Size,
    frame: NDArray[np.uint8] | None = None,
    precision: Quantized = "int8",
) -> Costs:
    """Estimate what each layer costs, quantized and not.

    Args:
        model: Optimized FP32 graph; unchanged afterwards.
        layers: First outputs of the layers that can be quantized, as in `Placement.layers`.
        target: Where it shall run.
        size: (height, width) of the frames.
        frame: uint8 [1, H, W, 3] to measure with; None takes the table alone.
        precision: Of quantized layers.

    Raises:
        GraphError: A layer cannot be quantized, or its shapes are unknown.
        UsageError: The target's family does not compute in `precision`.
        BackendError: The runtime to measure with fails.
    """
    rates = rates_of(target)
    check_rate(rates, precision)
    fallback = fallback_of(target, rates)
    network = Network(model, tuple(layers), size, precision, target.form)
    found = {
        name: LayerCost(
            network.macs(name),
            {kind: network.layer_ms(name, kind, rates) for kind in (precision, fallback)},
            "table",
        )
        for name in network.placement.layers
    }
    costs = Costs(str(target), rates.name, precision, fallback, found, network.borders(), 0.0, rates.gbytes)
    layers_ms = sum(cost.ms[precision] for cost in found.values())
    costs = replace(costs, base_ms=network.rest_ms(fallback, rates) + layers_ms + costs.borders_ms())
    if frame is None or precision != "int8" or not _measurable(target):
        return costs
    return _measured(costs, network, target, frame)


def timed_graph(model: onnx.ModelProto, placement: Placement | None, form: Form) -> onnx.ModelProto:
    """A graph that does the work of the one that is built for a CPU runtime, to be timed.

    Layers keep their names: the passes behind quantization rename no node that can be quantized.

    Args:
        model: Optimized FP32 graph, its frames as INT8 reads them; unchanged afterwards.
        placement: What is quantized; None leaves all of it float.
        form: Of the graph to be made.
    """
    if placement is not None:
        model = insert(model, placement, dict.fromkeys(placement.tensors, _ANY_GRID), form)
    # not verified: the builder proves the graph that it makes, and on any grid there is nothing to prove
    return optimize(model, passes=CPU_PASSES, verify=False)[0]


def _measurable(target: Target) -> bool:
    return target.runtime in ("openvino", "onnxruntime") and not target.device and target.runs_here()


def _measured(costs: Costs, network: Network, target: Target, frame: NDArray[np.uint8]) -> Costs:
    """The same with measured times, in turns, so that what else the machine does meets both graphs."""
    with (
        layer_timer(timed_graph(network.model, network.placement, target.form), target, costs.precision) as whole,
        layer_timer(timed_graph(network.model, None, target.form), target, costs.fallback) as plain,
    ):
        for _ in range(_RUNS):
            whole.run(frame)
            plain.run(frame)
        times = {costs.precision: whole.times(), costs.fallback: plain.times()}
    totals: dict[str, float] = {kind: sum((layer.ms for layer in found), 0.0) for kind, found in times.items()}
    measured: dict[str, dict[str, float]] = {}
    for name in costs.layers:
        aliases = _aliases(network, name)
        parts = {kind: [la.ms for la in found if aliases.intersection(la.names)] for kind, found in times.items()}
        if all(parts.values()):
            measured[name] = {kind: sum(of_kind) for kind, of_kind in parts.items()}
    if not measured:
        return costs
    layers = {
        name: replace(cost, ms=measured[name], source="measured") if name in measured else cost
        for name, cost in _scaled(costs.layers, measured).items()
    }
    return replace(costs, layers=layers, base_ms=totals[costs.precision], whole_ms=totals)


def _aliases(network: Network, layer: str) -> set[str]:
    """Names that a runtime may give a layer: of what is fused into it, and of its weights' conversion."""
    group = network.group(layer)
    return {str(node.name) for node in group.nodes} | {f"{group.nodes[0].inputs[1].name}_dequantize"}


def _scaled(table: Mapping[str, LayerCost], measured: Mapping[str, Mapping[str, float]]) -> dict[str, LayerCost]:
    """The table's costs, brought to what measured layers take of theirs."""
    factors = {
        kind: sum(times[kind] for times in measured.values()) / sum(table[name].ms[kind] for name in measured)
        for kind in next(iter(measured.values()))
    }
    return {
        name: replace(cost, ms={kind: ms * factors[kind] for kind, ms in cost.ms.items()})
        for name, cost in table.items()
    }
