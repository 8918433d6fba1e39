"""Opening clips: `open_clip` one (a video, a robot log, a folder of pictures), `list_clips` all under a folder."""

from __future__ import annotations

from pathlib import Path

from fcnopt.errors import MediaError
from fcnopt.media.base import Clip, Decoder, Frame
from fcnopt.media.files import IMAGE_SUFFIXES, VIDEO_SUFFIXES, files_in, natural_key
from fcnopt.media.fit import fit_frame, restore_labels
from fcnopt.media.labels import is_label_folder, label_maps_in, match_labels
from fcnopt.media.logs import LOG_SUFFIXES, is_log, open_log

__all__ = ["Clip", "Frame", "fit_frame", "list_clips", "open_clip", "restore_labels"]


def open_clip(
    path: str | Path, labels: str | Path | None = None, *, decoder: Decoder = "pyav", topic: str | None = None
) -> Clip:
    """Open a video file, a camera topic of a robot log, a picture, or a folder of pictures (also one of folders).

    Args:
        path: What to open. The pictures of a folder come in natural order (`2` before `10`).
        labels: A folder of label maps, 8-bit PNG: of pictures, matched by name without suffix; of a video or log, the
            i-th in natural order belongs to frame i. For one picture also a file. `labels.find_labels` finds the
            folder in the layout of a known data set.
        decoder: Of a video: "pyav" gives the same pixels on every machine and sees damage within a frame; "nvdec" is
            the GPU's decoder, by PyNvVideoCodec; "auto" takes that where it decodes this file, else PyAV.
        topic: Of a robot log (MCAP, ROS bag); None takes the only one with images. See `fcnopt.media.logs`.

    Raises:
        MediaError: There is no such file, folder or topic, it holds no frames, its first frame cannot be decoded, or
            label maps are missing or not as many as the frames. What is found out only by decoding is raised on
            iteration, also that "nvdec" cannot decode the file.
    """
    path, maps = Path(path), None if labels is None else Path(labels)
    if path.exists() and is_log(path):
        return open_log(path, topic, () if maps is None else tuple(label_maps_in(maps)))
    if topic is not None and path.exists():
        raise MediaError(f"{path}: is no robot log, it has no topic {topic}", fix="leave the topic out")
    if path.is_dir():
        return _open_folder(path, maps)
    if not path.is_file():
        raise MediaError(
            f"{path}: no such file or folder",
            fix="give the path of a video, a robot log, a picture or a folder of pictures",
        )
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return _open_image(path, maps)
    from fcnopt.media.video import VideoClip

    return VideoClip(path, () if maps is None else tuple(label_maps_in(maps)), decoder)


def list_clips(folder: str | Path, *, topic: str | None = None) -> list[Clip]:
    """Every clip under a folder, in natural order: each video or robot log, and each folder's pictures as one clip.

    Hidden files and folders, folders of label maps in a known layout, and other kinds of files are left out. The
    path of one video, log or picture gives that one clip.

    Args:
        folder: Searched to any depth.
        topic: Of the logs; None takes the only one with images of each.

    Raises:
        MediaError: As `open_clip`; a folder without any clip gives an empty list.
    """
    folder = Path(folder)
    if not folder.is_dir() or is_log(folder):
        return [open_clip(folder, topic=topic)]
    found: list[Clip] = [_open_folder(folder, None)] if files_in(folder, IMAGE_SUFFIXES) else []
    found += [open_clip(path) for path in files_in(folder, VIDEO_SUFFIXES)]
    found += [open_log(path, topic) for path in files_in(folder, LOG_SUFFIXES)]
    for inner in sorted((p for p in folder.iterdir() if p.is_dir()), key=natural_key):
        if not inner.name.startswith(".") and not is_label_folder(inner):
            found += list_clips(inner, topic=topic)
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
