"""FP8 (E4M3): the numbers, the graph that holds them, and that runtimes compute what the graph says."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import onnx.reference
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from fcnopt.errors import CalibrationError
from fcnopt.graph.io import import_graph
from fcnopt.graph.optimizers import unsafe_optimizers
from fcnopt.graph.taps import expose, logits_name
from fcnopt.quantize import CalibrationFrames, make_precision
from fcnopt.quantize.fp8 import round_fp8, to_fp8
from fcnopt.quantize.histogram import Histogram
from fcnopt.quantize.methods import interval, intervals, squared_error
from fcnopt.quantize.placement import place
from fcnopt.quantize.qdq import Grid, grids, insert, quantize_weight
from fcnopt.quantize.rangefile import RangeFile
from fcnopt.quantize.ranges import Ranges, TensorRange, observe
from fcnopt.quantize.scales import unfit_for_half
from fcnopt.quantize.sessions import Session
from tests.quantize.nets import (
    CLASSES,
    Net,
    Options,
    fcn,
    images,
    ops,
    pooled,
    producer,
    readers,
    run,
    spec,
    write_images,
)


def e4m3() -> NDArray[np.float64]:
    """All finite numbers of OFP8's table: exponent bias 7, code 0 subnormal, all ones not a number."""
    codes = np.arange(127)
    exponent, mantissa = codes >> 3, codes & 7
    positive = np.where(exponent == 0, mantissa * 2.0**-9, (1 + mantissa / 8) * 2.0 ** (exponent - 7.0))
    return np.concatenate([-positive[:0:-1], positive])


def quantized(model: onnx.ModelProto, frames: list[NDArray], rule: str = "minmax") -> tuple[onnx.ModelProto, dict]:
    placement = place(import_graph(model), logits_name(model))
    ranges = observe(model, frames, tensors=placement.tensors, quantized=placement.tensors)
    found = grids(placement, ranges, dict.fromkeys(placement.tensors, rule), "tensorrt", "fp8")
    result = insert(model, placement, found, "tensorrt")
    onnx.checker.check_model(result, full_check=True)
    return result, found


@pytest.fixture
def frames(rng: np.random.Generator, tmp_path: Path) -> CalibrationFrames:
    return CalibrationFrames.collect([write_images(rng, tmp_path / "frames", 4)], spec())


def test_rounding_is_to_the_nearest_number_of_the_table_ties_to_even(rng: np.random.Generator) -> None:
    table = e4m3()
    assert len(table) == 253
    assert table[-1] == 448
    np.testing.assert_array_equal(round_fp8(table), table)
    values = (rng.normal(size=4000) * np.exp(rng.uniform(-9, 7, 4000))).astype(np.float32)
    values = values[np.abs(values) < 448]
    nearest = np.abs(values[:, None] - table).min(axis=1)
    np.testing.assert_array_equal(np.abs(round_fp8(values) - values.astype(np.float64)), nearest)
    middles = ((table[126:-1] + table[127:]) / 2).astype(np.float32)
    codes = to_fp8(middles).view(np.uint8)
    assert (codes % 2 == 0).all()


def test_values_beyond_the_largest_number_saturate() -> None:
    assert round_fp8([449, 1e9, np.inf, -1e9]).tolist() == [448, 448, 448, -448]


def test_error_of_normal_numbers_is_a_sixteenth_at_most(rng: np.random.Generator) -> None:
    values = np.exp(rng.uniform(np.log(2.0**-6), np.log(448), 10000)).astype(np.float32)
    relative = np.abs(round_fp8(values) - values) / values
    assert 0.05 < relative.max() <= 1 / 16


def histogram_of(values: NDArray) -> Histogram:
    histogram = Histogram()
    histogram.update(values.astype(np.float32), float(np.abs(values).max()))
    return histogram


def test_minmax_leaves_a_binade_for_what_was_not_seen(rng: np.random.Generator) -> None:
    values = np.abs(rng.normal(size=20000)).astype(np.float32)
    top = float(values.max())
    low, high = interval(histogram_of(values), 0.0, top, "minmax", 448)
    assert (low, high) == (-2 * top, 2 * top)
    exact, wide = top / 448, high / 448
    same = values > exact * 2.0**-5  # a binade above the subnormal numbers
    assert 0.99 < same.mean() < 1
    np.testing.assert_array_equal(round_fp8(values / exact)[same] * 0.5, round_fp8(values / wide)[same])


@pytest.mark.parametrize("scale", [1.0, 1.3, 1.9])
def test_mse_is_no_worse_than_any_other_interval_of_its_octave(rng: np.random.Generator, scale: float) -> None:
    values = np.maximum(rng.laplace(0, scale, 60000), 0)
    histogram, top = histogram_of(values), float(values.max())
    low, high = interval(histogram, 0.0, top, "mse", 448)
    assert low == -high
    assert 0.5 * top <= high <= 2 * top
    points, weights = histogram.points(8)
    errors = [squared_error(points, weights, (-top * k, top * k), 448) for k in np.geomspace(0.5, 2, 17)]
    assert min(errors) < 0.9 * max(errors)
    assert squared_error(points, weights, (low, high), 448) <= min(errors) * (1 + 1e-6)


def test_squared_error_is_that_of_the_rounded_values(rng: np.random.Generator) -> None:
    values = rng.normal(size=500)
    step = 3.0 / 448
    want = np.mean((round_fp8(values / step) * step - values) ** 2)
    assert squared_error(values, np.ones(500), (-3.0, 3.0), 448) == pytest.approx(float(want), rel=1e-9)


def test_entropy_is_not_offered(rng: np.random.Generator) -> None:
    model, found = fcn(rng), images(rng, 2)
    histogram = histogram_of(rng.normal(size=100))
    assert 448 not in intervals(histogram, -3, 3)["entropy"]
    with pytest.raises(ValueError, match="there is no entropy for 448 levels"):
        interval(histogram, -3, 3, "entropy", 448)
    with pytest.raises(CalibrationError, match="fp8 has no ranges by entropy: its steps are not even") as error:
        quantized(model, found, "entropy")
    assert "minmax, percentile, mse" in error.value.fix


@pytest.mark.parametrize("axis", [0, 1])
def test_weight_fills_each_channel_and_keeps_three_bits(rng: np.random.Generator, axis: int) -> None:
    weight = rng.normal(size=(6, 5, 3, 3)).astype(np.float32)
    weight *= np.geomspace(1e-4, 10, 6 - axis, dtype=np.float32).reshape([-1 if i == axis else 1 for i in range(4)])
    values, scales = quantize_weight(weight, axis, "tensorrt", "fp8")
    shape = [-1 if i == axis else 1 for i in range(4)]
    back = values.astype(np.float32) * scales.reshape(shape)
    np.testing.assert_array_equal(scales.astype(np.float16).astype(np.float32), scales)
    top = np.abs(weight).max(axis=tuple(i for i in range(4) if i != axis))
    assert (np.abs(back).max(axis=tuple(i for i in range(4) if i != axis)) >= top * (1 - 1 / 16)).all()
    error = np.abs(back - weight)
    assert (error <= np.maximum(np.abs(weight) / 16, scales.reshape(shape) * 2.0**-10) * 1.001).all()


def test_grid_spans_the_interval_with_a_scale_that_float16_holds() -> None:
    grid = Grid.over((-1.0, 3.0), "fp8")
    assert (grid.kind, grid.zero) == ("fp8", 0)
    assert 3 / 448 <= grid.scale <= 3 / 448 * (1 + 2.0**-10)
    assert np.float16(grid.scale) == np.float32(grid.scale)
    assert Grid.over((0.0, 0.0), "fp8") == Grid(1.0, 0, "fp8")
    with pytest.raises(CalibrationError, match="float16 ends at 65504"):
        Grid.over((0.0, 3e7), "fp8")


def test_graph_holds_fp8_constants_and_quantizes_behind_the_pool(rng: np.random.Generator) -> None:
    result, found = quantized(pooled(rng), images(rng, 3))
    assert set(found) == {"conv1_relu", "conv2_relu"}  # the grid is that of what the pool reads
    constants = {tensor.name: tensor for tensor in result.graph.initializer}
    for name in ("conv2.weight_fp8", "conv3.weight_fp8", "conv1_relu_zero", "conv2_relu_pool_zero"):
        assert constants[name].data_type == TensorProto.FLOAT8E4M3FN
    assert "conv2.weight" not in constants
    assert len(constants["conv2.weight_fp8"].raw_data) == 32 * 16 * 9  # a byte each
    assert next(o.version for o in result.opset_import if not o.domain) >= 19
    assert ops(result).count("QuantizeLinear") == 2
    for node in result.graph.node:
        if node.op_type == "QuantizeLinear":
            assert onnx.helper.get_node_attr_value(node, "saturate") == 1
    assert producer(result, "conv3").input[0] == "conv2_relu_pool_dequantized"
    assert [node.op_type for node in readers(result, "conv2_relu")] == ["MaxPool"]


def test_score_layer_on_a_skip_branch_reads_the_float_pool(rng: np.random.Generator) -> None:
    result, _ = quantized(fcn(rng), images(rng, 3))
    assert producer(result, "conv3").input[0] == "conv2_relu_pool_dequantized"
    assert producer(result, "score_pool").input[0] == "conv2_relu_pool"


@pytest.mark.parametrize("options", [Options(), Options(group=2), Options(bias=False)])
def test_onnx_runtime_and_reference_agree_with_numpy(rng: np.random.Generator, options: Options) -> None:
    model, found = pooled(rng, options.group, options.bias), images(rng, 4)
    result, grid = quantized(model, found)
    assert len(unsafe_optimizers(result)) == 3
    names = ["conv2_relu_pool", "conv2_relu_pool_dequantized", "conv2.weight_dequantized", "logits"]
    with Session(result, names) as session:
        pool, read, weight, logits = session.run(found[1])
    scale = np.float32(grid["conv2_relu"].scale)
    np.testing.assert_array_equal(read, round_fp8(pool / scale) * scale)
    original = numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == "conv2.weight"))
    values, scales = quantize_weight(original, 0, "tensorrt", "fp8")
    np.testing.assert_array_equal(weight, values.astype(np.float32) * scales.reshape(-1, 1, 1, 1))
    exact = onnx.reference.ReferenceEvaluator(expose(result, ["logits"])).run(["logits"], {"frames": found[1]})[0]
    want = run(expose(model, ["logits"]), found[1], ["logits"])[0]
    size = np.sqrt(np.mean(want**2))
    assert np.abs(logits - exact).max() / size < 0.02  # a value on the edge of two numbers may round either way
    assert 1e-3 < np.sqrt(np.mean((logits - want) ** 2)) / size < 0.1


def test_pooling_commutes_with_rounding(rng: np.random.Generator) -> None:
    values = rng.normal(size=(1, 8, 2, 64)).astype(np.float32) * 100
    np.testing.assert_array_equal(round_fp8(values).max(axis=2), round_fp8(values.max(axis=2)))


def test_integers_and_fp8_are_not_mixed(rng: np.random.Generator) -> None:
    model = fcn(rng)
    placement = place(import_graph(model), "logits")
    first, second = placement.tensors
    with pytest.raises(CalibrationError, match="1 of 2 tensors are fp8, the others integers"):
        insert(model, placement, {first: Grid(1.0, 0, "fp8"), second: Grid(1.0, 0, "int8")}, "tensorrt")


@pytest.mark.parametrize(("reach", "fits"), [(5e-5, False), (7e-5, True), (1.4e7, True), (1.5e7, False)])
def test_layer_is_declined_where_no_float16_scale_serves(rng: np.random.Generator, reach: float, fits: bool) -> None:
    layer = next(node for node in import_graph(fcn(rng)).nodes if node.name == "node_conv3")
    found = Ranges({"conv2_relu": TensorRange(-reach, 0.0, reach, {"fp16": 70.0, "bf16": 50.0})}, 1)
    assert (unfit_for_half(found, "fp8")("conv2_relu", layer) is None) == fits


@pytest.mark.parametrize(("kernel", "fits"), [(5, True), (7, False)])
def test_kernel_of_more_than_32_taps_stays_float(rng: np.random.Generator, kernel: int, fits: bool) -> None:
    net = Net(rng)
    x = net.relu(net.conv(net.frames(), "stem", (3, 16)))
    x = net.relu(net.conv(x, "wide", (16, 16), kernel))
    net.labels(net.conv(net.relu(net.conv(x, "b", (16, 16))), "score", (16, CLASSES), 1))
    graph = import_graph(net.model())
    assert place(graph, "score").layers == ("wide", "b")
    found = place(graph, "score", precision="fp8")
    assert found.layers == (("wide", "b") if fits else ("b",))
    if not fits:
        assert found.declined[1].reason == "7x7 kernel: TensorRT computes FP8 with up to 32 taps"


def test_precision_fp8_keeps_labels_and_says_what_it_did(rng: np.random.Generator, frames: CalibrationFrames) -> None:
    model = fcn(rng)
    result = make_precision(model, spec(), "fp8", form="tensorrt", frames=frames)
    onnx.checker.check_model(result.model, full_check=True)
    assert result.report["precision"] == "fp8"
    assert {grid["kind"] for grid in result.report["tensors"].values()} == {"fp8"}
    assert result.notes[0].startswith("fp8: ")
    constants = {tensor.name: tensor.data_type for tensor in result.model.graph.initializer}
    assert constants["conv2.weight_fp8"] == TensorProto.FLOAT8E4M3FN
    assert constants["conv1.weight_fp16"] == TensorProto.FLOAT16
    frame = next(iter(frames))
    want = run(model, frame)[0]
    with Session(result.model, ("labels",)) as session:
        assert np.mean(session.run(frame)[0] == want) > 0.95
    exact = onnx.reference.ReferenceEvaluator(result.model).run(["labels"], {"frames": frame})[0]
    assert np.mean(exact == want) > 0.95


def test_what_fp8_cannot_do_is_refused(rng: np.random.Generator, frames: CalibrationFrames) -> None:
    with pytest.raises(CalibrationError, match="fp8: no CPU runtime has kernels for it") as error:
        make_precision(fcn(rng), spec(), "fp8", form="openvino", frames=None)
    assert "tensorrt-rtx:sm89" in error.value.fix
    with pytest.raises(CalibrationError, match="fp8 has no ranges by entropy"):
        make_precision(fcn(rng), spec(), "fp8", form="tensorrt", frames=frames, method="entropy")
    with pytest.raises(CalibrationError, match="fp8 needs calibration frames, and none were given"):
        make_precision(fcn(rng), spec(), "fp8", form="tensorrt", frames=None)


@pytest.mark.parametrize("first", ["int8", "fp8"])
def test_one_range_file_serves_int8_and_fp8(
    rng: np.random.Generator, frames: CalibrationFrames, tmp_path: Path, first: Literal["int8", "fp8"]
) -> None:
    net = Net(rng)
    x = net.relu(net.conv(net.frames(), "stem", (3, 16)))
    x = net.relu(net.conv(x, "small", (16, 16)))
    x = net.relu(net.conv(x, "wide", (16, 16), 7))  # in int8 only
    net.labels(net.conv(x, "score", (16, CLASSES), 1))
    path, model = tmp_path / "net.json", net.model()
    make_precision(model, spec(), first, form="tensorrt", frames=frames, method="mse", range_file=path)
    loaded = RangeFile.load(path).ranges.tensors["stem_relu"]
    assert loaded.intervals["minmax"][448][1] == 2 * loaded.maximum
    second: Literal["int8", "fp8"] = "fp8" if first == "int8" else "int8"
    result = make_precision(model, spec(), second, form="tensorrt", frames=frames, method="mse", range_file=path)
    assert result.report["ranges_reused"]
    assert result.report["layers"] == (["node_small"] if second == "fp8" else ["node_small", "node_wide"])


def test_graph_without_fp8_keeps_all_optimizers(rng: np.random.Generator) -> None:
    assert unsafe_optimizers(fcn(rng)) == ()
