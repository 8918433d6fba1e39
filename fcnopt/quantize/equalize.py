"""Cross-layer equalization: channels of a tensor brought nearer to one size, exactly.

A quantized tensor has one scale, so a channel whose values stay far below the largest channel's has only a few levels.
ReLU and max-pooling treat every channel alone and are positively homogeneous, so a factor a channel moves from the
weights that write it to the weights that read it (Nagel et al., "Data-Free Quantization Through Weight Equalization
and Bias Correction", ICCV 2019):

    conv(x; W, b) -> ReLU -> conv(.; V, c)
    equals   conv(x; W[o] / s[o], b[o] / s[o]) -> ReLU -> conv(.; V[:, o] s[o], c)

The reading weights have one scale an output channel, which the factors make uneven in turn; `balance` weighs the two.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from fcnopt.errors import CalibrationError
from fcnopt.graph.io import export_graph, import_graph
from fcnopt.quantize.balance import Channels, balanced
from fcnopt.quantize.stretch import Stretch, stretch_of

if TYPE_CHECKING:
    import onnx

_CHANNELWISE = frozenset({"AveragePool", "Dropout", "GlobalAveragePool", "Identity", "LeakyRelu", "MaxPool", "Relu"})


@dataclass(frozen=True)
class Equalized:
    """A tensor whose channels were divided by factors.

    Attributes:
        node: The weighted node that writes it.
        tensor: The tensor that was measured.
        factors: [channels], their geometric mean is 1.
    """

    node: str
    tensor: str
    factors: tuple[float, ...]


def equalize(
    model: onnx.ModelProto, channels: Mapping[str, Channels], layers: Collection[str]
) -> tuple[onnx.ModelProto, tuple[Equalized, ...]]:
    """Equalize every measured tensor that only convolutions read.

    Args:
        model: FP32, BatchNormalization folded; unchanged afterwards.
        channels: What was measured, by tensor. Others are left.
        layers: First outputs of the nodes that will be quantized: their noise is what counts.

    Returns:
        The model, with the same results up to float32 rounding, and what was divided.
    """
    graph = import_graph(model)
    factors = {}
    for stretch, tensor in _stretches(graph, channels):
        quantized = [node for node in stretch.readers if node.outputs[0].name in layers]
        factors[tensor] = balanced(channels[tensor], [part for node in quantized for part in _groups(node)])
    return apply(model, factors)


def apply(
    model: onnx.ModelProto, factors: Mapping[str, NDArray[np.float32]]
) -> tuple[onnx.ModelProto, tuple[Equalized, ...]]:
    """Divide the channels of tensors by known factors; see `equalize`.

    Raises:
        CalibrationError: A tensor has another number of channels than of factors.
    """
    graph = import_graph(model)
    done: list[Equalized] = []
    for stretch, tensor in _stretches(graph, factors):
        node, values = stretch.source, factors[tensor]
        if len(values) != node.inputs[1].shape[0]:
            raise CalibrationError(
                f"tensor {tensor!r} has {node.inputs[1].shape[0]} channels, and {len(values)} factors for them",
                fix="delete the range file to calibrate again",
            )
        _move(stretch, values)
        done.append(Equalized(node.name or node.outputs[0].name, tensor, tuple(map(float, values))))
    return (export_graph(graph, like=model) if done else model), tuple(done)


def _stretches(graph: gs.Graph, measured: Collection[str]) -> list[tuple[Stretch, str]]:
    """What can be equalized, each with the name of the tensor in it that was measured."""
    protected = {tensor.name for tensor in graph.outputs}
    found = []
    for node in graph.nodes:
        stretch = stretch_of(node, protected, _CHANNELWISE) if node.op == "Conv" else None
        if stretch is None or any(reader.op not in ("Conv", "ConvTranspose") for reader in stretch.readers):
            continue
        name = next((tensor.name for tensor in stretch.tensors if tensor.name in measured), None)
        if name is not None:
            found.append((stretch, name))
    return found


def _groups(reader: gs.Node) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """The parts of a convolution's weight, (out/group, in/group, taps), and the input channels that each reads."""
    weight = reader.inputs[1].values  # (out, in/group, kH, kW)
    groups, channels = int(reader.attrs.get("group", 1)), weight.shape[1]
    parts = weight.reshape(groups, -1, channels, int(np.prod(weight.shape[2:])))
    for group in range(groups):
        yield slice(group * channels, (group + 1) * channels), parts[group]


def _move(stretch: Stretch, factors: NDArray[np.float32]) -> None:
    weight, *rest = stretch.source.inputs[1:]
    weight.values = weight.values / factors.reshape(-1, *(1,) * (weight.values.ndim - 1))
    for bias in rest:
        if not bias.is_empty():
            bias.values = bias.values / factors
    for reader in stretch.readers:
        reader.inputs[1].values = _times(reader, factors)


def _times(reader: gs.Node, factors: NDArray[np.float32]) -> NDArray[np.float32]:
    """The reader's weight with its input channels multiplied.

    Conv weights are (out, in/group, ...) and the input channels of group g belong to the g-th part of `out`;
    ConvTranspose weights are (in, out/group, ...).
    """
    values: NDArray[np.float32] = reader.inputs[1].values
    spatial = (1,) * (values.ndim - 2)
    if reader.op == "ConvTranspose":
        return values * factors.reshape(-1, 1, *spatial)
    groups = int(reader.attrs.get("group", 1))
    parts = values.reshape(groups, -1, *values.shape[1:])  # (group, out/group, in/group, ...)
    return (parts * factors.reshape(groups, 1, -1, *spatial)).reshape(values.shape)
