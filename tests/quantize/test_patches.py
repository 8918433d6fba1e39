from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from onnx import TensorProto, helper, numpy_helper

from fcnopt.graph.io import import_graph
from fcnopt.quantize.patches import patches
from tests.quantize.nets import run

EVERY = 1 << 20


def single(
    rng: np.random.Generator, weight: tuple[int, ...], size: tuple[int, ...], **attributes: Any
) -> tuple[gs.Node, np.ndarray, np.ndarray]:
    """A convolution, values for its input, and ONNX Runtime's result."""
    constants = [
        numpy_helper.from_array(rng.normal(size=weight).astype(np.float32), "w"),
        numpy_helper.from_array(rng.normal(size=weight[0]).astype(np.float32), "b"),
    ]
    node = helper.make_node("Conv", ["x", "w", "b"], ["y"], **attributes)
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, size)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", "c", "h", "w"])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    values = rng.normal(size=size).astype(np.float32)
    return import_graph(model).nodes[0], values, run(model, values)[0]


def by_rows(node: gs.Node, rows: np.ndarray) -> np.ndarray:
    weight, bias = (value.values for value in node.inputs[1:])
    return rows @ weight.reshape(len(weight), -1).T + bias


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"pads": [1, 1, 1, 1]},
        {"pads": [0, 1, 2, 3]},
        {"strides": [2, 3]},
        {"dilations": [2, 3]},
        {"strides": [3, 2], "dilations": [1, 2], "pads": [2, 0, 1, 3]},
        {"auto_pad": "SAME_UPPER"},
        {"auto_pad": "SAME_LOWER"},
        {"auto_pad": "SAME_UPPER", "strides": [2, 3]},
        {"auto_pad": "SAME_LOWER", "strides": [3, 2]},
        {"auto_pad": "VALID", "strides": [2, 2]},
    ],
    ids=str,
)
@pytest.mark.parametrize("kernel", [(3, 3), (2, 4), (1, 1)])
def test_patches_times_weight_are_the_convolution(
    rng: np.random.Generator, attributes: dict[str, Any], kernel: tuple[int, int]
) -> None:
    node, values, want = single(rng, (5, 3, *kernel), (2, 3, 11, 14), **attributes)
    rows = patches(node, values, EVERY, rng)
    assert rows.shape == (want.size // 5, 3 * kernel[0] * kernel[1])
    have = by_rows(node, rows).reshape(2, *want.shape[2:], 5).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(have, want, atol=1e-4)


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER"])
def test_padding_of_a_dilated_kernel_leaves_the_size_as_it_is(rng: np.random.Generator, mode: str) -> None:
    """ONNX Runtime has no such convolution, so the padding is held against one that states it."""
    size, attributes = (1, 2, 9, 12), {"dilations": [2, 3]}
    total = (2, 9)  # (k - 1) * d for kernels of 2 and 4
    small, large = [n // 2 for n in total], [n - n // 2 for n in total]
    pads = [*small, *large] if mode == "SAME_UPPER" else [*large, *small]
    node, values, want = single(rng, (3, 2, 2, 4), size, pads=pads, **attributes)
    assert want.shape == (1, 3, 9, 12)
    del node.attrs["pads"]
    node.attrs["auto_pad"] = mode
    have = by_rows(node, patches(node, values, EVERY, rng)).reshape(1, 9, 12, 3).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(have, want, atol=1e-4)


def test_drawn_places_are_distinct_places_of_every_image(rng: np.random.Generator) -> None:
    node, values, want = single(rng, (5, 3, 3, 3), (2, 3, 11, 14), pads=[1] * 4)
    rows = patches(node, values, 100, rng)
    places = want.transpose(0, 2, 3, 1).reshape(-1, 5)
    distance = np.abs(by_rows(node, rows)[:, None] - places).max(axis=2)
    taken = distance.argmin(axis=1)
    assert distance.min(axis=1).max() < 1e-4
    assert len(set(taken)) == len(rows) == 100
    assert {place // (11 * 14) for place in taken} == {0, 1}


def test_rows_of_a_gemm_are_its_input(rng: np.random.Generator) -> None:
    node = gs.Node("Gemm", inputs=[gs.Variable("x"), gs.Constant("w", np.ones((4, 3), np.float32))])
    values = rng.normal(size=(20, 4)).astype(np.float32)
    np.testing.assert_array_equal(patches(node, values, 20, rng), values)
    drawn = patches(node, values, 7, rng)
    assert len(drawn) == len(np.unique(drawn, axis=0)) == 7
    assert {tuple(row) for row in drawn} <= {tuple(row) for row in values}
