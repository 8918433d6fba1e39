from __future__ import annotations

import numpy as np
import pytest

from fcnopt.backends.targets import Form
from fcnopt.errors import CalibrationError
from fcnopt.graph.io import import_graph
from fcnopt.quantize.qdq import Grid, quantize_weight
from fcnopt.quantize.ranges import Ranges, TensorRange
from fcnopt.quantize.scales import half_at_least, unfit_for_half
from tests.quantize.nets import fcn

NORMAL = 2.0**-14


def test_scale_is_the_next_float16_above(rng: np.random.Generator) -> None:
    wanted = np.concatenate([np.exp(rng.uniform(np.log(1e-9), np.log(60000), 5000)), [65504.0, 1.0, 2.0**-24]])
    found = half_at_least(wanted)
    assert (found >= wanted).all()
    halves = found.astype(np.float16)
    np.testing.assert_array_equal(halves.astype(np.float32), found)
    assert (np.nextafter(halves, np.float16(0)).astype(np.float64) < wanted).all()  # none smaller would do


@pytest.mark.parametrize("reach", [1.0, 1e-3, 1e-4, 1e-5, 3e-6])
def test_largest_weight_is_not_clipped_by_a_rounded_scale(reach: float) -> None:
    weight = (np.array([1, 0.5, 0.1]) * reach).astype(np.float32).reshape(1, 1, 1, 3)
    values, scales = quantize_weight(weight, 0, "tensorrt")
    assert scales[0] * 127 >= weight.max()
    assert np.abs(values * scales[0] - weight).max() <= scales[0] * 0.5001


@pytest.mark.parametrize("form", ["tensorrt", "openvino"])
def test_weight_below_float32_normals_becomes_zero(form: Form) -> None:
    values, scales = quantize_weight(np.full((1, 4), 1e-44, np.float32), 0, form)
    assert scales.tolist() == [1.0]
    assert not values.any()


def test_scale_beyond_float16_is_an_error_not_an_infinity() -> None:
    for make in (
        lambda: Grid.over((0.0, 1e7), "int8"),
        lambda: quantize_weight(np.full((1, 4), 1e7, np.float32), 0, "tensorrt"),
    ):
        with pytest.raises(CalibrationError, match=r"needs the scale 78740\.2, and float16 ends at 65504") as error:
            make()
        assert "--precision fp16" in error.value.fix
    assert Grid.over((0.0, 1e7), "uint8").scale == pytest.approx(1e7 / 255)
    assert Grid.over((0.0, 127 * 65504.0), "int8").scale == 65504.0


def test_activation_scale_is_a_normal_float16() -> None:
    assert Grid.over((0.0, 1e-6), "int8").scale == NORMAL


@pytest.mark.parametrize(
    ("reach", "fits"),
    [(0.0, True), (1e-6, False), (126 * NORMAL, False), (128 * NORMAL, True), (8.3e6, True), (8.4e6, False)],
)
def test_layer_is_declined_for_an_input_out_of_reach(rng: np.random.Generator, reach: float, fits: bool) -> None:
    layer = next(node for node in import_graph(fcn(rng)).nodes if node.name == "node_conv3")
    found = TensorRange(-reach, 0.0, reach, {"fp16": 70.0, "bf16": 50.0})
    reason = unfit_for_half(Ranges({"conv2_relu": found}, 1))("conv2_relu", layer)
    assert (reason is None) == fits
    if not fits:
        assert reason == f"its input 'conv2_relu' reaches {reach:.6g}: float16 scales serve 0.00775 to 8.32e+06"


@pytest.mark.parametrize(("factor", "fits"), [(0.0, True), (1e-6, False), (1e-2, True), (1e8, False)])
def test_layer_is_declined_for_a_weight_out_of_reach(rng: np.random.Generator, factor: float, fits: bool) -> None:
    layer = next(node for node in import_graph(fcn(rng)).nodes if node.name == "node_conv3")
    layer.inputs[1].values = layer.inputs[1].values * np.float32(factor)
    reason = unfit_for_half(Ranges({}, 1))("conv2_relu", layer)
    assert (reason is None) == fits
    assert fits or reason.startswith("its weight 'conv3.weight' reaches ")
