"""Docker: instructions that are whole, copy what is there, drop rights, and want keys where the bundle is signed."""

from __future__ import annotations

import fnmatch
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from fcnopt.bundle import Bundle, sign
from fcnopt.deployment import deploy
from fcnopt.errors import UsageError
from fcnopt.signing import new_key
from fcnopt.version import __version__
from tests.deployment.bundles import make_bundle

INSTRUCTIONS = {"ARG", "FROM", "COPY", "RUN", "ENV", "USER", "WORKDIR", "EXPOSE", "HEALTHCHECK", "STOPSIGNAL"}
INSTRUCTIONS |= {"ENTRYPOINT"}


def instructions(folder: Path) -> list[tuple[str, str]]:
    lines = [line for line in (folder / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    whole = re.sub(r"\s*\\\n\s*", " ", "\n".join(lines))
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1].strip()) for line in whole.splitlines() if line]


def values(folder: Path, name: str) -> list[str]:
    return [text for kind, text in instructions(folder) if kind == name]


def compose(folder: Path) -> dict[str, Any]:
    yaml = pytest.importorskip("ruamel.yaml", reason="no parser of YAML is installed")
    parsed = yaml.YAML(typ="safe").load(folder / "compose.yaml")
    assert list(parsed) == ["services"]
    (service,) = parsed["services"].values()
    return dict(service)


def let_through(folder: Path, name: str) -> bool:
    """Whether .dockerignore lets a file of the folder reach the build; the last line that fits decides."""
    allowed = True
    for line in (folder / ".dockerignore").read_text().splitlines():
        pattern = line.removeprefix("!")
        parts = Path(name).parts
        heads = ["/".join(parts[: count + 1]) for count in range(len(parts))]
        if line and not line.startswith("#") and any(fnmatch.fnmatch(head, pattern) for head in heads):
            allowed = line.startswith("!")
    return allowed


@pytest.fixture(params=["openvino", "onnxruntime", "onnxruntime:cuda", "tensorrt", "tensorrt-rtx:sm86"])
def target(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def deployed(target: str, tmp_path: Path) -> Path:
    return deploy(make_bundle(tmp_path, target, "fp32"), to="docker", output=tmp_path / "out")


def test_every_instruction_is_one_and_their_order_holds(deployed: Path) -> None:
    kinds = [kind for kind, _ in instructions(deployed)]
    assert set(kinds) <= INSTRUCTIONS
    assert next(kind for kind in kinds if kind != "ARG") == "FROM"
    assert kinds.count("FROM") == kinds.count("ENTRYPOINT") == kinds.count("HEALTHCHECK") == 1
    assert max(i for i, kind in enumerate(kinds) if kind in ("RUN", "COPY")) < kinds.index("USER"), "rights come late"
    assert values(deployed, "USER") == ["10001"]


def test_what_is_copied_is_there_and_reaches_the_build(deployed: Path) -> None:
    copies = [json.loads(text) for text in values(deployed, "COPY")]
    assert len(copies) == 2
    for source, _ in copies:
        files = [path for path in (deployed / source).rglob("*") if path.is_file()]
        assert files
        assert all(let_through(deployed, path.relative_to(deployed).as_posix()) for path in files)
    for name in ("keys/key.pub", "compose.yaml", "key", "keys"):
        assert not let_through(deployed, name), f"{name} would be in the image's context"


def test_the_bundle_that_is_served_is_the_one_that_was_copied_whole(deployed: Path) -> None:
    source, place = json.loads(values(deployed, "COPY")[1])
    program, *arguments = json.loads(values(deployed, "ENTRYPOINT")[0])
    assert program == "fcnopt"
    assert arguments == ["serve", place, "--host", "0.0.0.0"]  # noqa: S104  (all of the container's)
    Bundle.read(deployed / source).verify()


def test_the_command_knows_the_options_that_it_is_given(deployed: Path) -> None:
    from fcnopt.cli import main

    _, command, _, *options = json.loads(values(deployed, "ENTRYPOINT")[0])
    known = {name for parameter in main.commands[command].params for name in parameter.opts}
    assert set(options[::2]) <= known


def test_the_runtime_is_the_one_that_built_the_engine(target: str, deployed: Path) -> None:
    (install,) = (text for text in values(deployed, "RUN") if "pip install" in text)
    wanted = re.findall(r'"([^"]+)"', install)
    assert wanted[0].startswith("fcnopt[serve")
    assert wanted[0].endswith(f"]=={__version__}")
    expected = {
        "openvino": "openvino==10.13.2",
        "onnxruntime": "onnxruntime==10.13.2",
        "onnxruntime:cuda": "onnxruntime-gpu==10.13.2",
        "tensorrt-rtx:sm86": "tensorrt-rtx==10.13.2",
    }
    if target == "tensorrt":
        assert values(deployed, "FROM") == ["${BASE}"]
        assert "BASE" in values(deployed, "ARG")
        assert not any(name.startswith("tensorrt") for name in wanted), "the base image brings it"
        assert "tensorrt 10.13.2" in (deployed / "README.md").read_text()
    else:
        assert expected[target] in wanted


def test_the_health_check_is_a_program_that_fails_where_nothing_answers(deployed: Path) -> None:
    (check,) = values(deployed, "HEALTHCHECK")
    command = json.loads(check[check.index("CMD ") + 4 :])
    assert command[:2] == ["python3", "-c"]
    assert "/v2/health/ready" in command[2]
    assert "127.0.0.1:8000" in command[2]
    compile(command[2], "health check", "exec")
    nobody = command[2].replace(":8000", ":1")
    assert subprocess.run(["python3", "-c", nobody], check=False, capture_output=True).returncode == 1


def test_the_service_has_no_rights_and_answers_this_machine_alone(target: str, deployed: Path) -> None:
    service = compose(deployed)
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    exposed = {port.split(":")[-1] for port in service["ports"]}
    assert exposed == set(values(deployed, "EXPOSE")[0].split())
    declared = {text.split("=")[0] for text in values(deployed, "ARG")}
    assert set(service["build"]["args"]) == declared
    on_gpu = target not in ("openvino", "onnxruntime")
    assert ("deploy" in service) == on_gpu
    assert any("NVIDIA_VISIBLE_DEVICES" in text for text in values(deployed, "ENV")) == on_gpu


def test_keys_are_asked_for_exactly_where_the_bundle_is_signed(tmp_path: Path) -> None:
    bundle, _ = make_bundle(tmp_path), new_key(tmp_path / "key")
    plain = deploy(bundle, to="docker", output=tmp_path / "plain")
    assert not any("TRUSTED_KEYS" in text for text in values(plain, "ENV"))
    assert "volumes" not in compose(plain)
    sign(bundle, tmp_path / "key")
    signed = deploy(bundle, to="docker", output=tmp_path / "signed")
    assert "FCNOPT_TRUSTED_KEYS=/keys" in values(signed, "ENV")
    (volume,) = compose(signed)["volumes"]
    assert (volume["source"], volume["target"], volume["read_only"]) == ("./keys", "/keys", True)
    assert not list(signed.rglob("*.pub")), "whom the vehicle trusts is not for the image to say"
    assert "cp KEY.pub keys/" in (signed / "README.md").read_text()


def test_a_name_that_docker_does_not_take_is_written_as_one_that_it_does(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path)
    place = bundle.rename(tmp_path / "Net v2 (Süd)")
    folder = deploy(place, to="docker", output=tmp_path / "out")
    assert re.fullmatch(r"[a-z0-9]+([._-]+[a-z0-9]+)*", compose(folder)["image"])
    assert json.loads(values(folder, "COPY")[1]) == ["bundle/Net v2 (Süd)", "/engines/Net v2 (Süd)"]


def test_an_image_without_the_devices_driver_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no driver of an Intel GPU") as caught:
        deploy(make_bundle(tmp_path, "openvino:gpu", "fp16"), to="docker", output=tmp_path / "out")
    assert "--target openvino" in caught.value.fix
