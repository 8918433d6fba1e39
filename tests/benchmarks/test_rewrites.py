from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import onnx
import pytest

pytest.importorskip("openvino", reason="pairs are timed on it")
pytest.importorskip("onnxruntime", reason="pairs are timed on it")

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import rewrites


def _silent(_step: str, _fraction: float) -> None:
    """Progress that nobody watches."""


def _skip_is_quantized(model: onnx.ModelProto) -> bool:
    """Whether a score layer reads quantized values through a pool: so it does for ONNX Runtime, and for no other."""
    writers = {name: node for node in model.graph.node for name in node.output}
    (score,) = [node for node in model.graph.node if node.name == "score_pool3"]
    pool = writers[score.input[0]]
    assert pool.op_type == "MaxPool"
    return writers[pool.input[0]].op_type == "DequantizeLinear"


def test_a_runtime_runs_int8_graphs_that_are_made_for_it(
    tiny_model: Path, street: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed = rewrites._timed
    ran: list[tuple[rewrites.Pair, str]] = []

    def noted(pair: rewrites.Pair, runtime: str, *rest: Any) -> dict[str, Any]:
        ran.append((pair, runtime))
        return timed(pair, runtime, *rest)

    monkeypatch.setattr(rewrites, "_CALIBRATION", 1)
    monkeypatch.setattr(rewrites, "_timed", noted)
    found = rewrites.run(tiny_model, street / "images", 2, _silent)
    phases, frames, both = "labels before the last upsampling", "raw frames into the first convolution", "both of INT8"
    rows = {(row["precision"], row["rewrite"], row["runtime"]) for row in found["rows"]}
    pairs = [("fp32", phases), *(("int8", name) for name in (phases, frames, both))]
    assert rows == {(*pair, runtime) for pair in pairs for runtime in rewrites.RUNTIMES}
    assert len(ran) == len(found["rows"]) == len(rows)
    for pair, runtime in ran:
        for graph in (pair.before, pair.after):
            wanted = pair.precision == "int8" and runtime == "onnxruntime"
            assert _skip_is_quantized(graph) == wanted, (pair.name, runtime)
