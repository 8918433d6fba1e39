"""Cross-layer equalization: channels of a tensor brought nearer to one size, exactly.

A quantized tensor has one scale, so a channel whose values stay far below the largest channel's has only a few levels.
ReLU and max-pooling treat every channel alone and are positively homogeneous, so a factor a channel moves from the
weights that write it to the weights that read it (Nagel et al., "Data-Free Quantization Through Weight Equalization
and Bias Correction", ICCV 2019):

    conv(x; W, b) -> ReLU -> conv(.; V, c)
    equals   conv(x; W[o] / s[o], b[o] / s[o]) -> ReLU -> conv(.; V[:, o] s[o], c)

The reading weights have one scale an output channel, which the factors make uneven in turn. The balance struck is that
of SmoothQuant (Xiao et al., ICML 2023) at strength 1/2: s = sqrt(reach of the channel), measured on calibration frames.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from fcnopt.errors import CalibrationError
from fcnopt.graph.io import export_graph, import_graph
from fcnopt.quantize.frames import CalibrationFrames
from fcnopt.quantize.sessions import Session
from fcnopt.quantize.stretch import Stretch, stretch_of

if TYPE_CHECKING:
    import onnx

_CHANNELWISE = frozenset({"AveragePool", "Dropout", "GlobalAveragePool", "Identity", "LeakyRelu", "MaxPool", "Relu"})
STRENGTH = 0.5
# A channel that is nearly dead on calibration frames may wake up on others: no factor goes beyond this.
_LARGEST = 32.0


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


def channel_reach(
    model: onnx.ModelProto, tensors: Sequence[str], frames: CalibrationFrames, progress: Callable[[float], None]
) -> dict[str, NDArray[np.float32]]:
    """How far every channel reaches: its largest magnitude in a frame, in the mean over frames.

    Args:
        model: FP32.
        tensors: Names of float32 tensors with the channels on axis 1; those of less than two axes are passed over.
        frames: Calibration frames.
        progress: Called with the fraction done.

    Returns:
        [channels], by tensor.
    """
    total: dict[str, NDArray[np.float32]] = {}
    with Session(model, tuple(tensors)) as session:
        for count, frame in enumerate(frames, start=1):
            for name, values in session.stream(frame):
                if values.ndim < 2:
                    continue
                reach = np.maximum(values.max(axis=_others(values)), -values.min(axis=_others(values)))
                total[name] = total[name] + reach if name in total else reach
            progress(count / frames.count)
    return {name: values / np.float32(frames.count) for name, values in total.items()}


def equalize(
    model: onnx.ModelProto, reach: Mapping[str, NDArray[np.float32]], strength: float = STRENGTH
) -> tuple[onnx.ModelProto, tuple[Equalized, ...]]:
    """Equalize every measured tensor that only convolutions read.

    Args:
        model: FP32, BatchNormalization folded; unchanged afterwards.
        reach: Largest magnitude of every channel, [channels], by name of the tensor. Others are left.
        strength: 0 leaves the channels as they are, 1 makes them reach equally far.

    Returns:
        The model, with the same results up to float32 rounding, and what was divided.
    """
    factors = {name: factors_for(values, strength) for name, values in reach.items()}
    return apply(model, factors)


def apply(
    model: onnx.ModelProto, factors: Mapping[str, NDArray[np.float32]]
) -> tuple[onnx.ModelProto, tuple[Equalized, ...]]:
    """Divide the channels of tensors by known factors; see `equalize`.

    Raises:
        CalibrationError: A tensor has another number of channels than of factors.
    """
    graph = import_graph(model)
    protected = {tensor.name for tensor in graph.outputs}
    done: list[Equalized] = []
    for node in graph.nodes:
        stretch = stretch_of(node, protected, _CHANNELWISE) if node.op == "Conv" else None
        measured = [t.name for t in stretch.tensors if t.name in factors] if stretch is not None else []
        if stretch is None or not measured or any(r.op not in ("Conv", "ConvTranspose") for r in stretch.readers):
            continue
        values = factors[measured[0]]
        if len(values) != node.inputs[1].shape[0]:
            raise CalibrationError(
                f"tensor {measured[0]!r} has {node.inputs[1].shape[0]} channels, and {len(values)} factors for them",
                fix="delete the range file to calibrate again",
            )
        _move(stretch, values)
        done.append(Equalized(node.name or node.outputs[0].name, measured[0], tuple(map(float, values))))
    return (export_graph(graph, like=model) if done else model), tuple(done)


def factors_for(reach: NDArray[np.float32], strength: float) -> NDArray[np.float32]:
    """The factors of one tensor's channels, [channels], positive, with geometric mean 1; see `equalize`."""
    alive = reach[reach > 0].astype(np.float64)
    if not alive.size or not np.isfinite(reach).all():  # the frame and tensor to blame are named by `ranges.observe`
        return np.ones(reach.shape, np.float32)
    middle = np.exp(np.log(alive).mean())
    bounded = np.clip(np.where(reach > 0, reach / middle, 1.0) ** strength, 1 / _LARGEST, _LARGEST)
    return np.asarray(bounded / np.exp(np.log(bounded).mean()), np.float32)


def _others(values: NDArray[np.float32]) -> tuple[int, ...]:
    return tuple(axis for axis in range(values.ndim) if axis != 1)


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
