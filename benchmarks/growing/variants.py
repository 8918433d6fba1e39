"""Engines of one network for other frame sizes, batches and class counts, each on the whole road of a bundle."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import onnx

from fcnopt import BuildSettings, ExportOptions, build, export
from fcnopt.backends.base import Precision, Progress
from fcnopt.bundle import MODEL
from fcnopt.graph import io

# The quickest: speed and memory do not depend on the ranges.
_FRAMES = 1
_METHOD: Final = "minmax"


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
    exported = sources.work / f"{stem}.onnx"
    if not exported.exists():  # for another precision or batch
        export(checkpoint, exported, options=ExportOptions(size=variant.size), progress=sources.progress)
    settings = BuildSettings(
        max_frames=_FRAMES,
        method=_METHOD,
        batch=variant.batch if variant.batch > 1 else None,
        folder=sources.work,
        calib=sources.work / f"{stem}-calib",
        name=f"{stem}-b{variant.batch}",
    )
    path = build(
        exported,
        precision=precision,
        target=sources.target,
        calibration=sources.calibration,
        settings=settings,
        progress=sources.progress,
    )
    return path, io.load(path / MODEL)


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
