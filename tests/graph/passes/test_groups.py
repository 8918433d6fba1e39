from __future__ import annotations

import numpy as np
import onnx
from onnx import helper

from fcnopt.graph import io
from fcnopt.graph.passes import FusionGroup, fusion_groups, optimize
from tests.graph.build import conv_weights, model, norm_constants


def conv(source: str, result: str) -> onnx.NodeProto:
    return helper.make_node("Conv", [source, "w"], [result], name=f"conv_{result}")


def norm(source: str, result: str) -> onnx.NodeProto:
    return helper.make_node(
        "BatchNormalization", [source, "gamma", "beta", "mean", "var"], [result], name=f"norm_{result}"
    )


def op(kind: str, inputs: list[str], result: str) -> onnx.NodeProto:
    return helper.make_node(kind, inputs, [result], name=f"{kind.lower()}_{result}")


def groups(nodes: list[onnx.NodeProto], *outputs: str) -> tuple[FusionGroup, ...]:
    rng = np.random.default_rng(0)
    shape = [1, 4, 5, 5]
    made = model(
        nodes,
        {"x": shape},
        dict.fromkeys(outputs, shape),
        conv_weights(rng, (4, 4, 1, 1)) | norm_constants(rng, 4) | {"one": np.ones(1, np.float32)},
    )
    return fusion_groups(io.import_graph(made))


def names(group: FusionGroup) -> list[str]:
    return [node.op for node in group.nodes]


def test_convolution_normalization_relu() -> None:
    (group,) = groups([conv("x", "c"), norm("c", "n"), op("Relu", ["n"], "y")], "y")
    assert names(group) == ["Conv", "BatchNormalization", "Relu"]
    assert (group.input, group.inside, group.output) == ("x", ("c", "n"), "y")
    assert group.residual is None


def test_a_reader_of_the_middle_ends_the_group() -> None:
    nodes = [conv("x", "c"), norm("c", "n"), op("Relu", ["n"], "y"), op("Abs", ["n"], "z")]
    (group,) = groups(nodes, "y", "z")
    assert names(group) == ["Conv", "BatchNormalization"]


def test_an_output_in_the_middle_ends_the_group() -> None:
    (group,) = groups([conv("x", "c"), op("Relu", ["c"], "y")], "y", "c")
    assert (names(group), group.inside) == (["Conv"], ())


def test_residual_comes_from_elsewhere() -> None:
    (group,) = groups([conv("x", "c"), op("Add", ["x", "c"], "s"), op("Relu", ["s"], "y")], "y")
    assert names(group) == ["Conv", "Add", "Relu"]
    assert (group.residual, group.inside) == ("x", ("c", "s"))


def test_sum_of_two_convolutions_belongs_to_the_later() -> None:
    nodes = [conv("x", "a"), conv("x", "b"), norm("b", "n"), op("Add", ["n", "a"], "s"), op("Relu", ["s"], "y")]
    first, second = groups(nodes, "y")
    assert (names(first), first.residual) == (["Conv"], None)
    assert (names(second), second.residual) == (["Conv", "BatchNormalization", "Add", "Relu"], "a")


def test_sum_belongs_to_the_earlier_if_the_later_is_read_elsewhere() -> None:
    nodes = [conv("x", "a"), conv("x", "b"), op("Add", ["a", "b"], "s"), op("Relu", ["s"], "y"), op("Abs", ["b"], "z")]
    first, second = groups(nodes, "y", "z")
    assert (names(first), first.residual) == (["Conv", "Add", "Relu"], "b")
    assert names(second) == ["Conv"]


def test_constant_summand_is_no_residual() -> None:
    (group,) = groups([conv("x", "c"), op("Add", ["c", "one"], "y")], "y")
    assert (names(group), group.residual) == (["Conv", "Add"], None)


def test_every_node_is_in_one_group_after_optimization() -> None:
    rng = np.random.default_rng(0)
    shape = [1, 4, 5, 5]
    nodes = [conv("x", "a"), norm("a", "b"), op("Relu", ["b"], "c"), op("Clip", ["c"], "y")]
    before = model(nodes, {"x": shape}, {"y": shape}, conv_weights(rng, (4, 4, 1, 1)) | norm_constants(rng, 4))
    after, _ = optimize(before)
    (group,) = fusion_groups(io.import_graph(after))
    assert names(group) == ["Conv", "Relu"]
