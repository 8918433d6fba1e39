"""Quantized graphs of random FCNs stay within the error that their scales imply.

With v the FP32 graph's value of a tensor, x the quantized graph's, and e >= |x - v|:

    Q/DQ        |Q(x) - v| <= step / 2 + e + distance of v from [lowest level, highest level], as clipping brings no
                two values farther apart
    Conv, Gemm  |x' - v'| <= e * |q| + |v| * |q - w|,  |q - w| <= half a step of the output channel
    the rest    ReLU, pooling, Concat and Add of errors are bounded by the same operation on the bounds
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from fcnopt.graph.io import import_graph
from fcnopt.graph.taps import expose, logits_name
from fcnopt.quantize.methods import METHODS
from fcnopt.quantize.placement import place
from fcnopt.quantize.qdq import grids, insert
from fcnopt.quantize.ranges import observe
from tests.quantize.nets import CLASSES, Net, images, run

Values = Mapping[str, NDArray[np.float32]]
_SLACK = 1e-4  # float32 sums, of the largest value of a tensor
_EXACT = ("Cast", "Transpose", "Sub", "Mul")  # before anything is quantized


@dataclass(frozen=True)
class Stage:
    """Layers of one size: convolutions, what joins them, and whether a pool and a skip score follow."""

    channels: int
    group: int
    bias: bool
    kernel: int
    joint: str
    pool: bool
    skip: bool


stages = st.lists(
    st.builds(
        Stage,
        channels=st.sampled_from([32, 48, 64]),
        group=st.sampled_from([1, 2]),
        bias=st.booleans(),
        kernel=st.sampled_from([1, 3]),
        joint=st.sampled_from(["", "Add", "Concat"]),
        pool=st.booleans(),
        skip=st.booleans(),
    ),
    min_size=1,
    max_size=3,
)


def network(rng: np.random.Generator, plan: list[Stage]) -> onnx.ModelProto:
    """An encoder of these stages with FCN-8's decoder: scores of stages upsampled and added."""
    net = Net(rng)
    x, width, level = net.relu(net.conv(net.frames(), "stem", (3, 32))), 32, 0
    scores: dict[int, list[str]] = {}
    for index, stage in enumerate(plan):
        layer = f"s{index}"
        options = {"group": stage.group, "bias": stage.bias}
        y = net.relu(net.conv(x, f"{layer}a", (width, stage.channels), stage.kernel, **options))
        if stage.joint:
            z = net.conv(y, f"{layer}b", (stage.channels, stage.channels), **options)
            z = z if stage.joint == "Add" else net.relu(z)
            attributes = {"axis": 1} if stage.joint == "Concat" else {}
            y = net.node(stage.joint, [y, z], f"{layer}_joint", **attributes)
        x, width = y, stage.channels * (2 if stage.joint == "Concat" else 1)
        if stage.pool:
            x, level = net.pool(x), level + 1
        if stage.skip and index < len(plan) - 1:
            scores.setdefault(level, []).append(net.conv(x, f"skip{index}", (width, CLASSES), 1))
    fused = net.conv(x, "score", (width, CLASSES), 1)
    for height in range(level, -1, -1):
        for name in scores.get(height, []):
            fused = net.node("Add", [fused, name], f"fused_{name}")
        if height:
            fused = net.upscore(fused, f"up{height}")
    net.labels(fused)
    return net.model()


def one(node: onnx.NodeProto, inputs: list[NDArray[np.float32]], opset: int) -> NDArray[np.float32]:
    """A node's result for other inputs."""
    names = [f"i{index}" for index in range(len(inputs))]
    copy = helper.make_node(node.op_type, names, ["o"])
    copy.attribute.extend(node.attribute)
    given_ = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, value.shape)
        for name, value in zip(names, inputs, strict=True)
    ]
    result = [helper.make_tensor_value_info("o", TensorProto.FLOAT, None)]
    graph = helper.make_graph([copy], "one", given_, result)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    return run_all(model, dict(zip(names, inputs, strict=True)))


def run_all(model: onnx.ModelProto, feed: Values) -> NDArray[np.float32]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, dict(feed))[0]


def steps_of(constants: Values, name: str) -> tuple[float, float, float]:
    """Step, lowest and highest value of a quantized activation."""
    scale, zero = float(constants[f"{name}_scale"]), constants[f"{name}_zero"]
    limits = np.iinfo(zero.dtype)
    return scale, (limits.min - int(zero)) * scale, (limits.max - int(zero)) * scale


def bounds(quantized: onnx.ModelProto, real: Values) -> dict[str, NDArray[np.float32]]:
    """A bound on the error of every float tensor of the graph, elementwise, from its scales and the FP32 values."""
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in quantized.graph.initializer}
    opset = next(entry.version for entry in quantized.opset_import if not entry.domain)
    found: dict[str, NDArray[np.float32]] = {}
    value = dict(real)  # by name, that of a dequantized tensor is the float tensor's
    halves: dict[str, NDArray[np.float32]] = {}
    for node in quantized.graph.node:
        output = node.output[0]
        if node.op_type == "DequantizeLinear" and node.input[0] in constants:
            scales = constants[node.input[1]].reshape(-1, 1, 1, 1)
            value[output] = constants[node.input[0]].astype(np.float32) * scales
            halves[output] = np.broadcast_to(scales / 2, value[output].shape).astype(np.float32)
        elif node.op_type == "QuantizeLinear":
            step, low, high = steps_of(constants, node.input[0])
            tensor = real[node.input[0]]
            beyond = np.maximum(np.maximum(tensor - high, low - tensor), 0)
            found[output] = step / 2 + found[node.input[0]] + beyond
            value[output] = tensor
        elif node.op_type == "DequantizeLinear":
            found[output], value[output] = found[node.input[0]], value[node.input[0]]
        elif node.op_type in ("Conv", "ConvTranspose"):
            data, weight = node.input[:2]
            size = np.abs(value[weight] if weight in value else constants[weight])
            found[output] = one(node, [found[data], size], opset)
            if weight in halves:
                found[output] = found[output] + one(node, [np.abs(value[data]), halves[weight]], opset)
        elif node.op_type in ("Relu", "MaxPool", "Add", "Concat"):
            found[output] = one(node, [found[name] for name in node.input], opset)
        elif node.op_type in _EXACT:
            found[output] = np.zeros_like(real[output], np.float32) if output in real else np.zeros(1, np.float32)
    return found


@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    seed=st.integers(0, 9999),
    plan=stages,
    form=st.sampled_from(["tensorrt", "openvino", "onnxruntime"]),
    rule=st.sampled_from(METHODS),
)
def test_error_of_every_tensor_is_within_what_the_scales_imply(
    seed: int, plan: list[Stage], form: str, rule: str
) -> None:
    rng = np.random.default_rng(seed)
    check(network(rng, plan), rng, form, rule)


@pytest.mark.parametrize("form", ["tensorrt", "openvino", "onnxruntime"])
def test_all_kinds_of_layers_at_once(rng: np.random.Generator, form: str) -> None:
    plan = [
        Stage(48, 2, True, 3, "Concat", pool=True, skip=True),
        Stage(32, 1, False, 1, "Add", pool=True, skip=True),
        Stage(64, 2, True, 3, "", pool=False, skip=False),
    ]
    model = network(rng, plan)
    assert {node.op_type for node in model.graph.node} >= {"Conv", "ConvTranspose", "MaxPool", "Add", "Concat"}
    quantized = check(model, rng, form, "percentile")
    assert sum(node.op_type == "QuantizeLinear" for node in quantized.graph.node) >= 4


def check(model: onnx.ModelProto, rng: np.random.Generator, form: str, rule: str) -> onnx.ModelProto:
    logits = logits_name(model)
    placement = place(import_graph(model), logits)
    frames = images(rng, 3)
    ranges = observe(model, frames[:2], tensors=placement.tensors, quantized=placement.tensors)
    found = grids(placement, ranges, dict.fromkeys(placement.tensors, rule), form)
    quantized = insert(model, placement, found, form)
    tensors = [n.output[0] for n in model.graph.node if n.op_type not in ("ArgMax", "Cast")]
    real = dict(zip(tensors, run(expose(model, tensors), frames[2], tensors), strict=True))
    behind = [f"{name}_dequantized" for name in placement.tensors]
    have = dict(
        zip(
            [*tensors, *behind],
            run(expose(quantized, [*tensors, *behind]), frames[2], [*tensors, *behind]),
            strict=True,
        )
    )
    limit = bounds(quantized, real)
    for name, values in have.items():
        want = real[name.removesuffix("_dequantized")]
        error = np.abs(values - want)
        assert (error <= limit[name] + _SLACK * np.abs(want).max()).all(), name
    assert set(placement.layers) <= set(have)
    # the bound says something: a tensor that is quantized first uses it to the full, and is not far behind
    first = placement.tensors[0]
    error = np.abs(have[f"{first}_dequantized"] - real[first])
    assert error.max() > 0.9 * float(limit[f"{first}_dequantized"].min())
    assert np.abs(have[logits] - real[logits]).max() > 0
    # each layer alone, on the very values that it got: no error of others to hide behind
    for name in placement.layers:
        alone(quantized, model, name, have)
    return quantized


def alone(quantized: onnx.ModelProto, model: onnx.ModelProto, layer: str, have: Values) -> None:
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in quantized.graph.initializer}
    before = next(node for node in model.graph.node if node.output[0] == layer)
    after = next(node for node in quantized.graph.node if node.output[0] == layer)
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    source = after.input[0]
    if source not in have:
        return
    x = have[source]
    opset = model.opset_import[0].version
    want = one(before, [x, *(weights[name] for name in before.input[1:])], opset)
    half = constants[f"{before.input[1]}_scale"].reshape(-1, 1, 1, 1) / 2
    limit = one(before, [np.abs(x), np.broadcast_to(half, weights[before.input[1]].shape).astype(np.float32)], opset)
    error = np.abs(have[layer] - want)
    assert (error <= limit + _SLACK * np.abs(want).max()).all(), layer
    assert error.max() > 0.02 * limit.max()
