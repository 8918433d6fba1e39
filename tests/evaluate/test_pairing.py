from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from fcnopt.errors import UsageError
from fcnopt.evaluate.pairing import Layer, pair
from fcnopt.graph.passes import optimize
from tests.quantize import nets


def renamed(model: onnx.ModelProto, names: dict[str, str]) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for node in copy.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    return copy


def with_batch_norm(rng: np.random.Generator) -> onnx.ModelProto:
    """conv1 - bn1 - relu, then a score that has a BatchNormalization and nothing behind it but the upsampling."""
    net = nets.Net(rng)

    def norm(x: str, name: str, channels: int) -> str:
        constants = [net.const(f"{name}.{what}", rng.uniform(0.5, 1.5, channels).astype(np.float32)) for what in "gbmv"]
        return net.node("BatchNormalization", [x, *constants], name)

    x = net.relu(norm(net.conv(net.frames(), "conv1", (3, 16)), "bn1", 16))
    score = norm(net.conv(x, "score", (16, nets.CLASSES), 1), "bn2", nets.CLASSES)
    net.labels(net.node("Resize", [score, "", net.const("scales", np.ones(4, np.float32))], "logits"))
    return net.model()


def test_layers_are_matched_by_their_results_with_what_they_read(rng: np.random.Generator) -> None:
    model = nets.fcn(rng)
    found = pair(model, model, nets.SIZE)
    assert found.layers == (
        Layer("node_conv1", "Conv", "conv1_relu", "conv1_relu", 1, ()),
        Layer("node_conv2", "Conv", "conv2_relu", "conv2_relu", 1, ("conv1_relu",)),
        Layer("node_conv3", "Conv", "conv3_relu", "conv3_relu", 1, ("conv2_relu",)),
        Layer("node_score", "Conv", "score", "score", 1, ("conv3_relu",)),
        Layer("node_score_pool", "Conv", "fused", "fused", 1, ("score", "conv2_relu")),
        Layer("node_logits", "ConvTranspose", "logits", "logits", 1, ("fused",)),
    )
    assert (found.only_a, found.only_b, found.logits) == ((), (), "logits")


def test_renamed_layers_are_named_on_both_sides_and_not_guessed(rng: np.random.Generator) -> None:
    model = nets.fcn(rng)
    found = pair(model, renamed(model, {"conv2_relu": "other"}), nets.SIZE)
    assert [layer.a for layer in found.layers] == ["conv1_relu", "conv3_relu", "score", "fused", "logits"]
    assert [(entry.name, entry.reason) for entry in found.only_a] == [("node_conv2", "B has no tensor 'conv2_relu'")]
    assert [(entry.name, entry.reason) for entry in found.only_b] == [("node_conv2", "A has no tensor 'other'")]
    assert found.layers[1].inputs == ("conv1_relu",)  # through the layer that was not matched


def test_logits_are_matched_by_what_they_are(rng: np.random.Generator) -> None:
    model = nets.fcn(rng)
    found = pair(model, renamed(model, {"logits": "scores"}), nets.SIZE)
    assert (found.layers[-1].a, found.layers[-1].b, found.logits) == ("logits", "scores", "logits")
    assert (found.only_a, found.only_b) == ((), ())


def test_logits_behind_the_last_layer_have_their_own_row(rng: np.random.Generator) -> None:
    found = pair(with_batch_norm(rng), with_batch_norm(rng), nets.SIZE)
    assert [(layer.name, layer.op, layer.a) for layer in found.layers][-2:] == [
        ("node_score", "Conv", "bn2"),
        ("node_logits", "Resize", "logits"),
    ]


def test_a_name_from_before_a_folded_batch_norm_is_not_the_same_tensor(rng: np.random.Generator) -> None:
    """Folding bn2 leaves `score` or `bn2` as the convolution's result; the `score` of A is another tensor."""
    full = with_batch_norm(rng)
    folded, _ = optimize(full)
    assert "BatchNormalization" not in nets.ops(folded)
    found = pair(full, folded, nets.SIZE)
    assert found.layers[0].a == "bn1_relu"
    assert "score" not in [layer.a for layer in found.layers]
    swapped = renamed(full, {"bn2": "score", "score": "before"})  # B says score for what is bn2 in A
    back = pair(renamed(swapped, {"score": "x", "before": "score"}), swapped, nets.SIZE)
    assert "score" not in [layer.a for layer in back.layers]
    inside = pair(swapped, renamed(swapped, {"score": "y", "before": "score"}), nets.SIZE)
    (missing,) = inside.only_a
    assert missing.reason == "B computes 'score' together with what follows it"


def test_shapes_that_differ_are_said(rng: np.random.Generator) -> None:
    one = nets.fcn(rng)
    two = onnx.ModelProto()
    two.CopyFrom(one)
    node = nets.producer(two, "conv3")
    node.attribute.remove(next(entry for entry in node.attribute if entry.name == "pads"))
    node.attribute.append(helper.make_attribute("pads", [0, 0, 0, 0]))
    inputs = ["conv3_relu", "score.weight", "score.bias"]
    padded = helper.make_node("Conv", inputs, ["score"], pads=[1] * 4, kernel_shape=[1, 1])
    two.graph.node[list(two.graph.node).index(nets.producer(two, "score"))].CopyFrom(padded)
    found = pair(one, two, nets.SIZE)
    (missing,) = found.only_a
    assert missing.reason == "'conv3_relu' is [1, 48, 12, 16] in A and [1, 48, 10, 14] in B"


def test_nothing_in_common_is_refused_with_what_was_found(rng: np.random.Generator) -> None:
    model = nets.fcn(rng)
    outputs = [("label_scores", TensorProto.FLOAT, None), ("second", TensorProto.FLOAT, None)]
    other = renamed(model, {name: f"x_{name}" for node in model.graph.node for name in node.output})
    del other.graph.output[:]  # no labels, and no one tensor of scores
    other.graph.output.extend(helper.make_tensor_value_info(*entry) for entry in outputs)
    last = other.graph.node[-3].output[0]
    del other.graph.node[-2:]
    other.graph.node.extend(helper.make_node("Identity", [last], [name]) for name, *_ in outputs)
    with pytest.raises(UsageError, match=r"no layer's result in common: conv1_relu, .* in A, x_conv1_relu, .* in B"):
        pair(model, other, nets.SIZE)
