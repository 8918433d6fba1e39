"""A deployed repository in Triton itself, a stand-in for the backend; see benchmarks/serving/repository.py."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from fcnopt.deployment import deploy
from fcnopt.errors import BackendError
from fcnopt.selftest import read_selftest, write_selftest
from tests.deployment.bundles import CLASSES, make_bundle

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from serving.repository import environment, served, with_stand_in

pytest.importorskip("tritonclient.http", reason="tritonclient[http] is not installed")
if importlib.util.find_spec("pytriton") is None:
    pytest.skip("nvidia-pytriton is not installed", allow_module_level=True)


@pytest.mark.parametrize(
    ("target", "dims", "warm"),
    [
        ("openvino", (1, 64, 96), 1),
        ("onnxruntime", (1, 64, 96), 1),
        ("onnxruntime", (4, 64, 96), 4),
        ("onnxruntime", (None, 64, 96), 1),
    ],
)
def test_triton_serves_the_repository_and_the_client_tells_right_from_wrong(
    target: str, dims: tuple[int | None, int, int], warm: int, tmp_path: Path
) -> None:
    pytest.importorskip(target)
    folder = deploy(make_bundle(tmp_path, target, dims=dims), to="triton", output=tmp_path / "out")
    model, known = with_stand_in(folder), folder / "bundle" / "selftest.npz"
    frame, labels = read_selftest(known)
    with served(folder, tmp_path) as address:
        assert (model / "1" / "requests").read_text() == f"[{warm}, 64, 96, 3] {warm * int(frame.sum())}\n"
        with urllib.request.urlopen(f"http://{address}/v2/models/net/config", timeout=30) as answer:
            config = json.load(answer)
        spec = json.loads(config["parameters"]["fcnopt.spec"]["string_value"])
        assert tuple(spec["classes"]["names"]) == CLASSES.names
        check = [sys.executable, str(folder / "check.py"), "--url", address]
        assert subprocess.run(check, env=environment(), check=False).returncode == 0
        write_selftest(known, frame, (labels + 1) % 3)
        assert subprocess.run(check, env=environment(), check=False).returncode == 1


def test_triton_refuses_a_warm_up_frame_of_another_size(tmp_path: Path) -> None:
    folder = deploy(make_bundle(tmp_path, "openvino"), to="triton", output=tmp_path / "out")
    raw = with_stand_in(folder) / "warmup" / "selftest.raw"
    raw.write_bytes(raw.read_bytes()[:-1])
    with pytest.raises(BackendError, match="warmup"), served(folder, tmp_path):
        pass
