"""A deployed repository in Triton itself, as nvidia-pytriton's wheel carries it.

That wheel has the Python backend alone, so a few lines of Python run the engine in place of the real backend: what is
shown is that the server takes the configuration, its warm-up and its labels, and that check.py tells right from wrong.
DLPack carries the tensors: with NumPy 2 that wheel's own `as_numpy` and `Tensor` (2.51) give wrong values silently.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fcnopt.deployment import deploy
from fcnopt.selftest import write_selftest
from tests.deployment.bundles import CLASSES, make_bundle

pytest.importorskip("tritonclient.http", reason="tritonclient[http] is not installed")
_PACKAGE = importlib.util.find_spec("pytriton")
if _PACKAGE is None or _PACKAGE.origin is None:
    pytest.skip("nvidia-pytriton is not installed", allow_module_level=True)

_SERVER = Path(_PACKAGE.origin).parent / "tritonserver"
_LIBRARIES = (Path(_PACKAGE.origin).parents[1] / "nvidia_pytriton.libs", sysconfig.get_config_var("LIBDIR"))
_STARTS_WITHIN_S = 120  # on a busy machine; 5 on an idle one
_STAND_IN = """
from pathlib import Path
import numpy
import onnxruntime
import triton_python_backend_utils as triton

class TritonPythonModel:
    def initialize(self, args):
        folder = Path(args["model_repository"]) / args["model_version"]
        self.session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
        self.log = folder / "requests"

    def execute(self, requests):
        answers = []
        for request in requests:
            frames = numpy.from_dlpack(triton.get_input_tensor_by_name(request, "frames"))
            with self.log.open("a") as log:
                log.write(f"{list(frames.shape)} {frames.sum()}\\n")
            (labels,) = self.session.run(["labels"], {"frames": frames})
            answers.append(triton.InferenceResponse([triton.Tensor.from_dlpack("labels", labels)]))
        return answers
"""


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def environment() -> dict[str, str]:
    paths = os.pathsep.join(path for path in sys.path if path)
    return os.environ | {
        "PYTHONPATH": paths,
        "LD_LIBRARY_PATH": os.pathsep.join(str(path) for path in _LIBRARIES),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }


def with_stand_in(folder: Path) -> Path:
    """Make the repository one for the Python backend, and give the model's folder."""
    (model,) = (folder / "models").iterdir()
    text = (model / "config.pbtxt").read_text()
    text, backends = re.subn(r'backend: "\w+"', 'backend: "python"', text)
    text, files = re.subn(r'default_model_filename: "[\w.]+"', 'default_model_filename: "model.py"', text)
    assert backends == files == 1
    (model / "config.pbtxt").write_text(text)
    (model / "1" / "model.py").write_text(_STAND_IN)
    return model


@contextlib.contextmanager
def served(folder: Path, scratch: Path) -> Iterator[str]:
    """Triton with the deployed repository; gives the address of its HTTP endpoint once it is ready."""
    backend = Path(shutil.copytree(_SERVER / "backends" / "python", scratch / "backends" / "python"))
    stubs = _SERVER / "python_backend_stubs" / f"{sys.version_info.major}.{sys.version_info.minor}"
    shutil.copytree(stubs, backend, dirs_exist_ok=True)
    http, grpc, metrics = free_ports(3)
    command = [
        *(_SERVER / "bin" / "tritonserver", f"--model-repository={folder / 'models'}"),
        *(f"--backend-directory={scratch / 'backends'}", "--disable-auto-complete-config"),
        *(f"--http-port={http}", f"--grpc-port={grpc}", f"--metrics-port={metrics}"),
        *(f"--{kind}-address=127.0.0.1" for kind in ("http", "grpc", "metrics")),
    ]
    with (scratch / "log").open("w") as log:
        process = subprocess.Popen(command, env=environment(), stdout=log, stderr=log)
    try:
        wait_until_ready(process, f"http://127.0.0.1:{http}/v2/health/ready", scratch / "log")
        yield f"127.0.0.1:{http}"
    finally:
        process.terminate()
        process.wait(60)


def wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    end = time.monotonic() + _STARTS_WITHIN_S
    while time.monotonic() < end:
        if process.poll() is not None:
            raise RuntimeError(log.read_text())
        with contextlib.suppress(urllib.error.URLError), urllib.request.urlopen(url, timeout=5):  # noqa: S310
            return
        time.sleep(0.1)
    raise TimeoutError(log.read_text())


@pytest.mark.parametrize(("dims", "warm"), [((1, 64, 96), 1), ((4, 64, 96), 4), ((None, 64, 96), 1)])
def test_triton_serves_the_repository_and_the_client_tells_right_from_wrong(
    dims: tuple[int | None, int, int], warm: int, tmp_path: Path
) -> None:
    folder = deploy(make_bundle(tmp_path, dims=dims), to="triton", output=tmp_path / "out")
    model, known = with_stand_in(folder), folder / "bundle" / "selftest.npz"
    with np.load(known) as data:
        frame, labels = data["frame"], data["labels"]
    with served(folder, tmp_path) as address:
        assert (model / "1" / "requests").read_text() == f"[{warm}, 64, 96, 3] {warm * frame.sum()}\n"
        with urllib.request.urlopen(f"http://{address}/v2/models/net/config", timeout=30) as answer:
            config = json.load(answer)
        spec = json.loads(config["parameters"]["fcnopt.spec"]["string_value"])
        assert tuple(spec["classes"]["names"]) == CLASSES.names
        check = [sys.executable, str(folder / "check.py"), "--url", address]
        assert subprocess.run(check, env=environment(), check=False).returncode == 0
        write_selftest(known, frame, (labels + 1) % 3)
        assert subprocess.run(check, env=environment(), check=False).returncode == 1


def test_triton_refuses_a_warm_up_frame_of_another_size(tmp_path: Path) -> None:
    folder = deploy(make_bundle(tmp_path), to="triton", output=tmp_path / "out")
    raw = with_stand_in(folder) / "warmup" / "selftest.raw"
    raw.write_bytes(raw.read_bytes()[:-1])
    with pytest.raises(RuntimeError, match="warmup"), served(folder, tmp_path):
        pass
