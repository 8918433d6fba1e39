"""The files that are raced, each made once and kept by what it is made from: network, frames, code and versions."""

from __future__ import annotations

import functools
import hashlib
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rivals.environment import HERE, python_of, requirements, run
from rivals.measure import file_sha256, write_whole
from rivals.rows import Made

import fcnopt
from fcnopt.backends.base import Precision, Progress
from fcnopt.backends.packages import version_of
from fcnopt.exporter import ExportResult
from fcnopt.quantize import CalibrationFrames
from fcnopt.settings import BuildSettings
from race.scripts import Task

OPSET = 18  # what every peer reads


@dataclass(frozen=True)
class Kitchen:
    """What files are made from.

    Attributes:
        checkpoint: The trained network.
        exported: The same as fcnopt exports it.
        plain: The same as torch.onnx exports it, float32 [1, 3, H, W] to logits: the peers' FP32 file.
        plain_s: Seconds that this export took.
        task: What every contender runs on.
        calibration: Folder of calibration frames.
        frames: How many of them are taken.
        tensors: .npy of these, normalized, float32 [N, 3, H, W].
        envs: Folder of the peers' own environments.
        work: Folder of what is kept between runs.
        progress: Called as the work goes on.
    """

    checkpoint: Path
    exported: ExportResult
    plain: Path
    plain_s: float
    task: Task
    calibration: Path
    frames: int
    tensors: Path
    envs: Path
    work: Path
    progress: Progress

    def keep(self, name: str, recipe: str, make: Callable[[Path], Made]) -> Made:
        """`make(stem)`, or what an earlier run made of the same.

        Args:
            name: For files.
            recipe: All that decides what is made, beside network and frames.
            make: Takes the file to write, without its suffix.
        """
        own = Path(__file__).read_text(encoding="utf-8")
        words = (name, recipe, own, file_sha256(self.exported.path), file_sha256(self.tensors))
        key = hashlib.sha256("|".join(words).encode()).hexdigest()[:12]
        stem = self.work / f"{name}-{key}"
        record = stem.with_suffix(".json")
        if record.exists():
            kept = json.loads(record.read_text(encoding="utf-8"))
            if Path(kept["path"]).exists():
                return Made(**kept | {"path": Path(kept["path"])})
        self.progress(f"make {name}", 0.0)
        made = make(stem)
        write_whole(record, json.dumps(asdict(made), default=str).encode())
        return made


def plain_onnx(checkpoint: Path, size: tuple[int, int], path: Path) -> float:
    """Export a network as torch's documentation does; the seconds that it took.

    Args:
        checkpoint: The trained network.
        size: (height, width) of its input.
        path: File to write.
    """
    import warnings

    import torch

    from fcnopt.models import checkpoint as checkpoints

    module = checkpoints.load(checkpoint).module
    x = torch.zeros(1, 3, *size)
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about its own
        torch.onnx.export(
            module,
            (x,),
            path,
            input_names=["input"],
            output_names=["logits"],
            dynamo=True,
            opset_version=OPSET,
            external_data=False,
            verbose=False,
        )
    return time.perf_counter() - start


def tensors_of(frames: CalibrationFrames, task: Task, path: Path) -> None:
    """Write calibration frames, BGR, as networks take them: normalized, float32 [N, 3, H, W]."""
    found = np.empty((frames.count, 3, *task.size), np.float32)
    mean, std = np.array(task.mean, np.float32), np.array(task.std, np.float32)
    for place, frame in enumerate(frames):
        image = frame[0] if task.color == "BGR" else frame[0, :, :, ::-1]
        x = (image.astype(np.float32) * np.float32(task.scale) - mean) / std
        found[place] = x.transpose(2, 0, 1)
    np.save(path, found)


def quantized_by_ort(kitchen: Kitchen) -> Made:
    """ONNX Runtime's `quantize_static` on a model that its `quant_pre_process` prepared, as it documents."""

    def make(stem: Path) -> Made:
        from onnxruntime.quantization.shape_inference import quant_pre_process
        from rivals import ort_static

        prepared, output = stem.with_suffix(".prepared.onnx"), stem.with_suffix(".onnx")
        start = time.perf_counter()
        quant_pre_process(str(kitchen.plain), str(prepared), skip_symbolic_shape=True)
        ort_static.quantize(prepared, "input", np.load(kitchen.tensors), output, "stock")
        seconds = time.perf_counter() - start
        prepared.unlink()
        return Made(output, seconds, {"onnxruntime": str(version_of("onnxruntime"))})

    return kitchen.keep("ort-int8", _source("ort_static.py", str(version_of("onnxruntime"))), make)


def quantized_by_nncf(kitchen: Kitchen) -> Made:
    """NNCF's `quantize`, mixed preset, in its own environment.

    Raises:
        BackendError: That cannot be made, or NNCF fails.
    """

    def make(stem: Path) -> Made:
        output = stem.with_suffix(".xml")
        python, script = python_of("nncf", kitchen.envs), HERE / "with_nncf.py"
        run([str(python), str(script), str(kitchen.plain), str(kitchen.tensors), str(output)], stem.with_suffix(".log"))
        facts = output.with_suffix(".facts.json")
        told = json.loads(facts.read_text(encoding="utf-8"))
        facts.unlink()
        return Made(output, float(told["seconds"]), dict(told["versions"]))

    return kitchen.keep("nncf-int8", _source("with_nncf.py", requirements("nncf")), make)


def quantized_by_modelopt(kitchen: Kitchen) -> Made:
    """Model Optimizer's own command, entropy, its defaults, in its own environment.

    Raises:
        BackendError: That cannot be made, or Model Optimizer fails.
    """

    def make(stem: Path) -> Made:
        output = stem.with_suffix(".onnx")
        python = python_of("modelopt", kitchen.envs)
        start = time.perf_counter()
        options = [f"--onnx_path={kitchen.plain}", f"--calibration_data_path={kitchen.tensors}"]
        options += ["--quantize_mode=int8", "--calibration_method=entropy", f"--output_path={output}"]
        run([str(python), "-m", "modelopt.onnx.quantization", *options], stem.with_suffix(".log"))
        pin = next(line for line in requirements("modelopt").splitlines() if line.startswith("nvidia-modelopt"))
        return Made(output, time.perf_counter() - start, {"nvidia-modelopt": pin.rpartition("==")[2]})

    return kitchen.keep("modelopt-int8", f"entropy {requirements('modelopt')}", make)


def engine_by_tool(kitchen: Kitchen, tool: str, source: Path, flags: tuple[str, ...]) -> Made:
    """A TensorRT engine by `trtexec` or `polygraphy convert`.

    Args:
        kitchen: What is at hand.
        tool: "trtexec" or "polygraphy".
        source: ONNX file.
        flags: Of the tool, such as "--fp16".

    Raises:
        BackendError: The tool fails.
    """

    def make(stem: Path) -> Made:
        output = stem.with_suffix(".plan")
        command = ["trtexec", f"--onnx={source}", f"--saveEngine={output}", *flags]
        if tool == "polygraphy":
            command = ["polygraphy", "convert", str(source), "-o", str(output), *flags]
        start = time.perf_counter()
        run(command, stem.with_suffix(".log"))
        return Made(output, time.perf_counter() - start, {"tensorrt": str(version_of("tensorrt"))})

    recipe = f"{tool} {flags} {file_sha256(source)} {version_of('tensorrt')}"
    return kitchen.keep(f"{tool}-{source.stem.split('-')[0]}", recipe, make)


def bundle_by_fcnopt(kitchen: Kitchen, precision: Precision, target: str) -> Made:
    """A bundle by `fcnopt build` with its defaults.

    Raises:
        FcnoptError: The build fails.
    """

    def make(stem: Path) -> Made:
        ranges = stem.with_suffix(".calib")  # empty: measured anew
        settings = BuildSettings(name=stem.name, folder=kitchen.work, calib=ranges, max_frames=kitchen.frames)
        start = time.perf_counter()
        path = fcnopt.build(
            kitchen.exported.path,
            precision=precision,
            target=target,
            calibration=kitchen.calibration,
            settings=settings,
            progress=kitchen.progress,
        )
        return Made(path, time.perf_counter() - start, {"fcnopt": fcnopt.__version__})

    return kitchen.keep(f"fcnopt-{precision}-{target}", own_source(), make)


@functools.cache
def own_source() -> str:
    """A hash of fcnopt's code, as it was when first asked for: bundles of one run are of one code."""
    digest = hashlib.sha256()
    for path in sorted(Path(fcnopt.__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def own_python() -> str:
    """The interpreter of contenders that run in this environment."""
    return sys.executable


def _source(name: str, *others: Any) -> str:
    """Of what a file is made by: code and versions."""
    text = (HERE / name).read_text(encoding="utf-8") + "".join(map(str, others))
    return hashlib.sha256(text.encode()).hexdigest()
