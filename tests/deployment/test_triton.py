"""Triton: what the configuration says, by a parser and by the server's own schema; what is refused; the client."""

from __future__ import annotations

import runpy
import subprocess
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fcnopt.bundle import MANIFEST, Bundle, finish, write_text
from fcnopt.deployment import deploy
from fcnopt.deployment.parts import copy_parts, verified_graph
from fcnopt.errors import BundleError, UsageError
from fcnopt.spec import ModelSpec
from tests.deployment.bundles import CLASSES, TENSORRT_ENGINE, make_bundle
from tests.deployment.pbtxt import Message, parse

# target, precision, dims -> max_batch_size, dims of frames, dims of labels, file, kind, parameters for the backend
CASES: dict[str, tuple[Any, ...]] = {
    "tensorrt": (("tensorrt", "int8", (1, 64, 96)), 0, [1, 64, 96, 3], "model.plan", "KIND_GPU", {}),
    "tensorrt of four": (("tensorrt", "fp16", (4, 64, 96)), 0, [4, 64, 96, 3], "model.plan", "KIND_GPU", {}),
    "tensorrt, any batch": (("tensorrt", "fp16", (None, 64, 96)), 0, [-1, 64, 96, 3], "model.plan", "KIND_GPU", {}),
    "onnxruntime": (("onnxruntime", "fp32", (1, 64, 96)), 0, [1, 64, 96, 3], "model.onnx", "KIND_CPU", {}),
    "onnxruntime, any": (("onnxruntime", "fp32", (None, None, None)), 8, [-1, -1, 3], "model.onnx", "KIND_CPU", {}),
    "cuda": (("onnxruntime:cuda", "fp16", (2, 64, 96)), 0, [2, 64, 96, 3], "model.onnx", "KIND_GPU", {}),
    "openvino": (
        ("openvino", "int8", (1, 64, 96)),
        *(0, [1, 64, 96, 3], "model.xml", "KIND_CPU", {"PERFORMANCE_HINT": "LATENCY"}),
    ),
    "openvino of four": (
        ("openvino", "bf16", (4, 64, 96)),
        *(4, [64, 96, 3], "model.xml", "KIND_CPU"),
        {"PERFORMANCE_HINT": "LATENCY", "HINT_BF16": "YES", "ENABLE_BATCH_PADDING": "YES"},
    ),
    "openvino gpu": (
        ("openvino:gpu", "fp16", (1, 64, 96)),
        *(0, [1, 64, 96, 3], "model.xml", "KIND_CPU", {"PERFORMANCE_HINT": "LATENCY", "TARGET_DEVICE": "GPU"}),
    ),
}


def repository(folder: Path) -> Path:
    (model,) = (folder / "models").iterdir()
    return model


def config_of(folder: Path) -> Message:
    return parse((repository(folder) / "config.pbtxt").read_text())


def parameters_of(config: Message) -> dict[str, str]:
    return {entry["key"][0]: entry["value"][0]["string_value"][0] for entry in config["parameters"]}


@pytest.mark.parametrize("case", CASES)
def test_the_configuration_fits_engine_and_backend(case: str, tmp_path: Path) -> None:
    (target, precision, dims), most, shape, file, kind, hints = CASES[case]
    folder = deploy(make_bundle(tmp_path, target, precision, dims=dims), to="triton", output=tmp_path / "out")
    config, runtime = config_of(folder), target.split(":")[0]
    assert config["name"] == [repository(folder).name]
    assert config.get("platform") == (["tensorrt_plan"] if runtime == "tensorrt" else None)
    assert config.get("backend") == (None if runtime == "tensorrt" else [runtime])
    assert config["max_batch_size"] == [most]
    assert ("dynamic_batching" in config) == (most > 0)
    assert config["default_model_filename"] == [file]
    assert (repository(folder) / "1" / file).is_file()
    (frames,), (labels,) = config["input"], config["output"]
    assert frames == {"name": ["frames"], "data_type": ["TYPE_UINT8"], "dims": shape}
    assert labels["data_type"] == ["TYPE_UINT8"]
    assert labels["dims"] == shape[:-1]
    assert config["instance_group"] == [{"count": [1], "kind": [kind]}]
    given = {key: value for key, value in parameters_of(config).items() if not key.startswith("fcnopt.")}
    assert given == hints


@pytest.mark.parametrize("case", CASES)
def test_the_warm_up_request_is_the_frame_of_the_known_answer_in_the_models_shape(case: str, tmp_path: Path) -> None:
    (target, precision, dims), most, shape, *_ = CASES[case]
    folder = deploy(make_bundle(tmp_path, target, precision, dims=dims), to="triton", output=tmp_path / "out")
    (warmup,) = config_of(folder)["model_warmup"]
    (entry,) = warmup["inputs"]
    assert entry["key"] == ["frames"]
    assert entry["value"][0]["input_data_file"] == ["selftest.raw"]
    size = entry["value"][0]["dims"]
    with np.load(folder / "bundle" / "selftest.npz") as known:
        frame = known["frame"]
    assert len(size) == len(shape)
    assert all(wanted in (-1, found) for wanted, found in zip(shape, size, strict=True))
    assert warmup["batch_size"] == [most if case == "openvino of four" else 1]
    raw = np.fromfile(repository(folder) / "warmup" / "selftest.raw", np.uint8).reshape(-1, *frame.shape[1:])
    assert raw.size == np.prod(size)
    assert all(np.array_equal(copy, frame[0]) for copy in raw)


def test_a_profile_that_the_manifest_tells_lets_the_server_join_requests(tmp_path: Path) -> None:
    shapes = [[1, 64, 96], [2, 64, 96], [6, 64, 96]]
    bundle = make_bundle(tmp_path, "tensorrt", "fp16", dims=(None, 64, 96), sources={"shapes": shapes})
    config = config_of(deploy(bundle, to="triton", output=tmp_path / "out"))
    assert config["max_batch_size"] == [6]
    assert config["input"][0]["dims"] == [64, 96, 3]
    assert "dynamic_batching" in config


def test_class_names_reach_the_server_whatever_is_in_them(tmp_path: Path) -> None:
    folder = deploy(make_bundle(tmp_path), to="triton", output=tmp_path / "out")
    assert (repository(folder) / "labels.txt").read_text().splitlines() == list(CLASSES.names)
    config = config_of(folder)
    assert config["output"][0]["label_filename"] == ["labels.txt"]
    told = ModelSpec.from_json(parameters_of(config)["fcnopt.spec"])
    assert told == Bundle.read(tmp_path / "net").manifest.spec
    assert told.classes == CLASSES


def test_other_outputs_are_served_with_their_own_type(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path, outputs=("labels", "logits"))
    labels, logits = config_of(deploy(bundle, to="triton", output=tmp_path / "out"))["output"]
    assert logits == {"name": ["logits"], "data_type": ["TYPE_FP32"], "dims": [1, 3, 64, 96]}
    assert labels["name"] == ["labels"]


@pytest.mark.parametrize("case", CASES)
def test_tritons_own_schema_takes_the_configuration(case: str, tmp_path: Path) -> None:
    schema = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="tritonclient[grpc] is not installed")
    from google.protobuf import text_format  # type: ignore[import-untyped]  # has no type information

    target, precision, dims = CASES[case][0]
    folder = deploy(make_bundle(tmp_path, target, precision, dims=dims), to="triton", output=tmp_path / "out")
    text = (repository(folder) / "config.pbtxt").read_text()
    config = text_format.Parse(text, schema.ModelConfig())
    assert config.max_batch_size == CASES[case][1]
    assert list(config.input[0].dims) == CASES[case][2]
    assert config.model_warmup[0].inputs["frames"].input_data_file == "selftest.raw"
    assert ModelSpec.from_json(config.parameters["fcnopt.spec"].string_value).classes == CLASSES
    with pytest.raises(text_format.ParseError):
        text_format.Parse(text.replace("max_batch_size", "max_batchsize"), schema.ModelConfig())
    with pytest.raises(text_format.ParseError):
        text_format.Parse(text.replace("TYPE_UINT8", "TYPE_BYTE"), schema.ModelConfig())


def test_the_engines_files_are_those_that_were_verified_under_the_names_that_triton_wants(tmp_path: Path) -> None:
    plan = deploy(make_bundle(tmp_path, "tensorrt", "int8"), to="triton", output=tmp_path / "out")
    assert (repository(plan) / "1" / "model.plan").read_bytes() == TENSORRT_ENGINE
    assert [file.name for file in (repository(plan) / "1").iterdir()] == ["model.plan"]


def test_a_file_that_changes_after_it_was_looked_at_is_not_deployed(tmp_path: Path) -> None:
    bundle = Bundle.read(make_bundle(tmp_path, "tensorrt", "int8"))
    verified_graph(bundle)
    (bundle.path / "engine.plan").write_bytes(TENSORRT_ENGINE[:-1] + b"!")
    with pytest.raises(BundleError, match=r"engine\.plan: SHA-256 is"):
        copy_parts(bundle, tmp_path / "out", {"engine.plan": Path("model.plan")})


def test_a_manifest_that_changes_meanwhile_is_noticed(tmp_path: Path) -> None:
    bundle = Bundle.read(make_bundle(tmp_path, "tensorrt", "int8"))
    write_text(bundle.path / MANIFEST, replace(bundle.manifest, precision="fp32").to_json())
    with pytest.raises(BundleError, match="was changed while it was copied"):
        copy_parts(bundle, tmp_path / "out", {"engine.plan": Path("model.plan")})


def test_the_ir_is_found_by_its_new_name_and_answers(tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    folder = deploy(make_bundle(tmp_path, "openvino"), to="triton", output=tmp_path / "out")
    assert sorted(file.name for file in (repository(folder) / "1").iterdir()) == ["model.bin", "model.xml"]
    model = openvino.Core().compile_model(repository(folder) / "1" / "model.xml", "CPU")
    with np.load(folder / "bundle" / "selftest.npz") as known:
        np.testing.assert_array_equal(model(known["frame"])["labels"], known["labels"])


@pytest.mark.parametrize(
    ("target", "precision", "options", "message", "fix"),
    [
        ("tensorrt-rtx:sm86", "int8", {}, "tensorrt backend cannot load", "--target tensorrt"),
        ("openvino", "fp16", {}, "computes in fp16", "--precision bf16 or int8"),
        ("openvino:gpu", "fp32", {}, "computes in fp32", "--precision fp16 or int8"),
        ("openvino:gpu", "bf16", {}, "computes in bf16", "--precision fp16 or int8"),
        ("onnxruntime:cuda", "int8", {"half_scales": True}, "WeightBiasQuantization", "--target tensorrt"),
    ],
)
def test_what_triton_would_run_differently_or_not_at_all_is_refused(
    target: str, precision: Any, options: dict[str, Any], message: str, fix: str, tmp_path: Path
) -> None:
    bundle = make_bundle(tmp_path, target, precision, **options)
    with pytest.raises(UsageError, match=message) as caught:
        deploy(bundle, to="triton", output=tmp_path / "out")
    assert fix in caught.value.fix
    assert [path.name for path in tmp_path.iterdir()] == ["net"], "something was left"


def test_a_class_name_of_two_lines_is_refused(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path, classes=replace(CLASSES, names=("road\nsign", "b", "c")))
    with pytest.raises(UsageError, match="line break"):
        deploy(bundle, to="triton", output=tmp_path / "out")


def test_a_graph_with_other_outputs_than_its_manifest_is_refused(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path, "tensorrt", "fp16")
    manifest = Bundle.read(bundle).manifest
    finish(bundle, replace(manifest, spec=replace(manifest.spec, outputs=("labels", "logits"))))
    with pytest.raises(BundleError, match=r"expected frames .* labels, logits .* found frames uint8 \[1, 64, 96, 3\]"):
        deploy(bundle, to="triton", output=tmp_path / "out")


class StandInServer:
    """What check.py asks, in place of `tritonclient.http`: a server with one model."""

    def __init__(self, folder: Path, wrong: int, most: int, batch: int) -> None:
        with np.load(folder / "bundle" / "selftest.npz") as known:
            self.frame, self.labels = known["frame"], known["labels"]
        self.wrong, self.config = wrong, {"max_batch_size": most}
        self.config["input"] = [{"name": "frames", "dims": [batch, 64, 96, 3] if most == 0 else [64, 96, 3]}]  # type: ignore[assignment]

    def __call__(self, url: str) -> StandInServer:
        assert url == "example:8000"
        return self

    def __enter__(self) -> StandInServer:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def get_model_config(self, name: str) -> dict[str, Any]:
        assert name == "net"
        return self.config

    def infer(self, name: str, inputs: list[Any]) -> StandInServer:
        (given,) = inputs
        shape = [1, 64, 96, 3] if self.config["max_batch_size"] else self.config["input"][0]["dims"]  # type: ignore[index]
        assert (name, given.name, given.kind, given.shape) == ("net", "frames", "UINT8", shape)
        assert all(np.array_equal(frame, self.frame[0]) for frame in given.values)
        self.answer = self.labels.repeat(shape[0], axis=0)
        self.answer[-1].flat[: self.wrong] = 200  # in the last frame only
        return self

    def as_numpy(self, name: str) -> Any:
        assert name == "labels"
        return self.answer


class StandInInput:
    def __init__(self, name: str, shape: list[int], kind: str) -> None:
        self.name, self.shape, self.kind = name, shape, kind

    def set_data_from_numpy(self, values: Any) -> None:
        self.values = values


@pytest.mark.parametrize(("most", "batch"), [(0, 1), (0, 4), (8, -1)])
@pytest.mark.parametrize(("wrong", "code"), [(0, 0), (30, 0), (31, 1), (6144, 1)])
def test_the_client_accepts_the_known_answer_alone(
    most: int,
    batch: int,
    wrong: int,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """30 of 6144 labels is 0.49 %, 31 is 0.504 %; 0.5 % may differ."""
    folder = deploy(make_bundle(tmp_path), to="triton", output=tmp_path / "out")
    package, http = types.ModuleType("tritonclient"), types.ModuleType("tritonclient.http")
    vars(http).update(InferenceServerClient=StandInServer(folder, wrong, most, batch), InferInput=StandInInput)
    vars(package)["http"] = http
    monkeypatch.setitem(sys.modules, "tritonclient", package)
    monkeypatch.setitem(sys.modules, "tritonclient.http", http)
    monkeypatch.setattr(sys, "argv", ["check.py", "--url", "example:8000"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(folder / "check.py"), run_name="__main__")
    assert ended.value.code == code
    assert "at least 99.500%" in capsys.readouterr().out


def test_the_client_is_clean_code(tmp_path: Path) -> None:
    folder = deploy(make_bundle(tmp_path), to="triton", output=tmp_path / "out")
    command = [
        sys.executable,
        "-m",
        "ruff",
        "check",
        "--no-cache",
        "--line-length=120",
        "--select=E,F,I,B,W,UP",
        str(folder / "check.py"),
    ]
    assert subprocess.run(command, check=False).returncode == 0
