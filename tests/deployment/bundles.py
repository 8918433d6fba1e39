"""Bundles made by hand, so that deployments for runtimes that this machine lacks can be tested, and at once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from fcnopt.backends import Target
from fcnopt.backends.base import Precision
from fcnopt.bundle import MODEL, finish
from fcnopt.manifest import Manifest
from fcnopt.selftest import SELFTEST, write_selftest
from fcnopt.spec import ClassSpec, FrameSpec, ModelSpec, OutputName

CLASSES = ClassSpec(("road", 'a "sign"', "Fußgänger"), ((128, 64, 128), (220, 220, 0), (220, 20, 60)))
TENSORRT_ENGINE = b"ptrt engine of TensorRT"


def make_bundle(
    folder: Path,
    target: str = "onnxruntime",
    precision: Precision = "fp32",
    *,
    dims: tuple[int | None, int | None, int | None] = (1, 64, 96),
    outputs: tuple[OutputName, ...] = ("labels",),
    classes: ClassSpec = CLASSES,
    sources: Mapping[str, Any] | None = None,
    half_scales: bool = False,
) -> Path:
    """A whole bundle `folder`/net whose network labels a pixel with the channel that is brightest.

    Args:
        folder: Where to.
        target: As a user writes it.
        precision: What the manifest says; the graph is float32.
        dims: Batch, height and width; None where open.
        outputs: `labels`, and `logits`: the pixel's channels.
        classes: Three of them.
        sources: Of the manifest.
        half_scales: Put a DequantizeLinear with a float16 scale into the graph.
    """
    assert precision in get_args(Precision)
    aim, place = Target.parse(target), folder / "net"
    place.mkdir()
    _save_graph(place / MODEL, dims, outputs, half_scales)
    _, height, width = dims
    frame = np.random.default_rng(3).integers(0, 256, (1, height or 48, width or 80, 3), np.uint8)
    write_selftest(place / SELFTEST, frame, np.argmax(frame, axis=3).astype(np.uint8))
    spec = ModelSpec(FrameSpec(height, width), classes, outputs)
    manifest = Manifest(
        name="net",
        created="2026-11-22T00:00:00+00:00",
        fcnopt="0.1.0",
        spec=spec,
        target=str(aim),
        precision=precision,
        device="CPU (test)",
        runtime=f"{aim.runtime.replace('-', '_')} 10.13.2",
        engine=_make_engine(place, aim),
        files={},
        sources=dict(sources or {}),
        min_agreement=0.995,
    )
    finish(place, manifest)
    return place


def _make_engine(place: Path, target: Target) -> tuple[str, ...]:
    if target.runtime == "onnxruntime":
        return (MODEL,)
    if target.runtime == "openvino":
        import openvino

        openvino.save_model(openvino.Core().read_model(place / MODEL), place / "engine.xml", compress_to_fp16=False)
        return ("engine.xml", "engine.bin")
    (place / "engine.plan").write_bytes(TENSORRT_ENGINE)
    return ("engine.plan",)


def _save_graph(
    path: Path, dims: tuple[int | None, int | None, int | None], outputs: tuple[OutputName, ...], half_scales: bool
) -> None:
    shape: list[Any] = [name if size is None else size for name, size in zip("NHW", dims, strict=True)]
    nodes = [
        helper.make_node("Cast", ["frames"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("ArgMax", ["pixels"], ["best"], axis=3, keepdims=0),
        helper.make_node("Cast", ["best"], ["labels"], to=TensorProto.UINT8),
        helper.make_node("Transpose", ["pixels"], ["logits"], perm=[0, 3, 1, 2]),
    ]
    values = {
        "labels": helper.make_tensor_value_info("labels", TensorProto.UINT8, shape),
        "logits": helper.make_tensor_value_info("logits", TensorProto.FLOAT, [shape[0], 3, *shape[1:]]),
    }
    weights = []
    if half_scales:
        for name, value in (("w", np.int8(3)), ("scale", np.float16(0.5)), ("zero", np.int8(0))):
            weights.append(numpy_helper.from_array(np.asarray(value), name))
        nodes.append(helper.make_node("DequantizeLinear", ["w", "scale", "zero"], ["unused"]))
    graph = helper.make_graph(
        [node for node in nodes if node.output[0] != "logits" or "logits" in outputs],
        "net",
        [helper.make_tensor_value_info("frames", TensorProto.UINT8, [*shape, 3])],
        [values[name] for name in outputs],
        weights,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)
