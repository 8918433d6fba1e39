"""What a model expects and what it answers, as data.

A `ModelSpec` travels inside the ONNX file (one metadata key) and inside the bundle's manifest, so that no consumer
has to know how frames are normalized or what label 3 means. Specs are immutable, validated where they are made,
and read and written as JSON.
"""

from __future__ import annotations

import colorsys
import json
import math
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

from fcnopt.errors import UsageError

ColorOrder = Literal["BGR", "RGB"]
Resize = Literal["stretch", "letterbox", "none"]
OutputName = Literal["labels", "confidence", "logits"]

SPEC_VERSION = 1
METADATA_KEY = "fcnopt.spec"

_CAMVID = (
    ("Sky", (128, 128, 128)),
    ("Building", (128, 0, 0)),
    ("Pole", (192, 192, 128)),
    ("Road", (128, 64, 128)),
    ("Pavement", (60, 40, 222)),
    ("Tree", (128, 128, 0)),
    ("SignSymbol", (192, 128, 128)),
    ("Fence", (64, 64, 128)),
    ("Car", (64, 0, 128)),
    ("Pedestrian", (64, 64, 0)),
    ("Bicyclist", (0, 128, 192)),
)
_CITYSCAPES = (
    ("road", (128, 64, 128)),
    ("sidewalk", (244, 35, 232)),
    ("building", (70, 70, 70)),
    ("wall", (102, 102, 156)),
    ("fence", (190, 153, 153)),
    ("pole", (153, 153, 153)),
    ("traffic light", (250, 170, 30)),
    ("traffic sign", (220, 220, 0)),
    ("vegetation", (107, 142, 35)),
    ("terrain", (152, 251, 152)),
    ("sky", (70, 130, 180)),
    ("person", (220, 20, 60)),
    ("rider", (255, 0, 0)),
    ("car", (0, 0, 142)),
    ("truck", (0, 0, 70)),
    ("bus", (0, 60, 100)),
    ("train", (0, 80, 100)),
    ("motorcycle", (0, 0, 230)),
    ("bicycle", (119, 11, 32)),
)
_VOC = (
    ("background", (0, 0, 0)),
    ("aeroplane", (128, 0, 0)),
    ("bicycle", (0, 128, 0)),
    ("bird", (128, 128, 0)),
    ("boat", (0, 0, 128)),
    ("bottle", (128, 0, 128)),
    ("bus", (0, 128, 128)),
    ("car", (128, 128, 128)),
    ("cat", (64, 0, 0)),
    ("chair", (192, 0, 0)),
    ("cow", (64, 128, 0)),
    ("diningtable", (192, 128, 0)),
    ("dog", (64, 0, 128)),
    ("horse", (192, 0, 128)),
    ("motorbike", (64, 128, 128)),
    ("person", (192, 128, 128)),
    ("pottedplant", (0, 64, 0)),
    ("sheep", (128, 64, 0)),
    ("sofa", (0, 192, 0)),
    ("train", (128, 192, 0)),
    ("tvmonitor", (0, 64, 128)),
)
# The classes of the embedded synthetic scene (media/synth.py), in label order.
_SYNTH = (
    ("road", (128, 64, 128)),
    ("marking", (235, 235, 235)),
    ("pavement", (244, 35, 232)),
    ("building", (110, 100, 95)),
    ("tree", (107, 142, 35)),
    ("sky", (70, 130, 180)),
    ("car", (0, 0, 190)),
    ("pedestrian", (220, 20, 60)),
    ("sign", (220, 220, 0)),
)
DATASETS = {"camvid": _CAMVID, "cityscapes": _CITYSCAPES, "voc": _VOC, "synth": _SYNTH}
_DATASET_OF_COUNT = {len(_CAMVID): "camvid", len(_CITYSCAPES): "cityscapes", len(_VOC): "voc"}
_IGNORE_INDEX = {"camvid": 11, "cityscapes": 255, "voc": 255, "synth": 255}


def _check_choice(what: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UsageError(f"{what}: {value!r} is not one of {', '.join(choices)}", fix=f"use {' or '.join(choices)}")


@dataclass(frozen=True)
class Normalization:
    """`(x * scale - mean) / std` on the channels in the order `color`, as the network was trained.

    Attributes:
        color: Channel order of the network's input; `mean` and `std` are in this order.
        scale: Factor on the 0..255 pixel value before `mean` is taken off (1/255 for torchvision's statistics).
        mean: One value a channel.
        std: One value a channel, none of them zero.
    """

    color: ColorOrder = "RGB"
    scale: float = 1 / 255
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        _check_choice("normalization.color", self.color, get_args(ColorOrder))
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(values) != 3 or not all(math.isfinite(v) for v in values):
                raise UsageError(
                    f"normalization.{name}: expected three finite numbers, found {values!r}",
                    fix=f"give {name} as three numbers, one a channel",
                )
        if 0.0 in self.std or self.scale == 0:
            raise UsageError(
                f"normalization: std {self.std!r} or scale {self.scale!r} is zero",
                fix="give a scale and a std that are not zero (1 leaves a channel as it is)",
            )


# torchvision's ImageNet statistics; Caffe's, as wkentaro/pytorch-fcn subtracts them (BGR, 0..255); pixels as they are.
NORMALIZATIONS = {
    "imagenet": Normalization(),
    "caffe": Normalization("BGR", 1.0, (104.00698793, 116.66876762, 122.67891434), (1.0, 1.0, 1.0)),
    "unit": Normalization("RGB", 1 / 255, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "none": Normalization("RGB", 1.0, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}


@dataclass(frozen=True)
class FrameSpec:
    """The frames a model takes: uint8 [N, height, width, 3].

    Attributes:
        height: Rows, or None where the model takes any (dynamic).
        width: Columns, or None where the model takes any.
        color: Channel order of the frames handed in. OpenCV gives BGR.
        resize: What to do with a frame of another size: `stretch` it, `letterbox` it (keep the aspect, pad with
            the mean colour), or `none` (an error).
        normalization: Done inside the graph.
    """

    height: int | None = None
    width: int | None = None
    color: ColorOrder = "BGR"
    resize: Resize = "stretch"
    normalization: Normalization = field(default_factory=Normalization)

    def __post_init__(self) -> None:
        _check_choice("frame.color", self.color, get_args(ColorOrder))
        _check_choice("frame.resize", self.resize, get_args(Resize))
        for name in ("height", "width"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise UsageError(f"frame.{name}: {value!r} is not a size", fix=f"give {name} as a positive integer")


@dataclass(frozen=True)
class ClassSpec:
    """The classes a model tells apart; the label of a class is its place in `names`.

    Attributes:
        names: One name a class.
        palette: One (R, G, B) colour a class, 0..255.
        ignore_index: The label value that is left out of every measure (unlabelled pixels), or None.
    """

    names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    ignore_index: int | None = 255

    def __post_init__(self) -> None:
        if not 1 <= len(self.names) <= 255:
            raise UsageError(
                f"classes: {len(self.names)} names found, labels are uint8 with one value kept for 'ignore'",
                fix="give between 1 and 255 class names",
            )
        if len(self.palette) != len(self.names):
            raise UsageError(
                f"classes: {len(self.names)} names but {len(self.palette)} colours",
                fix="give one colour a class, in the same order",
            )
        if any(len(c) != 3 or not all(0 <= v <= 255 for v in c) for c in self.palette):
            raise UsageError("classes: a colour is not three values 0..255", fix="give each colour as [R, G, B]")

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def named(cls, dataset: str) -> ClassSpec:
        """The classes of a known data set: one of `DATASETS`."""
        if dataset not in DATASETS:
            raise UsageError(
                f"classes: {dataset!r} is not a known data set",
                fix=f"use one of {', '.join(DATASETS)}, or a JSON file with names and palette",
            )
        entries = DATASETS[dataset]
        return cls(tuple(n for n, _ in entries), tuple(c for _, c in entries), _IGNORE_INDEX[dataset])

    @classmethod
    def of_count(cls, count: int) -> ClassSpec:
        """The best guess for a network with `count` classes: the data set that has as many, else numbered names."""
        if count in _DATASET_OF_COUNT:
            return cls.named(_DATASET_OF_COUNT[count])
        hues = (colorsys.hsv_to_rgb(i * 0.618034 % 1.0, 0.75, 0.9) for i in range(count))
        palette = tuple((int(r * 255), int(g * 255), int(b * 255)) for r, g, b in hues)
        return cls(tuple(f"class_{i}" for i in range(count)), palette)


@dataclass(frozen=True)
class ModelSpec:
    """Everything a consumer must know about a model that its tensors do not say.

    Attributes:
        frame: The input.
        classes: The meaning of the labels.
        outputs: Which outputs the graph has, in order. `labels` uint8 [N, H, W]; `confidence` float32 [N, H, W]
            (softmax probability of the label); `logits` float32 [N, C, H, W].
        architecture: For people: "FCN-8s VGG16 BN, padding same".
    """

    frame: FrameSpec
    classes: ClassSpec
    outputs: tuple[OutputName, ...] = ("labels",)
    architecture: str = ""

    def __post_init__(self) -> None:
        for name in self.outputs:
            _check_choice("outputs", name, get_args(OutputName))
        if "labels" not in self.outputs or len(set(self.outputs)) != len(self.outputs):
            raise UsageError(
                f"outputs: {','.join(self.outputs)!r} must name labels, and each output once",
                fix="use labels, labels,confidence, labels,logits or labels,confidence,logits",
            )

    def with_size(self, height: int | None, width: int | None) -> ModelSpec:
        """The same spec for frames of another size."""
        return replace(self, frame=replace(self.frame, height=height, width=width))

    def to_json(self) -> str:
        """One line of JSON with a schema version."""
        return json.dumps({"version": SPEC_VERSION, **asdict(self)}, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> ModelSpec:
        """Read what `to_json` wrote.

        Raises:
            UsageError: It is not JSON, of another schema version, or a field is missing or of the wrong type.
        """
        try:
            return cls.from_dict(json.loads(text))
        except (ValueError, RecursionError) as error:
            raise UsageError(f"model spec is not JSON: {error}", fix="export the model again") from error

    @classmethod
    def from_dict(cls, data: Any) -> ModelSpec:
        """Read the parsed form of `to_json`; errors as there."""
        try:
            version = data["version"]
            if version != SPEC_VERSION:
                raise UsageError(
                    f"model spec has schema version {version!r}, this fcnopt reads {SPEC_VERSION}",
                    fix="export the model again with this version of fcnopt",
                )
            frame, classes = dict(data["frame"]), data["classes"]
            norm = dict(frame.pop("normalization"))
            norm = {k: tuple(float(v) for v in x) if isinstance(x, list) else x for k, x in norm.items()}
            return cls(
                FrameSpec(normalization=Normalization(**norm), **frame),
                ClassSpec(
                    tuple(str(n) for n in classes["names"]),
                    tuple((int(r), int(g), int(b)) for r, g, b in classes["palette"]),
                    classes["ignore_index"],
                ),
                tuple(data["outputs"]),
                str(data["architecture"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise UsageError(
                f"model spec is incomplete or malformed: {type(error).__name__}: {error}",
                fix="export the model again",
            ) from error
