"""A bundle, its deployment for C++, and the programs built from that. One build a session."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from fcnopt.builder import build
from fcnopt.deployment import deploy
from fcnopt.media.clips import open_clip
from fcnopt.quantize import qdq
from fcnopt.settings import BuildSettings

_FLAGS = "-O1 -Wall -Wextra -Werror -std=c++17"
_NATIVE = Path(__file__).parent / "native"


def environment(**more: str) -> dict[str, str]:
    """This process's, with this Python first, no keys to trust, and `more`."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    kept = {name: value for name, value in os.environ.items() if name != "FCNOPT_TRUSTED_KEYS"}
    return {**kept, "PATH": path, "LC_ALL": "C", **more}


def run_program(program: Path, *words: str | Path, given: bytes | None = None, **more: str) -> tuple[int, str, str]:
    """Exit code, output and errors of a program that must come to an end."""
    done = subprocess.run([program, *words], input=given, capture_output=True, timeout=300, env=environment(**more))
    return done.returncode, done.stdout.decode(), done.stderr.decode()


@pytest.fixture(scope="session")
def cmake() -> str:
    """The command `cmake`; the test is skipped where C++ cannot be built."""
    missing = [tool for tool in ("cmake", "g++") if shutil.which(tool) is None]
    headers = [name for name in ("zlib.h",) if not Path("/usr/include", name).exists()]
    if missing or headers:
        pytest.skip(f"not installed: {', '.join([*missing, *headers])}")
    return "cmake"


@pytest.fixture(scope="session")
def street_frames(street: Path) -> NDArray[np.uint8]:
    """Six frames uint8 [6, 64, 96, 3]."""
    return np.stack([frame.image for frame in open_clip(street / "clip.mp4")])


@pytest.fixture(scope="session")
def int8_bundle(tiny_model: Path, street: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny network in INT8 for OpenVINO: some layers are left float, whose type the runtime is told."""
    pytest.importorskip("openvino")
    folder = tmp_path_factory.mktemp("engines")
    settings = BuildSettings(folder=folder, calib=folder / "calib")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(qdq, "int8_saturates", lambda: False)  # weights of full range on every CPU
        return build(
            tiny_model, precision="int8", target="openvino", calibration=(street / "images",), settings=settings
        )


@pytest.fixture(scope="session")
def deployed(int8_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its deployment."""
    return deploy(int8_bundle, to="cpp", output=tmp_path_factory.mktemp("deploy") / "cpp")


def shell(command: str, folder: Path) -> None:
    """Run a command line as a reader of the README would, with strict warnings and little optimization."""
    generator = {"CMAKE_GENERATOR": "Ninja"} if shutil.which("ninja") else {}
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=3000,
        env=environment(CXXFLAGS=_FLAGS, **generator),
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"


def readme_commands(folder: Path, start: str) -> list[str]:
    """The commands in a README.md that start with a word."""
    text = (folder / "README.md").read_text(encoding="utf-8")
    return re.findall(rf"^    ({re.escape(start)} .*)$", text, re.MULTILINE)


@pytest.fixture(scope="session")
def program(cmake: str, deployed: Path) -> Path:
    """The example program, built by the README's commands; unoptimized, which costs less time here."""
    configure, make = readme_commands(deployed, cmake)
    assert "-DCMAKE_BUILD_TYPE=Release" in configure
    shell(configure.replace("-DCMAKE_BUILD_TYPE=Release", ""), deployed)
    shell(make, deployed)
    return deployed / "build" / "fcnopt_run"


@pytest.fixture(scope="session")
def native(cmake: str, deployed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the programs that test the library's parts, built with the sanitizers."""
    folder = tmp_path_factory.mktemp("native")
    (configure, _) = readme_commands(deployed, cmake)
    runtime = configure.partition("-DOpenVINO_DIR=")[2]
    shell(f'{cmake} -S "{_NATIVE}" -B . -DFCNOPT_DEPLOYMENT="{deployed}" -DOpenVINO_DIR={runtime}', folder)
    shell(f"{cmake} --build .", folder)
    return folder


def records(texts: Sequence[bytes]) -> bytes:
    """Texts as the program `parts` reads them."""
    return b"".join(len(text).to_bytes(4, "little") + text for text in texts)
