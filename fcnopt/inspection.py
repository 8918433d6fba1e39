"""What a bundle or an ONNX file holds, as data."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fcnopt.bundle import MANIFEST, Bundle
from fcnopt.errors import UsageError
from fcnopt.graph import io
from fcnopt.graph.prepost import batch_of
from fcnopt.graph.stats import GraphStats, stats_of
from fcnopt.locate import model_file
from fcnopt.manifest import Manifest
from fcnopt.spec import ModelSpec


@dataclass(frozen=True)
class Inspection:
    """What was found at a path.

    Attributes:
        path: The bundle's folder or the ONNX file.
        spec: What the model takes and gives; None for an ONNX file from elsewhere.
        stats: Of the graph; in a bundle, of the precision graph.
        manifest: The bundle's; None for an ONNX file.
        batch: Frames that the graph computes at once; None where that is open.
        signer: Fingerprint of the key that signed the bundle; None where nobody did.
        trusted: Whether that is a key that FCNOPT_TRUSTED_KEYS names.
    """

    path: Path
    spec: ModelSpec | None
    stats: GraphStats
    manifest: Manifest | None
    batch: int | None = None
    signer: str | None = None
    trusted: bool = False

    def to_json(self) -> str:
        """Everything as JSON."""
        data: dict[str, Any] = {"path": str(self.path), "batch": self.batch, "stats": asdict(self.stats)}
        data["spec"] = json.loads(self.spec.to_json()) if self.spec else None
        data["manifest"] = json.loads(self.manifest.to_json()) if self.manifest else None
        data["signature"] = {"signer": self.signer, "trusted": self.trusted} if self.manifest else None
        return json.dumps(data, indent=1)


def inspect(path: str | Path) -> Inspection:
    """Read a bundle or an ONNX file; no engine is loaded.

    Raises:
        BundleError: The bundle is damaged.
        GraphError: `path` is a file but no usable ONNX.
        UsageError: `path` is a checkpoint, or a folder but no bundle.
    """
    place = Path(path)
    if place.is_dir() or place.name == MANIFEST:
        bundle = bundle_at(place.parent if place.name == MANIFEST else place)
        manifest, model = bundle.manifest, io.load(bundle.model)
        signed = bundle.signer, bundle.trusted
        return Inspection(bundle.path, manifest.spec, stats_of(model), manifest, batch_of(model), *signed)
    model = io.load(model_file(place))
    return Inspection(place, io.read_spec(model), stats_of(model), None, batch_of(model))


def bundle_at(folder: Path) -> Bundle:
    """The bundle in a folder, with all its files as the build left them.

    Raises:
        UsageError: The folder holds none; or a key that FCNOPT_TRUSTED_KEYS names cannot be used.
        BundleError: It is damaged, or not signed as FCNOPT_TRUSTED_KEYS requires.
    """
    if folder.is_dir() and not (folder / MANIFEST).is_file():
        raise UsageError(f"{folder}: is no bundle: it has no {MANIFEST}", fix="give the folder engines/NAME")
    bundle = Bundle.read_trusted(folder)
    bundle.verify()
    return bundle
