"""A bundle's manifest: what it says of itself, as JSON with a schema version."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from fcnopt.backends.base import EngineLayer, Precision
from fcnopt.errors import BundleError, UsageError
from fcnopt.spec import ModelSpec

SCHEMA_VERSION = 2
_READ = (1, 2)  # version 1 had no accuracy
_CHECKSUM = "checksum"
_SEALED = re.compile(rf'(.*),\n "{_CHECKSUM}": "([0-9a-f]{{64}})"\n}}\n', re.DOTALL)


@dataclass(frozen=True)
class AccuracyClaim:
    """What a bundle loses against its FP32 reference by what the build measured, on frames it was not calibrated on.

    All drops and shares are in points, 0..100.

    Attributes:
        reference: The FP32 model that it was compared with.
        clip: The frames: name or path.
        frames: How many.
        frames_sha256: Over the frames as the model takes them, in order.
        truth: Label maps, or the reference's own labels.
        miou_drop: Points of mIoU lost; negative is a gain.
        miou_drop_interval: Its 95 % interval (low, high); None where the frames were too few.
        worst_class: The class that loses most of those with enough pixels to judge; None where none has.
        worst_class_drop: Points of IoU that it loses.
        equal_labels: Share of all pixels whose label is the reference's.
        date: ISO 8601.
        budget: The limits that it was held to; None where there were none.
    """

    reference: str
    clip: str
    frames: int
    frames_sha256: str
    truth: Literal["labels", "reference"]
    miou_drop: float
    miou_drop_interval: tuple[float, float] | None
    worst_class: str | None
    worst_class_drop: float | None
    equal_labels: float
    date: str
    budget: dict[str, Any] | None = None

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> AccuracyClaim:
        """Read what `dataclasses.asdict` made, from JSON too.

        Raises:
            TypeError: A field is missing, unknown or of the wrong type.
            ValueError: `truth` is unknown, or the interval has not two ends.
        """
        ends = data.get("miou_drop_interval")
        claim = cls(**{**data, "miou_drop_interval": None if ends is None else tuple(ends)})
        kinds: dict[str, Any] = {
            **dict.fromkeys(("reference", "clip", "frames_sha256", "date"), str),
            **dict.fromkeys(("miou_drop", "equal_labels"), int | float),
            "frames": int,
            "worst_class": str | None,
            "worst_class_drop": int | float | None,
            "budget": dict | None,
        }
        for name, kind in kinds.items():
            if not isinstance(getattr(claim, name), kind):
                raise TypeError(f"accuracy: {name} is {getattr(claim, name)!r:.60}")
        for name in ("max_miou_drop", "max_class_drop"):
            if not isinstance((claim.budget or {}).get(name), int | float | None):
                raise TypeError(f"accuracy: {name} of the budget is no number")
        if claim.truth not in ("labels", "reference"):
            raise ValueError(f"accuracy: truth is {claim.truth!r:.60}")
        if ends is not None and (len(ends) != 2 or not all(isinstance(end, int | float) for end in ends)):
            raise ValueError(f"accuracy: miou_drop_interval is {ends!r:.60}")
        return claim


@dataclass(frozen=True)
class Manifest:
    """What a bundle says of itself.

    Attributes:
        name: The folder's name.
        created: ISO 8601 date and time, UTC.
        fcnopt: Version that built it.
        spec: What the engine takes and gives.
        target: What it is for, as `Target.parse` reads it.
        precision: fp32, fp16, bf16, int8 or fp8.
        device: Device or compute capabilities that it runs on.
        runtime: Name and version that built it.
        engine: Engine files, the one to load first.
        files: SHA-256 of every file but the manifest, by name.
        sources: Where it came from: path and SHA-256 of the FP32 model, calibration hashes.
        min_agreement: Least share of equal labels that the known-answer test accepts, 0..1.
        quantization: What the precision step did and declined.
        layers: The engine's layers, where the runtime tells them.
        notes: What a user should know.
        machine: The machine that built it.
        accuracy: What the build measured and claims; None where it measured nothing.
        measurements: What `fcnopt bench --record` measured: accuracy and speed, with clip, machine and date.
    """

    name: str
    created: str
    fcnopt: str
    spec: ModelSpec
    target: str
    precision: Precision
    device: str
    runtime: str
    engine: tuple[str, ...]
    files: dict[str, str]
    sources: dict[str, Any]
    min_agreement: float
    quantization: dict[str, Any] = field(default_factory=dict)
    layers: tuple[EngineLayer, ...] = ()
    notes: tuple[str, ...] = ()
    machine: dict[str, Any] = field(default_factory=dict)
    accuracy: AccuracyClaim | None = None
    measurements: tuple[dict[str, Any], ...] = ()

    def to_json(self) -> str:
        """Indented JSON with the schema version first, and a checksum of all before it last.

        The checksum finds damage. Against intent there are signatures: `fcnopt.signing`.
        """
        data = {"schema": SCHEMA_VERSION, **asdict(self), "spec": json.loads(self.spec.to_json())}
        text = json.dumps(data, indent=1).removesuffix("\n}")
        return f'{text},\n "{_CHECKSUM}": "{_checksum(text)}"\n}}\n'

    @classmethod
    def from_json(cls, text: str, where: Path) -> Manifest:
        """Read what `to_json` wrote, now or in an earlier version; `where` is named in errors.

        Raises:
            BundleError: Not JSON, of another schema, a field is missing, unknown or of the wrong type, or any byte was
                changed since it was written.
        """
        try:
            data = dict(json.loads(text))
            found = data.pop(_CHECKSUM, None)
            schema = data.pop("schema", None)
            if schema not in _READ:
                raise BundleError(
                    f"{where}: schema version {schema!r}, this fcnopt reads {_READ[0]} to {_READ[-1]}",
                    fix="build the bundle again with this version of fcnopt",
                )
            data["spec"] = ModelSpec.from_dict(data["spec"])
            data["layers"] = tuple(_layer(entry) for entry in data["layers"])
            if data.get("accuracy") is not None:
                data["accuracy"] = AccuracyClaim.from_dict(data["accuracy"])
            for name in ("engine", "notes", "measurements"):
                data[name] = tuple(data[name])
            manifest = cls(**data)
            _check_types(manifest)
            if found is not None:  # the first versions had none
                _check_sum(text)
        except BundleError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError, UsageError) as error:
            raise BundleError(
                f"{where}: not a bundle manifest: {type(error).__name__}: {_first_line(error)}",
                fix="build the bundle again; do not edit manifest.json by hand",
            ) from error
        return manifest


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _check_sum(text: str) -> None:
    found = _SEALED.fullmatch(text)
    if found is None or _checksum(found[1]) != found[2]:
        raise ValueError("it was changed since it was written: its checksum is another")


def _layer(entry: dict[str, Any]) -> EngineLayer:
    return EngineLayer(str(entry["name"]), str(entry["kind"]), str(entry["precision"]), tuple(entry["nodes"]))


def _check_types(manifest: Manifest) -> None:
    for item in fields(Manifest):
        value = getattr(manifest, item.name)
        if item.type == "str" and not isinstance(value, str):
            raise TypeError(f"{item.name} is not a string")
        if str(item.type).startswith("dict") and not isinstance(value, dict):
            raise TypeError(f"{item.name} is not an object")
    if manifest.precision not in get_args(Precision):
        raise ValueError(f"precision {manifest.precision!r} is unknown")
    if not isinstance(manifest.min_agreement, int | float) or not 0 <= manifest.min_agreement <= 1:
        raise ValueError(f"min_agreement {manifest.min_agreement!r} is not within 0..1")
    for name in (*manifest.engine, *manifest.files):
        if not isinstance(name, str) or Path(name).name != name or name in ("", ".", ".."):
            raise ValueError(f"{name!r} is not a file name")
    if not manifest.engine or not set(manifest.engine) <= set(manifest.files):
        raise ValueError("engine names a file that has no hash")


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else ""
