from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from fcnopt.errors import GraphError
from fcnopt.graph import io
from fcnopt.graph.compare import compare
from fcnopt.graph.passes import PASSES, GraphView, Pass, optimize
from fcnopt.graph.stats import stats_of
from fcnopt.spec import ClassSpec, FrameSpec, ModelSpec
from tests.graph.build import attribute, declined, model, node, ops, optimized

WIDTHS = (4, 6, 8)
CLASSES = 5


def fcn(*, size: tuple[int, int] | None, caffe: bool) -> onnx.ModelProto:
    """An FCN-8s in small, from uint8 frames to labels, BatchNormalization visible.

    Args:
        size: Height and width, None for dynamic ones with crops computed from the input's shape.
        caffe: Padding 100 before the first convolution and crops at offsets, else crops at the top left.
    """
    rng = np.random.default_rng(1)
    nodes: list[onnx.NodeProto] = []
    constants: dict[str, NDArray[Any]] = {}

    def const(name: str, values: NDArray[Any]) -> str:
        constants[name] = values
        return name

    def add(op: str, inputs: list[str], result: str, **attrs: Any) -> str:
        nodes.append(helper.make_node(op, inputs, [result], name=f"{op}_{result}", **attrs))
        return result

    def kernel(name: str, shape: tuple[int, ...]) -> str:
        return const(name, (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32))

    x = add("Transpose", [add("Cast", ["frames"], "float", to=TensorProto.FLOAT)], "nchw", perm=[0, 3, 1, 2])
    x = add("Gather", [x, const("rgb", np.array([2, 1, 0]))], "ordered", axis=1)
    x = add("Mul", [x, const("scale", np.array(1 / 255, np.float32))], "unit")
    x = add("Sub", [x, const("mean", np.array([0.48, 0.45, 0.4], np.float32).reshape(3, 1, 1))], "centred")
    x = add("Div", [x, const("std", np.array([0.22, 0.23, 0.24], np.float32).reshape(3, 1, 1))], "normal")
    if caffe:
        x = add("Pad", [x, const("hundred", np.array([0, 0, 20, 20] * 2))], "padded")
    skips, inner = [], 3
    for i, width in enumerate(WIDTHS):
        x = add("Conv", [x, kernel(f"w{i}", (width, inner, 3, 3))], f"c{i}", pads=[1] * 4)
        statistics = {"g": (1, 0.2), "b": (0, 0.2), "m": (0, 0.2), "v": (1, 0.0)}
        norm = [const(f"{k}{i}", rng.normal(*at, width).astype(np.float32)) for k, at in statistics.items()]
        x = add("BatchNormalization", [x, *norm], f"n{i}")
        x = add("MaxPool", [add("Relu", [x], f"r{i}")], f"p{i}", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1)
        x, inner = add("Dropout", [x], f"d{i}"), width
        skips.append(x)
    x = add("Conv", [x, kernel("s2", (CLASSES, inner, 1, 1)), const("sb2", np.ones(CLASSES, np.float32))], "score2")

    def crop(tensor: str, like: str, offset: int) -> str:
        for axis, letter in ((2, "h"), (3, "w")):
            length = add("Shape", [like], f"{tensor}.{letter}.len", start=axis, end=axis + 1)
            start = const(f"{tensor}.{letter}.start", np.array([offset]))
            end = add("Add", [length, start], f"{tensor}.{letter}.end")
            tensor = add(
                "Slice", [tensor, start, end, const(f"{tensor}.{letter}.axis", np.array([axis]))], f"{tensor}.{letter}"
            )
        return tensor

    for i in (1, 0):
        pads = [0] * 4 if caffe else [1] * 4
        x = add("ConvTranspose", [x, kernel(f"u{i}", (CLASSES, CLASSES, 4, 4))], f"up{i}", strides=[2, 2], pads=pads)
        score = add("Conv", [skips[i], kernel(f"s{i}", (CLASSES, WIDTHS[i], 1, 1))], f"score{i}")
        x = add("Add", [crop(x, score, 1 if caffe else 0), score], f"sum{i}")
    x = add("ConvTranspose", [x, kernel("up", (CLASSES, CLASSES, 4, 4))], "full", strides=[2, 2], pads=pads)
    like = add("Transpose", ["frames"], "frames.nchw", perm=[0, 3, 1, 2])
    x = crop(x, like, 21 if caffe else 0)
    x = add("ArgMax", [x], "index", axis=1, keepdims=0)
    add("Cast", [x], "labels", to=TensorProto.UINT8)
    height, width = size or ("H", "W")
    batch = 1 if size else "N"
    made = model(
        nodes,
        {"frames": [batch, height, width, 3]},
        {"labels": [batch, height, width]},
        constants,
        elem_type=TensorProto.UINT8,
        opset=20,
    )
    io.write_spec(made, ModelSpec(FrameSpec(*(size or (None, None))), ClassSpec.of_count(CLASSES)))
    return made


@pytest.mark.parametrize("size", [(48, 64), (45, 61)])
def test_static_network_with_same_padding(size: tuple[int, int]) -> None:
    before = fcn(size=size, caffe=False)
    made, reports = optimized(before, tolerance=5e-6)
    assert stats_of(made).ops == {
        "Add": 2,
        "ArgMax": 1,
        "Cast": 2,
        "Conv": 6,
        "ConvTranspose": 3,
        "MaxPool": 3,
        "Relu": 3,
        "Sub": 1,
        "Transpose": 1,
    }
    assert io.read_spec(made) == io.read_spec(before)
    assert "a shift does not pass the zero padding" in declined(reports)


def test_static_network_with_caffe_padding() -> None:
    before = fcn(size=(40, 56), caffe=True)
    made, _ = optimized(before, tolerance=5e-6)
    assert "Pad" not in ops(made)
    assert attribute(node_of_first_conv(made), "pads") == [21] * 4
    pushed = [n for n in made.graph.node if n.op_type == "Slice"]
    assert all(n.output[0] not in ("full.h", "full.h.w") for n in pushed), "crops stand at full size"
    assert (stats_of(made).macs or 0) < (stats_of(before).macs or 0)


def node_of_first_conv(made: onnx.ModelProto) -> onnx.NodeProto:
    return next(n for n in made.graph.node if n.op_type == "Conv")


@pytest.mark.parametrize("caffe", [False, True])
def test_dynamic_network_is_right_at_every_size(caffe: bool) -> None:
    before = fcn(size=None, caffe=caffe)
    made, reports = optimized(before, tolerance=5e-6)
    assert "BatchNormalization" not in ops(made)
    assert ops(made).count("Slice") == 3
    rng = np.random.default_rng(3)
    for shape in ((1, 33, 47, 3), (2, 64, 40, 3), (1, 71, 90, 3)):
        found = compare(before, made, [rng.integers(0, 256, shape).astype(np.uint8)])
        assert found.max_relative_error < 5e-6
        assert found.equal_labels == 1.0
    assert reports[0].before.macs is None


def test_reports_tell_before_and_after() -> None:
    before = fcn(size=(48, 64), caffe=False)
    steps: list[tuple[str, float]] = []
    made, reports = optimize(before, progress=lambda step, share: steps.append((step, share)))
    assert [report.name for report in reports[: len(PASSES)]] == [one.name for one in PASSES]
    assert reports[0].before == stats_of(before)
    assert reports[-1].after == stats_of(made)
    for one, two in pairwise(reports):
        assert one.after == two.before
    for report in reports:
        assert bool(report.changed) or (report.after == report.before and report.error == 0.0)
        assert report.error < 1e-5
    assert max(report.error for report in reports) > 0
    assert [share for _, share in steps] == sorted(share for _, share in steps)
    assert steps[-1] == ("optimize", 1.0)


def test_statistics_of_a_dynamic_graph_at_a_size() -> None:
    _, reports = optimize(fcn(size=None, caffe=False), size=(48, 64), verify=False)
    static = stats_of(fcn(size=(48, 64), caffe=False))
    assert reports[0].before.macs == static.macs


class BreakPass(Pass[gs.Node]):
    """Adds to the first bias: wrong on purpose."""

    name = "break"

    def __init__(self, off: float) -> None:
        self.off = off

    def match(self, view: GraphView, node: gs.Node) -> Iterator[gs.Node]:  # noqa: ARG002
        if node.op == "Conv" and len(node.inputs) > 2 and not node.inputs[2].name.startswith("broken"):
            yield node

    def check(self, view: GraphView, match: gs.Node) -> str:  # noqa: ARG002
        return ""

    def rewrite(self, view: GraphView, match: gs.Node) -> str:
        match.inputs[2] = view.constant("broken", match.inputs[2].values + np.float32(self.off))
        return "broke it"


class InvalidPass(BreakPass):
    """Makes a graph that the checker refuses."""

    name = "invalid"

    def rewrite(self, view: GraphView, match: gs.Node) -> str:  # noqa: ARG002
        match.inputs[2] = gs.Variable("broken", dtype=np.float32)
        return "broke it"


class TestVerification:
    def test_a_wrong_pass_is_named(self) -> None:
        with pytest.raises(GraphError, match=r"pass 'break': .*output 'logits' is .* off.*expected below 1e-05"):
            optimize(fcn(size=(48, 64), caffe=False), passes=(*PASSES, BreakPass(1e-3)), strict=True)

    def test_it_is_not_looked_for_without_verification(self) -> None:
        optimize(fcn(size=(48, 64), caffe=False), passes=(BreakPass(1e-3),), verify=False)

    def test_an_invalid_graph_is_named_even_without(self) -> None:
        with pytest.raises(GraphError, match=r"pass 'invalid': .*not valid ONNX"):
            optimize(fcn(size=(48, 64), caffe=False), passes=(InvalidPass(0),), verify=False, strict=True)


def control_flow() -> onnx.ModelProto:
    def branch(op: str) -> onnx.GraphProto:
        out = helper.make_tensor_value_info(f"o_{op}", TensorProto.FLOAT, [1, 3, 4, 4])
        return helper.make_graph([helper.make_node(op, ["r", "w"], [f"o_{op}"])], op, [], [out])

    graph = helper.make_graph(
        [
            helper.make_node("Identity", ["x"], ["i"]),
            helper.make_node("Relu", ["i"], ["r"]),
            helper.make_node("If", ["c"], ["y"], name="choose", then_branch=branch("Add"), else_branch=branch("Sub")),
        ],
        "flow",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 4, 4]),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3, 4, 4])],
        [numpy_helper.from_array(np.ones((1, 3, 1, 1), np.float32), "w")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(made, full_check=True)
    return made


def test_graph_with_control_flow_is_left_alone() -> None:
    before = control_flow()
    after, reports = optimize(before)
    assert after == before
    assert len(reports) == len(PASSES)
    assert "If 'choose' holds a subgraph" in declined(reports)


def test_upsampling_is_left_alone() -> None:
    before = model(
        [helper.make_node("Upsample", ["x", "s"], ["y"], mode="nearest")],
        {"x": [1, 2, 3, 3]},
        {"y": [1, 2, 6, 6]},
        {"s": np.array([1, 1, 2, 2], np.float32)},
        opset=9,
    )
    assert ops(optimized(before)[0]) == ["Upsample"]


def test_external_data_is_optimized_like_any(tmp_path: Any) -> None:
    before = fcn(size=(48, 64), caffe=False)
    path = io.save(before, tmp_path / "model.onnx", external_above=100)
    one, two = optimize(io.load(path))[0], optimize(before)[0]
    assert io.graph_hash(one) == io.graph_hash(two)
    assert io.weights_hash(one) == io.weights_hash(two)


def test_values_are_typed_for_those_who_come_after() -> None:
    made, _ = optimize(fcn(size=(48, 64), caffe=False))
    typed = {value.name for value in (*made.graph.value_info, *made.graph.output)}
    assert typed >= {name for n in made.graph.node for name in n.output}
    assert node(made, "ArgMax").input[0] in typed
