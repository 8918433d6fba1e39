from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, numpy_helper

from fcnopt.graph.io import import_graph
from fcnopt.graph.taps import expose, logits_name
from fcnopt.quantize import CalibrationFrames, rounding
from fcnopt.quantize.patches import patches
from fcnopt.quantize.placement import Placement, place
from fcnopt.quantize.qdq import Grid, Rounded, grids, insert, quantize_weight
from fcnopt.quantize.ranges import observe
from fcnopt.quantize.rounding import cancelled, round_weights
from tests.quantize.nets import CLASSES, SIZE, Net, Options, fcn, run, spec, write_images


@pytest.fixture
def frames(rng: np.random.Generator, tmp_path: Path) -> CalibrationFrames:
    return CalibrationFrames.collect([write_images(rng, tmp_path / "frames", 3)], spec())


def gridded(model: onnx.ModelProto, frames: CalibrationFrames, form: str) -> tuple[Placement, dict[str, Grid]]:
    placement = place(import_graph(model), logits_name(model))
    ranges = observe(model, frames, tensors=placement.tensors, quantized=placement.tensors)
    return placement, grids(placement, ranges, dict.fromkeys(placement.tensors, "minmax"), form)


def rounded(
    model: onnx.ModelProto, frames: CalibrationFrames, form: str = "openvino", **options: bool
) -> tuple[dict[str, Rounded], Placement, dict[str, Grid]]:
    placement, found = gridded(model, frames, form)
    return round_weights(model, placement, found, frames, form, lambda _: None, **options), placement, found


def weight_of(model: onnx.ModelProto, name: str) -> np.ndarray:
    return numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == name))


def errors(weight: np.ndarray, levels: np.ndarray, scales: np.ndarray, moment: np.ndarray) -> np.ndarray:
    """(w - q) H (w - q)^T of every row."""
    left = weight.astype(np.float64) - levels * scales[:, None].astype(np.float64)
    return np.einsum("oi,ij,oj->o", left, moment.astype(np.float64), left)


def moment_of(rng: np.random.Generator, inputs: int, rank: int, noise: float, rows: int = 4000) -> np.ndarray:
    """E[x x^T] of inputs that are mixtures of `rank` hidden ones, like a ReLU's not negative."""
    mixed = rng.normal(size=(rows, rank)) @ rng.normal(size=(rank, inputs)) + noise * rng.normal(size=(rows, inputs))
    x = np.maximum(mixed, 0).astype(np.float32)
    return x.T @ x / np.float32(rows)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 9999),
    inputs=st.integers(1, 200),
    rank=st.integers(1, 30),
    noise=st.sampled_from([0.01, 0.3, 3.0]),
    size=st.sampled_from([1e-15, 1.0, 1e15]),
)
def test_errors_that_cancel_are_no_worse_than_those_of_rounding_to_nearest(
    seed: int, inputs: int, rank: int, noise: float, size: float
) -> None:
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(24, inputs)).astype(np.float32)
    moment = moment_of(rng, inputs, rank, noise)
    values, scales = quantize_weight(weight, 0, "openvino")
    found = cancelled(weight, scales, moment * np.float32(size) * np.float32(size))
    assert found.dtype == np.int8
    assert np.abs(found.astype(int)).max() <= 127
    nearest = errors(weight, values, scales, moment)
    assert errors(weight, found, scales, moment).sum() <= 1.02 * nearest.sum()


@pytest.mark.parametrize(("rank", "times"), [(2, 20.0), (6, 5.0), (20, 2.0)])
def test_errors_cancel_the_more_the_more_inputs_move_together(
    rng: np.random.Generator, rank: int, times: float
) -> None:
    inputs = 300  # more than one block
    weight = rng.normal(size=(16, inputs)).astype(np.float32)
    weight[3] = 0
    moment = moment_of(rng, inputs, rank, 0.1)
    values, scales = quantize_weight(weight, 0, "openvino")
    found = cancelled(weight, scales, moment)
    assert times * errors(weight, found, scales, moment).sum() < errors(weight, values, scales, moment).sum()
    assert np.abs(found - weight / scales[:, None]).max() < 8  # no weight is bent out of shape
    assert not found[3].any()


def test_uncorrelated_inputs_leave_nothing_but_rounding_to_nearest(rng: np.random.Generator) -> None:
    weight = rng.normal(size=(8, 150)).astype(np.float32)
    values, scales = quantize_weight(weight, 0, "tensorrt")
    for diagonal in (rng.uniform(0.1, 9, 150), np.zeros(150), np.r_[np.zeros(75), np.ones(75)]):
        moment = np.diag(diagonal).astype(np.float32)
        np.testing.assert_array_equal(cancelled(weight, scales, moment), values)


@pytest.mark.parametrize("exponent", [-100, -40, 40, 100])
def test_only_the_ratios_of_moments_matter(rng: np.random.Generator, exponent: int) -> None:
    weight = rng.normal(size=(8, 150)).astype(np.float32)
    values, scales = quantize_weight(weight, 0, "tensorrt")
    moment = moment_of(rng, 150, 4, 0.1)
    found = cancelled(weight, scales, moment)
    assert (found != values).any()
    np.testing.assert_array_equal(cancelled(weight, scales, moment * np.float32(2.0**exponent)), found)


@pytest.mark.parametrize("broken", [np.inf, np.nan])
def test_moments_beyond_float32_mean_rounding_to_nearest(rng: np.random.Generator, broken: float) -> None:
    weight = rng.normal(size=(4, 10)).astype(np.float32)
    values, scales = quantize_weight(weight, 0, "tensorrt")
    moment = np.full((10, 10), broken, np.float32)
    np.testing.assert_array_equal(cancelled(weight, scales, moment), values)


def test_inputs_that_repeat_others_are_no_obstacle(rng: np.random.Generator) -> None:
    x = np.repeat(rng.normal(size=(500, 4)), 16, axis=1).astype(np.float32)
    moment = x.T @ x / np.float32(500)
    weight = rng.normal(size=(6, 64)).astype(np.float32)
    values, scales = quantize_weight(weight, 0, "openvino")
    found = cancelled(weight, scales, moment)
    assert errors(weight, found, scales, moment).sum() < 0.1 * errors(weight, values, scales, moment).sum()


@pytest.mark.parametrize("form", ["openvino", "onnxruntime", "tensorrt"])
def test_layers_come_nearer_to_float_on_the_inputs_that_they_get(
    rng: np.random.Generator, frames: CalibrationFrames, form: str
) -> None:
    model = fcn(rng)
    found, placement, known = rounded(model, frames, form)
    assert set(found) == {"conv2.weight", "conv3.weight"}
    nodes = {node.outputs[0].name: node for node in import_graph(model).nodes}
    plain = insert(model, placement, known, form)
    for layer, source in (("conv2", "conv1_relu_dequantized"), ("conv3", "conv2_relu_pool_dequantized")):
        entry, weight = found[f"{layer}.weight"], weight_of(model, f"{layer}.weight")
        values, scales = quantize_weight(weight, 0, form)
        np.testing.assert_array_equal(entry.scales, scales)  # the cost at run time stays what it was
        assert entry.values.shape == weight.shape
        assert (entry.values != values).mean() > 0.05
        x = np.concatenate(
            [patches(nodes[layer], run(expose(plain, [source]), f, [source])[0], 1 << 20, rng) for f in frames]
        )
        off = [
            (weight - v * scales[:, None, None, None]).reshape(len(weight), -1) @ x.T for v in (values, entry.values)
        ]
        corrected = off[1] - entry.shift[:, None]
        assert np.mean(off[1] ** 2) < 0.8 * np.mean(off[0] ** 2)
        # 768 places a frame are all that these frames have: the mean over them is exact
        assert np.abs(off[1].mean(axis=1)).max() > 1e-5
        assert np.abs(corrected.mean(axis=1)).max() < 1e-6


@pytest.mark.parametrize("bias", [True, False])
def test_mean_error_of_a_layer_vanishes_in_the_graph(
    rng: np.random.Generator, frames: CalibrationFrames, bias: bool
) -> None:
    model = fcn(rng, Options(bias=bias))
    found, placement, known = rounded(model, frames, rounding=False)
    for name, entry in found.items():
        np.testing.assert_array_equal(entry.values, quantize_weight(weight_of(model, name), 0, "openvino")[0])
    names = ["conv1_relu_dequantized", "conv2"]
    node = next(node for node in import_graph(model).nodes if node.outputs[0].name == "conv2")
    weight = weight_of(model, "conv2.weight").reshape(32, -1)
    means = {}
    for key, used in (("nearest", None), ("shifted", found)):
        result = expose(insert(model, placement, known, "openvino", used), names)
        left = []
        for frame in frames:
            x, y = run(result, frame, names)
            rows = patches(node, x, 1 << 20, rng)
            exact = rows @ weight.T + (weight_of(model, "conv2.bias") if bias else 0)
            left.append(y[0].reshape(32, -1).T - exact)
        means[key] = np.abs(np.concatenate(left).mean(axis=0)).max()
    assert means["nearest"] > 1e-4
    assert means["shifted"] < 0.01 * means["nearest"]


def test_weights_that_are_levels_are_neither_moved_nor_shifted(
    rng: np.random.Generator, frames: CalibrationFrames
) -> None:
    model = fcn(rng)
    for tensor in model.graph.initializer:
        if tensor.name in ("conv2.weight", "conv3.weight"):
            whole = rng.integers(-127, 128, tensor.dims)
            whole[:, 0, 0, 0] = 127
            tensor.CopyFrom(numpy_helper.from_array((whole / 1024).astype(np.float32), tensor.name))
    found, placement, known = rounded(model, frames, "tensorrt")
    assert set(found) == {"conv2.weight", "conv3.weight"}
    for name, entry in found.items():
        np.testing.assert_array_equal(entry.scales, np.float32(1 / 1024))
        np.testing.assert_array_equal(entry.values * entry.scales[:, None, None, None], weight_of(model, name))
        np.testing.assert_array_equal(entry.shift, 0)
    frame = next(iter(frames))
    plain, other = (insert(model, placement, known, "tensorrt", used) for used in (None, found))
    want, have = (run(expose(m, ["logits"]), frame, ["logits"])[0] for m in (plain, other))
    np.testing.assert_array_equal(want, have)


def test_either_half_can_be_had_alone(rng: np.random.Generator, frames: CalibrationFrames) -> None:
    model = fcn(rng)
    whole, _, _ = rounded(model, frames)
    shifted, _, _ = rounded(model, frames, rounding=False)
    moved, _, _ = rounded(model, frames, shift=False)
    for name in ("conv2.weight", "conv3.weight"):
        np.testing.assert_array_equal(moved[name].values, whole[name].values)
        assert (shifted[name].values != whole[name].values).any()
        assert moved[name].shift is None
        assert shifted[name].shift is not None
        assert np.abs(shifted[name].shift).max() > np.abs(whole[name].shift).max()  # errors that cancel leave less


def test_layer_too_wide_is_rounded_to_nearest_but_shifted(
    rng: np.random.Generator, frames: CalibrationFrames, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounding, "MAX_INPUTS", 16 * 9)
    model = fcn(rng)
    found, _, _ = rounded(model, frames)
    nearest = {name: quantize_weight(weight_of(model, name), 0, "openvino")[0] for name in found}
    assert (found["conv2.weight"].values != nearest["conv2.weight"]).any()
    np.testing.assert_array_equal(found["conv3.weight"].values, nearest["conv3.weight"])
    assert np.abs(found["conv3.weight"].shift).max() > 1e-5


def test_layer_that_is_no_one_product_is_left_out(rng: np.random.Generator, frames: CalibrationFrames) -> None:
    assert set(rounded(fcn(rng, Options(group=2)), frames)[0]) == {"conv2.weight"}
    net = Net(rng)
    x = net.relu(net.conv(net.frames(), "stem", (3, 16)))
    x = net.relu(net.conv(x, "a", (16, 16)))
    x = net.relu(net.node("Conv", [x, "a.weight"], "b", kernel_shape=[3, 3], pads=[1] * 4))
    bias = net.node("Mul", [net.const("half", np.float32([0.5])), net.const("given", np.ones(16, np.float32))], "made")
    weight = net.const("c.weight", rng.normal(0, 0.1, (16, 16, 1, 1)).astype(np.float32))
    x = net.relu(net.node("Conv", [x, weight, bias], "c", kernel_shape=[1, 1]))
    net.labels(net.conv(net.relu(net.conv(x, "d", (16, 16))), "score", (16, CLASSES), 1))
    found, placement, known = rounded(net.model(), frames)
    assert placement.layers == ("a", "b", "c", "d")
    assert set(found) == {"d.weight"}
    onnx.checker.check_model(insert(net.model(), placement, known, "openvino", found), full_check=True)


@pytest.mark.parametrize(("attributes", "handled"), [({}, True), ({"transB": 1}, True), ({"alpha": 0.5}, False)])
def test_gemm_is_rounded_along_its_inputs(
    rng: np.random.Generator, frames: CalibrationFrames, attributes: dict[str, Any], handled: bool
) -> None:
    net = Net(rng)
    x = net.relu(net.conv(net.frames(), "stem", (3, 16)))
    rows = net.node("Reshape", [x, net.const("rows", np.int64([-1, SIZE[1]]))], "rows_of_x")
    weight = rng.normal(size=(24, SIZE[1]) if "transB" in attributes else (SIZE[1], 24)).astype(np.float32)
    y = net.node("Gemm", [rows, net.const("w", weight)], "product", **attributes)
    y = net.relu(net.node("Reshape", [y, net.const("image", np.int64([1, 16, SIZE[0], 24]))], "image_of_x"))
    logits = net.conv(y, "score", (16, CLASSES), 1)
    model = net.model([(logits, TensorProto.FLOAT, [1, CLASSES, SIZE[0], 24])])
    found, placement, known = rounded(model, frames)
    assert placement.layers == ("product",)
    assert set(found) == ({"w"} if handled else set())
    if not handled:
        return
    assert found["w"].values.shape == weight.shape
    assert found["w"].scales.shape == found["w"].shift.shape == (24,)
    names = ["rows_of_x_dequantized", "product"]
    left = {}
    for key, used in (("nearest", None), ("rounded", found)):
        result = expose(insert(model, placement, known, "openvino", used), names)
        pairs = [run(result, frame, names) for frame in frames]
        off = [y - x @ (weight.T if "transB" in attributes else weight) for x, y in pairs]
        left[key] = np.mean(np.square(off))
    assert left["rounded"] < 0.8 * left["nearest"]


def test_activations_whose_squares_overflow_are_survived(rng: np.random.Generator, tmp_path: Path) -> None:
    frames = CalibrationFrames.collect([write_images(rng, tmp_path / "frames", 2)], spec())
    net = Net(rng)
    x = net.relu(net.conv(net.frames(), "stem", (3, 16), gain=1e20))
    x = net.relu(net.conv(x, "a", (16, 16), gain=1e-20))
    net.labels(net.conv(x, "score", (16, CLASSES), 1))
    model = net.model()
    found, _, _ = rounded(model, frames)
    nearest = quantize_weight(weight_of(model, "a.weight"), 0, "openvino")[0]
    np.testing.assert_array_equal(found["a.weight"].values, nearest)
    assert np.isfinite(found["a.weight"].shift).all()


def test_progress_runs_from_start_to_end_and_results_repeat(
    rng: np.random.Generator, frames: CalibrationFrames
) -> None:
    model, steps = fcn(rng), []
    placement, known = gridded(model, frames, "openvino")
    first = round_weights(model, placement, known, frames, "openvino", steps.append)
    assert steps == sorted(steps)
    assert (0 < steps[0] < 0.5, steps[-1]) == (True, 1.0)
    second = round_weights(model, placement, known, frames, "openvino", lambda _: None)
    for name in first:
        np.testing.assert_array_equal(first[name].values, second[name].values)
        np.testing.assert_array_equal(first[name].shift, second[name].shift)
