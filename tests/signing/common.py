"""A small bundle, and the ways to use it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from click.testing import CliRunner
from onnx import TensorProto, helper

import fcnopt
from fcnopt import bundle as bundles
from fcnopt.backends import Target, make_builder
from fcnopt.backends.base import BuildOptions
from fcnopt.cli import main
from fcnopt.manifest import Manifest
from fcnopt.selftest import SELFTEST, write_selftest
from fcnopt.spec import ClassSpec, FrameSpec, ModelSpec

SPEC = ModelSpec(FrameSpec(8, 8), ClassSpec.of_count(3))
WORDS = "correct horse"


class ReachedError(Exception):
    """A runtime was reached."""


def loudest_channel(path: Path) -> Path:
    """An ONNX file that labels each pixel with the channel of its largest value."""
    frames = helper.make_tensor_value_info("frames", TensorProto.UINT8, ["N", 8, 8, 3])
    labels = helper.make_tensor_value_info("labels", TensorProto.UINT8, ["N", 8, 8])
    nodes = [
        helper.make_node("Cast", ["frames"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["x", "gain"], ["y"]),
        helper.make_node("ArgMax", ["y"], ["index"], axis=3, keepdims=0),
        helper.make_node("Cast", ["index"], ["labels"], to=TensorProto.UINT8),
    ]
    gain = helper.make_tensor("gain", TensorProto.FLOAT, [3], [1.0, 1.25, 1.5])
    graph = helper.make_graph(nodes, "loudest", [frames], [labels], [gain])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def known_answer() -> tuple[Any, Any]:
    frame = np.random.default_rng(3).integers(0, 256, (1, 8, 8, 3), np.uint8)
    return frame, np.argmax(frame * np.array([1, 1.25, 1.5], np.float32), axis=3).astype(np.uint8)


def make_bundle(place: Path, target: str) -> Path:
    with bundles.staged(place) as folder:
        model = loudest_channel(folder / bundles.MODEL)
        built = make_builder(Target.parse(target)).build(model, folder, BuildOptions(), lambda *_: None)
        write_selftest(folder / SELFTEST, *known_answer())
        manifest = Manifest(
            name=place.name,
            created="2026-11-22T09:00:00+00:00",
            fcnopt="0.1.0",
            spec=SPEC,
            target=target,
            precision="fp32",
            device=built.device,
            runtime=built.runtime,
            engine=tuple(file.name for file in built.files),
            files={},
            sources={"model": "net.onnx", "model_sha256": "0" * 64},
            min_agreement=1.0,
        )
        bundles.finish(folder, manifest)
    return place


def load(path: Path, *keys: str | Path | bytes) -> None:
    fcnopt.load(path, trusted_keys=keys).close()


def fcnopt_cli(*arguments: object, typed: str | None = None) -> Any:
    return CliRunner().invoke(main, [str(a) for a in arguments], input=typed)
