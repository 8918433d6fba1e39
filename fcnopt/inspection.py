"""What a bundle or an ONNX file holds, as data."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fcnopt.bundle import MANIFEST, Bundle
from fcnopt.graph import io
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
    """

    path: Path
    spec: ModelSpec | None
    stats: GraphStats
    manifest: Manifest | None

    def to_json(self) -> str:
        """Everything as JSON."""
        data: dict[str, Any] = {"path": str(self.path), "stats": asdict(self.stats)}
        data["spec"] = json.loads(self.spec.to_json()) if self.spec else None
        data["manifest"] = json.loads(self.manifest.to_json()) if self.manifest else None
        return json.dumps(data, indent=1)


def inspect(path: str | Path) -> Inspection:
    """Read a bundle or an ONNX file; no engine is loaded.

    Raises:
        BundleError: `path` is a folder but no bundle, or one that is damaged.
        GraphError: `path` is a file but no usable ONNX.
        UsageError: `path` is a checkpoint.
    """
    place = Path(path)
    if place.is_dir() or place.name == MANIFEST:
        bundle = Bundle.read(place.parent if place.name == MANIFEST else place)
        bundle.verify()
        manifest = bundle.manifest
        return Inspection(bundle.path, manifest.spec, stats_of(io.load(bundle.model)), manifest)
    model = io.load(model_file(place))
    return Inspection(place, io.read_spec(model), stats_of(model), None)
