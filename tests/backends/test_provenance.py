"""What is other here than where an engine was built, and what comes of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fcnopt.backends import open_engine, provenance
from fcnopt.backends.base import BuildOptions
from fcnopt.backends.openvino import OpenVinoBuilder
from fcnopt.backends.packages import version_of
from fcnopt.backends.provenance import Provenance, capabilities_of, check_int8, checked, differences
from fcnopt.backends.targets import Target
from fcnopt.errors import BackendError, BundleError, UsageError
from tests.backends.tiny import silent, tiny_onnx, tiny_spec

HERE = f"openvino {version_of('openvino')}"
VNNI = ["avx2", "avx512", "vnni", "bf16"]
ON_CPU = Provenance("fcn8s", Target("openvino"), "int8", HERE, "CPU (AMD EPYC)", {"isa": VNNI})


@pytest.fixture(autouse=True)
def isa(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets the vector extensions of this machine."""

    def choose(*names: str) -> None:
        monkeypatch.setattr(provenance, "cpu_isa", lambda: names)

    choose(*VNNI)
    return choose


def test_where_nothing_differs_an_error_stays_as_it_is() -> None:
    assert differences(ON_CPU) == ()
    with pytest.raises(BackendError) as caught, checked(ON_CPU):
        raise BackendError("openvino refused it", fix="export it again")
    assert str(caught.value) == "openvino refused it\n  fix: export it again"


@pytest.mark.parametrize("kind", [BackendError, BundleError])
def test_an_error_names_the_version_built_with_and_the_one_here(kind: type[Any]) -> None:
    built = replace(ON_CPU, runtime="openvino 2027.1.0")
    with pytest.raises(kind) as caught, checked(built):
        raise kind("engine.xml: openvino refused it: unsupported opset: opset19", fix="build it again here")
    assert caught.value.message.endswith(f"opset19 (it was built with openvino 2027.1.0, here is {HERE})")
    assert caught.value.fix == "build it again here; or install openvino==2027.1.0"
    assert isinstance(caught.value.__cause__, kind)


def test_another_version_alone_is_no_error() -> None:
    with checked(replace(ON_CPU, runtime="openvino 2020.1")):
        pass


def test_what_the_user_did_wrong_is_not_blamed_on_the_machine() -> None:
    with pytest.raises(UsageError) as caught, checked(replace(ON_CPU, runtime="openvino 1")):
        raise UsageError("no", fix="none")
    assert caught.value.message == "no"


def test_int8_proved_with_vnni_is_refused_on_an_x86_cpu_without_before_anything_is_loaded(isa: Any) -> None:
    isa("avx2")
    loaded = False
    with pytest.raises(BackendError) as caught, checked(ON_CPU):
        loaded = True
    assert not loaded
    assert caught.value.message == (
        "fcn8s: int8 was proved on a CPU with VNNI (avx2, avx512, vnni, bf16), which this one has not (avx2): "
        "its int8 sums can saturate"
    )
    assert "build it again on this machine" in caught.value.fix


@pytest.mark.parametrize(
    ("change", "here"),
    [
        ({"precision": "fp32"}, ("avx2",)),
        ({"target": Target("onnxruntime", "cuda")}, ("avx2",)),
        ({"target": Target("openvino", "gpu")}, ("avx2",)),
        ({"target": Target("tensorrt")}, ("avx2",)),
        ({"machine": {"isa": ["avx2"]}}, ("avx2",)),  # it was proved as it is computed here
        ({"machine": {}}, ("avx2",)),
        ({"machine": {"isa": 3}}, ("avx2",)),
        ({}, ("neon", "dotprod")),  # ARM adds in 32 bits
        ({}, ("avx2", "vnni")),
    ],
)
def test_other_engines_and_cpus_are_not_refused(isa: Any, change: dict[str, Any], here: tuple[str, ...]) -> None:
    isa(*here)
    check_int8(replace(ON_CPU, **change))


def test_missing_instructions_are_named_where_an_engine_answers_otherwise(isa: Any) -> None:
    isa("avx2", "avx512", "vnni")
    with (
        pytest.raises(
            BundleError, match=r"known-answer test failed .it was proved on a CPU with bf16, which"
        ) as caught,
        checked(ON_CPU),
    ):
        raise BundleError("known-answer test failed", fix="build it again here")
    assert caught.value.fix == "build it again here"


def test_an_ir_of_a_later_openvino_is_refused_with_both_versions(tmp_path: Path) -> None:
    spec = tiny_spec()
    built = OpenVinoBuilder().build(tiny_onnx(tmp_path / "model.onnx", spec), tmp_path, BuildOptions(), silent)
    xml = built.files[0].read_text()
    assert 'type="Convolution" version="opset1"' in xml
    built.files[0].write_text(
        xml.replace('type="Convolution" version="opset1"', 'type="Convolution" version="opset99"')
    )
    later = replace(ON_CPU, precision="fp32", runtime="openvino 2031.0.0")
    with pytest.raises(BackendError, match=r"openvino refused it: .*opset99") as caught, checked(later):
        open_engine(built.files, later.target, "fp32", spec)
    assert f"it was built with openvino 2031.0.0, here is {HERE}" in caught.value.message
    assert "install openvino==2031.0.0" in caught.value.fix


@pytest.mark.parametrize(
    ("target", "device", "gpu", "says"),
    [
        ("tensorrt", "NVIDIA H100 (9.0)", "sm86", "it was built for sm90, this GPU is sm86"),
        ("tensorrt-rtx:sm86,sm89", "sm86+sm89", "sm120", "it was built for sm86 and sm89, this GPU is sm120"),
        ("tensorrt-rtx:sm86,sm89", "sm86+sm89", "sm89", None),
        ("tensorrt", "a GPU", "sm89", None),
    ],
)
def test_another_gpu_is_named(
    monkeypatch: pytest.MonkeyPatch, target: str, device: str, gpu: str, says: str | None
) -> None:
    monkeypatch.setattr(provenance, "gpu_capabilities", lambda: (gpu, "sm75"))
    monkeypatch.setattr(provenance, "version_of", lambda _: "11.0")
    parsed = Target.parse(target)
    module = parsed.runtime.replace("-", "_")
    assert differences(Provenance("x", parsed, "fp16", f"{module} 11.0", device)) == ((says,) if says else ())


def test_capabilities_are_read_from_a_builder_s_words() -> None:
    assert capabilities_of("sm86+sm120") == ("sm86", "sm120")
    assert capabilities_of("NVIDIA H100 PCIe (9.0)") == ("sm90",)
    assert capabilities_of("CPU (Intel(R) Xeon(R) 8.5 GHz)") == ()


def test_a_runtime_that_is_not_installed_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "version_of", lambda _: None)
    monkeypatch.setattr(provenance, "gpu_capabilities", lambda: ())
    built = Provenance("x", Target("tensorrt"), "fp16", "tensorrt 10.9.0", "NVIDIA H100 (9.0)")
    assert differences(built) == ("it was built with tensorrt 10.9.0, here is tensorrt (not installed)",)
