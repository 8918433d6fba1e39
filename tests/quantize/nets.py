"""Tiny networks with everything that the quantizer has to look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnx.reference
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from fcnopt.spec import ClassSpec, FrameSpec, ModelSpec

SIZE = (24, 32)
CLASSES = 4


class Net:
    """Collects nodes and initializers."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def const(self, name: str, values: NDArray) -> str:
        self.constants.append(numpy_helper.from_array(values, name))
        return name

    def node(self, op: str, inputs: Sequence[str], output: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(op, list(inputs), [output], name=f"node_{output}", **attributes))
        return output

    def conv(
        self,
        x: str,
        name: str,
        channels: tuple[int, int],
        kernel: int = 3,
        *,
        group: int = 1,
        bias: bool = True,
        gain: float = 1.0,
    ) -> str:
        fan = channels[0] // group * kernel * kernel
        weight = self.rng.normal(0, gain * np.sqrt(2 / fan), (channels[1], channels[0] // group, kernel, kernel))
        inputs = [x, self.const(f"{name}.weight", weight.astype(np.float32))]
        if bias:
            inputs.append(self.const(f"{name}.bias", self.rng.normal(0, 0.1, channels[1]).astype(np.float32)))
        pad = [kernel // 2] * 4
        return self.node("Conv", inputs, name, kernel_shape=[kernel, kernel], pads=pad, group=group)

    def upscore(self, x: str, name: str) -> str:
        weight = self.rng.normal(0, 0.2, (CLASSES, CLASSES, 4, 4)).astype(np.float32)
        inputs = [x, self.const(f"{name}.weight", weight)]
        return self.node("ConvTranspose", inputs, name, kernel_shape=[4, 4], strides=[2, 2], pads=[1] * 4)

    def relu(self, x: str) -> str:
        return self.node("Relu", [x], f"{x}_relu")

    def pool(self, x: str) -> str:
        return self.node("MaxPool", [x], f"{x}_pool", kernel_shape=[2, 2], strides=[2, 2])

    def frames(self) -> str:
        """Frames to a normalized [N, 3, H, W]."""
        x = self.node("Cast", ["frames"], "float", to=TensorProto.FLOAT)
        x = self.node("Transpose", [x], "planes", perm=[0, 3, 1, 2])
        mean = self.const("mean", np.array([104.0, 117.0, 124.0], np.float32).reshape(1, 3, 1, 1))
        scale = self.const("scale", np.array([0.0171, 0.0175, 0.0174], np.float32).reshape(1, 3, 1, 1))
        return self.node("Mul", [self.node("Sub", [x, mean], "centred"), scale], "normal")

    def labels(self, logits: str) -> None:
        index = self.node("ArgMax", [logits], "index", axis=1, keepdims=0)
        self.node("Cast", [index], "labels", to=TensorProto.UINT8)

    def model(self, outputs: Sequence[tuple[str, int, Sequence[int | str]]] = (), opset: int = 20) -> onnx.ModelProto:
        height, width = SIZE
        given = [helper.make_tensor_value_info("frames", TensorProto.UINT8, [1, height, width, 3])]
        results = list(outputs) or [("labels", TensorProto.UINT8, [1, height, width])]
        infos = [helper.make_tensor_value_info(*entry) for entry in results]
        graph = helper.make_graph(self.nodes, "tiny", given, infos, self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
        onnx.checker.check_model(model, full_check=True)
        return model


@dataclass(frozen=True)
class Options:
    group: int = 1
    bias: bool = True
    opset: int = 20
    gain: float = 1.0
    logits_too: bool = False


def fcn(rng: np.random.Generator, options: Options | None = None) -> onnx.ModelProto:
    """conv1 3->16, conv2 16->32, pool, conv3 32->48 (grouped), scores of conv3 and of the pool, added and upsampled."""
    options = options or Options()
    net = Net(rng)
    x = net.relu(net.conv(net.frames(), "conv1", (3, 16), bias=options.bias))
    x = net.relu(net.conv(x, "conv2", (16, 32), bias=options.bias, gain=options.gain))
    pool = net.pool(x)
    deep = net.relu(net.conv(pool, "conv3", (32, 48), group=options.group, bias=options.bias, gain=1 / options.gain))
    score = net.conv(deep, "score", (48, CLASSES), 1)
    skip = net.conv(pool, "score_pool", (32, CLASSES), 1, gain=1 / options.gain)
    logits = net.upscore(net.node("Add", [score, skip], "fused"), "logits")
    net.labels(logits)
    height, width = SIZE
    outputs = [("labels", TensorProto.UINT8, [1, height, width])]
    if options.logits_too:
        outputs.append(("logits", TensorProto.FLOAT, [1, CLASSES, height, width]))
    return net.model(outputs, options.opset)


def pooled(rng: np.random.Generator, group: int = 1, bias: bool = True) -> onnx.ModelProto:
    """conv1 3->16, conv2 16->32, pool, conv3 32->48 (grouped), scores: nothing but conv3 reads the pool."""
    net = Net(rng)
    x = net.relu(net.conv(net.frames(), "conv1", (3, 16), bias=bias))
    x = net.pool(net.relu(net.conv(x, "conv2", (16, 32), bias=bias)))
    x = net.relu(net.conv(x, "conv3", (32, 48), group=group, bias=bias))
    net.labels(net.upscore(net.conv(x, "score", (48, CLASSES), 1), "logits"))
    return net.model()


def residual(rng: np.random.Generator, gain: float) -> onnx.ModelProto:
    """A skip branch, which nothing can rescale, whose tensors are `gain` times as large as usual."""
    net = Net(rng)
    x = net.relu(net.conv(net.frames(), "stem", (3, 16), gain=gain, bias=False))
    y = net.conv(net.relu(net.conv(x, "a", (16, 16), bias=False)), "b", (16, 16), bias=False)
    z = net.relu(net.node("Add", [y, x], "sum"))
    net.labels(net.conv(net.relu(net.conv(z, "c", (16, 16), gain=1 / gain)), "score", (16, CLASSES), 1))
    return net.model()


def spec() -> ModelSpec:
    return ModelSpec(FrameSpec(*SIZE), ClassSpec.of_count(CLASSES))


def images(rng: np.random.Generator, count: int) -> list[NDArray[np.uint8]]:
    """uint8 [1, H, W, 3] frames with structure: blurred noise of changing brightness."""
    found = []
    for index in range(count):
        noise = rng.integers(0, 256, (*SIZE, 3)).astype(np.uint8)
        found.append(cv2.convertScaleAbs(cv2.GaussianBlur(noise, (5, 5), 0), alpha=0.6 + 0.1 * (index % 8))[None])
    return found


def write_images(rng: np.random.Generator, folder: Path, count: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for index, image in enumerate(images(rng, count)):
        cv2.imwrite(str(folder / f"{index:03d}.png"), image[0])
    return folder


def run(model: onnx.ModelProto, frame: NDArray, names: Sequence[str] | None = None) -> list[NDArray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(names, {session.get_inputs()[0].name: frame})


def exact(model: onnx.ModelProto, frame: NDArray, output: str = "labels") -> NDArray:
    """An output by ONNX's reference implementation, which computes in half types where the graph says so.

    ONNX Runtime's CPU kernels compute in float32 and would hide an overflow.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        return onnx.reference.ReferenceEvaluator(model).run([output], {"frames": frame})[0]


def ops(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def producer(model: onnx.ModelProto, tensor: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if tensor in node.output)


def readers(model: onnx.ModelProto, tensor: str) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if tensor in node.input]
