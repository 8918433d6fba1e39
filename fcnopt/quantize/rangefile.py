"""`calib/NAME.json`: ranges, and the hashes of what they belong to.

Ranges are worth reusing (64 frames take half a minute) and dangerous to reuse for other weights, other frames or
another graph. The file says which ones it is for; anything else is refused.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from fcnopt.codec import decode
from fcnopt.errors import CalibrationError
from fcnopt.graph.io import graph_hash, weights_hash
from fcnopt.leftovers import clear_up, part_of
from fcnopt.quantize.frames import CalibrationFrames
from fcnopt.quantize.methods import LEVELS, METHODS, RULES
from fcnopt.quantize.ranges import HALF_TYPES, Ranges, TensorRange
from fcnopt.quantize.settle import Settled

if TYPE_CHECKING:
    import onnx

RANGE_FILE_VERSION = 3
_SHORT = 12  # characters of a hash that a message shows


@dataclass(frozen=True)
class RangeFile:
    """Ranges and where they come from.

    Attributes:
        ranges: The ranges.
        weights: SHA-256 of the weights of the FP32 graph.
        frames: SHA-256 of the calibration frames, fitted to the model.
        graph: SHA-256 of the FP32 graph's structure.
        sources: For people: files and folders the frames come from.
    """

    ranges: Ranges
    weights: str
    frames: str
    graph: str
    sources: tuple[str, ...]

    @classmethod
    def of(cls, ranges: Ranges, model: onnx.ModelProto, frames: CalibrationFrames) -> RangeFile:
        """Ranges that were just collected from this model and these frames."""
        return cls(ranges, weights_hash(model), frames.hash, graph_hash(model), frames.sources)

    def save(self, path: Path) -> Path:
        """Write the file whole or not at all.

        Raises:
            CalibrationError: It cannot be written.
        """
        data = {
            "version": RANGE_FILE_VERSION,
            "hashes": {"weights": self.weights, "frames": self.frames, "graph": self.graph},
            "frames": {"count": self.ranges.frames, "sources": list(self.sources)},
            "settled": None if self.ranges.settled is None else asdict(self.ranges.settled),
            "factors": {name: list(values) for name, values in self.ranges.factors.items()},
            "tensors": {name: asdict(tensor) for name, tensor in self.ranges.tensors.items()},
        }
        write_whole(path, json.dumps(data, indent=1, allow_nan=False) + "\n", what="range file")
        return path

    @classmethod
    def load(cls, path: Path) -> RangeFile:
        """Read what `save` wrote.

        Raises:
            CalibrationError: It is missing, cut off, damaged, or of another schema version.
        """
        try:
            data = json.loads(path.read_text(encoding="utf-8"), parse_constant=not_a_number)
            if data["version"] != RANGE_FILE_VERSION:
                raise CalibrationError(
                    f"{path}: range file has schema version {data['version']!r}, "
                    f"this fcnopt reads {RANGE_FILE_VERSION}",
                    fix=f"delete {path} to calibrate again",
                )
            hashes = decode(_Hashes, data["hashes"], "hashes")
            frames = decode(_Frames, data["frames"], "frames")
            tensors = {str(name): _tensor(entry) for name, entry in data["tensors"].items()}
            return cls(
                Ranges(tensors, _positive(frames.count), _factors(data["factors"]), _settled(data["settled"])),
                hashes.weights,
                hashes.frames,
                hashes.graph,
                frames.sources,
            )
        except OSError as error:
            raise CalibrationError(
                f"{path}: the range file cannot be read: {error.strerror}", fix="check the path and its permissions"
            ) from error
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CalibrationError(
                f"{path}: the range file is cut off or damaged: {type(error).__name__}: {error}",
                fix=f"delete {path} to calibrate again",
            ) from error

    def check(
        self, model: onnx.ModelProto | None, frames: CalibrationFrames | None, *, name: str = "range file"
    ) -> None:
        """Refuse ranges that belong to something else.

        Args:
            model: The FP32 graph about to be quantized; None where it is not at hand yet.
            frames: The calibration frames at hand; None where the file alone has to do.
            name: What the error calls the file.

        Raises:
            CalibrationError: A hash differs; the message names each that does, with what the file and the
                present have.
        """
        found = {} if model is None else {"weights": weights_hash(model), "graph": graph_hash(model)}
        if frames is not None:
            found["frames"] = frames.hash
        stored = {"weights": self.weights, "frames": self.frames, "graph": self.graph}
        stale = [what for what in stored if what in found and found[what] != stored[what]]
        if stale:
            detail = "; ".join(f"{w} expected {stored[w][:_SHORT]}, found {found[w][:_SHORT]}" for w in stale)
            if frames is not None and "frames" in stale:
                detail += f" ({self.ranges.frames} frames then, {frames.count} now)"
            others = " and ".join(stale)
            raise CalibrationError(
                f"{name}: ranges belong to other {others}: {detail}",
                fix=f"add --recalibrate (or delete {name}) to calibrate again, or give the {others} it was made from",
            )


@dataclass(frozen=True)
class _Hashes:
    weights: str
    frames: str
    graph: str


@dataclass(frozen=True)
class _Frames:
    count: int
    sources: tuple[str, ...]


def not_a_number(word: str) -> NoReturn:
    """Refuse NaN and Infinity where JSON is read, by `ValueError`: JSON has neither."""
    raise ValueError(f"{word} is not a number")


def write_whole(path: Path, text: str, *, what: str) -> None:
    """Write a file whole or not at all, making its folder if need be.

    Args:
        path: Where to.
        text: What.
        what: The file is, for the error.

    Raises:
        CalibrationError: It cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, text)
    except OSError as error:
        raise CalibrationError(
            f"{path}: the {what} cannot be written: {error.strerror}",
            fix="free space on the disk, or check the folder and its permissions",
        ) from error


def _write(path: Path, text: str) -> None:
    clear_up(path)
    part = part_of(path)
    try:
        with part.open("x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _tensor(entry: Mapping[str, Any]) -> TensorRange:
    found = entry["intervals"]
    intervals = {
        method: {levels: _interval(found[method][str(levels)]) for levels in LEVELS if method in RULES[levels]}
        for method in METHODS
        if found
    }
    return TensorRange(
        _number(entry["minimum"]),
        _number(entry["maximum"]),
        _number(entry["rms"]),
        {kind: _number(entry["noise_db"][kind]) for kind in HALF_TYPES},
        intervals,
    )


def _factors(entries: Mapping[str, Any]) -> dict[str, tuple[float, ...]]:
    found = {str(name): tuple(_number(value) for value in values) for name, values in entries.items()}
    if any(value <= 0 for values in found.values() for value in values):
        raise ValueError("a factor is not positive")
    return found


def _settled(entry: Any) -> Settled | None:
    if entry is None:
        return None
    found = decode(Settled, entry, "settled")
    _positive(found.frames)
    return found


def _interval(value: Any) -> tuple[float, float]:
    low, high = value
    if not _number(low) <= 0 <= _number(high):
        raise ValueError(f"{value!r} is not an interval around zero")
    return float(low), float(high)


def _number(value: Any) -> float:
    # JSON's integers have no limit: one beyond the floats is larger than any of them
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
        raise ValueError(f"{value!r:.60} is not a finite number")
    return float(value)


def _positive(value: int) -> int:
    if value < 1:
        raise ValueError(f"{value!r} is not a positive integer")
    return value
