"""`calib/NAME.recipe.json`: what was decided about a quantized network, and on which evidence.

Per tensor the grid and how it was found, per layer its precision, and what a budget search measured. The file is
written as the work goes on, so that a build that was cut takes up where it stopped, and a finished one is repeated from
it. It says what it belongs to: for other weights, graphs, frames or methods all is decided anew. Weights are not in it:
how they are rounded follows from the grids and the calibration frames.
"""

from __future__ import annotations

import base64
import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, get_args

import numpy as np
from numpy.typing import NDArray

from fcnopt.errors import CalibrationError
from fcnopt.graph.io import graph_hash, weights_hash
from fcnopt.quantize.choose import Evidence
from fcnopt.quantize.frames import CalibrationFrames
from fcnopt.quantize.methods import METHODS, Method, Quantized, Rule
from fcnopt.quantize.qdq import Form, Grid, Kind
from fcnopt.quantize.rangefile import write_whole
from fcnopt.quantize.refine import Move

if TYPE_CHECKING:
    import onnx

RECIPE_VERSION = 1


@dataclass
class Recipe:
    """Decisions as they come in.

    Attributes:
        key: What they belong to: hashes of weights, graph and calibration frames, precision, form and method.
        rule: The calibration method that ranges started from; None before it is chosen.
        grids: Of every quantized tensor, refined; empty before they are found, and where they follow from the ranges.
        moves: What refining did.
        evidence: Of every candidate so far.
        rounded: Whether weights are rounded together; None before it is known.
        sensitivity: Of layers left float alone, by layer.
        counts: What was counted on validation frames, by frames and layers left float; see `remember`.
        floats: Layers that the search left float; None before it is done.
        search: The search as a report; see `fcnopt.accuracy`.
    """

    key: Mapping[str, str]
    rule: Rule | None = None
    grids: dict[str, Grid] = field(default_factory=dict)
    moves: tuple[Move, ...] = ()
    evidence: tuple[Evidence, ...] = ()
    rounded: bool | None = None
    sensitivity: dict[str, Evidence] = field(default_factory=dict)
    counts: dict[str, dict[str, Any]] = field(default_factory=dict)
    floats: tuple[str, ...] | None = None
    search: dict[str, Any] | None = None
    path: Path | None = None

    @classmethod
    def open(cls, path: Path | None, key: Mapping[str, str]) -> Self:
        """The recipe at `path` if it belongs to `key`, else an empty one, to be saved there.

        Args:
            path: None for a recipe that is not kept.
            key: See `key_of`.

        Raises:
            CalibrationError: The file is damaged, or of another schema version.
        """
        if path is None or not path.exists():
            return cls(key, path=path)
        found = cls.load(path)
        return found if dict(found.key) == dict(key) else cls(key, path=path)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            CalibrationError: It is missing, cut off, damaged, or of another schema version.
        """
        fix = f"delete {path} to decide anew"
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            version = data.pop("version")
            if version != RECIPE_VERSION:
                raise CalibrationError(
                    f"{path}: recipe has schema version {version!r}, this fcnopt reads {RECIPE_VERSION}", fix=fix
                )
            return cls(**_typed(data), path=path)
        except OSError as error:
            raise CalibrationError(
                f"{path}: the recipe cannot be read: {error.strerror}", fix="check the path and its permissions"
            ) from error
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CalibrationError(
                f"{path}: the recipe is cut off or damaged: {type(error).__name__}: {error}", fix=fix
            ) from error

    def save(self) -> None:
        """Write the file whole or not at all, if it has a place.

        Raises:
            CalibrationError: It cannot be written.
        """
        if self.path is not None:
            write_whole(self.path, json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n", what="recipe")

    def remember(self, name: str, counts: NDArray[np.int64], equal_labels: float) -> None:
        """Keep what was counted of a candidate, and save.

        Args:
            name: Of candidate and frames.
            counts: [F, 3, C].
            equal_labels: 0..100.
        """
        packed = base64.b64encode(zlib.compress(counts.astype("<i8").tobytes())).decode()
        self.counts[name] = {"shape": list(counts.shape), "packed": packed, "equal_labels": equal_labels}
        self.save()

    def remembered(self, name: str) -> tuple[NDArray[np.int64], float] | None:
        """What `remember` kept under this name."""
        if name not in self.counts:
            return None
        entry = self.counts[name]
        size = 8 * math.prod(entry["shape"])
        data = zlib.decompressobj().decompress(base64.b64decode(entry["packed"]), size)
        return np.frombuffer(data, "<i8").reshape(entry["shape"]).astype(np.int64), float(entry["equal_labels"])

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        data = {name: value for name, value in vars(self).items() if name != "path"}
        return {
            "version": RECIPE_VERSION,
            **data,
            "grids": {name: asdict(grid) for name, grid in self.grids.items()},
            "moves": [asdict(move) for move in self.moves],
            "evidence": [asdict(entry) for entry in self.evidence],
            "sensitivity": {name: asdict(entry) for name, entry in self.sensitivity.items()},
        }


def key_of(
    model: onnx.ModelProto, frames: CalibrationFrames, precision: Quantized, form: Form, method: Method
) -> dict[str, str]:
    """What decisions depend on.

    Args:
        model: Optimized FP32 graph.
        frames: Calibration frames.
        precision: Of quantized layers.
        form: Of the graph to be made.
        method: That was asked for.
    """
    return {
        "weights": weights_hash(model),
        "graph": graph_hash(model),
        "frames": frames.hash,
        "precision": precision,
        "form": form,
        "method": method,
    }


def _typed(data: dict[str, Any]) -> dict[str, Any]:
    rule = data["rule"]
    if rule is not None and rule not in METHODS:
        raise ValueError(f"{rule!r} is not a calibration method")
    floats = data["floats"]
    for entry in data["counts"].values():
        if not (isinstance(entry["packed"], str) and len(entry["shape"]) == 3 and all(n >= 0 for n in entry["shape"])):
            raise ValueError("counts are damaged")
    return {
        **data,
        "key": {str(name): str(value) for name, value in data["key"].items()},
        "grids": {str(name): _grid(entry) for name, entry in data["grids"].items()},
        "moves": tuple(Move(**entry) for entry in data["moves"]),
        "evidence": tuple(Evidence(**entry) for entry in data["evidence"]),
        "sensitivity": {str(name): Evidence(**entry) for name, entry in data["sensitivity"].items()},
        "floats": None if floats is None else tuple(str(name) for name in floats),
    }


def _grid(entry: Mapping[str, Any]) -> Grid:
    scale, zero, kind = entry["scale"], entry["zero"], entry["kind"]
    if kind not in get_args(Kind) or isinstance(zero, bool) or not isinstance(zero, int):
        raise ValueError(f"{entry!r} is not a grid")
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 < scale < float("inf"):
        raise ValueError(f"{scale!r} is not a scale")
    return Grid(float(scale), zero, kind)
