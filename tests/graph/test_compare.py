from __future__ import annotations

import builtins
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from fcnopt.errors import BackendError, GraphError
from fcnopt.graph.compare import DYNAMIC_SIZES, compare, random_feeds
from tests.graph.build import model


def scaled(factor: float, *, dims: list[Any] | None = None, labels: bool = False) -> onnx.ModelProto:
    dims = dims or [1, 3, 4, 5]
    nodes = [helper.make_node("Mul", ["x", "c"], ["scores" if labels else "y"])]
    if labels:
        nodes.append(helper.make_node("ArgMax", ["scores"], ["y"], axis=1, keepdims=0))
    kind = TensorProto.INT64 if labels else TensorProto.FLOAT
    outputs = {"y": [dims[0], *dims[2:]] if labels else dims}
    return model(nodes, {"x": dims}, outputs, {"c": np.array(factor, np.float32)}, output_type=kind)


def test_equal_graphs_are_equal() -> None:
    found = compare(scaled(2), scaled(2))
    assert (found.max_relative_error, found.equal_labels, found.worst_output) == (0.0, 1.0, "y")


def test_error_is_relative_to_the_largest_value() -> None:
    found = compare(scaled(1), scaled(1.25))
    assert found.max_relative_error == pytest.approx(0.25)
    assert found.worst_output == "y"


def test_logits_behind_labels_are_compared() -> None:
    found = compare(scaled(1, labels=True), scaled(2, labels=True))
    assert found.worst_output == "logits"
    assert found.max_relative_error == pytest.approx(1.0)
    assert found.equal_labels == 1.0


def test_labels_that_differ_are_counted() -> None:
    found = compare(scaled(1, labels=True), scaled(-1, labels=True))
    assert found.equal_labels == 0.0


def test_given_frames_are_used() -> None:
    frames = [np.zeros((1, 3, 4, 5), np.float32)]
    assert compare(scaled(1), scaled(3), frames).max_relative_error == 0.0


def test_not_a_number_is_no_agreement() -> None:
    assert compare(scaled(1), scaled(float("nan"))).max_relative_error == float("inf")
    assert compare(scaled(float("nan")), scaled(float("nan"))).max_relative_error == 0.0


def test_dynamic_axes_take_two_sizes() -> None:
    made = scaled(1, dims=["N", 3, "H", "W"])
    shapes = [feeds["x"].shape for feeds in random_feeds(made, samples=2)]
    assert shapes == [(1, 3, *size) for size in DYNAMIC_SIZES]
    assert compare(made, made).max_relative_error == 0.0


def test_random_pixels_fill_the_range_and_repeat() -> None:
    made = model(
        [helper.make_node("Identity", ["x"], ["y"])],
        {"x": [1, 40, 40, 3]},
        {"y": [1, 40, 40, 3]},
        elem_type=TensorProto.UINT8,
    )
    (one,), (two,) = list(random_feeds(made, samples=1)), list(random_feeds(made, samples=1))
    assert (one["x"].min(), one["x"].max()) == (0, 255)
    np.testing.assert_array_equal(one["x"], two["x"])


def test_other_shape_is_an_error() -> None:
    other = model(
        [helper.make_node("Transpose", ["x"], ["y"], perm=[0, 1, 3, 2])], {"x": [1, 3, 4, 5]}, {"y": [1, 3, 5, 4]}
    )
    with pytest.raises(GraphError, match=r"output 'y' was float32 \[1, 3, 4, 5\] and is float32 \[1, 3, 5, 4\]"):
        compare(scaled(1), other)


def test_other_outputs_are_an_error() -> None:
    other = model([helper.make_node("Relu", ["x"], ["z"])], {"x": [1, 3, 4, 5]}, {"z": [1, 3, 4, 5]})
    with pytest.raises(GraphError, match=r"is in one graph and not in the other"):
        compare(scaled(1), other)


def test_a_graph_that_does_not_run_is_an_error() -> None:
    broken = model(
        [helper.make_node("Reshape", ["x", "shape"], ["y"])],
        {"x": ["N", 3, "H", "W"]},
        {"y": [None, 7]},
        {"shape": np.array([-1, 7])},
    )
    with pytest.raises(GraphError, match="does not run in ONNX Runtime"):
        compare(broken, broken)


def test_without_onnx_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any) -> Any:
        if name == "onnxruntime":
            raise ImportError(name)
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(BackendError, match=r"ONNX Runtime is not installed(.|\n)*pip install onnxruntime"):
        compare(scaled(1), scaled(1))


def test_an_opset_newer_than_onnx_runtime_runs_in_the_reference_implementation() -> None:
    newest = onnx.defs.onnx_opset_version()
    pair = [
        model(
            [helper.make_node("Mul", ["x", "c"], ["y"])],
            {"x": [1, 3, 4, 5]},
            {"y": [1, 3, 4, 5]},
            {"c": np.array(factor, np.float32)},
            opset=newest,
        )
        for factor in (1, 1.5)
    ]
    assert compare(*pair).max_relative_error == pytest.approx(0.5)
