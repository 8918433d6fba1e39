from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

pytest.importorskip("openvino", reason="engines run on it")
pytest.importorskip("onnxruntime", reason="exports are verified on it")

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import growth
from growing import page, peaks, variants

from fcnopt.errors import BackendError, UsageError
from fcnopt.models import checkpoint

_PEAKS = peaks.Peaks({"fp32": 100.0, "bf16": 200.0, "int8": 400.0}, 10.0)


def _silent(_step: str, _fraction: float) -> None:
    """Progress that nobody watches."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    from tests.models.networks import tiny

    path = tmp_path_factory.mktemp("trained") / "tiny.pth"
    torch.save(tiny(batch_norm=True, widths=(16, 16, 24, 24, 32), fc_widths=(32, 32)).state_dict(), path)
    return path


def test_slope_of_what_grows_in_proportion_is_one() -> None:
    amounts = [76_800.0, 172_800.0, 307_200.0]
    assert peaks.slope(amounts, [3.0 * a for a in amounts]) == pytest.approx(1.0)
    assert peaks.slope(amounts, [2.0 * a**2 for a in amounts]) == pytest.approx(2.0)
    assert peaks.slope(amounts, [7.0] * 3) == pytest.approx(0.0, abs=1e-9)


def _conv(channels: int) -> onnx.ModelProto:
    """x [1, channels, 8, 8] -> Conv 1x1 to 16 channels."""
    weight = numpy_helper.from_array(np.ones((16, channels, 1, 1), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], name="conv")],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, channels, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 16, 8, 8])],
        [weight],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def test_the_roofline_takes_the_longer_of_computing_and_moving() -> None:
    macs, moved = 64 * 16 * 4, 4 * (64 * 4 + 16 * 4 + 64 * 16)
    model = _conv(4)
    assert peaks.roofline_ms(model, "fp32", _PEAKS) == pytest.approx(moved / 10 / 1e6)
    slow = peaks.Peaks({"fp32": 1.0}, 1000.0)
    assert peaks.roofline_ms(model, "fp32", slow) == pytest.approx(macs / 1 / 1e6)
    # what an INT8 engine leaves float computes in BF16
    assert peaks.roofline_ms(model, "int8", _PEAKS) == pytest.approx(moved / 2 / 10 / 1e6)


def test_shares_are_of_the_measured_peaks() -> None:
    found = growth.shares(_conv(4), "fp32", _PEAKS, ms=0.001)
    assert found["gmacs"] == pytest.approx(4096 / 1e9)
    assert found["of_gemm"] == pytest.approx(4096 / 1e9 / 1e-6 / 100)
    assert found["of_roofline"] == pytest.approx(found["roofline_ms"] / 0.001)


def test_peaks_are_measured() -> None:
    found = peaks.Peaks.measured(size=64, copy_bytes=1 << 20)
    assert {"fp32", "int8"} <= set(found.gmacs)
    assert all(rate > 0 for rate in (*found.gmacs.values(), found.gbytes))


@pytest.mark.parametrize("shape", [(64, 64), (1, 64, 2, 32)], ids=["matmul", "convolution"])
def test_the_chain_of_int8_products_runs_in_int8(shape: tuple[int, ...]) -> None:
    import openvino as ov

    from fcnopt.backends.openvino import executed_layers

    compiled = ov.Core().compile_model(peaks._products(True, 64, shape), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    kinds = ("FullyConnected", "MatMul", "Gemm", "Convolution")
    products = [layer for layer in executed_layers(compiled, set()) if layer.kind in kinds]
    assert len(products) == 4
    assert {layer.precision for layer in products} == {"int8"}


@pytest.mark.parametrize("count", [2, 5, 12])
def test_a_network_gets_another_number_of_classes(trained: Path, tmp_path: Path, count: int) -> None:
    import torch

    path = variants.with_classes(trained, count, tmp_path / "grown.pth")
    own, grown = checkpoint.load(trained).module, checkpoint.load(path).module
    assert grown(torch.zeros(1, 3, 64, 96)).shape == (1, count, 64, 96)
    for name, tensor in own.state_dict().items():
        if "score" not in name:
            torch.testing.assert_close(grown.state_dict()[name], tensor)


def test_growth_of_a_small_network(trained: Path, street: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    axes = {
        "size": (variants.Variant("size", (64, 96)), variants.Variant("size", (128, 192))),
        "batch": (variants.Variant("batch", (64, 96), batch=2),),
    }
    monkeypatch.setattr(growth, "AXES", axes)
    monkeypatch.setattr(growth.Peaks, "measured", lambda: _PEAKS)
    found = growth.run(growth.Options(trained, street / "images", runs=2), _silent)
    assert not found["skipped"]
    points = {(p["text"], p["precision"]): p for p in found["points"]}
    assert list(points) == [(text, precision) for text in ("96x64", "192x128", "2") for precision in ("fp32", "int8")]
    assert all(p["ms"] > 0 and p["peak_mib"] > p["before_mib"] > 0 for p in points.values())
    small, large = points["96x64", "fp32"], points["192x128", "fp32"]
    assert large["gmacs"] == pytest.approx(4 * small["gmacs"], rel=0.05)
    assert points["2", "fp32"]["gmacs"] == pytest.approx(2 * small["gmacs"], rel=0.01)
    assert [(s["axis"], s["precision"]) for s in found["slopes"]] == [("size", "fp32"), ("size", "int8")]
    assert found["slopes"][0]["gmacs"] == pytest.approx(1.0, abs=0.05)
    text = page.as_markdown(found)
    assert "## Frame size" in text
    assert "| 192x128 | int8 |" in text
    assert "FP32: time grows as pixels to the power" in text


def test_an_engine_that_fails_is_said(tmp_path: Path) -> None:
    shutil.copytree(Path(growth.__file__).parent / "growing", tmp_path / "growing")
    with pytest.raises(BackendError, match="the engine failed: FileNotFoundError"):
        growth.in_own_process(tmp_path, 1)


def test_choices_are_checked(tmp_path: Path) -> None:
    options: Any = {"checkpoint": tmp_path, "calibration": tmp_path}
    with pytest.raises(UsageError, match="unknown axes speed"):
        growth.Options(**options, axes=("speed",))
    with pytest.raises(UsageError, match="unknown targets tensorrt"):
        growth.Options(**options, target="tensorrt")
    few = growth.Options(**options, axes=("size", "batch"), largest=360 * 480)
    assert [one.text for one in few.variants()] == ["320x240", "480x360", "1"]
    assert few.command() == "python benchmarks/growth.py --only size,batch --largest 172800"
