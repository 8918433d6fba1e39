"""Engines of one network for other frame sizes, batches and class counts, each on the whole road of a bundle."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import onnx

from fcnopt import BuildOptions, BuildSettings, ExportOptions, build, export
from fcnopt.backends import Target, make_builder
from fcnopt.backends.base import Precision, Progress
from fcnopt.bundle import MODEL, Bundle, sha256_of
from fcnopt.graph import io

_RANGES = "minmax"  # speed and memory do not depend on the ranges, so the shortest way to them is taken
_FRAMES = 2


@dataclass(frozen=True)
class Variant:
    """A network to measure.

    Attributes:
        axis: What grows: "size", "batch" or "classes".
        size: (height, width) of its frames.
        batch: Frames at once.
        classes: None for the network's own.
    """

    axis: str
    size: tuple[int, int]
    batch: int = 1
    classes: int | None = None

    @property
    def amount(self) -> int:
        """Where it stands on its axis; of a size, its pixels."""
        amounts = {"size": self.size[0] * self.size[1], "batch": self.batch, "classes": self.classes or 0}
        return amounts[self.axis]

    @property
    def text(self) -> str:
        """The same for people."""
        return f"{self.size[1]}x{self.size[0]}" if self.axis == "size" else str(self.amount)

    @property
    def name(self) -> str:
        """For files."""
        return f"{self.size[0]}x{self.size[1]}-{self.batch}-{self.classes or 'own'}"


@dataclass(frozen=True)
class Sources:
    """What variants are made from.

    Attributes:
        checkpoint: The trained network.
        calibration: Folder of frames.
        target: "openvino" or "onnxruntime".
        work: Folder for everything that is written.
        progress: Called as the work goes on.
    """

    checkpoint: Path
    calibration: Path
    target: str
    work: Path
    progress: Progress


def make(variant: Variant, precision: Precision, sources: Sources) -> tuple[Path, onnx.ModelProto]:
    """A folder with the variant's engine, and the graph in it.

    Raises:
        FcnoptError: It cannot be exported or built.
    """
    checkpoint = sources.checkpoint
    if variant.classes is not None:
        checkpoint = with_classes(checkpoint, variant.classes, sources.work / f"classes-{variant.classes}.pth")
    stem = f"{checkpoint.stem}-{variant.size[0]}x{variant.size[1]}"
    options = ExportOptions(size=variant.size)
    exported = export(checkpoint, sources.work / f"{stem}.onnx", options=options, progress=sources.progress)
    settings = BuildSettings(
        method=_RANGES, max_frames=_FRAMES, folder=sources.work, calib=sources.work / f"{stem}-calib", name=f"{stem}-b1"
    )
    path = build(
        exported.path,
        precision=precision,
        target=sources.target,
        calibration=sources.calibration,
        settings=settings,
        progress=sources.progress,
    )
    model = io.load(path / MODEL)
    return (path, model) if variant.batch == 1 else _batched(path, model, variant.batch, precision, sources)


def _batched(
    bundle: Path, model: onnx.ModelProto, batch: int, precision: Precision, sources: Sources
) -> tuple[Path, onnx.ModelProto]:
    """The bundle's graph built again for `batch` frames at once."""
    grown = with_batch(model, batch)
    folder = bundle.with_name(f"{bundle.name}-x{batch}")
    folder.mkdir(exist_ok=True)
    path = io.save(grown, folder / MODEL)
    manifest = replace(Bundle.read(bundle).manifest, name=folder.name)
    builder = make_builder(Target.parse(sources.target))
    built = builder.build(path, folder, BuildOptions(precision=precision), sources.progress)
    files = {file.name: sha256_of(file) for file in (path, *built.files)}
    manifest = replace(manifest, engine=tuple(file.name for file in built.files), files=files)
    (folder / "manifest.json").write_text(manifest.to_json(), encoding="utf-8")
    return folder, grown


def with_batch(model: onnx.ModelProto, batch: int) -> onnx.ModelProto:
    """The graph for `batch` frames at once; what it says of shapes inside is left out, to be inferred anew."""
    grown = onnx.ModelProto()
    grown.CopyFrom(model)
    del grown.graph.value_info[:]
    for value in (*grown.graph.input, *grown.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = batch
    return grown


def with_classes(checkpoint: Path, count: int, path: Path) -> Path:
    """Write the network with another number of classes: its own over and over, later copies never the likelier ones.

    Accuracy is not asked of it; all of its layers are as large as those of a network with so many classes.
    """
    import torch

    from fcnopt.models.files import read_state_dict

    tensors = dict(read_state_dict(checkpoint).tensors)
    own = len(tensors["score_fr.weight"])
    rows = torch.arange(count) % own
    for name, tensor in tensors.items():
        if name.startswith("upscore"):  # (in, out, kH, kW)
            tensors[name] = tensor[rows][:, rows].clone()
        elif name.startswith("score"):
            tensors[name] = tensor[rows].clone()
    tensors["score_fr.bias"] = tensors["score_fr.bias"] - 0.5 * (torch.arange(count) // own)
    torch.save(tensors, path)
    return path
