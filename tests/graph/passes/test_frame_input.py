from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from fcnopt.graph.compare import compare
from fcnopt.graph.passes import PassReport, optimize
from fcnopt.graph.passes.frame_input import FrameInputPass
from tests.graph.build import changed, constant, declined, model, node, ops

MEAN = np.array([123.7, 116.3, 103.5], np.float32).reshape(1, 3, 1, 1)


def framed(
    rng: np.random.Generator,
    op: str | None = "Sub",
    mean: Any = MEAN,
    *,
    group: int = 1,
    size: tuple[int | None, int | None] = (9, 11),
    perm: tuple[int, ...] = (0, 3, 1, 2),
    flipped: bool = False,
    twice: bool = False,
) -> onnx.ModelProto:
    """uint8 frames, their mean taken off, and a padded convolution."""
    constants = {"w": rng.standard_normal((6, 3 // group, 3, 3), np.float32), "b": rng.standard_normal(6, np.float32)}
    nodes = [
        helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["f"], ["t"], name="to_nchw", perm=list(perm)),
    ]
    if op is not None:
        constants["m"] = np.asarray(mean, np.float32)
        nodes.append(helper.make_node(op, ["m", "t"] if flipped else ["t", "m"], ["s"], name="mean"))
    source = "t" if op is None else "s"
    nodes.append(helper.make_node("Conv", [source, "w", "b"], ["y"], name="conv", pads=[1] * 4, group=group))
    if twice:
        nodes.append(helper.make_node("Relu", [source], ["z"]))
    outputs: dict[str, Any] = {"y": [None] * 4} | ({"z": [None] * 4} if twice else {})
    return model(nodes, {"x": [2, *size, 3]}, outputs, constants, elem_type=TensorProto.UINT8, output_type=1)


def rewritten(before: onnx.ModelProto) -> tuple[onnx.ModelProto, tuple[PassReport, ...]]:
    after, reports = optimize(before, passes=(FrameInputPass(),), strict=True)
    onnx.checker.check_model(after, full_check=True)
    assert compare(before, after, seed=7).max_relative_error < 2e-6
    return after, reports


def test_mean_into_a_constant_channel(rng: np.random.Generator) -> None:
    before = framed(rng)
    made, reports = rewritten(before)
    assert ops(made) == ["Transpose", "Concat", "Cast", "Conv"]
    assert changed(reports) == ["Sub 'mean' into Conv 'conv', by a constant channel"]
    weight = constant(made, node(made, "Conv").input[1])
    assert weight.shape == (6, 4, 3, 3)
    np.testing.assert_array_equal(weight[:, :3], constant(before, "w"))
    assert constant(made, node(made, "Concat").input[1]).dtype == np.uint8


@pytest.mark.parametrize("mean", [MEAN.reshape(3, 1, 1), np.float32(7.5), np.full((1, 1, 1, 1), 3.0)])
@pytest.mark.parametrize("op", ["Sub", "Add"])
def test_forms_of_the_mean(op: str, mean: Any, rng: np.random.Generator) -> None:
    assert ops(rewritten(framed(rng, op, mean))[0])[-1] == "Conv"


def test_addition_from_the_other_side(rng: np.random.Generator) -> None:
    assert "Add" not in ops(rewritten(framed(rng, "Add", flipped=True))[0])


def test_without_a_mean_the_constant_weighs_nothing(rng: np.random.Generator) -> None:
    made, _ = rewritten(framed(rng, None))
    assert not constant(made, node(made, "Conv").input[1])[:, 3].any()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"flipped": True}, "not one mean a channel"),
        ({"mean": np.ones((1, 3, 1, 11))}, "not one mean a channel"),
        ({"mean": np.full((1, 3, 1, 1), np.inf)}, "not one mean a channel"),
        ({"size": (None, None)}, "size is not fixed"),
        ({"group": 3, "size": (9, 11)}, "has several groups"),
    ],
)
def test_left_alone(options: dict[str, Any], reason: str, rng: np.random.Generator) -> None:
    made, reports = optimize(framed(rng, **options), passes=(FrameInputPass(),), strict=True)
    assert "Concat" not in ops(made)
    assert reason in declined(reports)


def test_frames_that_others_read_too_stay(rng: np.random.Generator) -> None:
    made, reports = rewritten(framed(rng, twice=True))
    assert not changed(reports)
    assert "Sub" in ops(made)
