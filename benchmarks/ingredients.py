"""The rows of a benchmark: fcnopt's own by ingredients, and any row's file, made once and kept."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import onnx
from onnx import ModelProto
from rivals.int8_share import int8_share
from rivals.measure import Progress, file_sha256, parts, write_whole
from rivals.rows import PEERS, Inputs, Made

import fcnopt
from fcnopt.graph import io
from fcnopt.graph.hashes import graph_hash, weights_hash
from fcnopt.quantize import CalibrationFrames, Method, make_precision
from fcnopt.quantize.tune import Tuning
from fcnopt.spec import ModelSpec

Ingredient = Callable[[onnx.ModelProto, ModelSpec, CalibrationFrames], onnx.ModelProto]
KEY_LENGTH = 12
"""Characters of a hash in the name of what is kept."""


def by_method(method: Method, model: onnx.ModelProto, spec: ModelSpec, frames: CalibrationFrames) -> onnx.ModelProto:
    """INT8 in TensorRT's form, ranges by one method."""
    return make_precision(model, spec, "int8", form="tensorrt", frames=frames, method=method, tuning=_NONE).model


def with_ingredients(tuning: Tuning, model: ModelProto, spec: ModelSpec, frames: CalibrationFrames) -> ModelProto:
    """Ranges by the best method, and these ingredients."""
    return make_precision(model, spec, "int8", form="tensorrt", frames=frames, method="auto", tuning=tuning).model


_NONE = Tuning(equalize=False, refine=False, rounding=False, bias=False)
INGREDIENTS: Mapping[str, Ingredient] = {
    "minmax": partial(by_method, "minmax"),
    "percentile": partial(by_method, "percentile"),
    "entropy": partial(by_method, "entropy"),
    "mse": partial(by_method, "mse"),
    "equalize": partial(with_ingredients, replace(_NONE, equalize=True)),
    "bias": partial(with_ingredients, replace(_NONE, bias=True)),
    "rounding": partial(with_ingredients, replace(_NONE, rounding=True)),
    "refine": partial(with_ingredients, replace(_NONE, refine=True)),
    "rounding+bias": partial(with_ingredients, replace(_NONE, rounding=True, bias=True)),
    "equalize+rounding": partial(with_ingredients, replace(_NONE, equalize=True, rounding=True)),
    "equalize+rounding+bias": partial(with_ingredients, Tuning(refine=False)),
    "equalize+rounding+refine": partial(with_ingredients, Tuning(bias=False)),
    "auto": partial(with_ingredients, Tuning()),
}
"""fcnopt's own rows: from the optimized FP32 model, its spec and calibration frames to the quantized model."""


def quantized(name: str, inputs: Inputs, frames: CalibrationFrames, work: Path, progress: Progress) -> dict[str, Any]:
    """Quantize by one row, or take what an earlier run kept; the facts about the file, ready for JSON.

    Raises:
        FcnoptError: It fails.
    """
    stem = work / f"{name}-{frames.count}-{key(name, inputs.model, frames)}"
    record = stem.with_suffix(".json")
    if record.exists():
        kept: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
        if all(part.exists() for part in parts(work / kept["file"])):
            return kept
    for old in work.glob(f"{name}-{frames.count}-{'?' * KEY_LENGTH}.*"):  # of other code or another model
        old.unlink()
    progress(f"quantize {name}", 0.0)
    made = PEERS[name].make(inputs, stem) if name in PEERS else _ingredient(name, inputs, frames, stem)
    facts = {
        "file": made.path.name,
        "sha256": file_sha256(made.path),
        "bytes": sum(part.stat().st_size for part in parts(made.path)),
        "seconds": made.seconds,
        "versions": made.versions,
        "int8_macs_share": int8_share(made.path),
    }
    write_whole(record, json.dumps(facts, indent=1).encode())
    return facts


def _ingredient(name: str, inputs: Inputs, frames: CalibrationFrames, stem: Path) -> Made:
    start = time.perf_counter()
    model = INGREDIENTS[name](inputs.model, inputs.spec, frames)
    seconds = time.perf_counter() - start
    return Made(io.save(model, stem.with_suffix(".onnx")), seconds, {"fcnopt": fcnopt.__version__})


def key(name: str, model: onnx.ModelProto, frames: CalibrationFrames) -> str:
    """Of all that a row's file depends on: model, frames, and the code and versions that make it."""
    recipe = PEERS[name].recipe if name in PEERS else own_source()
    words = (name, recipe, weights_hash(model), graph_hash(model), frames.hash, str(frames.count))
    return hashlib.sha256("|".join(words).encode()).hexdigest()[:KEY_LENGTH]


def own_source() -> str:
    """A hash of the code that fcnopt's rows depend on: its graph and quantize packages, and this file."""
    package = Path(fcnopt.__file__).parent
    files = sorted(path for room in ("graph", "quantize") for path in (package / room).rglob("*.py"))
    digest = hashlib.sha256()
    for path in (*files, Path(__file__)):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def title_of(name: str) -> str:
    """What the table calls a row."""
    return PEERS[name].title if name in PEERS else f"fcnopt, {name}"
