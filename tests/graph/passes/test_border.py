from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper

from fcnopt.graph import io
from fcnopt.graph.compare import compare
from fcnopt.graph.passes import PassReport, border, border_maps, border_plan, optimize
from fcnopt.graph.passes.border import BorderPass
from fcnopt.graph.passes.windows import Window
from fcnopt.graph.stats import macs_by_node, stats_of
from tests.graph.build import attribute, changed, constant, declined, model, node, ops

Values = dict[str, NDArray[Any]]


def rewritten(before: onnx.ModelProto) -> tuple[onnx.ModelProto, tuple[PassReport, ...]]:
    """The model after the pass, checked, held against the one before, and done twice."""
    kept = before.SerializeToString()
    after, reports = optimize(before, passes=(BorderPass(),), strict=True)
    assert before.SerializeToString() == kept, "the model handed in was changed"
    onnx.checker.check_model(after, full_check=True)
    found = compare(before, after, seed=7)
    assert found.max_relative_error < 1e-6, found
    assert io.graph_hash(optimize(after, passes=(BorderPass(),))[0]) == io.graph_hash(after), "twice changes more"
    return after, reports


@pytest.fixture
def free_joins(monkeypatch: pytest.MonkeyPatch) -> None:
    """In small networks memory would cost more than arithmetic."""
    monkeypatch.setattr(border_plan, "_WRITE_MACS", 0)


def conv(rng: np.random.Generator, x: str, name: str, shape: tuple[int, ...], **attrs: Any) -> tuple[list[Any], Values]:
    """A convolution with weights of shape (out, in/group, kH, kW) and a bias, and a ReLU that writes `name`."""
    weight = rng.standard_normal(shape, np.float32) / np.float32(math.sqrt(math.prod(shape[1:])))
    nodes = [
        helper.make_node("Conv", [x, f"{name}.w", f"{name}.b"], [f"{name}.conv"], name=f"{name}.conv", **attrs),
        helper.make_node("Relu", [f"{name}.conv"], [name], name=name),
    ]
    return nodes, {f"{name}.w": weight, f"{name}.b": rng.standard_normal(shape[0]).astype(np.float32)}


def fcn(
    rng: np.random.Generator,
    size: Sequence[int | str] = (1, 3, 41, 52),
    *,
    pad: int = 20,
    ceil_mode: int = 1,
    outputs: Sequence[str] = (),
) -> onnx.ModelProto:
    """A padded FCN in small: two stages, a valid convolution that sees everything, a skip with a crop."""
    nodes: list[onnx.NodeProto] = []
    values: Values = {}
    x, inner = "x", 3
    for stage, width in enumerate((6, 8)):
        for layer in "ab":
            pads = [pad if (stage, layer) == (0, "a") else 1] * 4
            made, more = conv(rng, x, f"{stage}{layer}", (width, inner, 3, 3), pads=pads)
            nodes, values, x, inner = nodes + made, values | more, f"{stage}{layer}", width
        nodes.append(
            helper.make_node(
                "MaxPool",
                [x],
                [f"pool{stage}"],
                f"pool{stage}",
                kernel_shape=[2, 2],
                strides=[2, 2],
                ceil_mode=ceil_mode,
            )
        )
        x = f"pool{stage}"
    made, more = conv(rng, x, "deep", (5, inner, 5, 5))
    nodes, values = nodes + made, values | more
    values |= {
        "up": rng.standard_normal((5, 4, 4, 4), np.float32),
        "score": rng.standard_normal((4, 6, 1, 1), np.float32),
        "starts": np.array([12, 11]),
        "ends": np.array([29, 36]),
        "axes": np.array([2, 3]),
    }
    nodes += [
        helper.make_node("ConvTranspose", ["deep", "up"], ["y"], name="y", strides=[2, 2]),
        helper.make_node("Slice", ["pool0", "starts", "ends", "axes"], ["crop"], name="crop"),
        helper.make_node("Conv", ["crop", "score"], ["z"], name="z"),
    ]
    return model(nodes, {"x": list(size)}, {name: [None] * 4 for name in ("y", "z", *outputs)}, values)


@pytest.mark.usefixtures("free_joins")
class TestPaddedNetwork:
    def test_constants_are_joined_below_pools_alone(self, rng: np.random.Generator) -> None:
        before = fcn(rng)
        made, reports = rewritten(before)
        assert ops(made).count("Concat") == 4
        assert {n.input[1] if n.input[0].endswith(".from") else n.input[0] for n in of(made, "Concat")} == {
            "pool0", "pool0.wide", "pool1", "pool1.wide",
        }  # fmt: skip
        assert changed(reports)[0].startswith("constants around pool0, pool1: ")
        assert changed(reports)[0].endswith("GMACs are left, from Conv '0a.conv' on")

    def test_work_falls_to_what_moves(self, rng: np.random.Generator) -> None:
        before = fcn(rng)
        made, _ = rewritten(before)
        was, now = macs_by_node(before), macs_by_node(made)
        # 41 x 52 is grown by 1, the second layer by 2, and pooled in whole windows: rows 17 to 61 of 79 move there
        assert attribute(named(made, "0a.conv"), "pads") == [5, 5, 4, 5]
        assert was["0b.conv"] == 79 * 90 * 6 * 54
        assert now["0b.conv"] == 46 * 58 * 6 * 54
        assert now["1b.conv"] < 0.6 * was["1b.conv"]
        assert now["deep.conv"] == was["deep.conv"]
        assert (stats_of(made).macs or 0) < 0.65 * (stats_of(before).macs or 0)

    def test_skip_reads_what_is_computed(self, rng: np.random.Generator) -> None:
        made, _ = rewritten(fcn(rng))
        crop = node(made, "Slice")
        assert crop.input[0] == "pool0"
        # pool0 begins at row and column 8 of what it was
        assert (constant(made, crop.input[1]).tolist(), constant(made, crop.input[2]).tolist()) == ([4, 3], [21, 28])

    @pytest.mark.parametrize("pad", [4, 7, 13])
    @pytest.mark.parametrize("ceil_mode", [0, 1])
    @pytest.mark.parametrize("size", [(1, 3, 33, 40), (2, 3, 40, 47)])
    def test_any_size_is_exact(self, size: tuple[int, ...], ceil_mode: int, pad: int, rng: np.random.Generator) -> None:
        before = fcn(rng, size, pad=max(pad, 13 - pad), ceil_mode=ceil_mode)
        assert (stats_of(rewritten(before)[0]).macs or 0) < (stats_of(before).macs or 0)

    def test_output_inside_is_computed_whole(self, rng: np.random.Generator) -> None:
        made, _ = rewritten(fcn(rng, outputs=("pool0",)))
        assert not any("pool0" in name for n in of(made, "Concat") for name in n.input)
        assert any("pool1" in name for n in of(made, "Concat") for name in n.input)

    def test_constants_of_several_frames(self, rng: np.random.Generator) -> None:
        made, _ = rewritten(fcn(rng, (2, 3, 41, 52)))
        assert constant(made, "pool0.wide.from").shape[0] == 2


def of(made: onnx.ModelProto, op: str) -> list[onnx.NodeProto]:
    return [n for n in made.graph.node if n.op_type == op]


def named(made: onnx.ModelProto, name: str) -> onnx.NodeProto:
    (found,) = [n for n in made.graph.node if n.name == name]
    return found


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"size": ("N", 3, 41, 52)}, "the frames' size is not fixed"),
        ({"size": (1, 3, "H", "W")}, "the frames' size is not fixed"),
        ({"pad": 5, "size": (1, 3, 150, 160)}, "less than 3%"),
    ],
)
@pytest.mark.usefixtures("free_joins")
def test_declined(options: dict[str, Any], reason: str, rng: np.random.Generator) -> None:
    made, reports = rewritten(fcn(rng, **options))
    assert "Concat" not in ops(made)
    assert reason in declined(reports)


def test_joins_that_cost_more_than_they_save_are_left_out(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(border_plan, "_WRITE_MACS", 1_000_000)
    made, _ = rewritten(fcn(rng))
    assert "Concat" not in ops(made)


def test_without_onnx_runtime_nothing_is_done(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(border_plan, "_WRITE_MACS", 0)
    monkeypatch.setattr(border.importlib.util, "find_spec", lambda _: None)
    _, reports = optimize(fcn(rng), passes=(BorderPass(),), verify=False)
    assert "ONNX Runtime, which finds the constants, is not installed" in declined(reports)


@pytest.mark.usefixtures("free_joins")
def test_usual_padding_is_not_looked_at(rng: np.random.Generator) -> None:
    _, reports = rewritten(fcn(rng, pad=2))
    assert changed(reports) == []
    assert declined(reports) == ""


@pytest.mark.usefixtures("free_joins")
def test_a_border_that_is_not_constant_takes_the_pass_back(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lying(self: Window, inputs: tuple[int, int], length: int) -> tuple[int, int]:
        first, end = honest(self, inputs, length)
        return first, max(first + 1, end - 2)

    honest = Window.reached_from
    monkeypatch.setattr(Window, "reached_from", lying)
    before = fcn(rng)
    made, reports = optimize(before, passes=(BorderPass(),))
    assert made == before
    assert "differs between frames outside of rows" in declined(reports)


@pytest.mark.usefixtures("free_joins")
def test_only_what_the_constants_depend_on_is_run(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []

    def watched(made: onnx.ModelProto, feeds: Any) -> Any:
        seen.append(ops(made))
        return border_maps_observe(made, feeds)

    border_maps_observe = border_maps.observe
    monkeypatch.setattr(border_maps, "observe", watched)
    rewritten(fcn(rng))
    assert seen == [["Conv", "Relu", "Conv", "Relu", "MaxPool"] * 2]


class TestOperators:
    """What a border passes, and what it does not, by a wide padding, the operator, and a crop or a whole reader."""

    def between(
        self, rng: np.random.Generator, *nodes: onnx.NodeProto, pad: int = 12, **values: NDArray[Any]
    ) -> onnx.ModelProto:
        first, more = conv(rng, "x", "a", (4, 3, 3, 3), pads=[pad] * 4)
        last, weights = conv(rng, "b", "c", (4, 4, 3, 3))
        end = helper.make_node("GlobalAveragePool", ["c"], ["y"])
        return model([*first, *nodes, *last, end], {"x": [1, 3, 14, 17]}, {"y": [None] * 4}, more | weights | values)

    @pytest.mark.usefixtures("free_joins")
    @pytest.mark.parametrize(
        ("op", "attrs"),
        [
            ("LeakyRelu", {}),
            ("Sigmoid", {}),
            ("MaxPool", {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
            ("MaxPool", {"kernel_shape": [2, 3], "strides": [2, 1], "dilations": [2, 1], "ceil_mode": 1}),
            ("AveragePool", {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
            ("AveragePool", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}),
            ("AveragePool", {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}),
        ],
        ids=str,
    )
    def test_passed(self, op: str, attrs: dict[str, Any], rng: np.random.Generator) -> None:
        before = self.between(rng, helper.make_node(op, ["a"], ["b"], name="b", **attrs))
        made, reports = rewritten(before)
        assert "Concat" in ops(made), declined(reports)

    @pytest.mark.usefixtures("free_joins")
    @pytest.mark.parametrize("shape", [(), (4, 1, 1)])
    @pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div"])
    def test_arithmetic_is_passed(self, op: str, shape: tuple[int, ...], rng: np.random.Generator) -> None:
        k = np.asarray(rng.uniform(0.5, 2, shape), np.float32)
        made, _ = rewritten(self.between(rng, helper.make_node(op, ["a", "k"], ["b"]), k=k))
        assert macs_by_node(made)["a.conv"] < 0.6 * 36 * 39 * 4 * 27

    @pytest.mark.usefixtures("free_joins")
    def test_residual_is_passed(self, rng: np.random.Generator) -> None:
        nodes, values = conv(rng, "a", "r", (4, 4, 3, 3), pads=[1] * 4)
        made, _ = rewritten(self.between(rng, *nodes, helper.make_node("Add", ["a", "r"], ["b"]), **values))
        # the branch that has no convolution is cut to what the other one makes
        assert ops(made).count("Slice") == 1
        assert macs_by_node(made)["r.conv"] < 0.6 * 36 * 39 * 4 * 36

    @pytest.mark.usefixtures("free_joins")
    @pytest.mark.parametrize(
        "sources", [pytest.param(("a", "k"), id="of places"), pytest.param(("k", "a"), id="from the left")]
    )
    def test_a_map_of_places_ends_it(self, sources: tuple[str, str], rng: np.random.Generator) -> None:
        k = rng.standard_normal((1, 4, 36, 39), np.float32)
        made, _ = rewritten(self.between(rng, helper.make_node("Sub", list(sources), ["b"]), k=k))
        (join,) = [n for n in of(made, "Concat") if n.output[0] in node(made, "Sub").input]
        assert attribute(join, "axis") == 2

    @pytest.mark.usefixtures("free_joins")
    def test_strided_and_dilated_convolutions(self, rng: np.random.Generator) -> None:
        one, first = conv(rng, "a", "s", (4, 4, 3, 3), strides=[2, 2], pads=[1, 0, 1, 1])
        two, second = conv(rng, "s", "b", (4, 2, 3, 3), dilations=[2, 1], group=2, auto_pad="VALID")
        before = self.between(rng, *one, *two, pad=30, **first, **second)
        made, _ = rewritten(before)
        assert macs_by_node(made)["s.conv"] < 0.6 * macs_by_node(before)["s.conv"]

    @pytest.mark.usefixtures("free_joins")
    def test_a_crop_of_nothing_but_border_is_right(self, rng: np.random.Generator) -> None:
        bounds = {"s": np.array([0, 14]), "e": np.array([4, 20]), "t": np.array([2, 3])}
        rewritten(self.between(rng, helper.make_node("Slice", ["a", "s", "e", "t"], ["b"]), **bounds))
