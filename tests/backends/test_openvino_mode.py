"""What the float layers of an INT8 graph compute in: FP32 where they are few, BF16 where they are heavy."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from fcnopt.backends import Target, open_engine, openvino_mode
from fcnopt.backends.base import BuildOptions
from fcnopt.backends.layertimes import layer_timer
from fcnopt.backends.openvino import OpenVinoBuilder, OpenVinoRunner, executed_layers, open_core
from fcnopt.backends.openvino_mode import compile_model, execution_mode
from fcnopt.errors import BackendError
from fcnopt.graph import io
from fcnopt.graph.stats import macs_by_node
from fcnopt.selftest import SELFTEST, prove, run_selftest
from tests.backends.tiny import CLASSES, silent, tiny_onnx, tiny_spec

VNNI = ("avx2", "avx512", "vnni", "bf16")
AMX = (*VNNI, "amx-int8", "amx-bf16")
CPU = ("FP32", "INT8", "BF16")
needs_bf16 = pytest.mark.skipif(
    "BF16" not in openvino_mode.capabilities(open_core("CPU"), "CPU"), reason="this CPU has no BF16"
)


class Graph:
    """Frames to labels through `first`, `heavy`, `wide` (2 groups) and the scores, a deconvolution with few weights."""

    def __init__(self, size: tuple[int | None, int | None] = (24, 32)) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.size, self.rng = size, np.random.default_rng(0)

    def const(self, name: str, values: NDArray) -> str:
        self.constants.append(numpy_helper.from_array(values, name))
        return name

    def node(self, op: str, inputs: list[str], output: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(op, inputs, [output], name=output, **attributes))
        return output

    def layer(self, x: str, name: str, shape: tuple[int, ...], *, quantized: bool, group: int = 1) -> str:
        """3x3 convolution and ReLU; `shape` (out, in/group, kH, kW)."""
        weight = self.rng.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape).astype(np.float32)
        if quantized:
            x = self._grid(x, f"{name}.x", self.const(f"{name}.x_scale", np.float32(0.05)), np.uint8)
            scale = np.abs(weight).reshape(shape[0], -1).max(1) / 127
            integers = np.round(weight / scale[:, None, None, None]).astype(np.int8)
            inputs = [self.const(f"{name}.q", integers), self.const(f"{name}.scale", scale)]
            inputs.append(self.const(f"{name}.zero", np.zeros(shape[0], np.int8)))
            kernel = self.node("DequantizeLinear", inputs, f"{name}.weight", axis=0)
        else:
            kernel = self.const(f"{name}.weight", weight)
        x = self.node("Conv", [x, kernel], name, pads=[shape[2] // 2] * 4, group=group)
        return self.node("Relu", [x], f"{name}.relu")

    def _grid(self, x: str, name: str, scale: str, kind: type) -> str:
        zero = self.const(f"{name}_zero", kind(0))
        x = self.node("QuantizeLinear", [x, scale, zero], f"{name}_q")
        return self.node("DequantizeLinear", [x, scale, zero], f"{name}_dq")

    def made(self, floats: tuple[str, ...] = (), batch: int | None = 1) -> onnx.ModelProto:
        x = self.node("Cast", ["frames"], "float", to=TensorProto.FLOAT)
        x = self.node("Mul", [x, self.const("1/64", np.float32(1 / 64))], "normal")
        x = self.node("Transpose", [x], "planes", perm=[0, 3, 1, 2])
        x = self.layer(x, "first", (16, 3, 3, 3), quantized="first" not in floats)
        x = self.layer(x, "heavy", (64, 16, 3, 3), quantized="heavy" not in floats)
        x = self.layer(x, "wide", (128, 32, 3, 3), quantized="wide" not in floats, group=2)
        x = self.node("MaxPool", [x], "pool", kernel_shape=[4, 4], strides=[4, 4])
        x = self.layer(x, "scores", (CLASSES, 128, 1, 1), quantized=False)
        kernel = self.const("up.weight", self.rng.normal(0, 1, (CLASSES, 1, 4, 4)).astype(np.float32))
        x = self.node("ConvTranspose", [x, kernel], "logits", strides=[4, 4], group=CLASSES)
        x = self.node("ArgMax", [x], "best", axis=1, keepdims=0)
        self.node("Cast", [x], "labels", to=TensorProto.UINT8)
        frame = [batch or "N", self.size[0] or "H", self.size[1] or "W"]
        given = helper.make_tensor_value_info("frames", TensorProto.UINT8, [*frame, 3])
        taken = helper.make_tensor_value_info("labels", TensorProto.UINT8, frame)
        graph = helper.make_graph(self.nodes, "mode", [given], [taken], self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        onnx.checker.check_model(model, full_check=True)
        return model


def read(model: onnx.ModelProto):
    return open_core("CPU").read_model(model.SerializeToString())


@pytest.fixture
def isa(monkeypatch):
    """Sets the extensions of the CPU that the rule sees."""
    return lambda words: monkeypatch.setattr(openvino_mode, "cpu_isa", lambda: words)


@pytest.mark.parametrize(
    ("precision", "has", "device", "mode"),
    [
        ("fp32", CPU, "CPU", "f32"),
        ("bf16", CPU, "CPU", "bf16"),
        ("int8", ("FP32", "INT8"), "CPU", "f32"),
        ("int8", ("FP32", "INT8", "FP16"), "CPU", "f32"),
        ("int8", ("FP32", "INT8", "FP16"), "GPU", "f16"),
        ("fp16", ("FP32", "FP16"), "CPU", "f16"),
    ],
)
@pytest.mark.parametrize("floats", [(), ("heavy",)])
def test_other_precisions_and_devices_do_not_look_at_the_graph(precision, has, device, mode, floats):
    assert execution_mode(read(Graph().made(floats)), precision, has, device) == mode


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_on_a_cpu_without_it_is_an_error_not_fp32_under_its_name(precision):
    with pytest.raises(BackendError, match=rf"this CPU has no {precision.upper()} \(it has FP32, INT8\)") as caught:
        execution_mode(None, precision, ("FP32", "INT8"), "CPU")
    assert "--precision int8 or fp32" in caught.value.fix


@pytest.mark.parametrize(
    ("floats", "words", "mode"),
    [
        ((), VNNI, "f32"),
        (("heavy",), VNNI, "bf16"),
        (("wide",), VNNI, "bf16"),
        (("first", "heavy", "wide"), VNNI, "bf16"),
        ((), AMX, "bf16"),  # there FP32 takes 32 times as long as INT8
        ((), (), "f32"),  # the plugin has BF16, the system does not tell what the CPU has
    ],
)
def test_float_layers_of_int8_take_fp32_where_they_are_few(isa, floats, words, mode):
    isa(words)
    assert execution_mode(read(Graph().made(floats)), "int8", CPU, "CPU") == mode


def test_the_estimate_is_in_time_by_the_rates_of_each_precision(isa):
    isa(VNNI)
    model = Graph().made()
    macs = macs_by_node(model)
    assert set(macs) == {"first", "heavy", "wide", "scores", "logits"}
    floats = macs["scores"] + macs["logits"]
    integers = sum(macs.values()) - floats
    found = openvino_mode._fp32_costs(read(model))
    assert found == pytest.approx(floats * (1 / 32 - 1 / 64) / (integers / 128 + floats / 64), rel=1e-12)
    assert 0 < found < openvino_mode._LITTLE


@pytest.mark.parametrize("floats", [(), ("heavy",)])
@pytest.mark.parametrize("batch", [None, 1, 4])
def test_any_batch_and_a_size_left_open_make_the_same_choice(isa, floats, batch):
    isa(VNNI)
    fixed = execution_mode(read(Graph().made(floats)), "int8", CPU, "CPU")
    graph = read(Graph((None, None)).made(floats, batch))
    assert graph.is_dynamic()
    assert execution_mode(graph, "int8", CPU, "CPU") == fixed
    assert graph.is_dynamic(), "the graph that is compiled keeps its axes open"
    assert execution_mode(read(Graph().made(floats, batch)), "int8", CPU, "CPU") == fixed


def test_matrix_products_count_too(isa):
    isa(VNNI)
    rng = np.random.default_rng(0)
    for transposed in (False, True):
        left = [40, 24] if transposed else [24, 40]
        weight = numpy_helper.from_array(rng.normal(0, 1, (40, 8)).astype(np.float32), "w")
        graph = helper.make_graph(
            [helper.make_node("Gemm", ["x", "w"], ["y"], transA=int(transposed))],
            "product",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, left)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [24, 8])],
            [weight],
        )
        ops = read(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)).get_ops()
        assert sum(openvino_mode._macs(op) or 0 for op in ops) == 24 * 40 * 8


@needs_bf16
@pytest.mark.parametrize(("floats", "computes"), [((), "fp32"), (("heavy",), "bf16")])
def test_engine_candidate_and_timing_compute_in_what_the_notes_say(isa, tmp_path, floats, computes):
    isa(VNNI)
    model, spec = Graph().made(floats), tiny_spec()
    io.save(model, tmp_path / "model.onnx")
    built = OpenVinoBuilder().build(tmp_path / "model.onnx", tmp_path, BuildOptions(precision="int8"), silent)
    assert built.notes == (f"on this CPU, what is not int8 computes in {computes}",)
    precisions = {name: layer.precision for layer in built.layers for name in layer.nodes}
    assert (precisions["scores"], precisions["wide"]) == (computes, "int8")
    for file in (built.files[0], tmp_path / "model.onnx"):
        with OpenVinoRunner(file, spec, "int8") as runner:
            layers = {name: la.precision for la in executed_layers(runner._compiled, {"scores"}) for name in la.nodes}
            assert layers == {"scores": computes}
    with layer_timer(model, Target.parse("openvino"), "int8") as timer:
        compiled = timer._request.get_compiled_model()
    found = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    assert found == {"fp32": "f32", "bf16": "bf16"}[computes]


@needs_bf16
@pytest.mark.parametrize(("floats", "least"), [((), 1.0), (("heavy",), 0.95)])
def test_an_engine_built_where_bf16_is_answers_where_it_is_not(isa, monkeypatch, tmp_path, floats, least):
    isa(VNNI)
    target, spec = Target.parse("openvino"), tiny_spec()
    io.save(Graph().made(floats), tmp_path / "model.onnx")
    built = OpenVinoBuilder().build(tmp_path / "model.onnx", tmp_path, BuildOptions(precision="int8"), silent)
    prove(tmp_path / "model.onnx", built, target, "int8", spec, None, silent)
    monkeypatch.setattr(openvino_mode, "capabilities", lambda *_: frozenset({"FP32", "INT8"}))
    core = open_core("CPU")
    compiled = compile_model(core, core.read_model(built.files[0]), "int8", "CPU")
    assert compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name() == "f32"
    with open_engine(built.files, target, "int8", spec) as runner:
        assert run_selftest(runner, tmp_path / SELFTEST, least) >= least


@pytest.mark.parametrize(
    ("saturates", "weight", "kind"), [(True, 65, "fp32"), (True, 64, "int8"), (False, 127, "int8")]
)
def test_weights_whose_sums_would_saturate_are_computed_in_float(tmp_path, monkeypatch, saturates, weight, kind):
    monkeypatch.setattr(openvino_mode, "int8_saturates", lambda: saturates)
    model = onnx.load(tiny_onnx(tmp_path / "model.onnx", tiny_spec(), quantized="uint8"))
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) > 1:
            values = onnx.numpy_helper.to_array(tensor).astype(np.int16) * weight // 127
            assert np.abs(values).max() == weight
            tensor.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.int8), tensor.name))
    core = open_core("CPU")
    compiled = compile_model(core, core.read_model(model.SerializeToString()), "int8", "CPU")
    layers = executed_layers(compiled, {node.name for node in model.graph.node})
    (layer,) = [layer for layer in layers if layer.kind == "Convolution" and "conv2" in layer.nodes]
    assert (layer.precision if layer.precision == "int8" else "fp32") == kind
