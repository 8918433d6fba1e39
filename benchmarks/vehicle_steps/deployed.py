"""`fcnopt.deploy` to the stacks, each folder held against what of its stack is here; refusals said as refusals.

Isaac ROS and Autoware run TensorRT alone. Autoware also builds from a graph in TensorRT's form, so it gets that of the
same network in FP16, which TensorRT-RTX builds and thereby accepts without a GPU. An engine of TensorRT cannot be made
here: to see names, sizes and palette of the real network, Isaac ROS gets the same bundle with a manifest that calls
its engine TensorRT's.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from faults.case import Fault
from faults.process import BENCHMARKS, run_in

import fcnopt
from fcnopt.bundle import Bundle, finish
from fcnopt.deployment import deploy
from fcnopt.errors import FcnoptError, UsageError
from fcnopt.locate import find_reference
from fcnopt.manifest import Manifest
from fcnopt.selftest import SELFTEST
from fcnopt.settings import BuildSettings
from vehicle_steps.rows import Figures, NotRun, Row, Work, equal_labels, refusal, size_mb, tried

STEP = "deploy"
_AHEAD_OF_TIME = "tensorrt-rtx:sm86"
_PARSE = """
import sys
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2
config = text_format.Parse(open(sys.argv[1], encoding="utf-8").read(), model_config_pb2.ModelConfig())
print(config.name, config.backend, list(config.input[0].dims))
"""


def steps(work: Work) -> list[Row]:
    """Rows of this step."""
    folder = work.place("deployed")
    other: list[Path] = []

    def ahead() -> Path:
        """The network in FP16 for TensorRT-RTX; built once."""
        if not other:
            other.append(_ahead_of_time(work, folder / "engines"))
        return other[0]

    return [
        tried(STEP, "triton", _checks("the engine under Triton's names gives the known answer on OpenVINO"),
              lambda: _triton(work, folder)),
        tried(STEP, "triton: config.pbtxt", "parsed by Triton's own schema", lambda: _schema(work, folder)),
        tried(STEP, "triton: the repository in NVIDIA Triton, check.py asks it",
              "known answer; the backend is a stand-in, since pytriton's wheel has Python's alone",
              lambda: _in_triton(work, folder)),
        tried(STEP, "docker", _checks("structure: what is copied is there and whole; no image is built"),
              lambda: _docker(work, folder)),
        tried(STEP, "autoware, CPU bundle", "refused", lambda: _refused(work, "autoware", folder)),
        tried(STEP, f"autoware, FP16 bundle of {_AHEAD_OF_TIME}",
              _checks("YAML parsed; the graph checked by ONNX, built by TensorRT-RTX; no ROS, no TensorRT"),
              lambda: _autoware(ahead(), folder)),
        tried(STEP, "isaac-ros, CPU bundle", "refused", lambda: _refused(work, "isaac-ros", folder)),
        tried(STEP, "isaac-ros, the same FP16 bundle called one of TensorRT",
              _checks("YAML parsed, Python compiled, names and sizes the graph's; no ROS, the engine is a stand-in"),
              lambda: _isaac_ros(ahead(), folder)),
    ]  # fmt: skip


def _checks(words: str) -> str:
    return f"SHA256SUMS; {words}"


def deployed(bundle: Path, to: str, folder: Path) -> tuple[Path, Figures]:
    """The deployment of a bundle, its sums checked where it has them, and what it cost."""
    start = time.perf_counter()
    place = deploy(bundle, to=to, output=folder / to)
    seconds = time.perf_counter() - start
    if (place / "SHA256SUMS").is_file():
        check = ["sha256sum", "--quiet", "-c", "SHA256SUMS"]
        done = subprocess.run(check, cwd=place, capture_output=True, text=True, check=False)
        if done.returncode:
            raise Fault(f"sha256sum: {done.stdout[-200:]}")
    files = sum(1 for path in place.rglob("*") if path.is_file())
    return place, {"deploy s": round(seconds, 2), "files": files, "MB": size_mb(place)}


def _refused(work: Work, to: str, folder: Path) -> Figures:
    if Bundle.read(work.bundle).target.runtime == "tensorrt":
        raise NotRun("the bundle is one of TensorRT")
    return refusal(UsageError, "is for", lambda: deploy(work.bundle, to=to, output=folder / "refused"), work.folder)


def _triton(work: Work, folder: Path) -> Figures:
    place, figures = deployed(work.bundle, "triton", folder)
    (model,) = (place / "models").iterdir()
    return figures | _known_answer(work, model, place / "bundle")


def _schema(work: Work, folder: Path) -> Figures:
    if work.serve_python is None:
        raise NotRun("no environment with tritonclient was given (--serve-python)")
    (model,) = (folder / "triton" / "models").iterdir()
    done = run_in(BENCHMARKS, [str(work.serve_python), "-c", _PARSE, str(model / "config.pbtxt")])
    if done.returncode:
        raise Fault(f"Triton's schema refuses config.pbtxt: {done.stderr[-300:]}")
    return {"name, backend, input": done.stdout.strip()}


def _in_triton(work: Work, folder: Path) -> Figures:
    if work.serve_python is None:
        raise NotRun("no environment with nvidia-pytriton was given (--serve-python)")
    line = [str(work.serve_python), "-m", "serving.repository", str(folder / "triton")]
    done = run_in(BENCHMARKS, line)
    if done.returncode:
        raise Fault(f"serving.repository exits with {done.returncode}: {(done.stdout + done.stderr)[-400:]}")
    warmed, said = done.stdout.strip().splitlines()
    return {"warm-up": warmed.partition(": ")[2], "check.py": said.partition(": ")[2]}


def _known_answer(work: Work, model: Path, proof: Path) -> Figures:
    """The files under the names that Triton wants, run as its backend would open them."""
    if not (model / "1" / "model.xml").is_file():
        return {}
    import openvino

    compiled = openvino.Core().compile_model(model / "1" / "model.xml", "CPU", {"PERFORMANCE_HINT": "LATENCY"})
    with np.load(proof / SELFTEST, allow_pickle=False) as known:
        frame, labels = known["frame"], known["labels"]
    share = float(np.mean(compiled(frame)["labels"] == labels))
    least = json.loads((proof / "manifest.json").read_text("utf-8"))["min_agreement"]
    if share < least:
        raise Fault(f"{share:.3%} of labels are those of the known answer, {least:.3%} must be")
    found = [np.asarray(compiled(each[None])["labels"][0], np.uint8) for each in work.fitted]
    return {"known answer": f"{share:.3%}", "labels as engine.run's": f"{equal_labels(found, work.raw_labels):.3%}"}


def _docker(work: Work, folder: Path) -> Figures:
    place, figures = deployed(work.bundle, "docker", folder)
    lines = (place / "Dockerfile").read_text("utf-8").splitlines()
    sources = [json.loads(line.removeprefix("COPY "))[0] for line in lines if line.startswith("COPY [")]
    missing = [source for source in sources if not (place / source).exists()]
    if not sources or missing:
        raise Fault(f"the Dockerfile copies {missing or 'nothing'}")
    Bundle.read(place / "bundle" / work.bundle.name).verify()
    parsed = _yaml(place / "compose.yaml")
    return figures | {"services": ", ".join(parsed["services"])}


def _autoware(bundle: Path, folder: Path) -> Figures:
    import onnx

    place, figures = deployed(bundle, "autoware", folder)
    (file,) = place.glob("*.param.yaml")
    given = _yaml(file)["/**"]["ros__parameters"]
    onnx.checker.check_model(str(place / given["onnx_path"]), full_check=True)
    if (place / given["engine_path"]).exists():
        raise Fault("an engine of another runtime was deployed")
    return figures | {"precision": given["precision"], "graph MB": size_mb(place / given["onnx_path"])}


def _isaac_ros(bundle: Path, folder: Path) -> Figures:
    relabelled = Path(shutil.copytree(bundle, folder / "relabelled" / bundle.name))
    manifest: Manifest = Bundle.read(relabelled).manifest
    finish(relabelled, replace(manifest, target="tensorrt", runtime="tensorrt 10.13.2"))
    place, figures = deployed(relabelled, "isaac-ros", folder)
    nodes = {name: node["ros__parameters"] for name, node in _yaml(place / "parameters.yaml").items()}
    engine, decoder = nodes["tensor_rt_node"], nodes["unet_decoder_node"]
    spec = manifest.spec
    _demand("inputs", list(engine["input_binding_names"]), ["frames"])
    _demand("outputs", list(engine["output_binding_names"]), list(spec.outputs))
    _demand("mask", (decoder["mask_height"], decoder["mask_width"]), (spec.frame.height, spec.frame.width))
    _demand("palette", list(decoder["color_palette"]), [r << 16 | g << 8 | b for r, g, b in spec.classes.palette])
    _demand("force_engine_update", engine["force_engine_update"], False)
    for code in place.glob("*.py"):
        compile(code.read_text("utf-8"), code.name, "exec")
    return figures | {"nodes": ", ".join(nodes), "mask": f"{decoder['mask_width']}x{decoder['mask_height']}"}


def _demand(name: str, found: Any, expected: Any) -> None:
    if found != expected:
        raise Fault(f"{name}: {found}, expected {expected}")


def _ahead_of_time(work: Work, folder: Path) -> Path:
    """The network that the bundle was built from, in FP16 for TensorRT-RTX, which needs no GPU to build it."""
    try:
        import tensorrt_rtx  # noqa: F401  (whether it is there)
    except ImportError as error:
        raise NotRun('tensorrt-rtx is not installed: pip install "fcnopt[rtx]"') from error
    settings = BuildSettings(folder=folder, calib=folder / "calib", name=f"{work.bundle.name}-fp16")
    try:
        reference = find_reference(Bundle.read(work.given))
    except FcnoptError as error:
        raise NotRun(error.message) from error
    return fcnopt.build(reference, precision="fp16", target=_AHEAD_OF_TIME, settings=settings, progress=work.progress)


def _yaml(path: Path) -> Any:
    try:
        from ruamel.yaml import YAML
    except ImportError as error:
        raise NotRun("ruamel.yaml is not installed") from error
    return YAML(typ="safe").load(path)
