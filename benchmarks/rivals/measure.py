"""What a quantized file is worth: every file, whoever made it, is run and scored by this code.

Files run on OpenVINO. Layers that a file leaves in float compute in FP32 there, so that what is measured is the
quantization and not this CPU's BF16.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fcnopt.backends.opening import open_onnx
from fcnopt.errors import MediaError
from fcnopt.evaluate.scores import Scorer
from fcnopt.media import fit_frame, open_clip, restore_labels
from fcnopt.spec import ClassSpec, ModelSpec

SAMPLES = 2000
"""Resampled clips for the intervals."""

Progress = Callable[[str, float], None]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Frames with label maps to evaluate on.

    Attributes:
        title: For people.
        frames: As the model takes them, uint8 [H, W, 3] each.
        truth: Label maps, uint8 [h, w] each, at the frames' own size.
        hash: SHA-256 of both.
    """

    title: str
    frames: tuple[NDArray[np.uint8], ...]
    truth: tuple[NDArray[np.uint8], ...]
    hash: str

    @classmethod
    def read(cls, folder: Path, labels: Path, spec: ModelSpec, places: Sequence[int] | None, title: str) -> Evaluation:
        """Read the frames at `places` of a folder, or all.

        Raises:
            MediaError: They cannot be read, or have no label maps.
        """
        wanted = None if places is None else set(places)
        digest = hashlib.sha256()
        frames, truth = [], []
        for frame in open_clip(folder, labels):
            if frame.labels is None or (wanted is not None and frame.index not in wanted):
                continue
            frames.append(np.ascontiguousarray(fit_frame(frame.image, spec.frame)))
            truth.append(frame.labels)
            digest.update(frames[-1].data)
            digest.update(np.ascontiguousarray(frame.labels).data)
        if not frames:
            raise MediaError(f"{folder}: no frames to evaluate on", fix="give more frames")
        return cls(title, tuple(frames), tuple(truth), digest.hexdigest())


def labels_of(path: Path, spec: ModelSpec, evaluation: Evaluation, progress: Progress) -> list[NDArray[np.uint8]]:
    """Run a file; labels uint8 [h, w] a frame, at the frame's own size.

    Raises:
        BackendError: OpenVINO refuses the file.
    """
    found = []
    with open_onnx(path, spec, "fp32", "openvino") as runner:
        for place, (frame, truth) in enumerate(zip(evaluation.frames, evaluation.truth, strict=True)):
            labels = np.asarray(runner.run(frame[None]).labels)[0]
            found.append(restore_labels(labels, (truth.shape[0], truth.shape[1]), spec.frame))
            progress(f"evaluate {path.stem}", (place + 1) / len(evaluation.frames))
    return found


def kept_labels(
    path: Path, sha256: str, spec: ModelSpec, evaluation: Evaluation, folder: Path, progress: Progress
) -> list[NDArray[np.uint8]]:
    """`labels_of`, kept in `folder` by what is in the file and in the frames, and read from there if it is known."""
    store = folder / f"labels-{sha256[:16]}-{evaluation.hash[:16]}.bin"
    shapes = [truth.shape for truth in evaluation.truth]
    if store.exists():
        flat = np.frombuffer(zlib.decompress(store.read_bytes()), np.uint8)
        ends = np.cumsum([height * width for height, width in shapes])
        return [part.reshape(shape) for part, shape in zip(np.split(flat, ends[:-1]), shapes, strict=True)]
    found = labels_of(path, spec, evaluation, progress)
    write_whole(store, zlib.compress(b"".join(np.ascontiguousarray(labels).tobytes() for labels in found), 1))
    return found


def score(
    labels: Sequence[NDArray[np.uint8]],
    reference: Sequence[NDArray[np.uint8]],
    truth: Sequence[NDArray[np.uint8]],
    classes: ClassSpec,
) -> dict[str, Any]:
    """Figures of one file against FP32, in points, ready for JSON; a drop is FP32 minus the file.

    The worst class is the one that loses most, among those present in the truth.
    """
    ours, theirs = Scorer(classes), Scorer(classes)
    for one, other, right in zip(labels, reference, truth, strict=True):
        ours.add(one, other, right)
        theirs.add(other, other, right)
    drop = ours.drop_from(theirs, SAMPLES)
    losses = zip(classes.names, drop.iou, drop.iou_intervals, strict=True)
    known = [(name, lost, interval) for name, lost, interval in losses if lost is not None]
    table = [{"name": name, "drop": lost, "interval": interval} for name, lost, interval in known]
    worst = max(range(len(known)), key=lambda place: known[place][1])
    return {
        "miou": ours.truth.miou,
        "drop": drop.miou,
        "drop_interval": drop.miou_interval,
        "worst_class": table[worst],
        "classes": table,
        "equal_labels": ours.equal_labels,
    }


def file_sha256(path: Path) -> str:
    """SHA-256 of a file; of an OpenVINO IR, with its weights."""
    digest = hashlib.sha256()
    for part in parts(path):
        with part.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def parts(path: Path) -> list[Path]:
    """The files that make up a model."""
    return [path, path.with_suffix(".bin")] if path.suffix == ".xml" else [path]


def write_whole(path: Path, data: bytes) -> None:
    """Write a file that is there whole or not at all, so that a run that is cut leaves nothing half-written."""
    partial = path.with_name(path.name + ".part")
    partial.write_bytes(data)
    partial.replace(path)
