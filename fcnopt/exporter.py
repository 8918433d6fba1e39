"""From a trained network to one ONNX file with everything in it, verified against the network before it is written."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import numpy as np
from numpy.typing import NDArray

from fcnopt.choices import read_classes, read_normalization, read_size
from fcnopt.errors import UsageError
from fcnopt.graph import io
from fcnopt.graph.prepost import attach, batch_of
from fcnopt.models.sources import Source, demo_checkpoint, open_source
from fcnopt.models.verify import Verification, random_frames, verify
from fcnopt.origin import ORIGIN_KEY
from fcnopt.spec import DATASETS, ClassSpec, ColorOrder, FrameSpec, ModelSpec, OutputName, Resize

if TYPE_CHECKING:
    from fcnopt.media.base import Clip
    from fcnopt.models.fcn import Padding

MIN_OPSET, MAX_OPSET = 18, 23
_PADDINGS = ("same", "caffe")
_SIZES = {"camvid": (360, 480), "cityscapes": (512, 1024), "synth": (192, 320)}
_DEFAULT_SIZE = (480, 640)
_MOST_FRAMES = 8


@dataclass(frozen=True)
class ExportOptions:
    """How to export a network.

    Attributes:
        size: (height, width) of the frames; None takes the network's own where it has one, else the data
            set's: 360 x 480 for CamVid, 512 x 1024 for Cityscapes, 192 x 320 for the demo; else 480 x 640.
        dynamic: Leave batch, height and width open. The batch is 1 otherwise, or that of an ONNX file which fixes it.
        padding: `same` or `caffe`; needed for an FCN without batch norm.
        normalize: A name in `NORMALIZATIONS`, or mean and std as "R,G,B/R,G,B"; None means `caffe` for an FCN with
            padding `caffe`, else `imagenet`.
        color: Channel order of the frames that the model will get.
        resize: What a runner does with frames of another size.
        outputs: See `ModelSpec`.
        module: `package.module:Class` of a network of the user's own.
        at_once: The FCN-8s was trained "at once", with scaled pools (wkentaro's FCN8sAtOnce).
        opset: Of the ONNX file, 18 to 23.
    """

    size: tuple[int, int] | None = None
    dynamic: bool = False
    padding: Padding | None = None
    normalize: str | None = None
    color: ColorOrder = "BGR"
    resize: Resize = "stretch"
    outputs: tuple[OutputName, ...] = ("labels",)
    module: str | None = None
    at_once: bool = False
    opset: int = 20

    def __post_init__(self) -> None:
        if self.size is not None and (len(self.size) != 2 or any(type(v) is not int or v < 1 for v in self.size)):
            raise UsageError(f"size: {self.size!r} is not (height, width)", fix="give two positive integers")
        if self.padding is not None and self.padding not in _PADDINGS:
            raise UsageError(f"padding: {self.padding!r} is unknown", fix="use same or caffe")
        if self.module is not None and (self.padding is not None or self.at_once):
            raise UsageError(
                f"padding and at_once tell of fcnopt's own FCNs, not of {self.module}", fix="leave them out"
            )
        if not MIN_OPSET <= self.opset <= MAX_OPSET:
            raise UsageError(f"opset: {self.opset} is not supported", fix=f"use {MIN_OPSET} to {MAX_OPSET}")
        if self.normalize is not None:
            read_normalization(self.normalize)
        # the rest is checked by the specs themselves; a wrong word should not wait for the network to be loaded
        ModelSpec(FrameSpec(color=self.color, resize=self.resize), ClassSpec.of_count(1), self.outputs)

    @classmethod
    def parse(cls, *, size: str | None = None, outputs: str = "labels", **others: Any) -> Self:
        """Options from words: `size` as "HEIGHTxWIDTH", `outputs` as "labels,confidence"; others as in the class."""
        return cls(
            size=None if size is None else read_size(size),
            outputs=cast(tuple[OutputName, ...], tuple(name.strip() for name in outputs.split(","))),
            **others,
        )


@dataclass(frozen=True)
class ExportResult:
    """What `export` wrote; it can be used as the path.

    Attributes:
        path: The ONNX file.
        spec: Also in the file.
        architecture: For people: "FCN-8s VGG16 BN, 11 classes, padding same".
        verification: Against the network it came from.
        notes: What was concluded or chosen, one line each.
        batch: Frames that it takes at a time; None where that is open.
    """

    path: Path
    spec: ModelSpec
    architecture: str
    verification: Verification
    notes: tuple[str, ...] = ()
    batch: int | None = 1

    def __fspath__(self) -> str:
        return str(self.path)

    def describe(self) -> str:
        """A few lines for the console."""
        frame = self.spec.frame
        size = f"{frame.height or 'H'}, {frame.width or 'W'}"
        lines = [
            f"wrote {self.path} ({self.path.stat().st_size / 1e6:.1f} MB): {self.architecture}",
            f"takes frames uint8 [{self.batch or 'N'}, {size}, 3] {frame.color}, gives {', '.join(self.spec.outputs)}",
            f"verified on {self.verification}",
        ]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def export(
    checkpoint: str | Path | None = None,
    output: str | Path | None = None,
    *,
    classes: str | Path | ClassSpec | None = None,
    options: ExportOptions | None = None,
    frames: NDArray[np.uint8] | str | Path | None = None,
    progress: Callable[[str, float], None] | None = None,
) -> ExportResult:
    """Export a trained network to ONNX, with pre- and post-processing inside, and verify it.

    Args:
        checkpoint: `.pth` or safetensors of an FCN or of `options.module`; or somebody else's ONNX file, float32
            [N, 3, H, W] to logits. None exports the embedded demo network.
        output: The file to write; None means engines/NAME.onnx.
        classes: A data set's name, a JSON file, or the spec; None guesses by their number.
        options: The rest.
        frames: To verify on, uint8 [N, H, W, 3] of the model's size and colour order; or a folder or video, whose
            first frames are resized. None takes random ones.
        progress: Called with the step and how much of it is done.

    Raises:
        CheckpointError: The checkpoint cannot be read, or is another network.
        UsageError: Options contradict the network or each other.
        GraphError: The network cannot be converted, or the result does not agree with it; no file is written.
    """
    options = options or ExportOptions()
    report = progress or (lambda _step, _fraction: None)
    report("load the network", 0.0)
    chosen = None if classes is None else read_classes(classes)
    default_notes: list[str] = []
    if checkpoint is None and options.module is None:
        checkpoint = demo_checkpoint()
        default_notes = ["no checkpoint was given: this is the embedded demo network"]
        chosen = chosen or ClassSpec.named("synth")
    path = _output_path(output, checkpoint, options.module)
    if isinstance(frames, str | Path):
        _clip(frames)  # a wrong path must not be found out after the network was converted
    source = open_source(checkpoint, options.module, options.padding, options.at_once, len(chosen) if chosen else None)
    notes = [*default_notes, *source.notes]
    spec, size = _spec(source, chosen, options, notes)
    report("convert to ONNX", 0.0)
    model = attach(source.convert(size, options.dynamic, options.opset), spec)
    if source.origin is not None:
        model.metadata_props.add(key=ORIGIN_KEY, value=source.origin.to_json())
        notes.append(f"slimmed from {source.origin.checkpoint}")
    report("verify", 0.0)
    groups = _frames(frames, spec, size, odd=source.any_size)
    verification = verify(model, source.run, spec, groups, _describe(frames))
    report("save", 0.0)
    io.save(model, path)
    report("save", 1.0)
    return ExportResult(path, spec, source.description, verification, tuple(notes), batch_of(model))


def _spec(
    source: Source, classes: ClassSpec | None, options: ExportOptions, notes: list[str]
) -> tuple[ModelSpec, tuple[int, int]]:
    """The spec of the model to be, and the size to trace and verify it with; what was chosen goes to `notes`."""
    size = options.size or _default_size(source, classes)
    if options.size is None and not options.dynamic:
        notes.append(f"frame size {size[0]} x {size[1]} (height x width): give a size for another")
    count = source.classes or source.count_classes(size)
    if classes is None:
        classes = ClassSpec.of_count(count)
        notes.append(f"class names are those of {_dataset(classes) or 'no data set'}, by their number, {count}")
    elif len(classes) != count:
        raise UsageError(
            f"the network tells {count} classes apart, but {len(classes)} class names were given",
            fix=f"give the {count} classes it was trained for, in label order",
        )
    normalize = options.normalize
    if normalize is None:
        normalize = source.normalization
        notes.append(f"normalization {normalize}, the usual one for this network")
    height, width = (None, None) if options.dynamic else size
    frame = FrameSpec(height, width, options.color, options.resize, read_normalization(normalize))
    return ModelSpec(frame, classes, options.outputs, source.description), size


def _default_size(source: Source, classes: ClassSpec | None) -> tuple[int, int]:
    if classes is None and source.classes:
        classes = ClassSpec.of_count(source.classes)
    dataset = None if classes is None else _dataset(classes)
    return source.size or _SIZES.get(dataset or "", _DEFAULT_SIZE)


def _frames(
    frames: NDArray[np.uint8] | str | Path | None, spec: ModelSpec, size: tuple[int, int], *, odd: bool
) -> tuple[NDArray[np.uint8], ...]:
    """Groups of frames to verify on, each of one size."""
    dynamic = spec.frame.height is None
    if frames is None:
        groups = [random_frames(2, *size)]
        if dynamic:
            # another size than it was traced with
            other = (33, 47) if odd else (size[0] + 32, size[1] + 64)
            groups.append(random_frames(2, *other))
        return tuple(groups)
    if isinstance(frames, str | Path):
        return (_frames_of_clip(_clip(frames), spec.with_size(*size)),)
    fits = frames.dtype == np.uint8 and frames.ndim == 4 and frames.shape[3] == 3 and len(frames) > 0
    if not fits or not (dynamic or frames.shape[1:3] == size):
        raise UsageError(
            f"frames: {frames.dtype} {list(frames.shape)}, expected uint8 [N, {size[0]}, {size[1]}, 3]",
            fix="give frames of the model's size, or a size that is theirs",
        )
    return (frames,)


def _clip(path: str | Path) -> Clip:
    from fcnopt.media.clips import open_clip

    return open_clip(path)


def _frames_of_clip(clip: Clip, spec: ModelSpec) -> NDArray[np.uint8]:
    from fcnopt.media.fit import fit_frame

    return np.stack([fit_frame(frame.image, spec.frame) for frame in itertools.islice(clip, _MOST_FRAMES)])


def _describe(frames: NDArray[np.uint8] | str | Path | None) -> str:
    if frames is None:
        return "random frames"
    return f"frames of {Path(frames).name}" if isinstance(frames, str | Path) else "given frames"


def _output_path(output: str | Path | None, checkpoint: str | Path | None, module: str | None) -> Path:
    name = Path(checkpoint).stem if checkpoint is not None else (module or "").rpartition(":")[2]
    path = Path("engines", f"{name}.onnx") if output is None else Path(output)
    if checkpoint is not None and path.resolve() == Path(checkpoint).resolve():
        raise UsageError(f"{path}: the result would replace the network itself", fix="give another output")
    if path.suffix != ".onnx":
        raise UsageError(f"{path}: an ONNX file's name ends in .onnx", fix=f"use {path.with_suffix('.onnx')}")
    return path


def _dataset(classes: ClassSpec) -> str | None:
    names = classes.names
    return next((key for key, entries in DATASETS.items() if tuple(name for name, _ in entries) == names), None)
