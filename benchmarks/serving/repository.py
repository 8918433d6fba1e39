"""A deployed model repository in Triton itself, as nvidia-pytriton's wheel carries it, with a stand-in for the backend.

    python -m serving.repository DEPLOYMENT      (in benchmarks/; DEPLOYMENT of `fcnopt deploy --to triton`)

That wheel has the Python backend alone, so a few lines of Python run the engine in place of the real backend: what is
shown is that the server takes the configuration, its warm-up and its labels, and what check.py says. The repository is
copied first. With NumPy 2 DLPack carries the tensors, since that wheel's own `Tensor` (2.51) then gives wrong values
silently. Exits as check.py does.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from fcnopt.errors import BackendError
from serving.process import free_ports

_STARTS_WITHIN_S = 120  # on a busy machine; 5 on an idle one
STAND_IN = """
from pathlib import Path
import numpy
import triton_python_backend_utils as triton

class TritonPythonModel:
    def initialize(self, args):
        folder = Path(args["model_repository"]) / args["model_version"]
        self.run = self.opened(folder)
        self.log = folder / "requests"

    def opened(self, folder):
        if (folder / "model.xml").exists():
            import openvino
            model = openvino.Core().compile_model(folder / "model.xml", "CPU", {"PERFORMANCE_HINT": "LATENCY"})
            return lambda frames: model(frames)["labels"]
        import onnxruntime
        session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
        return lambda frames: session.run(["labels"], {"frames": frames})[0]

    def execute(self, requests):
        answers = []
        for request in requests:
            frames = numpy.from_dlpack(triton.get_input_tensor_by_name(request, "frames"))
            with self.log.open("a") as log:
                log.write(f"{list(frames.shape)} {frames.sum()}\\n")
            make = triton.Tensor if numpy.__version__ < "2" else triton.Tensor.from_dlpack
            labels = make("labels", self.run(frames))
            answers.append(triton.InferenceResponse([labels]))
        return answers
"""


def with_stand_in(folder: Path) -> Path:
    """Make the repository one for the Python backend, and give the model's folder."""
    (model,) = (folder / "models").iterdir()
    text = (model / "config.pbtxt").read_text(encoding="utf-8")
    text, backends = re.subn(r'backend: "\w+"', 'backend: "python"', text)
    text, files = re.subn(r'default_model_filename: "[\w.]+"', 'default_model_filename: "model.py"', text)
    if (backends, files) != (1, 1):
        raise BackendError(f"{model}: config.pbtxt names no backend or no file", fix="deploy a bundle for a CPU")
    (model / "config.pbtxt").write_text(text, encoding="utf-8")
    (model / "1" / "model.py").write_text(STAND_IN, encoding="utf-8")
    return model


def environment() -> dict[str, str]:
    """Of the server and of check.py: this process's packages and libraries."""
    package = _package()
    libraries = (package.parent / "nvidia_pytriton.libs", sysconfig.get_config_var("LIBDIR"))
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "LD_LIBRARY_PATH": os.pathsep.join(map(str, libraries)),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }


@contextlib.contextmanager
def served(folder: Path, scratch: Path) -> Iterator[str]:
    """Triton with a deployed repository; gives the address of its HTTP endpoint once it is ready.

    Raises:
        BackendError: The server ended, or was not ready in time; the message has all that it logged.
    """
    triton = _package() / "tritonserver"
    backend = Path(shutil.copytree(triton / "backends" / "python", scratch / "backends" / "python"))
    stubs = triton / "python_backend_stubs" / f"{sys.version_info.major}.{sys.version_info.minor}"
    shutil.copytree(stubs, backend, dirs_exist_ok=True)
    http, grpc, metrics = free_ports(3)
    command = [
        *(str(triton / "bin" / "tritonserver"), f"--model-repository={folder / 'models'}"),
        *(f"--backend-directory={scratch / 'backends'}", "--disable-auto-complete-config"),
        *(f"--http-port={http}", f"--grpc-port={grpc}", f"--metrics-port={metrics}"),
        *(f"--{kind}-address=127.0.0.1" for kind in ("http", "grpc", "metrics")),
    ]
    with (scratch / "log").open("w") as log:
        process = subprocess.Popen(command, env=environment(), stdout=log, stderr=log)
    try:
        _wait_until_ready(process, f"http://127.0.0.1:{http}/v2/health/ready", scratch / "log")
        yield f"127.0.0.1:{http}"
    finally:
        process.terminate()
        process.wait(60)


def _package() -> Path:
    """The folder of pytriton."""
    found = importlib.util.find_spec("pytriton")
    if found is None or found.origin is None:
        raise BackendError("nvidia-pytriton is not installed", fix='pip install "fcnopt[serve]"')
    return Path(found.origin).parent


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    end = time.monotonic() + _STARTS_WITHIN_S
    while time.monotonic() < end:
        if process.poll() is not None:
            raise BackendError(f"Triton ended: {log.read_text()}", fix="see what it logged")
        with contextlib.suppress(urllib.error.URLError), urllib.request.urlopen(url, timeout=5):  # noqa: S310
            return
        time.sleep(0.1)
    raise BackendError(f"Triton did not start: {log.read_text()}", fix="see what it logged")


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("deployment", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fcnopt-repository-") as place:
        folder = Path(shutil.copytree(given.deployment, Path(place) / "deployment"))
        model = with_stand_in(folder)
        with served(folder, Path(place)) as address:
            warmed = (model / "1" / "requests").read_text(encoding="utf-8").splitlines()
            print(f"warm-up: {len(warmed)} request of {warmed[0].partition(']')[0]}]", flush=True)
            check = [sys.executable, str(folder / "check.py"), "--url", address]
            code = subprocess.run(check, env=environment(), check=False).returncode
    sys.exit(code)


if __name__ == "__main__":
    main()
