"""Opening clips: `open_clip` a video, a picture or a folder of pictures; `list_clips` all of them under a folder."""

from __future__ import annotations

from pathlib import Path

from fcnopt.errors import MediaError
from fcnopt.media.base import Clip, Decoder, Frame
from fcnopt.media.files import IMAGE_SUFFIXES, VIDEO_SUFFIXES, files_in, natural_key
from fcnopt.media.fit import fit_frame, restore_labels
from fcnopt.media.labels import is_label_folder, label_maps_in, match_labels

__all__ = ["Clip", "Frame", "fit_frame", "list_clips", "open_clip", "restore_labels"]


def open_clip(path: str | Path, labels: str | Path | None = None, *, decoder: Decoder = "pyav") -> Clip:
    """Open a video file, a picture, or a folder of pictures (Cityscapes' folders of cities too).

    Args:
        path: What to open. The pictures of a folder come in natural order (`2` before `10`).
        labels: A folder of label maps, 8-bit PNG: of pictures, matched by name without suffix; of a video, the i-th
            in natural order belongs to frame i. For one picture also a file. `labels.find_labels` finds the folder
            in the layout of a known data set.
        decoder: Of a video: "pyav" gives the same pixels on every machine and sees damage within a frame; "nvdec" is
            the GPU's decoder, by PyNvVideoCodec; "auto" takes that where it decodes this file, else PyAV.

    Raises:
        MediaError: There is no such file or folder, it holds no frames, its first frame cannot be decoded, or label
            maps are missing or not as many as the frames. What is found out only by decoding is raised on iteration,
            also that "nvdec" cannot decode the file.
    """
    path, maps = Path(path), None if labels is None else Path(labels)
    if path.is_dir():
        return _open_folder(path, maps)
    if not path.is_file():
        raise MediaError(
            f"{path}: no such file or folder", fix="give the path of a video, a picture or a folder of pictures"
        )
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return _open_image(path, maps)
    from fcnopt.media.video import VideoClip

    return VideoClip(path, () if maps is None else tuple(label_maps_in(maps)), decoder)


def list_clips(folder: str | Path) -> list[Clip]:
    """Every clip under a folder, in natural order: each video, and each folder's pictures together as one clip.

    Hidden files and folders, folders of label maps in a known layout, and other kinds of files are left out. The
    path of one video or picture gives that one clip.

    Raises:
        MediaError: As `open_clip`; a folder without any clip gives an empty list.
    """
    folder = Path(folder)
    if not folder.is_dir():
        return [open_clip(folder)]
    found: list[Clip] = [_open_folder(folder, None)] if files_in(folder, IMAGE_SUFFIXES) else []
    found += [open_clip(path) for path in files_in(folder, VIDEO_SUFFIXES)]
    for inner in sorted((p for p in folder.iterdir() if p.is_dir()), key=natural_key):
        if not inner.name.startswith(".") and not is_label_folder(inner):
            found += list_clips(inner)
    return found


def _open_folder(folder: Path, labels: Path | None) -> Clip:
    from fcnopt.media.folder import ImageClip

    images = files_in(folder, IMAGE_SUFFIXES)
    if not images:  # Cityscapes keeps one folder a city
        nested = files_in(folder, frozenset({".png"}), nested=True)
        images = [path for path in nested if path.stem.endswith("_leftImg8bit")]
    if not images:
        videos = files_in(folder, VIDEO_SUFFIXES)
        raise MediaError(
            f"{folder}: no pictures in this folder ({', '.join(sorted(s[1:] for s in IMAGE_SUFFIXES))})",
            fix=f"give one of its videos, such as {videos[0]}" if videos else "give a folder with pictures, or a video",
        )
    return ImageClip(folder.resolve().name, tuple(images), () if labels is None else match_labels(images, labels))


def _open_image(path: Path, labels: Path | None) -> Clip:
    from fcnopt.media.folder import ImageClip

    if labels is None:
        return ImageClip(path.stem, (path,))
    return ImageClip(path.stem, (path,), (labels,) if labels.is_file() else match_labels((path,), labels))
