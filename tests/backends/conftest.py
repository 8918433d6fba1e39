"""Frames and the runners that work on any machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from fcnopt.backends.base import Runner
from fcnopt.spec import ModelSpec
from tests.backends.tiny import tiny_module, tiny_onnx, tiny_spec

Open = Callable[..., Runner]


@pytest.fixture
def frames(rng: np.random.Generator) -> NDArray[np.uint8]:
    """Eight smooth random frames of the tiny network's size."""
    coarse = rng.integers(0, 256, (8, 6, 8, 3)).astype(np.uint8)
    return coarse.repeat(4, axis=1).repeat(4, axis=2)


@pytest.fixture(params=["torch", "onnxruntime", "openvino"])
def open_tiny(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    """Opens the tiny network on one of the CPU runtimes: `open_tiny(spec=..., batch=...)`."""

    def opened(spec: ModelSpec | None = None, batch: int | None = 1) -> Runner:
        spec = spec or tiny_spec()
        if request.param == "torch":
            from fcnopt.backends.torch import TorchRunner

            return TorchRunner(tiny_module(), spec)
        path = tiny_onnx(tmp_path / "tiny.onnx", spec, batch=batch)
        if request.param == "onnxruntime":
            from fcnopt.backends.onnxruntime import OnnxRuntimeRunner

            return OnnxRuntimeRunner(path, spec)
        from fcnopt.backends.openvino import OpenVinoRunner

        return OpenVinoRunner(path, spec)

    return opened


@pytest.fixture
def reference() -> Callable[[ModelSpec, NDArray[np.uint8]], NDArray[np.float32]]:
    """Logits of the tiny network, computed with torch in double precision and plain normalization."""

    def logits(spec: ModelSpec, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        import torch

        norm = spec.frame.normalization
        rgb = frames[..., ::-1] if spec.frame.color == "BGR" else frames
        x = (rgb.astype(np.float64) * norm.scale - norm.mean) / norm.std
        with torch.inference_mode():
            y = tiny_module().double()(torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2))))
        return y.numpy().astype(np.float32)

    return logits
