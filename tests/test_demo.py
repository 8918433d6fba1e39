"""The demo's road, its slow steps replaced."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fcnopt import demo as module
from fcnopt.errors import BackendError


def test_every_engine_is_named_before_it_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    before: list[str] = []

    def build(_model: Path, *, precision: str, target: str, **_: Any) -> Path:
        before.append(said[-1])
        assert said[-1] == f"   {precision} for {target}"
        if target == module.RTX_TARGET:
            raise BackendError("no TensorRT-RTX", fix="install it")
        return tmp_path / precision

    def bundle(path: Path) -> Any:
        return SimpleNamespace(path=path, target=SimpleNamespace(runs_here=lambda: True))

    exported = SimpleNamespace(path=tmp_path / "net.onnx", describe=lambda: "exported")
    scene = SimpleNamespace(write_video=lambda _: None, write_labels=lambda _: None, write_images=lambda _: None)
    monkeypatch.setattr(module, "SynthClip", lambda _: scene)
    monkeypatch.setattr(module, "export", lambda *_, **__: exported)
    monkeypatch.setattr(module, "optimize", lambda *_, **__: (None, ()))
    monkeypatch.setattr(module, "build", build)
    monkeypatch.setattr(module, "bench", lambda *_, **__: None)
    monkeypatch.setattr(module, "Bundle", SimpleNamespace(read=bundle))
    result = module.demo(tmp_path, say=said.append)
    assert before[-2:] == [f"   fp16 for {module.RTX_TARGET}", f"   int8 for {module.RTX_TARGET}"]
    assert len(before) == len(set(before)) == len(result.bundles) + 2
    assert result.skipped[0] == f"fp16 for {module.RTX_TARGET}: no TensorRT-RTX"
