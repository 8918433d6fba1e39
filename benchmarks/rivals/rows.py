"""The other quantizers, each as a recipe from an FP32 file and calibration frames to a quantized file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from fcnopt.backends.packages import version_of
from fcnopt.errors import BackendError
from fcnopt.graph.shapes import tensor_types
from fcnopt.spec import ModelSpec
from rivals.environment import HERE, python_of, requirements, run


@dataclass(frozen=True)
class Inputs:
    """What a quantizer gets.

    Attributes:
        path: The optimized FP32 model.
        model: The same, in memory.
        spec: Of the model.
        frames: .npy of the calibration frames, uint8 [N, H, W, 3].
        envs: Folder of the quantizers' own environments.
    """

    path: Path
    model: onnx.ModelProto
    spec: ModelSpec
    frames: Path
    envs: Path


@dataclass(frozen=True)
class Made:
    """A file or folder made from the FP32 network.

    Attributes:
        path: ONNX file, OpenVINO IR with its .bin beside it, or what a peer's own tool writes.
        seconds: That it took, calibration and quantization among it, without loading packages.
        versions: Of the packages that made it.
    """

    path: Path
    seconds: float
    versions: dict[str, str]


@dataclass(frozen=True)
class Peer:
    """A way to quantize.

    Attributes:
        title: For the table.
        recipe: All that decides what it does beside model and frames: options, code and versions.
        make: Takes the inputs and the file to write, without its suffix; raises BackendError where its packages
            cannot be installed or fail.
    """

    title: str
    recipe: str
    make: Callable[[Inputs, Path], Made]


def _ort(inputs: Inputs, stem: Path, form: Any) -> Made:
    from rivals import ort_static

    output = stem.with_name(stem.name + ".onnx")
    name = inputs.model.graph.input[0].name
    seconds = ort_static.quantize(inputs.path, name, np.load(inputs.frames), output, form)
    return Made(output, seconds, {"onnxruntime": str(version_of("onnxruntime"))})


def _own(inputs: Inputs, stem: Path, peer: str, suffix: str, options: Callable[[Inputs], list[str]]) -> Made:
    """Run `with_PEER.py` in its environment."""
    output = stem.with_name(stem.name + suffix)
    python, script = str(python_of(peer, inputs.envs)), str(HERE / f"with_{peer}.py")
    run([python, script, str(inputs.path), str(inputs.frames), str(output), *options(inputs)], stem.with_suffix(".log"))
    facts = output.with_suffix(".facts.json")
    if not output.exists() or not facts.exists():
        raise BackendError(f"{script} wrote no {output.name}", fix=f"read {stem.with_suffix('.log')}")
    told = json.loads(facts.read_text(encoding="utf-8"))
    facts.unlink()
    return Made(output, float(told["seconds"]), dict(told["versions"]))


def _placed(inputs: Inputs) -> list[str]:
    """What Model Optimizer does better without: deconvolutions, Add, the first conv, the convs that give scores."""
    options = ["--method", "entropy", "--exclude-op", "ConvTranspose", "--exclude-op", "Add"]
    return options + [word for name in first_and_scores(inputs) for word in ("--exclude-node", name)]


def first_and_scores(inputs: Inputs) -> list[str]:
    """Names of the first Conv, and of every one with as many output channels as there are classes."""
    types = tensor_types(inputs.model)
    convs = [node for node in inputs.model.graph.node if node.op_type == "Conv"]
    scores = [node for node in convs[1:] if (types[node.output[0]].static or (0, 0))[1] == len(inputs.spec.classes)]
    return [node.name for node in (convs[0], *scores)]


def _source(name: str, *others: str) -> str:
    """The code and the versions that a result depends on, as one hash."""
    text = (HERE / name).read_text(encoding="utf-8") + "".join(others)
    return hashlib.sha256(text.encode()).hexdigest()


def _ort_peer(title: str, form: str) -> Peer:
    recipe = f"{form} {_source('ort_static.py')} {version_of('onnxruntime')}"
    return Peer(title, recipe, partial(_ort, form=form))


def _own_peer(title: str, peer: str, suffix: str, name: str, options: Callable[[Inputs], list[str]]) -> Peer:
    recipe = f"{name} {_source(f'with_{peer}.py', requirements(peer))}"
    return Peer(title, recipe, partial(_own, peer=peer, suffix=suffix, options=options))


PEERS: Mapping[str, Peer] = {
    "ort-stock": _ort_peer("ONNX Runtime, stock (uint8, minmax; CPU form)", "stock"),
    "ort-tensorrt": _ort_peer("ONNX Runtime, held to TensorRT's form (minmax)", "tensorrt"),
    "nncf-mixed": _own_peer("NNCF, mixed preset (CPU form)", "nncf", ".xml", "mixed", lambda _: []),
    "modelopt-entropy": _own_peer(
        "Model Optimizer, entropy", "modelopt", ".onnx", "entropy", lambda _: ["--method", "entropy"]
    ),
    "modelopt-max": _own_peer("Model Optimizer, max", "modelopt", ".onnx", "max", lambda _: ["--method", "max"]),
    "modelopt-placed": _own_peer(
        "Model Optimizer, entropy without deconvolutions, Add, first conv, scores",
        "modelopt",
        ".onnx",
        "placed",
        _placed,
    ),
}
