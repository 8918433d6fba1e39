"""Where quantization goes in a graph: which layers run in INT8, and at which tensors their inputs are quantized.

The rules are TensorRT's (what its fusion wants) and hold for CPU runtimes as well:

- Conv and Gemm with a constant weight are quantized. Not the first ones, which read the frame, nor those with fewer
  than 16 input channels a group: INT8 kernels gain nothing there. On a CPU they do where the frame comes as uint8
  (`graph.passes.frame_input`): such numbers need no quantization, so that only the weight is rounded. Not the score
  layers, whose results reach the logits with nothing but linear operations between: their error is the logits'
  error, and they cost next to nothing. Not ConvTranspose, whose INT8 form TensorRT runs in float with conversions
  around it.
- A tensor is quantized once and read by all. Weighted operations' outputs stay float, so nothing ever stands between
  Conv, BatchNormalization and ReLU.
- MaxPool commutes with quantization: what it reads is quantized, so the pool runs in INT8. Not where a score layer
  reads the pool's result: that is quantized then, for the other readers.
- A score layer reads the float tensor: on a skip branch nothing but its own few channels is left to average noise out.
  Not on ONNX Runtime: it computes a layer in INT8 only where all that reads it reads quantized values, and on its CPU
  the layer before a skip would take several times as long.
- Of an Add of two quantized tensors only the older one, the identity branch, is read quantized.
- Tensors that meet in a Concat share the scale of its result where all of them and the result are quantized. Where one
  stays float, a common scale would coarsen the others for nothing: each has its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from fcnopt.backends.targets import Form
from fcnopt.graph.passes import fusion_groups
from fcnopt.quantize.methods import Quantized
from fcnopt.quantize.scales import Unfit
from fcnopt.quantize.scorelayers import WEIGHTED, score_layers

MIN_CHANNELS = 16
KEPT_FLOAT = "kept float for accuracy"
FP8_MAX_TAPS = 32  # 5x5 runs in FP8, 6x6 in half (TensorRT-RTX 1.7, sm89 and sm120)
# What a runtime fuses into the weighted operation before it; it must see that operation's own result.
_EPILOGUE = frozenset({"BatchNormalization", "Relu", "Clip", "LeakyRelu", "PRelu", "Sigmoid", "HardSwish", "Elu"})


@dataclass(frozen=True)
class Declined:
    """A weighted node that stays float.

    Attributes:
        node: Its name.
        reason: Why.
    """

    node: str
    reason: str


@dataclass(frozen=True)
class Reader:
    """One input of one node; a node is known by its first output, as ONNX node names may be missing or repeated."""

    node: str
    index: int


@dataclass(frozen=True)
class Point:
    """A tensor that is quantized.

    Attributes:
        tensor: Its name.
        readers: Who reads the quantized values; others keep reading the float tensor.
        group: Name of the scale; points with the same one share it.
    """

    tensor: str
    readers: tuple[Reader, ...]
    group: str


@dataclass(frozen=True)
class Placement:
    """What to quantize.

    Attributes:
        layers: First outputs of the nodes that will run in INT8, in order.
        points: Their input tensors, in order.
        declined: The other weighted nodes, with reasons.
    """

    layers: tuple[str, ...]
    points: tuple[Point, ...]
    declined: tuple[Declined, ...]

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of the tensors that need a range."""
        return tuple(point.tensor for point in self.points)


def place(
    graph: gs.Graph,
    logits: str,
    unfit: Unfit | None = None,
    precision: Quantized = "int8",
    floats: AbstractSet[str] = frozenset(),
    *,
    form: Form = "tensorrt",
) -> Placement:
    """Decide what to quantize; the graph is left as it is.

    Args:
        graph: Optimized FP32 graph in topological order, BatchNormalization folded.
        logits: Name of the tensor whose largest channel is the label.
        unfit: Declines further layers, for what ranges say; called with the tensor that would be quantized.
        precision: FP8 has no kernels of more than 32 taps.
        floats: First outputs of layers that are to stay float.
        form: Whose rules: runtimes for CPUs multiply uint8 frames as they are, and ONNX Runtime wants every layer
            quantized right behind it.
    """
    scores = score_layers(graph, logits)
    first = _first_layers(graph)
    layers: list[gs.Node] = []
    declined: list[Declined] = []
    for node in graph.nodes:
        if node.op not in WEIGHTED:
            continue
        whole = form != "tensorrt" and precision == "int8" and reads_whole_numbers(node)
        reason = _reason(node, scores, first, whole=whole) or (_no_fp8_kernel(node) if precision == "fp8" else None)
        if reason is None and node.outputs[0].name in floats:
            reason = KEPT_FLOAT
        if reason is None and unfit is not None and not whole:
            reason = unfit(above_pools(node.inputs[0]).name, node)
        if reason is None:
            layers.append(node)
        else:
            declined.append(Declined(node.name or node.outputs[0].name, reason))
    return Placement(
        tuple(node.outputs[0].name for node in layers),
        _points(graph, layers, scores, form),
        tuple(declined),
    )


def reads_whole_numbers(node: gs.Node) -> bool:
    """Whether what a layer reads was uint8 just before: it holds no other numbers than 0 to 255."""
    writers = node.inputs[0].inputs
    return bool(writers) and writers[0].op == "Cast" and writers[0].inputs[0].dtype == np.uint8


def input_channels(node: gs.Node) -> int:
    """Channels of a Conv's group, or columns of a Gemm's input: Conv weights are (out, in/group, kH, kW)."""
    shape = node.inputs[1].shape
    return int(shape[1] if node.op == "Conv" or node.attrs.get("transB", 0) else shape[0])


def output_axis(node: gs.Node) -> int:
    """The axis of the weight that counts output channels."""
    return 0 if node.op == "Conv" or node.attrs.get("transB", 0) else 1


def _reason(node: gs.Node, scores: set[int], first: set[int], *, whole: bool) -> str | None:
    if node.op == "ConvTranspose":
        return "ConvTranspose: TensorRT runs quantized deconvolutions in float, with conversions around them"
    if node.op == "MatMul":
        return "MatMul: only Conv and Gemm are quantized"
    weight = node.inputs[1]
    if not isinstance(weight, gs.Constant) or weight.dtype != np.float32:
        return "its weight is not a float32 constant"
    if isinstance(node.inputs[0], gs.Constant) or node.inputs[0].is_empty():
        return "its input is a constant"
    if node.attrs.get("transA", 0):
        return "transA: its input is read by columns"
    if id(node) in first and not whole:
        return "first layer: it reads the frame, whose few channels leave INT8 nothing to gain"
    if id(node) in scores:
        return "score layer: nothing but linear operations between it and the logits"
    channels = input_channels(node)
    if channels < MIN_CHANNELS and not whole:
        return f"{channels} input channels a group; INT8 kernels want {MIN_CHANNELS}"
    return None


def _no_fp8_kernel(node: gs.Node) -> str | None:
    kernel = tuple(node.inputs[1].shape[2:])
    if math.prod(kernel) <= FP8_MAX_TAPS:
        return None
    return f"{'x'.join(map(str, kernel))} kernel: TensorRT computes FP8 with up to {FP8_MAX_TAPS} taps"


def _first_layers(graph: gs.Graph) -> set[int]:
    """Weighted nodes with no weighted node before them."""
    after: dict[int, bool] = {}  # by node: whether it, or something before it, is weighted
    first = set()
    for node in graph.nodes:
        before = any(after.get(id(producer), False) for tensor in node.inputs for producer in tensor.inputs)
        if node.op in WEIGHTED and not before:
            first.add(id(node))
        after[id(node)] = before or node.op in WEIGHTED
    return first


def _points(graph: gs.Graph, layers: list[gs.Node], scores: set[int], form: Form) -> tuple[Point, ...]:
    order = {id(node): index for index, node in enumerate(graph.nodes)}
    chosen: dict[str, gs.Tensor] = {}
    reading = layers
    if form == "onnxruntime":
        reading, scores = [*layers, *_scores_of_layers(graph, layers, scores)], set()
    for node in reading:
        if reads_whole_numbers(node):
            continue
        tensor = _anchor(node.inputs[0], scores)
        chosen.setdefault(tensor.name, tensor)
    groups = _groups(chosen)
    # what a runtime computes in one kernel is not split: (tensor inside a group, the group's node that reads it)
    fused = {
        (tensor, node.outputs[0].name)
        for group in fusion_groups(graph)
        for tensor, node in zip(group.inside, group.nodes[1:], strict=True)
    }
    points = []
    for name, tensor in chosen.items():
        readers = tuple(
            Reader(node.outputs[0].name, index)
            for node in _distinct(tensor.outputs)
            if (name, node.outputs[0].name) not in fused
            and id(node) not in scores
            and _reads_quantized(node, tensor, chosen, order)
            for index, value in enumerate(node.inputs)
            if value is tensor
        )
        points.append(Point(name, readers, groups[name]))
    return tuple(points)


def _scores_of_layers(graph: gs.Graph, layers: list[gs.Node], scores: set[int]) -> list[gs.Node]:
    """The score layers that read what a layer in `layers` writes, through activations and MaxPools."""
    known = {id(node) for node in layers}
    written = {group.nodes[-1].outputs[0].name for group in fusion_groups(graph) if id(group.nodes[0]) in known}
    return [node for node in graph.nodes if id(node) in scores and above_pools(node.inputs[0]).name in written]


def above_pools(tensor: gs.Tensor, stops: AbstractSet[str] = frozenset()) -> gs.Tensor:
    """What the MaxPools before `tensor`, if any, read; on the way up, the first tensor that is named in `stops`."""
    while tensor.name not in stops and tensor.inputs and tensor.inputs[0].op == "MaxPool":
        tensor = tensor.inputs[0].inputs[0]
    return tensor


def _anchor(tensor: gs.Tensor, scores: set[int]) -> gs.Tensor:
    """Where the input of a layer is quantized: above the MaxPools before it, but below those that a score reads."""
    while tensor.inputs and tensor.inputs[0].op == "MaxPool" and not any(id(node) in scores for node in tensor.outputs):
        tensor = tensor.inputs[0].inputs[0]
    return tensor


def _reads_quantized(reader: gs.Node, tensor: gs.Tensor, chosen: dict[str, gs.Tensor], order: dict[int, int]) -> bool:
    if reader.op in ("Shape", "Size"):
        return False
    producer = tensor.inputs[0] if tensor.inputs else None
    if producer is not None and producer.op in WEIGHTED | {"BatchNormalization"} and reader.op in _EPILOGUE:
        return False
    if reader.op not in ("Add", "Sum"):
        return True
    rivals = [value for value in reader.inputs if value.name in chosen and value.inputs]
    oldest = min(rivals, key=lambda value: order[id(value.inputs[0])], default=tensor)
    return oldest is tensor


def _groups(chosen: dict[str, gs.Tensor]) -> dict[str, str]:
    """The scale's name of every point: that of the last Concat of points alone that it flows into, if that is one."""
    group = {name: name for name in chosen}

    def root(name: str) -> str:
        while group[name] != name:
            name = group[name]
        return name

    for name, tensor in chosen.items():
        producer = tensor.inputs[0] if tensor.inputs else None
        if producer is None or producer.op != "Concat":
            continue
        sources = [above_pools(value).name for value in producer.inputs]
        if all(source in chosen for source in sources):
            for source in sources:
                group[root(source)] = root(name)
    return {name: root(name) for name in chosen}


def _distinct(nodes: list[gs.Node]) -> Iterator[gs.Node]:
    """A node that reads a tensor twice stands twice in the tensor's list."""
    seen: set[int] = set()
    for node in nodes:
        if id(node) not in seen:
            seen.add(id(node))
            yield node
