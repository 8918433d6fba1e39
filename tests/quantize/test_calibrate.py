from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from fcnopt.errors import CalibrationError
from fcnopt.graph.io import import_graph
from fcnopt.quantize import CalibrationFrames, make_precision
from fcnopt.quantize.calibrate import ranges_for_half, ranges_for_integers
from fcnopt.quantize.equalize import apply
from fcnopt.quantize.placement import place
from fcnopt.quantize.ranges import Ranges, observe
from tests.quantize.nets import CLASSES, Net, Options, fcn, spec, write_images


@pytest.fixture
def frames(rng: np.random.Generator, tmp_path: Path) -> CalibrationFrames:
    return CalibrationFrames.collect([write_images(rng, tmp_path / "frames", 5)], spec())


def collected(
    model: onnx.ModelProto, frames: CalibrationFrames, path: Path | None, *, equalized: bool = True
) -> tuple[onnx.ModelProto, Ranges, bool]:
    placement = place(import_graph(model), "logits")
    return ranges_for_integers(model, placement, frames, path, lambda *_: None, equalized=equalized)


def test_ranges_are_those_of_the_equalized_network(rng: np.random.Generator, frames: CalibrationFrames) -> None:
    model = fcn(rng)
    source, ranges, reused = collected(model, frames, None)
    assert not reused
    assert set(ranges.factors) == {"conv1_relu", "conv2_relu_pool"}
    assert max(ranges.factors["conv1_relu"]) > 1.1 * min(ranges.factors["conv1_relu"])
    assert source.SerializeToString() != model.SerializeToString()
    again = observe(source, frames.spread(), tensors=("conv1_relu",), quantized=("conv1_relu",))
    assert again.tensors["conv1_relu"] == ranges.tensors["conv1_relu"]
    assert ranges.settled is not None
    assert (ranges.settled.frames, ranges.settled.tensors) == (5, 2)


def test_network_can_be_left_as_it_is(rng: np.random.Generator, frames: CalibrationFrames) -> None:
    model = fcn(rng)
    source, ranges, _ = collected(model, frames, None, equalized=False)
    assert source is model
    assert ranges.factors == {}


def test_half_precision_watches_nothing(rng: np.random.Generator, frames: CalibrationFrames) -> None:
    found = ranges_for_half(fcn(rng), frames, lambda *_: None)
    assert found.settled is None
    assert not any(tensor.intervals for tensor in found.tensors.values())


def test_file_gives_back_the_very_network_and_ranges(
    rng: np.random.Generator, frames: CalibrationFrames, tmp_path: Path
) -> None:
    model, path = fcn(rng), tmp_path / "net.json"
    first, ranges, fresh = collected(model, frames, path)
    second, stored, reused = collected(model, frames, path)
    assert (fresh, reused) == (False, True)
    assert second.SerializeToString() == first.SerializeToString()
    assert stored == ranges
    third, _, _ = collected(model, frames, path, equalized=False)  # the file decides
    assert third.SerializeToString() == first.SerializeToString()


@pytest.mark.parametrize("form", ["openvino", "onnxruntime", "tensorrt"])
def test_graph_from_a_file_is_the_graph_that_wrote_it(
    rng: np.random.Generator, frames: CalibrationFrames, tmp_path: Path, form: str
) -> None:
    model, path = fcn(rng), tmp_path / "net.json"
    graphs = [
        make_precision(model, spec(), "int8", form=form, frames=frames, range_file=path).model.SerializeToString()
        for _ in range(2)
    ]
    assert path.is_file()
    assert graphs[0] == graphs[1]
    other = json.loads(path.read_text())
    other["factors"] = {}
    other["frames"]["sources"] = []
    path.write_text(json.dumps(other))
    plain = make_precision(model, spec(), "int8", form=form, frames=frames, range_file=path).model
    assert plain.SerializeToString() != graphs[0]  # so the factors did something


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: {**f, "conv1_relu": f["conv1_relu"][:-1]}, "'conv1_relu' has 16 channels, and 15 factors"),
        (lambda f: {**f, "conv1_relu": [2.0]}, "'conv1_relu' has 16 channels, and 1 factors"),
        (lambda f: {**f, "conv7_relu": [1.0]}, "factors for the channels of 'conv7_relu', which this graph cannot"),
        (lambda f: {**f, "logits": [1.0] * CLASSES}, "factors for the channels of 'logits', which this graph cannot"),
        (lambda f: {**f, "conv1_relu": [-1.0] * 16}, "cut off or damaged: ValueError: a factor is not positive"),
        (lambda f: {**f, "conv1_relu": ["1"] * 16}, "cut off or damaged: ValueError: '1' is not a finite number"),
        (lambda f: {**f, "conv1_relu": 3}, "cut off or damaged: TypeError"),
        (lambda f: list(f), "cut off or damaged: AttributeError"),
    ],
)
def test_damaged_factors_are_one_clear_error(
    rng: np.random.Generator, frames: CalibrationFrames, tmp_path: Path, damage, message: str
) -> None:
    model, path = fcn(rng), tmp_path / "net.json"
    collected(model, frames, path)
    data = json.loads(path.read_text())
    path.write_text(json.dumps({**data, "factors": damage(data["factors"])}))
    with pytest.raises(CalibrationError, match=message) as error:
        collected(model, frames, path)
    assert "delete" in error.value.fix


def test_file_without_factors_belongs_to_the_network_itself(
    rng: np.random.Generator, frames: CalibrationFrames, tmp_path: Path
) -> None:
    model, path = fcn(rng), tmp_path / "net.json"
    collected(model, frames, path, equalized=False)
    source, ranges, reused = collected(model, frames, path)
    assert (source is model, ranges.factors, reused) == (True, {}, True)


def test_factors_stand_against_the_network_that_was_given(rng: np.random.Generator, frames: CalibrationFrames) -> None:
    model = fcn(rng, Options(group=2))
    source, ranges, _ = collected(model, frames, None)
    known = {name: np.array(values, np.float32) for name, values in ranges.factors.items()}
    assert apply(model, known)[0].SerializeToString() == source.SerializeToString()


def test_network_that_overflows_is_named_and_not_equalized(rng: np.random.Generator, frames: CalibrationFrames) -> None:
    net = Net(rng)
    x = net.relu(net.conv(net.frames(), "stem", (3, 16), gain=1e38))
    x = net.relu(net.conv(x, "a", (16, 16), gain=10.0))
    x = net.relu(net.conv(x, "b", (16, 16)))
    net.labels(net.conv(x, "score", (16, CLASSES), 1))
    model = net.model()
    placement = place(import_graph(model), "score")
    with pytest.raises(CalibrationError, match=r"calibration frame 0, tensor '.*': values are not finite"):
        ranges_for_integers(model, placement, frames, None, lambda *_: None)
