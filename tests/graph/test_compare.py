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


def test_the_worst_of_all_samples_counts(rng: np.random.Generator) -> None:
    frames = [np.zeros((1, 3, 4, 5), np.float32), rng.standard_normal((1, 3, 4, 5), np.float32)]
    for order in (frames, frames[::-1]):
        found = compare(scaled(1, labels=True), scaled(-1, labels=True), order)
        assert (found.equal_labels, found.max_relative_error) == (0.0, 2.0)


def test_given_frames_are_used() -> None:
    frames = [np.zeros((1, 3, 4, 5), np.float32)]
    assert compare(scaled(1), scaled(3), frames).max_relative_error == 0.0


def test_not_a_number_is_no_agreement() -> None:
    assert compare(scaled(1), scaled(float("nan"))).max_relative_error == float("inf")
    assert compare(scaled(float("nan")), scaled(float("nan"))).max_relative_error == 0.0


def test_dynamic_axes_take_two_sizes_and_batches() -> None:
    made = scaled(1, dims=["N", 3, "H", "W"])
    shapes = [feeds["x"].shape for feeds in random_feeds(made, samples=2)]
    assert shapes == [(batch, 3, *size) for batch, size in enumerate(DYNAMIC_SIZES, start=1)]
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


@pytest.mark.parametrize(("kind", "opset"), [(TensorProto.DOUBLE, 17), (TensorProto.BFLOAT16, 22)])
def test_types_without_kernels_run_in_the_reference_implementation(
    kind: int, opset: int, rng: np.random.Generator
) -> None:
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    weight = rng.standard_normal((2, 3, 1, 1))
    pair = [
        model(
            [helper.make_node("Conv", ["x", "w"], ["c"]), helper.make_node("ArgMax", ["c"], ["y"], axis=1)],
            {"x": [1, 3, 4, 5]},
            {"y": [1, 1, 4, 5]},
            {"w": (weight * factor).astype(dtype)},
            opset=opset,
            elem_type=kind,
            output_type=TensorProto.INT64,
        )
        for factor in (1, 1.5)
    ]
    found = compare(*pair)
    assert found.max_relative_error == pytest.approx(0.5, rel=0.02)
    assert compare(pair[0], pair[0]).max_relative_error == 0.0


def test_bfloat16_frames_are_fed_where_onnx_runtime_has_the_kernel_but_no_way_in() -> None:
    dims = [1, 3, 4, 5]
    made = model([helper.make_node("Identity", ["x"], ["y"])], {"x": dims}, {"y": dims}, elem_type=TensorProto.BFLOAT16)
    assert compare(made, made).errors == {"y": 0.0}


def test_what_neither_can_run_is_an_error() -> None:
    made = model(
        [helper.make_node("Conv", ["x", "w"], ["y"])],
        {"x": [1, 3, 4, 5]},
        {"y": [1, 2, 4, 5]},
        {"w": np.ones((2, 3, 1, 1))},
        elem_type=TensorProto.DOUBLE,
    )
    made.graph.node[0].domain = "elsewhere"
    made.opset_import.append(helper.make_opsetid("elsewhere", 1))
    with pytest.raises(GraphError, match=r"does not load in ONNX Runtime|runs neither in ONNX Runtime"):
        compare(made, made)
