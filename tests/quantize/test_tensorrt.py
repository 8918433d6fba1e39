"""What TensorRT makes of the graphs: TensorRT-RTX parses and compiles them ahead of time, on any machine."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from fcnopt.quantize import CalibrationFrames, make_precision
from tests.quantize.nets import Options, fcn, residual, spec, write_images

if os.environ.get("CI"):
    import tensorrt_rtx as trt  # the gate installs it: missing, these tests must fail and not vanish
else:
    trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")


class Log(trt.ILogger):  # type: ignore[misc, name-defined]
    """Keeps every message."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[tuple[Any, str]] = []

    def log(self, severity: Any, message: str) -> None:
        self.messages.append((severity, message))


@pytest.fixture(scope="module")
def log() -> Log:
    return Log()


@pytest.fixture
def frames(rng: np.random.Generator, tmp_path: Path) -> CalibrationFrames:
    return CalibrationFrames.collect([write_images(rng, tmp_path / "frames", 4)], spec())


def layers(model: onnx.ModelProto, capability: str, log: Log) -> dict[str, tuple[str, str]]:
    """Types of the inputs and of the weights of every convolution and pool of the engine, by its first ONNX node."""
    log.messages.clear()
    builder = trt.Builder(log)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log)
    assert parser.parse(model.SerializeToString()), [str(parser.get_error(i)) for i in range(parser.num_errors)]
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, capability), 0)
    assert builder.build_serialized_network(network, config) is not None, log.messages[-5:]
    found: dict[str, tuple[str, str]] = {}
    (text,) = [message for _, message in log.messages if message.startswith("Layers:")]
    for line in text.splitlines():
        if not re.search(r"LayerType: (correlation|runtime_fusion|maxpool|deconv|fc)", line):
            continue
        inputs, weights = (re.search(rf"{part}: \[.*?Datatype: (\w+)", line) for part in ("Inputs", "Constants"))
        for node in re.findall(r"\[ONNX Layer: (\w+)\]", line):
            found.setdefault(node, (inputs.group(1) if inputs else "", weights.group(1) if weights else ""))
    return found


@pytest.mark.parametrize("capability", ["SM86", "SM89"])
@pytest.mark.parametrize("options", [Options(), Options(group=2), Options(bias=False, logits_too=True)])
def test_int8_file_builds_with_its_layers_in_int8_and_the_rest_in_half(
    rng: np.random.Generator, frames: CalibrationFrames, log: Log, capability: str, options: Options
) -> None:
    result = make_precision(fcn(rng, options), spec(), "int8", form="tensorrt", frames=frames, method="mse")
    found = layers(result.model, capability, log)
    assert result.report["half"]["kept"] == []
    assert found["node_conv1"] == ("Half", "Half")
    assert found["node_conv2"] == ("Int8", "Int8")
    if options.group == 1:
        assert found["node_conv3"] == ("Int8", "Int8")
    assert found["node_conv2_relu_pool"][0] == "Int8"
    assert found["node_score"] == ("Half", "Half")


@pytest.mark.parametrize("capability", ["SM89", "SM120"])
@pytest.mark.parametrize("options", [Options(), Options(group=2), Options(bias=False, logits_too=True)])
def test_fp8_file_builds_with_its_layers_in_fp8_even_behind_a_pool(
    rng: np.random.Generator, frames: CalibrationFrames, log: Log, capability: str, options: Options
) -> None:
    result = make_precision(fcn(rng, options), spec(), "fp8", form="tensorrt", frames=frames, method="mse")
    assert result.report["layers"] == ["node_conv2", "node_conv3"]
    assert result.report["half"]["kept"] == []
    found = layers(result.model, capability, log)
    assert found["node_conv1"] == ("Half", "Half")
    assert found["node_conv2"] == ("FP8", "FP8")
    assert found["node_conv3"] == ("FP8", "FP8")
    assert found["node_conv2_relu_pool"][0] == "Half"
    assert found["node_score"] == ("Half", "Half")


@pytest.mark.parametrize("capability", ["SM86", "SM89"])
def test_fp16_file_builds_in_half(
    rng: np.random.Generator, frames: CalibrationFrames, log: Log, capability: str
) -> None:
    result = make_precision(fcn(rng), spec(), "fp16", form="tensorrt", frames=frames)
    found = layers(result.model, capability, log)
    for name in ("conv1", "conv2", "conv3", "score", "score_pool"):
        assert found[f"node_{name}"] == ("Half", "Half")


def test_node_that_overflows_is_float_in_the_engine(
    rng: np.random.Generator, frames: CalibrationFrames, log: Log
) -> None:
    from fcnopt.quantize.casts import to_half
    from tests.quantize.test_casts import evidence_of

    model = fcn(rng, Options(gain=2e5))
    halved, report = to_half(model, evidence_of(model, list(frames)).tensors, "fp16")
    found = layers(halved, "SM86", log)
    assert "node_conv2" in {entry.node for entry in report.kept}
    assert found["node_conv1"] == ("Half", "Half")
    assert found["node_conv2"][1] == "Float"


@pytest.mark.parametrize("gain", [2e4, 1e6])
def test_layers_around_a_hot_skip_branch_are_int8_with_float_around(
    rng: np.random.Generator, frames: CalibrationFrames, log: Log, gain: float
) -> None:
    result = make_precision(residual(rng, gain), spec(), "int8", form="tensorrt", frames=frames)
    assert result.report["layers"] == ["node_a", "node_b"]
    found = layers(result.model, "SM86", log)
    assert found["node_stem"] == ("Float", "Float")
    assert found["node_a"] == found["node_b"] == ("Int8", "Int8")


def test_bf16_file_builds(rng: np.random.Generator, frames: CalibrationFrames, log: Log) -> None:
    result = make_precision(fcn(rng), spec(), "bf16", form="tensorrt", frames=frames)
    found = layers(result.model, "SM86", log)
    assert found["node_conv2"] == ("BFloat16", "BFloat16")
