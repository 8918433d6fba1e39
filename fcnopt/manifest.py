"""A bundle's manifest: what it says of itself, as JSON with a schema version."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, get_args

from fcnopt.backends.base import EngineLayer, Precision
from fcnopt.errors import BundleError, UsageError
from fcnopt.spec import ModelSpec

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Manifest:
    """What a bundle says of itself.

    Attributes:
        name: The folder's name.
        created: ISO 8601 date and time, UTC.
        fcnopt: Version that built it.
        spec: What the engine takes and gives.
        target: What it is for, as `Target.parse` reads it.
        precision: fp32, fp16, bf16 or int8.
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
    measurements: tuple[dict[str, Any], ...] = ()

    def to_json(self) -> str:
        """Indented JSON with the schema version first."""
        data = {"schema": SCHEMA_VERSION, **asdict(self), "spec": json.loads(self.spec.to_json())}
        return json.dumps(data, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str, where: Path) -> Manifest:
        """Read what `to_json` wrote; `where` is named in errors.

        Raises:
            BundleError: Not JSON, of another schema, or a field is missing, unknown or of the wrong type.
        """
        try:
            data = dict(json.loads(text))
            schema = data.pop("schema", None)
            if schema != SCHEMA_VERSION:
                raise BundleError(
                    f"{where}: schema version {schema!r}, this fcnopt reads {SCHEMA_VERSION}",
                    fix="build the bundle again with this version of fcnopt",
                )
            data["spec"] = ModelSpec.from_dict(data["spec"])
            data["layers"] = tuple(_layer(entry) for entry in data["layers"])
            for name in ("engine", "notes", "measurements"):
                data[name] = tuple(data[name])
            manifest = cls(**data)
            _check_types(manifest)
        except BundleError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, UsageError) as error:
            raise BundleError(
                f"{where}: not a bundle manifest: {type(error).__name__}: {_first_line(error)}",
                fix="build the bundle again; do not edit manifest.json by hand",
            ) from error
        return manifest


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
