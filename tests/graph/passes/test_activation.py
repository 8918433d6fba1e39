from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
from onnx import helper

from fcnopt.graph.passes.activation import ActivationPass
from tests.graph.build import attribute, changed, constant, declined, model, node, ops, optimized

Bounds = tuple[float | None, float | None]


def limits(*ranges: Bounds | None, opset: int = 17, outputs: tuple[str, ...] = ()) -> onnx.ModelProto:
    """A chain of Clips, with a Relu for None, from x to y; tensors between are t1, t2, ..."""
    nodes, constants = [], {}
    names = ["x", *(f"t{i}" for i in range(1, len(ranges))), "y"]
    for i, bounds in enumerate(ranges):
        if bounds is None:
            nodes.append(helper.make_node("Relu", [names[i]], [names[i + 1]], name=f"n{i}"))
            continue
        keys = {"min": bounds[0], "max": bounds[1]}
        given = {key: value for key, value in keys.items() if value is not None}
        if opset < 11:
            nodes.append(helper.make_node("Clip", [names[i]], [names[i + 1]], name=f"n{i}", **given))
            continue
        constants |= {f"{key}{i}": np.array(value, np.float32) for key, value in given.items()}
        inputs = [f"{key}{i}" if key in given else "" for key in keys]
        nodes.append(helper.make_node("Clip", [names[i], *inputs], [names[i + 1]], name=f"n{i}"))
    shape = [2, 40]
    return model(nodes, {"x": shape}, dict.fromkeys(("y", *outputs), shape), constants, opset=opset)


@pytest.mark.parametrize("opset", [9, 13, 20])
@pytest.mark.parametrize(
    ("ranges", "expected"),
    [
        ((None, None), None),
        ((None, (-1.0, 0.7)), (0.0, 0.7)),
        (((-0.5, 0.7), None), (0.0, 0.7)),
        (((-0.5, 0.7), (-0.2, 2.0)), (-0.2, 0.7)),
        (((-0.5, -0.2), (0.1, 0.4)), (0.1, 0.1)),
        (((-0.5, None), (None, 0.4)), (-0.5, 0.4)),
        (((None, 0.9), None, (-3.0, 0.8), (0.1, 5.0)), (0.1, 0.8)),
        (((0.0, None),), None),
    ],
)
def test_one_is_left(ranges: tuple[Bounds | None, ...], expected: Bounds | None, opset: int) -> None:
    made, _ = optimized(limits(*ranges, opset=opset), ActivationPass, tolerance=1e-12)
    if expected is None:
        assert ops(made) == ["Relu"]
        return
    clip = node(made, "Clip")
    found = (
        (attribute(clip, "min"), attribute(clip, "max"))
        if opset < 11
        else tuple(float(constant(made, name)) for name in clip.input[1:])
    )
    assert found == pytest.approx(expected)
    assert len(ops(made)) == 1


def test_clip_without_bounds_goes() -> None:
    before = limits(None, (None, None))
    assert ops(optimized(before)[0]) == ["Relu"]
    alone = limits((None, None), (None, math.inf))
    made, reports = optimized(alone, ActivationPass)
    assert len(ops(made)) == 1  # the graph's input is not its output
    assert "its output is the graph's" in declined(reports)


def test_old_default_bounds_are_none() -> None:
    bound = float(np.finfo(np.float32).max)
    assert ops(optimized(limits((0.0, bound), opset=9), ActivationPass)[0]) == ["Relu"]


def test_report_names_both() -> None:
    assert changed(optimized(limits(None, None))[1]) == ["merged Relu 'n0' and Relu 'n1'"]


def test_output_in_the_middle_is_kept() -> None:
    made, reports = optimized(limits(None, (-1.0, 1.0), outputs=("t1",)))
    assert ops(made) == ["Relu", "Clip"]
    assert "the result of Relu 'n0' is read by others too" in declined(reports)


def test_empty_range_is_declined() -> None:
    made, reports = optimized(limits(None, (1.0, -1.0)))
    assert ops(made) == ["Relu", "Clip"]
    assert "its minimum is above its maximum" in declined(reports)


def test_computed_bound_is_declined() -> None:
    before = model(
        [helper.make_node("Relu", ["x"], ["r"]), helper.make_node("Clip", ["r", "", "top"], ["y"], name="clip")],
        {"x": [3], "top": []},
        {"y": [3]},
    )
    made, reports = optimized(before)
    assert ops(made) == ["Relu", "Clip"]
    assert "its range is not constant" in declined(reports)
