"""Constants joined on a padded network, before it is quantized and after: layers, numbers and kernels stay INT8's."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray

from fcnopt.backends.base import BuildOptions
from fcnopt.backends.openvino import executed_layers
from fcnopt.backends.tensorrt import TensorRtBuilder
from fcnopt.graph.passes import border_plan, optimize
from fcnopt.graph.passes.border import BorderPass
from fcnopt.graph.stats import stats_of
from fcnopt.quantize import CalibrationFrames, make_precision
from fcnopt.quantize.qdq import Form
from fcnopt.quantize.tune import Tuning
from tests.quantize.nets import CLASSES, SIZE, Net, images, ops, run, spec, write_images

LAYERS = ["node_conv0b", "node_conv1a", "node_conv1b", "node_deep"]


def padded(rng: np.random.Generator) -> onnx.ModelProto:
    """Padding 30 before two stages, a valid 5x5 convolution over all of it, a crop of the first pool as a skip."""
    net = Net(rng)

    def conv(x: str, name: str, shape: tuple[int, ...], pad: int) -> str:
        weight = rng.normal(0, np.sqrt(2 / math.prod(shape[1:])), shape).astype(np.float32)
        bias = rng.normal(0, 0.1, shape[0]).astype(np.float32)
        inputs = [x, net.const(f"{name}.weight", weight), net.const(f"{name}.bias", bias)]
        return net.relu(net.node("Conv", inputs, name, kernel_shape=list(shape[2:]), pads=[pad] * 4))

    x, pools, inner = net.frames(), [], 3
    for stage, width in enumerate((32, 48)):
        x = conv(x, f"conv{stage}a", (width, inner, 3, 3), 1 if stage else 30)
        x = conv(x, f"conv{stage}b", (width, width, 3, 3), 1)
        pools.append(net.node("MaxPool", [x], f"pool{stage}", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1))
        x, inner = pools[-1], width
    # 24 x 32 became 82 x 90, 41 x 45 and 21 x 23; the valid convolution leaves 17 x 19
    score = net.conv(conv(x, "deep", (48, 48, 5, 5), 0), "score", (48, CLASSES), 1)
    bounds = [
        net.const(f"crop.{what}", np.array(v)) for what, v in (("at", [9, 9]), ("to", [25, 29]), ("axes", [2, 3]))
    ]
    skip = net.conv(net.node("Slice", [pools[0], *bounds], "crop"), "score_pool", (32, CLASSES), 1)
    inside = [
        net.const(f"deep.{what}", np.array(v)) for what, v in (("at", [4, 4]), ("to", [12, 14]), ("axes", [2, 3]))
    ]
    up = net.upscore(net.node("Slice", [score, *inside], "inside"), "up")
    net.labels(net.node("Slice", [net.upscore(net.node("Add", [up, skip], "sum"), "large"), *whole(net)], "logits"))
    return net.model()


def whole(net: Net) -> list[str]:
    values = (("at", [4, 4]), ("to", [4 + SIZE[0], 4 + SIZE[1]]), ("axes", [2, 3]))
    return [net.const(f"logits.{what}", np.array(v)) for what, v in values]


@pytest.fixture
def frames(rng: np.random.Generator, tmp_path: Path) -> CalibrationFrames:
    return CalibrationFrames.collect([write_images(rng, tmp_path / "frames", 4)], spec())


@pytest.fixture
def both(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """The network before and after the pass."""
    monkeypatch.setattr(border_plan, "_WRITE_MACS", 0)
    before = padded(rng)
    after, _ = optimize(before, passes=(BorderPass(),), strict=True)
    assert ops(after).count("Concat") == 4
    return before, after


def labels(model: onnx.ModelProto, rng: np.random.Generator) -> NDArray[np.uint8]:
    return np.concatenate([run(model, frame, ["labels"])[0] for frame in images(rng, 4)])


@pytest.mark.parametrize("form", ["openvino", "onnxruntime", "tensorrt"])
def test_labels_are_as_good_as_without(
    both: tuple[onnx.ModelProto, onnx.ModelProto], frames: CalibrationFrames, form: Form
) -> None:
    plain, joined = (make_precision(m, spec(), "int8", form=form, frames=frames, method="mse") for m in both)
    assert plain.report["layers"] == joined.report["layers"] == LAYERS
    expected = labels(both[0], np.random.default_rng(5))
    without, found = (labels(made.model, np.random.default_rng(5)) for made in (plain, joined))
    assert (found == expected).mean() > 0.98
    assert (found == expected).mean() > (without == expected).mean() - 0.005


def test_openvino_joins_uint8_rightly(
    both: tuple[onnx.ModelProto, onnx.ModelProto], frames: CalibrationFrames, tmp_path: Path
) -> None:
    openvino = pytest.importorskip("openvino", reason="openvino is not installed")
    made = make_precision(both[1], spec(), "int8", form="openvino", frames=frames, method="mse").model
    onnx.save(made, tmp_path / "made.onnx")
    core = openvino.Core()
    network = core.compile_model(core.read_model(tmp_path / "made.onnx"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = np.concatenate([network({0: frame})[0] for frame in images(np.random.default_rng(5), 4)])
    assert (found == labels(made, np.random.default_rng(5))).mean() > 0.99


def test_tensorrt_pools_and_joins_in_int8(
    both: tuple[onnx.ModelProto, onnx.ModelProto], frames: CalibrationFrames, tmp_path: Path
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
    made = make_precision(both[1], spec(), "int8", form="tensorrt", frames=frames, method="mse").model
    onnx.save(made, tmp_path / "made.onnx")
    (tmp_path / "e").mkdir()
    options = BuildOptions(compute_capabilities=("sm86",), precision="int8")
    built = TensorRtBuilder("tensorrt_rtx").build(tmp_path / "made.onnx", tmp_path / "e", options, lambda *_: None)
    convolutions = {n: layer.precision for layer in built.layers if layer.kind == "correlation" for n in layer.nodes}
    assert {convolutions[name] for name in LAYERS} == {"int8"}
    # the pool before the skip's score stays float for it; both pools run in INT8 for the layers behind the joins
    assert [layer.precision for layer in built.layers if layer.kind == "maxpool"].count("int8") == 2


@pytest.fixture(params=[False, True], ids=["normalized frames", "raw frames"])
def integers(
    request: pytest.FixtureRequest, rng: np.random.Generator, frames: CalibrationFrames, monkeypatch: pytest.MonkeyPatch
) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """The network in INT8 for a CPU, without the pass and with it, in the order in which a build does it."""
    monkeypatch.setattr(border_plan, "_WRITE_MACS", 0)
    tuning = Tuning(equalize=False, refine=False, rounding=request.param, bias=False)
    model, _ = optimize(padded(rng))
    plain = make_precision(model, spec(), "int8", form="openvino", frames=frames, method="mse", tuning=tuning).model
    assert ops(plain).count("Concat") == int(request.param)  # raw frames come with a constant channel
    joined, _ = optimize(plain, passes=(BorderPass(),), strict=True)
    assert ops(joined).count("Concat") == ops(plain).count("Concat") + 4
    assert (stats_of(joined).macs or 0) < 0.6 * (stats_of(plain).macs or 0)
    return plain, joined


def test_onnx_runtime_gives_the_same_labels_by_as_many_integer_layers(
    integers: tuple[onnx.ModelProto, onnx.ModelProto], tmp_path: Path
) -> None:
    found = [labels(model, np.random.default_rng(5)) for model in integers]
    assert len(np.unique(found[0])) > 1
    np.testing.assert_array_equal(*found)
    operators = []
    for model in integers:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # "saved for this machine alone"
        options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        operators.append(ops(onnx.load(tmp_path / "optimized.onnx")))
    without, joined = operators
    assert without.count("QLinearConv") == joined.count("QLinearConv") >= 3
    assert without.count("QuantizeLinear") == joined.count("QuantizeLinear")


def test_openvino_gives_the_same_labels_by_as_many_integer_layers(
    integers: tuple[onnx.ModelProto, onnx.ModelProto],
) -> None:
    openvino = pytest.importorskip("openvino", reason="openvino is not installed")
    core, found, layers = openvino.Core(), [], []
    for model in integers:
        network = core.read_model(model.SerializeToString())
        compiled = core.compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        found.append(np.concatenate([compiled({0: frame})[0] for frame in images(np.random.default_rng(5), 4)]))
        layers.append([(layer.kind, layer.precision) for layer in executed_layers(compiled, set())])
    np.testing.assert_array_equal(*found)
    without, joined = layers
    kind = ("Convolution", "int8")
    assert without.count(kind) == joined.count(kind) >= len(LAYERS)
    joins = [precision for kind, precision in joined if kind == "Concatenation"]
    assert len(joins) >= 4
    assert set(joins) == {"int8"}
