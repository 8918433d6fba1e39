"""Autoware: files and parameters as `TrtCommonConfig` takes them, and what it could not build."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import onnx
import pytest

from fcnopt.deployment import deploy
from fcnopt.errors import UsageError
from tests.deployment.bundles import TENSORRT_ENGINE, make_bundle

yaml = pytest.importorskip("ruamel.yaml", reason="no parser of YAML is installed")

# TrtCommonConfig's constructor in autoware_tensorrt_common/utils.hpp, in order, with YAML's types for its own.
ARGUMENTS = {
    "onnx_path": str,
    "precision": str,
    "engine_path": str,
    "max_workspace_size": int,
    "dla_core_id": int,
    "profile_per_layer": bool,
}


def parameters_of(folder: Path) -> dict[str, Any]:
    (file,) = folder.glob("*.param.yaml")
    nodes = yaml.YAML(typ="safe").load(file)
    assert list(nodes) == ["/**"]
    assert list(nodes["/**"]) == ["ros__parameters"]
    return dict(nodes["/**"]["ros__parameters"])


def test_parameters_are_the_constructors_arguments(tmp_path: Path) -> None:
    parameters = parameters_of(deploy(make_bundle(tmp_path, "tensorrt", "int8"), to="autoware", output=tmp_path / "o"))
    assert {name: type(value) for name, value in parameters.items()} == ARGUMENTS
    assert list(parameters) == list(ARGUMENTS)
    assert parameters["precision"] == "strongly-typed"
    assert parameters["dla_core_id"] == -1
    assert parameters["max_workspace_size"] == 1 << 30


def test_the_paths_name_the_graph_and_the_engine(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path, "tensorrt", "int8")
    folder = deploy(bundle, to="autoware", output=tmp_path / "out")
    parameters = parameters_of(folder)
    assert (folder / parameters["onnx_path"]).read_bytes() == (bundle / "model.onnx").read_bytes()
    assert (folder / parameters["engine_path"]).read_bytes() == TENSORRT_ENGINE
    assert (folder / parameters["onnx_path"]).suffix == ".onnx", "TrtCommon refuses another"


@pytest.mark.parametrize(("target", "precision"), [("tensorrt-rtx:sm86", "int8"), ("onnxruntime:cuda", "fp16")])
def test_an_engine_of_another_runtime_stays_behind_and_autoware_builds_its_own(
    target: str, precision: Any, tmp_path: Path
) -> None:
    folder = deploy(make_bundle(tmp_path, target, precision), to="autoware", output=tmp_path / "out")
    parameters = parameters_of(folder)
    onnx.checker.check_model(onnx.load(folder / parameters["onnx_path"]))
    assert not (folder / parameters["engine_path"]).exists()
    assert not list(folder.rglob("*.plan"))
    assert "Autoware builds model.engine from model.onnx" in (folder / "README.md").read_text()


def test_weights_beside_the_graph_go_with_it(tmp_path: Path) -> None:
    from dataclasses import replace

    from fcnopt.bundle import Bundle, finish

    bundle = make_bundle(tmp_path, "tensorrt", "int8")
    (bundle / "model.onnx.data").write_bytes(b"weights")
    (bundle / "recipe.json").write_text("{}")
    finish(bundle, replace(Bundle.read(bundle).manifest))
    folder = deploy(bundle, to="autoware", output=tmp_path / "out")
    assert (folder / "model.onnx.data").read_bytes() == b"weights"
    assert not list(folder.rglob("recipe.json"))


def test_the_readme_gives_tensors_as_the_engine_has_them(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path, "tensorrt", "int8", outputs=("labels", "logits"))
    text = (deploy(bundle, to="autoware", output=tmp_path / "out") / "README.md").read_text()
    given = re.findall(r'emplace_back\("(\w+)", nvinfer1::Dims(\{.*?\}\})\);   // (\w+)', text)
    assert given == [
        ("frames", "{4, {1, 64, 96, 3}}", "uint8"),
        ("labels", "{3, {1, 64, 96}}", "uint8"),
        ("logits", "{4, {1, 3, 64, 96}}", "float32"),
    ]
    assert "`precision: int8` is the nearest" in text


def test_a_precision_that_older_ones_lack_is_said(tmp_path: Path) -> None:
    text = (
        deploy(make_bundle(tmp_path, "tensorrt", "fp8"), to="autoware", output=tmp_path / "o") / "README.md"
    ).read_text()
    assert "It has no FP8" in text
    assert "is the nearest" not in text


@pytest.mark.parametrize(
    ("target", "dims", "message", "fix"),
    [
        ("openvino", (1, 64, 96), "form for CPUs", "--target tensorrt"),
        ("onnxruntime", (1, 64, 96), "form for CPUs", "tensorrt-rtx:sm86"),
        ("tensorrt", (None, 64, 96), "any size or number", "--size"),
        ("tensorrt", (1, None, None), "any size or number", "--size"),
    ],
)
def test_what_autoware_could_not_build_is_refused(
    target: str, dims: tuple[int | None, int | None, int | None], message: str, fix: str, tmp_path: Path
) -> None:
    bundle = make_bundle(tmp_path, target, "fp32", dims=dims)
    with pytest.raises(UsageError, match=message) as caught:
        deploy(bundle, to="autoware", output=tmp_path / "out")
    assert fix in caught.value.fix
    assert [path.name for path in tmp_path.iterdir()] == ["net"], "something was left"
