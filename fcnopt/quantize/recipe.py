"""`calib/NAME.recipe.json`: what was decided about a quantized network, and on which evidence.

Per tensor the grid and how it was found, per layer its precision, and what a budget search measured. The file is
written as the work goes on, so that a build that was cut takes up where it stopped, and a finished one is repeated from
it. It says what it belongs to: for other weights, graphs, frames or methods, and by another version of fcnopt, all is
decided anew. Weights are not in it: how they are rounded follows from the grids and the calibration frames.
"""

from __future__ import annotations

import base64
import datetime
import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast, get_args

import numpy as np
from numpy.typing import NDArray

from fcnopt.backends.targets import Form
from fcnopt.codec import decode
from fcnopt.errors import CalibrationError
from fcnopt.graph.io import graph_hash, weights_hash
from fcnopt.quantize.choose import Evidence
from fcnopt.quantize.frames import CalibrationFrames
from fcnopt.quantize.methods import Method, Quantized, Rule
from fcnopt.quantize.qdq import Grid, activation_kind
from fcnopt.quantize.rangefile import not_a_number, write_whole
from fcnopt.quantize.refine import Move
from fcnopt.version import __version__

if TYPE_CHECKING:
    import onnx

RECIPE_VERSION = 2


@dataclass(frozen=True)
class Counted:
    """What was counted of a candidate on validation frames.

    Attributes:
        shape: (F, 3, C) of the counts.
        packed: The counts, little-endian int64 in C order, by zlib and Base64.
        equal_labels: Share of all pixels whose label is the reference's, 0..100.
        date: Of the measurement, ISO 8601.

    Raises:
        ValueError: The fields do not fit each other.
    """

    shape: tuple[int, int, int]
    packed: str
    equal_labels: float
    date: str

    def __post_init__(self) -> None:
        if not 0 <= self.equal_labels <= 100:
            raise ValueError(f"counts are damaged: {self.equal_labels!r} is no share of labels")
        datetime.datetime.fromisoformat(self.date)
        self.unpacked()

    @classmethod
    def of(cls, counts: NDArray[np.int64], equal_labels: float, date: str) -> Self:
        """Pack counts [F, 3, C]."""
        frames, three, classes = counts.shape
        packed = base64.b64encode(zlib.compress(counts.astype("<i8").tobytes())).decode()
        return cls((frames, three, classes), packed, equal_labels, date)

    def unpacked(self) -> NDArray[np.int64]:
        """The counts, int64 [F, 3, C]."""
        if min(self.shape) < 0:
            raise ValueError(f"counts are damaged: shape {self.shape}")
        size = 8 * math.prod(self.shape)
        try:
            # One byte more than there may be: what is packed cannot fill the memory.
            data = zlib.decompressobj().decompress(base64.b64decode(self.packed, validate=True), size + 1)
        except (ValueError, zlib.error) as error:
            raise ValueError(f"counts are damaged: {error}") from error
        if len(data) != size:
            raise ValueError(f"counts are damaged: they do not fill the shape {self.shape}")
        return np.frombuffer(data, "<i8").reshape(self.shape).astype(np.int64)


@dataclass
class Recipe:
    """Decisions as they come in.

    Attributes:
        key: What they belong to; see `key_of`.
        rule: The calibration method that ranges started from; None before it is chosen.
        grids: Of every quantized tensor, refined; empty before they are found, and where they follow from the ranges.
        moves: What refining did.
        evidence: Of every candidate so far.
        rounded: Whether weights are rounded together; None before it is known.
        sensitivity: Of layers left float alone, by layer.
        counts: What was counted on validation frames, by frames, runtime and graph; see `fcnopt.accuracy`.
        floats: Layers that the search left float; None before it is done.
        search: The search as a report; see `fcnopt.accuracy`.
    """

    key: dict[str, str]
    rule: Rule | None = None
    grids: dict[str, Grid] = field(default_factory=dict)
    moves: tuple[Move, ...] = ()
    evidence: tuple[Evidence, ...] = ()
    rounded: bool | None = None
    sensitivity: dict[str, Evidence] = field(default_factory=dict)
    counts: dict[str, Counted] = field(default_factory=dict)
    floats: tuple[str, ...] | None = None
    search: dict[str, Any] | None = None
    path: Path | None = field(default=None, metadata={"json": False})

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
            return cls(dict(key), path=path)
        found = cls.load(path)
        return found if found.key == dict(key) else cls(dict(key), path=path)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            CalibrationError: It is missing, cut off, damaged, or of another schema version.
        """
        fix = f"delete {path} to decide anew"
        try:
            data = json.loads(path.read_text(encoding="utf-8"), parse_constant=not_a_number)
            version = data.pop("version")
            if version != RECIPE_VERSION:
                raise CalibrationError(
                    f"{path}: recipe has schema version {version!r}, this fcnopt reads {RECIPE_VERSION}", fix=fix
                )
            found = decode(cls, data, "recipe")
            found._check()
            found.path = path
            return found
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

    def remember(self, name: str, counted: Counted) -> None:
        """Keep what was counted, and save.

        Args:
            name: Of frames, runtime and candidate.
            counted: On these frames.
        """
        self.counts[name] = counted
        self.save()

    def _check(self) -> None:
        """Refuse what no build writes: `decode` sees types, not what fits what."""
        form, precision = self.key["form"], self.key["precision"]
        if (
            form not in get_args(Form)
            or precision not in get_args(Quantized)
            or (form != "tensorrt" and precision == "fp8")
        ):
            raise ValueError(f"{precision!r} in form {form!r} is nothing to decide on")
        kind = activation_kind(cast(Form, form), cast(Quantized, precision))
        for name, grid in self.grids.items():
            if not 0 < grid.scale < math.inf:
                raise ValueError(f"{grid.scale!r}, of {name!r}, is not a scale")
            if grid.kind != kind or not 0 <= grid.zero <= (255 if kind == "uint8" else 0):
                raise ValueError(f"{grid!r}, of {name!r}, is not a grid of {kind}")
        if self.rule is not None and not self.evidence:
            raise ValueError("a calibration method was chosen, but its evidence is missing")

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
            "counts": {name: asdict(entry) for name, entry in self.counts.items()},
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
        "fcnopt": __version__,
    }
