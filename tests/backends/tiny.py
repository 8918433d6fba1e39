"""A tiny segmentation network, as a torch module and as the ONNX file that an export of it would be.

Conv 3->16, ReLU, MaxPool, Conv 16->16, ReLU, ConvTranspose 16->classes: one of each kind that FCN-8 has.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from fcnopt.spec import ClassSpec, FrameSpec, ModelSpec, Normalization

CLASSES = 5
Quantized = Literal["", "int8", "uint8", "uint8-offset", "int8-offset", "int32-bias"]


def silent(_step: str, _fraction: float) -> None:
    """A progress callback that says nothing."""


def tiny_spec(
    height: int | None = 24, width: int | None = 32, outputs: tuple[str, ...] = ("labels",), color: str = "BGR"
) -> ModelSpec:
    frame = FrameSpec(height, width, color=color, normalization=Normalization())  # type: ignore[arg-type]
    return ModelSpec(frame, ClassSpec.of_count(CLASSES), outputs)  # type: ignore[arg-type]


def weights() -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(7)

    def normal(*shape: int) -> NDArray[np.float32]:
        return (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    return {
        "w1": normal(16, 3, 3, 3) * 2,
        "b1": normal(16, 1).ravel(),
        "w2": normal(16, 16, 3, 3) * 2,
        "b2": normal(16, 1).ravel(),
        "w3": normal(16, CLASSES, 4, 4) * 4,
    }


def tiny_module():
    """The network without pre- and post-processing."""
    import torch
    from torch import nn

    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(16, CLASSES, 4, 2, 1, bias=False),
    )
    w = weights()
    state = {"0.weight": w["w1"], "0.bias": w["b1"], "3.weight": w["w2"], "3.bias": w["b2"], "5.weight": w["w3"]}
    net.load_state_dict({k: torch.from_numpy(v) for k, v in state.items()})
    return net


@dataclass
class _Graph:
    nodes: list[onnx.NodeProto]
    constants: list[onnx.TensorProto]

    def node(self, op: str, inputs: list[str], output: str, name: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(op, inputs, [output], name, **attributes))
        return output

    def const(self, name: str, value: NDArray[np.generic] | float) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name


def tiny_onnx(path: Path, spec: ModelSpec, *, batch: int | None = 1, quantized: Quantized = "") -> Path:
    """Write the network with pre- and post-processing inside, as `spec` says; returns `path`."""
    g, w = _Graph([], []), weights()
    x = _preprocess(g, spec)
    x = g.node("Conv", [x, g.const("w1", w["w1"]), g.const("b1", w["b1"])], "c1", "conv1", pads=[1] * 4)
    x = g.node("Relu", [x], "r1", "relu1")
    x = _quantize(g, x, quantized)
    x = g.node("MaxPool", [x], "p1", "pool1", kernel_shape=[2, 2], strides=[2, 2])
    x = g.node("Conv", [x, _kernel(g, w["w2"], quantized), _bias(g, w["b2"], quantized)], "c2", "conv2", pads=[1] * 4)
    x = g.node("Relu", [x], "r2", "relu2")
    g.node("ConvTranspose", [x, g.const("w3", w["w3"])], "logits", "up", strides=[2, 2], pads=[1] * 4)
    _postprocess(g, spec)
    n, height, width = batch or "N", spec.frame.height or "H", spec.frame.width or "W"
    shapes = {
        "labels": (TensorProto.UINT8, [n, height, width]),
        "confidence": (TensorProto.FLOAT, [n, height, width]),
        "logits": (TensorProto.FLOAT, [n, CLASSES, height, width]),
    }
    graph = helper.make_graph(
        g.nodes,
        "tiny",
        [helper.make_tensor_value_info("frames", TensorProto.UINT8, [n, height, width, 3])],
        [helper.make_tensor_value_info(name, *shapes[name]) for name in spec.outputs],
        g.constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def _preprocess(g: _Graph, spec: ModelSpec) -> str:
    norm = spec.frame.normalization
    x = g.node("Cast", ["frames"], "f", "cast", to=TensorProto.FLOAT)
    x = g.node("Transpose", [x], "t", "transpose", perm=[0, 3, 1, 2])
    if spec.frame.color != norm.color:
        x = g.node("Gather", [x, g.const("flip", np.array([2, 1, 0]))], "g", "flip", axis=1)
    mean, std = (np.array(v, np.float32).reshape(1, 3, 1, 1) for v in (norm.mean, norm.std))
    x = g.node("Sub", [x, g.const("mean", mean / np.float32(norm.scale))], "s", "sub")
    return g.node("Mul", [x, g.const("factor", np.float32(norm.scale) / std)], "m", "mul")


def _postprocess(g: _Graph, spec: ModelSpec) -> None:
    g.node("ArgMax", ["logits"], "best", "argmax", axis=1, keepdims=0)
    g.node("Cast", ["best"], "labels", "to_labels", to=TensorProto.UINT8)
    if "confidence" in spec.outputs:
        g.node("Softmax", ["logits"], "softmax", "softmax", axis=1)
        g.node("ReduceMax", ["softmax", g.const("axis", np.array([1]))], "confidence", "confidence", keepdims=0)


def _quantize(g: _Graph, x: str, quantized: Quantized) -> str:
    if not quantized:
        return x
    unsigned, offset = quantized.startswith("uint8"), quantized.endswith("offset")
    zero = (np.uint8 if unsigned else np.int8)(3 if offset else 0)
    scale, zero_point = g.const("x_scale", np.float32(6 / (255 if unsigned else 127))), g.const("x_zero", zero)
    x = g.node("QuantizeLinear", [x, scale, zero_point], "x_q", "relu1_Q")
    return g.node("DequantizeLinear", [x, scale, zero_point], "x_dq", "relu1_DQ")


def _kernel(g: _Graph, kernel: NDArray[np.float32], quantized: Quantized) -> str:
    if not quantized:
        return g.const("w2", kernel)
    scale = (np.abs(kernel).reshape(16, -1).max(1) / 127).astype(np.float32)
    values = np.clip(np.round(kernel / scale[:, None, None, None]), -127, 127).astype(np.int8)
    inputs = [g.const("w2_q", values), g.const("w2_scale", scale), g.const("w2_zero", np.zeros(16, np.int8))]
    return g.node("DequantizeLinear", inputs, "w2", "conv2_weight_DQ", axis=0)


def _bias(g: _Graph, bias: NDArray[np.float32], quantized: Quantized) -> str:
    if quantized != "int32-bias":
        return g.const("b2", bias)
    scale = np.full(16, 1e-4, np.float32)
    inputs = [g.const("b2_q", np.round(bias / scale).astype(np.int32)), g.const("b2_scale", scale)]
    return g.node("DequantizeLinear", inputs, "b2", "conv2_bias_DQ", axis=0)
