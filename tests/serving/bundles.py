"""Bundles made without torch and ONNX Runtime, as a machine that only serves could make them."""

from __future__ import annotations

import datetime
from pathlib import Path

import numpy as np

from fcnopt.backends import Target, open_engine
from fcnopt.backends.base import BuildOptions
from fcnopt.backends.openvino import OpenVinoBuilder
from fcnopt.bundle import MODEL, finish, staged
from fcnopt.manifest import Manifest
from fcnopt.selftest import SELFTEST, write_selftest
from fcnopt.spec import ModelSpec
from fcnopt.version import __version__
from tests.backends.tiny import silent, tiny_onnx


def tiny_bundle(place: Path, spec: ModelSpec, *, batch: int | None = 1) -> Path:
    """An FP32 OpenVINO bundle of the tiny network; its known answer is the engine's own."""
    target = Target.parse("openvino")
    with staged(place) as folder:
        built = OpenVinoBuilder().build(tiny_onnx(folder / MODEL, spec, batch=batch), folder, BuildOptions(), silent)
        size = (1, spec.frame.height or 24, spec.frame.width or 32, 3)
        frame = np.random.default_rng(3).integers(0, 256, size, dtype=np.uint8)
        with open_engine(built.files, target, "fp32", spec) as runner:
            write_selftest(folder / SELFTEST, frame, runner.run(frame).labels)
        manifest = Manifest(
            name=place.name,
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            fcnopt=__version__,
            spec=spec,
            target=str(target),
            precision="fp32",
            device=built.device,
            runtime=built.runtime,
            engine=tuple(file.name for file in built.files),
            files={},
            sources={},
            min_agreement=0.995,
        )
        finish(folder, manifest)
    return place
