from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, numpy_helper

from fcnopt.errors import CalibrationError
from fcnopt.graph.taps import expose
from fcnopt.quantize.balance import Channels, observe_channels
from fcnopt.quantize.equalize import apply, equalize
from tests.quantize.nets import CLASSES, SIZE, Net, Options, fcn, images, run

SPREAD = np.geomspace(0.01, 4, 16)


def constants(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def uneven(net: Net, x: str, name: str, channels: tuple[int, int], **options: Any) -> str:
    """A convolution whose output channels differ in size by a factor of 400."""
    y = net.conv(x, name, channels, **options)
    for tensor in net.constants:
        if tensor.name in (f"{name}.weight", f"{name}.bias"):
            values = numpy_helper.to_array(tensor)
            gains = np.resize(SPREAD, channels[1]).reshape(-1, *(1,) * (values.ndim - 1))
            tensor.CopyFrom(numpy_helper.from_array((values * gains).astype(np.float32), tensor.name))
    return y


def finished(net: Net, x: str, channels: int, *outputs: str) -> onnx.ModelProto:
    net.labels(net.conv(x, "score", (channels, CLASSES), 1))
    wanted = [(name, TensorProto.FLOAT, ["n", "c", "h", "w"]) for name in outputs]
    return net.model([("labels", TensorProto.UINT8, [1, "high", "wide"]), *wanted])


def measured(model: onnx.ModelProto, frames: list[np.ndarray], *tensors: str) -> dict[str, Channels]:
    class Frames(list):
        count = len(frames)

    return observe_channels(model, tensors, Frames(frames), lambda _: None)


def assert_same_results(before: onnx.ModelProto, after: onnx.ModelProto, frame: np.ndarray, output: str) -> None:
    onnx.checker.check_model(after, full_check=True)
    want, have = (run(expose(model, [output]), frame, [output])[0] for model in (before, after))
    assert want.std() > 0
    assert np.abs(want - have).max() <= 1e-5 * np.abs(want).max()


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 999),
    groups=st.tuples(st.sampled_from([1, 2, 4]), st.sampled_from([1, 2, 4])),
    bias=st.booleans(),
    pools=st.booleans(),
    dead=st.integers(0, 3),
    op=st.sampled_from(["Relu", "LeakyRelu", "AveragePool", "Identity"]),
)
def test_results_stay_within_a_hundred_thousandth(
    seed: int, groups: tuple[int, int], bias: bool, pools: bool, dead: int, op: str
) -> None:
    rng = np.random.default_rng(seed)
    net = Net(rng)
    x = net.relu(net.conv(net.frames(), "stem", (3, 16)))
    x = uneven(net, x, "a", (16, 32), group=groups[0], bias=bias)
    for tensor in net.constants:
        if tensor.name.startswith("a."):
            values = numpy_helper.to_array(tensor).copy()
            values[:dead] = 0
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    shape = {"kernel_shape": [3, 3], "pads": [1] * 4} if op == "AveragePool" else {}
    x = net.node(op, [x], "a_bent", **shape)
    x = net.pool(x) if pools else x
    x = net.relu(net.conv(x, "b", (32, 24), group=groups[1], bias=bias))
    model = finished(net, x, 24)
    frames = images(rng, 2)
    channels = measured(model, frames, "a_bent")
    result, done = equalize(model, channels, {"a", "b"})
    assert [(entry.node, entry.tensor) for entry in done] == [("node_a", "a_bent")]
    assert_same_results(model, result, frames[1], "score")
    before, after = channels["a_bent"], measured(result, frames, "a_bent")["a_bent"]
    np.testing.assert_allclose(after.reach, before.reach / done[0].factors, rtol=1e-4, atol=1e-6)
    assert (after.reach == 0).sum() >= dead
    alive = after.reach > 1e-3 * before.reach.max()
    assert np.ptp(np.log(after.reach[alive])) < 0.8 * np.ptp(np.log(before.reach[alive]))


def test_skip_branch_and_deconvolution_take_the_factors_along(rng: np.random.Generator) -> None:
    model = fcn(rng)
    frames = images(rng, 2)
    result, done = equalize(model, measured(model, frames, "conv1_relu", "conv2_relu_pool"), {"conv2", "conv3"})
    assert [entry.tensor for entry in done] == ["conv1_relu", "conv2_relu_pool"]
    before, after = constants(model), constants(result)
    factors = np.array(done[1].factors, np.float32)[:, None, None]
    np.testing.assert_allclose(after["score_pool.weight"], before["score_pool.weight"] * factors, rtol=1e-6)
    np.testing.assert_array_equal(after["score.weight"], before["score.weight"])
    assert_same_results(model, result, frames[1], "logits")


@pytest.mark.parametrize("group", [1, 2])
def test_deconvolution_that_reads_the_tensor_is_multiplied_by_input_channel(
    rng: np.random.Generator, group: int
) -> None:
    net = Net(rng)
    x = net.relu(uneven(net, net.relu(net.conv(net.frames(), "stem", (3, 16))), "a", (16, 32)))
    weight = rng.normal(0, 0.2, (32, 12 // group, 4, 4)).astype(np.float32)
    inputs = [net.pool(x), net.const("up.weight", weight)]
    up = net.node("ConvTranspose", inputs, "up", kernel_shape=[4, 4], strides=[2, 2], pads=[1] * 4, group=group)
    model = finished(net, net.node("Add", [up, net.relu(net.conv(x, "b", (32, 12)))], "sum"), 12)
    frames = images(rng, 2)
    result, done = equalize(model, measured(model, frames, "a_relu"), {"a", "b"})
    assert len(done) == 1
    factors = np.array(done[0].factors, np.float32).reshape(-1, 1, 1, 1)
    np.testing.assert_allclose(constants(result)["up.weight"], weight * factors, rtol=1e-6)
    assert_same_results(model, result, frames[1], "score")


@pytest.mark.parametrize("spoiler", ["concat", "add", "sigmoid", "clip", "output", "shared", "shared bias", "gemm"])
def test_tensor_that_cannot_be_divided_is_left(rng: np.random.Generator, spoiler: str) -> None:
    net = Net(rng)
    stem = net.relu(net.conv(net.frames(), "stem", (3, 16)))
    x = uneven(net, stem, "a", (16, 16))
    if spoiler == "clip":
        x = net.node("Clip", [x, net.const("low", np.float32(0)), net.const("high", np.float32(6))], "bent")
    else:
        x = net.node("Sigmoid" if spoiler == "sigmoid" else "Relu", [x], "bent")
    joined = net.node("Concat", [x, stem], "joined", axis=1) if spoiler == "concat" else x
    joined = net.node("Add", [x, stem], "joined") if spoiler == "add" else joined
    y = net.conv(joined, "b", (32 if spoiler == "concat" else 16, 16))
    if spoiler == "shared":
        y = net.node("Conv", [net.relu(y), "b.weight"], "again", kernel_shape=[3, 3], pads=[1] * 4)
    if spoiler == "shared bias":
        y = net.node("Add", [y, net.node("Reshape", ["a.bias", net.const("to", np.int64([1, 16, 1, 1]))], "row")], "z")
    if spoiler == "gemm":
        rows = net.node("Reshape", [x, net.const("rows", np.int64([-1, SIZE[1]]))], "rows_of_x")
        rows = net.node("Gemm", [rows, net.const("g", np.eye(SIZE[1], dtype=np.float32))], "product")
        back = net.node("Reshape", [rows, net.const("image", np.int64([1, 16, *SIZE]))], "image_of_x")
        y = net.node("Add", [y, back], "z")
    model = finished(net, net.relu(y), 16, *(["bent"] if spoiler == "output" else []))
    channels = measured(model, images(rng, 1), "bent")
    assert set(channels) == {"bent"}
    result, done = equalize(model, channels, {"a", "b"})
    assert done == ()
    assert result is model


def test_tensor_that_was_not_measured_is_left_and_the_original_untouched(rng: np.random.Generator) -> None:
    model = fcn(rng)
    before = model.SerializeToString()
    result, done = equalize(model, measured(model, images(rng, 1), "conv1_relu"), {"conv2", "conv3"})
    assert [entry.tensor for entry in done] == ["conv1_relu"]
    assert model.SerializeToString() == before != result.SerializeToString()


def test_factors_of_another_length_are_refused(rng: np.random.Generator) -> None:
    for count in (1, 15, 17):
        with pytest.raises(CalibrationError, match=f"'conv1_relu' has 16 channels, and {count} factors") as error:
            apply(fcn(rng, Options()), {"conv1_relu": np.ones(count, np.float32)})
        assert "delete the range file" in error.value.fix
