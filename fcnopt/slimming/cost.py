"""What a network of given widths takes: a roofline by layer, brought to what layers of the original were measured to.

    ms = factor * (MACs / rate + (input + weight + output bytes) / bandwidth)

A sum in place of the roofline's maximum, so that every channel less is a little less time. The factor of a layer is its
measured time over this at the original's widths: full-resolution layers with few channels are far from the peak, and
cost most per channel. Without measurements (no such device here) it is 1. What no width changes (deconvolutions,
normalization, argmax) is a constant.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fcnopt.backends.layertimes import layer_timer
from fcnopt.backends.targets import Target
from fcnopt.errors import UsageError
from fcnopt.graph.io import import_graph
from fcnopt.graph.passes import WHOLE_FRAMES, optimize
from fcnopt.graph.prepost import attach
from fcnopt.graph.taps import logits_name
from fcnopt.models.convert import to_onnx
from fcnopt.models.fcn import FCN, Architecture
from fcnopt.quantize.cost import layer_costs, timed_graph
from fcnopt.quantize.placement import Placement, place
from fcnopt.quantize.rates import Rates, rates_of
from fcnopt.spec import ModelSpec

if TYPE_CHECKING:
    import onnx

_OPSET = 20
_RUNS = 16


@dataclass(frozen=True)
class Layer:
    """A convolution whose time hangs on widths.

    Attributes:
        source: Of the convolution whose channels it reads; empty for the frames.
        positions: Of its result, height times width.
        inputs: Positions of what it reads.
        taps: Of its kernel.
        factor: Its measured time over the roofline's.
    """

    source: str
    positions: int
    inputs: int
    taps: int
    factor: float = 1.0


@dataclass(frozen=True)
class CostModel:
    """Time of a network by its widths, INT8, for one frame.

    Attributes:
        layers: By convolution.
        widths: Of the original.
        fixed_ms: What no width changes.
        gmacs: Multiply-accumulates in 1e9 a second.
        gbytes: Bandwidth in 1e9 bytes a second.
        measured: Whether factors come from measurement.
    """

    layers: Mapping[str, Layer]
    widths: Mapping[str, int]
    fixed_ms: float
    gmacs: float
    gbytes: float
    measured: bool

    def total_ms(self, widths: Mapping[str, int], rank: int | None = None) -> float:
        """Time of the network with these widths, and with fc6 of low rank where one is given."""
        return self.fixed_ms + sum(self.layer_ms(name, widths, rank) for name in self.layers)

    def layer_ms(self, name: str, widths: Mapping[str, int], rank: int | None = None) -> float:
        """Time of one layer; fc6 is factored where that is faster."""
        layer = self.layers[name]
        inputs = widths[layer.source] if layer.source else 3
        outputs = widths[name]
        direct = self._roofline(layer, inputs, outputs)
        if name == "fc6" and rank is not None:
            second = Layer("", layer.positions, layer.positions, 1)
            direct = min(direct, self._roofline(layer, inputs, rank) + self._roofline(second, rank, outputs))
        return layer.factor * direct

    def _roofline(self, layer: Layer, inputs: int, outputs: int) -> float:
        weights = inputs * outputs * layer.taps
        moved = inputs * layer.inputs + outputs * layer.positions + weights
        return (weights * layer.positions / self.gmacs + moved / self.gbytes) / 1e6


def widths_of(architecture: Architecture) -> dict[str, int]:
    """Output channels of every convolution that can be narrowed, by name, in order."""
    fc6, fc7 = architecture.fc_widths
    return {**architecture.conv_widths, "fc6": fc6, "fc7": fc7}


def table(architecture: Architecture, size: tuple[int, int], rates: Rates) -> CostModel:
    """The cost model without measurements.

    Raises:
        UsageError: The target does not compute in INT8.
    """
    if "int8" not in rates.gmacs:
        raise UsageError(f"{rates.name} does not compute in int8", fix="choose another --target")
    widths = widths_of(architecture)
    shapes = _shapes(architecture, size)
    layers, source = {}, ""
    for name in widths:
        height, width, in_height, in_width, taps = shapes[name]
        layers[name] = Layer(source, height * width, in_height * in_width, taps)
        source = name
    return CostModel(layers, widths, 0.0, rates.gmacs["int8"], rates.gbytes, measured=False)


def _shapes(architecture: Architecture, size: tuple[int, int]) -> dict[str, tuple[int, int, int, int, int]]:
    """Height and width of each convolution's result and input, and its taps; computed without values."""
    found: dict[str, tuple[int, int, int, int, int]] = {}
    with torch.device("meta"):
        network = FCN(architecture).eval()
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):

            def seen(conv: nn.Module, inputs: Any, output: Any, name: str = name) -> None:
                taps = conv.weight.shape[2] * conv.weight.shape[3]  # type: ignore[index]  # a Conv2d's
                found[name] = (*output.shape[2:], *inputs[0].shape[2:], taps)

            module.register_forward_hook(seen)
    network(torch.zeros(1, 3, *size, device="meta"))
    return found


def cost_model(network: FCN, spec: ModelSpec, target: Target) -> CostModel:
    """The cost model of a network on a target; measured where the target's runtime tells times here.

    Args:
        network: The original.
        spec: With the size of frames.
        target: Where it shall run.

    Raises:
        UsageError: The target does not compute in INT8.
        BackendError: The runtime to measure with fails.
    """
    size = _size(spec)
    rates = rates_of(target)
    model = table(network.architecture, size, rates)
    times, total = measured_ms(network, spec, target)
    if times is None:
        rest = total - sum(model.layer_ms(name, model.widths) for name in model.layers)
        return CostModel(model.layers, model.widths, max(0.0, rest), model.gmacs, model.gbytes, measured=False)
    layers = {}
    for name, layer in model.layers.items():
        factor = times[name] / model.layer_ms(name, model.widths) if name in times else 1.0
        layers[name] = Layer(layer.source, layer.positions, layer.inputs, layer.taps, factor)
    known = CostModel(layers, model.widths, 0.0, model.gmacs, model.gbytes, measured=True)
    rest = total - known.total_ms(model.widths)
    return CostModel(layers, model.widths, max(0.0, rest), model.gmacs, model.gbytes, measured=True)


def measured_ms(network: FCN, spec: ModelSpec, target: Target) -> tuple[dict[str, float] | None, float]:
    """Time of a network in INT8 as it would be built, for one frame.

    Returns:
        Milliseconds by convolution, None where nothing can be measured here; and of the whole network.

    Raises:
        BackendError: The runtime to measure with fails.
    """
    model, placement = _prepared(network, spec, target)
    costs = layer_costs(model, placement.layers, target, size=_size(spec), frame=_frame(spec))
    names = {node.output[0]: node.name for node in model.graph.node}
    if not any(cost.source == "measured" for cost in costs.layers.values()):
        return None, costs.total_ms()
    return {names[layer]: cost.ms["int8"] for layer, cost in costs.layers.items()}, costs.total_ms()


def measured_speedup(original: FCN, narrow: FCN, spec: ModelSpec, target: Target) -> float:
    """Time of one network over that of another, in INT8 as they would be built.

    They run in turns, so that what else the machine does meets both.

    Raises:
        BackendError: The runtime to measure with fails.
    """
    frame = _frame(spec)
    with ExitStack() as stack:
        timers = []
        for network in (original, narrow):
            quantized = timed_graph(*_prepared(network, spec, target), target.form)
            timers.append(stack.enter_context(layer_timer(quantized, target, "int8")))
        for _ in range(_RUNS):
            for timer in timers:
                timer.run(frame)
        before, after = (sum(layer.ms for layer in timer.times()) for timer in timers)
    return before / after


def _prepared(network: FCN, spec: ModelSpec, target: Target) -> tuple[onnx.ModelProto, Placement]:
    """The optimized graph that a build for the target quantizes, and what of it can be quantized."""
    converted = to_onnx(network, _size(spec), dynamic=False, opset=_OPSET)
    model, _ = optimize(attach(converted, spec), verify=False)
    if target.form != "tensorrt":
        model, _ = optimize(model, passes=WHOLE_FRAMES, verify=False)
    return model, place(import_graph(model), logits_name(model), lambda _tensor, _node: None, "int8", form=target.form)


def _frame(spec: ModelSpec) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (1, *_size(spec), 3), np.uint8)


def _size(spec: ModelSpec) -> tuple[int, int]:
    height, width = spec.frame.height, spec.frame.width
    if height is None or width is None:
        raise UsageError("slimming needs a frame size", fix="give the size as HEIGHTxWIDTH")
    return height, width
