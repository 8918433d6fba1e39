"""A graph as a roofline sees it: what each layer multiplies and moves, and where precisions can meet.

The roofline (Williams, Waterman, Patterson, "Roofline: an insightful visual performance model for multicore
architectures", 2009) gives a layer the longer of the two times:

    ms = max(MACs / rate, (input + weight + output bytes) / bandwidth)
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import onnx
import onnx_graphsurgeon as gs

from fcnopt.backends.targets import Form
from fcnopt.errors import GraphError
from fcnopt.graph.io import import_graph
from fcnopt.graph.passes import FusionGroup, fusion_groups
from fcnopt.graph.shapes import Size, infer, tensor_types
from fcnopt.graph.stats import macs_by_node
from fcnopt.graph.taps import logits_name
from fcnopt.quantize.methods import Quantized
from fcnopt.quantize.placement import Placement, above_pools, place
from fcnopt.quantize.rates import BYTES, Fallback, Rates

_WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
# They move no activation, or are done when the graph is compiled.
_FREE = frozenset({"Constant", "Dropout", "Flatten", "Identity", "Reshape", "Shape", "Size", "Squeeze", "Unsqueeze"})
# What they read quantized they write quantized.
_MOVES = frozenset({"Concat", "MaxPool", "Slice", "Split", "Transpose"}) | _FREE


@dataclass(frozen=True)
class Border:
    """A tensor that layers read quantized, and what is moved where precisions meet at it.

    Attributes:
        tensor: Its name.
        writers: The layers whose result it is; None where something that is never quantized writes it.
        readers: The layers that read it.
        read_float: Whether something that is never quantized reads it too.
        elements: For one frame.
    """

    tensor: str
    writers: tuple[str, ...] | None
    readers: tuple[str, ...]
    read_float: bool
    elements: int

    def moved_bytes(self, floats: Collection[str], width: int) -> int:
        """Bytes moved beyond those of the layers themselves.

        A float writer's result is read and written once more for quantized readers. A quantized layer writes wider
        for float readers; for both kinds it writes twice.

        Args:
            floats: Layers that are not quantized.
            width: Bytes of a float element; a quantized one has 1.
        """
        written_float = self.writers is None or any(writer in floats for writer in self.writers)
        wants_quantized = any(reader not in floats for reader in self.readers)
        wants_float = self.read_float or any(reader in floats for reader in self.readers)
        if written_float:
            return self.elements * (width + 1) if wants_quantized else 0
        if not wants_float:
            return 0
        return self.elements * (width if wants_quantized else width - 1)


class Network:
    """A graph, with what is known of its layers.

    Attributes:
        model: The graph, each node named after its first output.
        placement: Of the layers alone.

    Args:
        model: Optimized FP32 graph; unchanged afterwards.
        layers: First outputs of the layers that can be quantized.
        size: (height, width) of the frames.
        precision: Of quantized layers.
        form: Of the graph to be made.

    Raises:
        GraphError: A layer cannot be quantized, or its shapes are unknown.
    """

    def __init__(
        self, model: onnx.ModelProto, layers: Collection[str], size: Size, precision: Quantized, form: Form
    ) -> None:
        self.model = onnx.ModelProto()
        self.model.CopyFrom(model)
        for node in self.model.graph.node:  # names may be missing or repeated, and runtimes report by name
            node.name = node.output[0]
        graph = import_graph(self.model)
        self._nodes: list[gs.Node] = list(graph.nodes)
        self._by_output = {node.outputs[0].name: node for node in self._nodes}
        self._groups = {node.outputs[0].name: group for group in fusion_groups(graph) for node in group.nodes}
        self._macs = macs_by_node(self.model, size)
        self._types = tensor_types(infer(self.model, size))
        self._precision = precision
        wanted = set(layers)
        self.placement: Placement = place(
            graph,
            logits_name(self.model),
            lambda _tensor, node: None if node.outputs[0].name in wanted else "not asked for",
            precision,
            form=form,
        )
        self._refuse(wanted - set(self.placement.layers), "cannot be quantized", "give layers that `place` returns")
        unknown = {name for name in wanted if name not in self._macs}
        self._refuse(unknown, f"has no known shape at {size[1]}x{size[0]}", "check the model with `fcnopt inspect`")

    def macs(self, layer: str) -> int:
        """Multiply-accumulates for one frame."""
        return self._macs[layer]

    def group(self, layer: str) -> FusionGroup:
        """What runs in one kernel with the layer."""
        return self._groups[layer]

    def layer_ms(self, layer: str, precision: Quantized | Fallback, rates: Rates) -> float:
        """The roofline's time of one layer, all it touches being in `precision`."""
        node = self._by_output[layer]
        elements = sum(map(self._elements, (*node.inputs[:2], node.outputs[0])))
        compute_ms = self._macs.get(layer, 0) / rates.gmacs[precision] / 1e6
        return max(compute_ms, move_ms(elements * BYTES[precision], rates.gbytes))

    def rest_ms(self, fallback: Fallback, rates: Rates) -> float:
        """The time of all that is never quantized; what is fused into a layer is free."""
        total = 0.0
        for node in self._nodes:
            name = node.outputs[0].name
            group = self._groups.get(name)
            if node.op in _WEIGHTED:
                total += 0.0 if name in self.placement.layers else self.layer_ms(name, fallback, rates)
            elif group is None and node.op not in _FREE:
                elements = sum(map(self._elements, (*node.inputs, *node.outputs)))
                total += move_ms(elements * BYTES[fallback], rates.gbytes)
        return total

    def borders(self) -> tuple[Border, ...]:
        """Every tensor that is quantized."""
        readers: dict[str, list[str]] = {}
        tensors: dict[str, gs.Tensor] = {}
        for layer in self.placement.layers:
            tensor = self._by_output[layer].inputs[0]
            if self._precision == "int8":  # FP8 is made behind pools
                tensor = above_pools(tensor, set(self.placement.tensors))
            tensors[tensor.name] = tensor
            readers.setdefault(tensor.name, []).append(layer)
        return tuple(
            Border(
                name,
                self._writers(tensors[name]),
                tuple(who),
                self._read_float(tensors[name]),
                self._elements(tensors[name]),
            )
            for name, who in readers.items()
        )

    def _writers(self, tensor: gs.Tensor) -> tuple[str, ...] | None:
        """The layers whose results reach a tensor by moves alone; None where anything else does."""
        if not tensor.inputs:
            return None
        node = tensor.inputs[0]
        group = self._groups.get(node.outputs[0].name)
        if group is not None:
            head = str(group.nodes[0].outputs[0].name)
            return (head,) if head in self.placement.layers else None
        if node.op not in _MOVES or (node.op == "MaxPool" and self._precision == "fp8"):
            return None
        found: list[str] = []
        for value in node.inputs:
            if isinstance(value, gs.Constant) or value.is_empty():
                continue
            writers = self._writers(value)
            if writers is None:
                return None
            found += writers
        return tuple(dict.fromkeys(found)) or None

    def _read_float(self, tensor: gs.Tensor) -> bool:
        layers = set(self.placement.layers)
        return any(reader.op not in _MOVES and reader.outputs[0].name not in layers for reader in tensor.outputs)

    def _elements(self, tensor: gs.Tensor) -> int:
        if isinstance(tensor, gs.Constant):
            return math.prod(tensor.shape)
        found = self._types.get(tensor.name)
        shape = found.static if found is not None else None
        return 0 if shape is None else math.prod(shape)

    def _refuse(self, layers: set[str], why: str, fix: str) -> None:
        if layers:
            raise GraphError(f"layer {min(layers)!r} {why}", fix=fix)


def move_ms(count: float, gbytes: float) -> float:
    """Milliseconds to move `count` bytes at `gbytes` 1e9 bytes a second."""
    return count / gbytes / 1e6
