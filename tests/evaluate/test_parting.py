from __future__ import annotations

import json
import math
import tracemalloc
from collections.abc import Callable, Iterator

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fcnopt.errors import GraphError, MediaError
from fcnopt.evaluate.pairing import Layer, Pairing, pair
from fcnopt.evaluate.parting import Frames, Network, part
from fcnopt.evaluate.parting_result import SCHEMA_VERSION, Comparison
from fcnopt.quantize.casts import to_half
from tests.quantize import nets


def source(seed: int, count: int) -> Callable[[], Iterator[Frames]]:
    """The same frames each time, made as they are asked for."""

    def frames() -> Iterator[Frames]:
        rng = np.random.default_rng(seed)
        for _ in range(count):
            frame = nets.images(rng, 1)[0]
            yield frame, frame

    return frames


def compared(a: onnx.ModelProto, b: onnx.ModelProto, *, alone: bool = False, count: int = 3) -> Comparison:
    pairing = pair(a, b, nets.SIZE)
    return part(Network("a", a), Network("b", b), pairing, source(1, count), clip="noise", alone=alone)


def changed(
    model: onnx.ModelProto, constant: str, change: Callable[[np.ndarray], np.ndarray]
) -> onnx.ModelProto:  # fmt: skip
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    (tensor,) = [entry for entry in copy.graph.initializer if entry.name == constant]
    tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)).astype(np.float32), constant))
    return copy


def coarse(weight: np.ndarray) -> np.ndarray:
    """Weights on 7 levels."""
    step = np.abs(weight).max() / 3
    return np.round(weight / step) * step


def test_a_network_does_not_part_from_itself(rng: np.random.Generator) -> None:
    model = nets.fcn(rng)
    found = compared(model, model, alone=True)
    assert (found.equal_labels, found.frames, found.size, found.worst()) == (100.0, 3, nets.SIZE, ())
    assert len(found.layers) == 6
    for layer in found.layers:
        assert (layer.result.sqnr_db, layer.result.max_abs) == (math.inf, 0.0)
        assert layer.alone is not None
        assert layer.alone.sqnr_db == math.inf


def test_figures_are_those_of_the_tensors(rng: np.random.Generator) -> None:
    a = nets.fcn(rng)
    b = changed(a, "conv2.weight", coarse)
    found = {layer.tensor: layer for layer in compared(a, b).layers}
    one, two = (
        np.stack([nets.exact(showing(model, "conv3_relu"), frame, "conv3_relu") for frame, _ in source(1, 3)()])
        for model in (a, b)
    )
    one, two = one.astype(np.float64), two.astype(np.float64)
    expected = 10 * math.log10((one**2).sum() / ((one - two) ** 2).sum())
    assert found["conv3_relu"].result.sqnr_db == pytest.approx(expected, abs=0.01)
    assert found["conv3_relu"].result.max_abs == pytest.approx(np.abs(one - two).max(), rel=1e-3)
    assert found["conv3_relu"].drop_db == pytest.approx(
        found["conv2_relu"].result.sqnr_db - found["conv3_relu"].result.sqnr_db
    )


@pytest.mark.parametrize("bad", ["conv1", "conv2", "conv3", "score_pool"])
def test_the_layer_that_loses_is_found_and_not_those_that_inherit(bad: str, rng: np.random.Generator) -> None:
    a = nets.fcn(rng)
    found = compared(a, changed(a, f"{bad}.weight", coarse), alone=True)
    assert [layer.name for layer in found.worst()] == [f"node_{bad}"]
    (culprit,) = found.worst()
    assert culprit.alone is not None
    assert culprit.alone.sqnr_db == pytest.approx(culprit.result.sqnr_db)
    inheriting = [layer for layer in found.layers if layer.result.sqnr_db != math.inf and layer != culprit]
    assert bad == "score_pool" or inheriting
    assert "logits" in {layer.tensor for layer in inheriting}
    assert found.equal_labels is not None
    assert 20 < found.equal_labels < 100


def test_without_alone_the_added_noise_names_the_layer(rng: np.random.Generator) -> None:
    a = nets.fcn(rng)
    found = compared(a, changed(a, "conv2.weight", coarse))
    layers = {layer.tensor: layer for layer in found.layers}
    assert not found.alone
    assert found.worst(1)[0].name == "node_conv2"
    assert layers["conv2_relu"].drop_db is None  # what it reads is exact
    assert layers["conv2_relu"].added_db == pytest.approx(layers["conv2_relu"].result.sqnr_db)
    after = layers["conv3_relu"]
    noise = after.result.noise - layers["conv2_relu"].result.noise
    expected = -10 * math.log10(noise) if noise > 0 else math.inf
    assert after.added_db == pytest.approx(expected)


def test_alone_in_half_precision_starts_from_true_inputs(rng: np.random.Generator) -> None:
    a = nets.fcn(rng)
    half, _ = to_half(a, {}, "fp16")
    found = compared(a, half, alone=True)
    for layer in found.layers:
        assert layer.alone is not None
        assert 55 < layer.alone.sqnr_db < 90, layer  # 11 bits; never float32's 140 dB
    assert found.layers[-1].result.sqnr_db < found.layers[-1].alone.sqnr_db  # type: ignore[union-attr]  # seen above


@pytest.mark.parametrize("factors", [np.float32(1 / 16), np.geomspace(0.1, 10, 32).astype(np.float32)])
def test_rescaled_tensors_are_compared_scaled_back(factors: np.ndarray, rng: np.random.Generator) -> None:
    """conv2's results divided, and conv3's weights multiplied, as exact rewrites do."""
    a = without_skip(rng)
    out = np.broadcast_to(factors, 32)
    b = changed(a, "conv2.weight", lambda weight: weight * out[:, None, None, None])
    b = changed(b, "conv2.bias", lambda bias: bias * out)
    b = changed(b, "conv3.weight", lambda weight: coarse(weight) / out[None, :, None, None])
    found = compared(a, b, alone=True)
    layers = {layer.tensor: layer for layer in found.layers}
    low, high = layers["conv2_relu"].result.factors or (0.0, 0.0)
    assert (low, high) == pytest.approx((factors.min(), factors.max()), rel=1e-4)
    assert layers["conv2_relu"].result.sqnr_db > 100
    assert [name for name, layer in layers.items() if layer.result.factors] == ["conv2_relu"]
    assert found.worst(1)[0].name == "node_conv3"
    alone = layers["conv3_relu"].alone
    assert alone is not None
    assert alone.sqnr_db == pytest.approx(layers["conv3_relu"].result.sqnr_db, abs=0.01)


def test_logits_are_never_scaled_back(rng: np.random.Generator) -> None:
    a = nets.fcn(rng)
    found = compared(a, changed(a, "logits.weight", lambda weight: weight / 4))
    assert found.layers[-1].result.factors is None
    assert found.layers[-1].result.sqnr_db == pytest.approx(-20 * math.log10(0.75), abs=0.01)
    assert found.equal_labels == 100.0


def test_an_overflow_is_broken_where_it_begins(rng: np.random.Generator) -> None:
    a = nets.fcn(rng)
    b = changed(a, "conv2.weight", lambda weight: weight * np.float32(1e30))
    b = changed(b, "conv3.weight", lambda weight: weight * np.float32(1e30))
    found = compared(a, b)
    layers = {layer.tensor: layer for layer in found.layers}
    assert layers["conv2_relu"].result.non_finite == 0
    assert layers["conv3_relu"].result.non_finite > 0
    assert layers["conv3_relu"].own_db == -math.inf
    assert found.worst(1)[0].tensor == "conv3_relu"
    assert layers["score"].own_db == math.inf  # it inherits


def test_labels_are_the_networks_own_or_those_of_the_logits(rng: np.random.Generator) -> None:
    a = nets.fcn(rng)
    b = changed(a, "score.weight", coarse)
    own = compared(a, b).equal_labels
    bare = onnx.ModelProto()
    bare.CopyFrom(b)
    del bare.graph.node[-2:]  # ArgMax and Cast
    del bare.graph.output[:]
    bare.graph.output.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 4, *nets.SIZE]))
    assert own is not None
    assert 20 < own < 100
    assert compared(a, bare).equal_labels == own


def test_memory_does_not_grow_with_frames(rng: np.random.Generator) -> None:
    a = nets.fcn(rng)
    b = changed(a, "conv2.weight", coarse)

    def peak(count: int) -> int:
        tracemalloc.start()
        compared(a, b, count=count)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(4)  # what is imported once
    kept = 20 * 32 * nets.SIZE[0] * nets.SIZE[1] * 4  # conv2's results of the frames between
    assert peak(24) < peak(4) + kept / 2


def test_it_is_json_with_a_version(rng: np.random.Generator) -> None:
    a = nets.fcn(rng)
    found = compared(a, changed(a, "conv2.weight", coarse), alone=True)
    data = json.loads(found.to_json())
    assert data["schema_version"] == SCHEMA_VERSION
    assert data["worst"] == ["node_conv2"]
    first = data["layers"][0]
    assert (first["tensor"], first["inputs"], first["result"]["state"], first["added_db"]) == (
        "conv1_relu",
        [],
        "exact",
        None,
    )
    assert data["layers"][1]["alone"]["sqnr_db"] == pytest.approx(found.layers[1].own_db)


def test_shapes_known_only_when_run_are_checked(rng: np.random.Generator) -> None:
    a, b = nets.fcn(rng), nets.fcn(np.random.default_rng(1))
    wrong = Pairing((Layer("node_conv1", "Conv", "conv1_relu", "conv2_relu", 1, ()),), (), (), None)
    with pytest.raises(GraphError, match=r"'conv1_relu' is \[1, 16, 24, 32\] in a and \[1, 32, 24, 32\] in b"):
        part(Network("a", a), Network("b", b), wrong, source(1, 1), clip="noise")


def test_no_frames_are_an_error(rng: np.random.Generator) -> None:
    a = nets.fcn(rng)
    with pytest.raises(MediaError, match="noise: no frame could be read"):
        compared(a, a, count=0)


def without_skip(rng: np.random.Generator) -> onnx.ModelProto:
    net = nets.Net(rng)
    x = net.relu(net.conv(net.frames(), "conv1", (3, 16)))
    x = net.relu(net.conv(x, "conv2", (16, 32)))
    x = net.relu(net.conv(net.pool(x), "conv3", (32, 48)))
    net.labels(net.upscore(net.conv(x, "score", (48, nets.CLASSES), 1), "logits"))
    return net.model()


def showing(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    return copy
