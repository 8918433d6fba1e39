from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from fcnopt.graph.taps import expose
from fcnopt.quantize.casts import to_half
from fcnopt.quantize.rescale import rescale
from tests.quantize.nets import CLASSES, Net, Options, exact, fcn, images, run
from tests.quantize.test_casts import evidence_of


def hot_net(rng: np.random.Generator, **conv: object) -> Net:
    net = Net(rng)
    x = net.relu(net.conv(net.frames(), "a", (3, 16)))
    x = net.pool(net.relu(net.conv(x, "hot", (16, 32), gain=4e4, **conv)))
    x = net.relu(net.conv(x, "b", (32, 16), gain=1e-3))
    net.labels(net.conv(x, "score", (16, CLASSES), 1))
    return net


@pytest.mark.parametrize("conv", [{}, {"group": 2}, {"bias": False}])
def test_hot_stretch_is_divided_exactly(rng: np.random.Generator, conv: dict[str, object]) -> None:
    model = hot_net(rng, **conv).model([("labels", TensorProto.UINT8, [1, "h", "w"])])
    frames = images(rng, 3)
    ranges = evidence_of(model, frames, ("hot_relu",))
    assert ranges.tensors["hot_relu"].reach > 65504
    result, scaled, changed = rescale(model, ranges)
    onnx.checker.check_model(result, full_check=True)
    assert [entry.node for entry in changed] == ["node_hot"]
    factor = 2.0 ** -changed[0].exponent
    assert scaled.tensors["hot_relu"].reach < 65504 / 8 * 1.0001
    names = ["hot_relu", "hot_relu_pool", "score"]
    want = run(expose(model, names), frames[0], names)
    have = run(expose(result, names), frames[0], names)
    for before, after, times in zip(want, have, (factor, factor, 1.0), strict=True):
        np.testing.assert_array_equal(before * np.float32(times), after)
        assert before.any()
    for name in ("hot_relu", "hot_relu_pool"):
        assert scaled.tensors[name].maximum == ranges.tensors[name].maximum * factor
    kept = scaled.tensors["hot_relu"].intervals["mse"][127]
    assert kept[1] == ranges.tensors["hot_relu"].intervals["mse"][127][1] * factor


def test_float16_is_whole_afterwards(rng: np.random.Generator) -> None:
    model = hot_net(rng).model([("labels", TensorProto.UINT8, [1, "h", "w"])])
    frames = images(rng, 3)
    result, scaled, _ = rescale(model, evidence_of(model, frames))
    halved, report = to_half(result, scaled.tensors, "fp16")
    assert report.kept == ()
    assert np.mean(exact(halved, frames[0]) == run(model, frames[0])[0]) > 0.97


def test_cool_network_is_returned_as_it_is(rng: np.random.Generator) -> None:
    model = fcn(rng)
    ranges = evidence_of(model, images(rng, 2))
    result, scaled, changed = rescale(model, ranges)
    assert result is model
    assert scaled is ranges
    assert changed == ()


def test_skip_branches_are_followed(rng: np.random.Generator) -> None:
    model = fcn(rng, Options(gain=3e4))
    frames = images(rng, 2)
    ranges = evidence_of(model, frames)
    assert ranges.tensors["conv2_relu"].reach > 65504 / 4
    result, _, changed = rescale(model, ranges)
    assert [entry.node for entry in changed] == ["node_conv2"]
    want, have = (run(expose(m, ["logits"]), frames[0], ["logits"])[0] for m in (model, result))
    np.testing.assert_allclose(want, have, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("spoiler", ["output", "sigmoid", "shared"])
def test_stretch_that_is_not_homogeneous_or_not_alone_is_left(rng: np.random.Generator, spoiler: str) -> None:
    net = Net(rng)
    x = net.relu(net.conv(net.frames(), "a", (3, 16)))
    x = net.relu(net.conv(x, "hot", (16, 16), gain=1e5))
    if spoiler == "sigmoid":
        x = net.node("Sigmoid", [x], "squashed")
    y = net.relu(net.conv(x, "b", (16, 16), gain=1e-5))
    if spoiler == "shared":
        z = net.node("Conv", [y, "b.weight"], "again", kernel_shape=[3, 3], pads=[1] * 4)
        y = net.node("Add", [y, z], "sum")
    net.labels(net.conv(y, "score", (16, CLASSES), 1))
    outputs = [("labels", TensorProto.UINT8, [1, 24, 32])]
    if spoiler == "output":
        outputs.append(("hot_relu", TensorProto.FLOAT, [1, 16, 24, 32]))
    model = net.model(outputs)
    ranges = evidence_of(model, images(rng, 2))
    assert ranges.tensors["hot_relu"].reach > 65504
    result, _, changed = rescale(model, ranges)
    assert changed == ()
    assert result is model
