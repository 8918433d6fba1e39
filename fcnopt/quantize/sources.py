"""Where calibration frames come from: the pictures, videos and robot logs under some paths, never their label maps.

A data set lies in folders of pictures beside folders of label maps, and a label map is a picture too. Known layouts
are told by their folders' names, others by what is in the files: an 8-bit PNG of one channel that holds no value but
labels. What is left out is said, and so is a picture that cannot be decoded: the next one takes its place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fcnopt.errors import CalibrationError, MediaError
from fcnopt.media import Clip, open_clip
from fcnopt.media.files import IMAGE_SUFFIXES, VIDEO_SUFFIXES, files_in, natural_key, read_image
from fcnopt.media.labels import is_label_folder, read_label_map
from fcnopt.media.logs import LOG_SUFFIXES, is_log
from fcnopt.spec import ClassSpec

IsLabelMap = Callable[[Path], bool]
_PNG = b"\x89PNG\r\n\x1a\n"
_CITYSCAPES_IDS = 35  # label ids before they become train ids, whatever the model's classes
_UNLABELLED = 255
_PROBES = 4  # pictures of a folder that are looked at before it is taken for label maps
_SHOWN = 3


@dataclass
class LeftOut:
    """What the sources hold that is no frame.

    Attributes:
        folders: Of label maps.
        label_maps: Files among frames.
        damaged: What was wrong with each picture that cannot be read.
    """

    folders: list[Path] = field(default_factory=list)
    label_maps: list[Path] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)

    @property
    def files(self) -> int:
        """How many files were drawn in vain."""
        return len(self.label_maps) + len(self.damaged)

    def notes(self) -> tuple[str, ...]:
        """One line a kind, for people."""
        found = []
        if self.folders:
            found.append(f"calibration: left out the label maps in {_listed(map(str, self.folders))}")
        if self.label_maps:
            named = _listed(path.name for path in self.label_maps)
            found.append(f"calibration: left out label maps among the frames ({len(self.label_maps)}): {named}")
        if self.damaged:
            named = _listed(self.damaged)
            found.append(f"calibration: left out pictures that cannot be decoded ({len(self.damaged)}): {named}")
        return tuple(found)


@dataclass(frozen=True)
class Pictures:
    """Picture files in natural order."""

    files: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.files)


Source = Pictures | Clip


def find_sources(paths: Sequence[Path], classes: ClassSpec, left: LeftOut, topic: str | None = None) -> list[Source]:
    """The folders' pictures, the videos and the logs under `paths`, in natural order.

    Args:
        paths: Pictures, videos, robot logs, and folders of them, to any depth.
        classes: Tell a label map's values.
        left: Takes the folders of label maps.
        topic: Of the logs; None takes the only one with images of each.

    Raises:
        MediaError: A path is missing, or a video or log cannot be opened.
    """
    found: list[Source] = []
    for path in paths:
        if is_log(path):
            found.append(open_clip(path, topic=topic))
        elif path.is_dir():
            found += _under(path, _label_test(classes), left, topic, inside=_in_label_folder(path))
        elif path.is_file() and path.suffix.lower() in IMAGE_SUFFIXES:
            if _in_label_folder(path.parent) or _label_test(classes)(path):
                left.label_maps.append(path)
            else:
                found.append(Pictures((path,)))
        else:
            found.append(open_clip(path))
    return found


def draw(
    sources: Sequence[Source], wanted: Sequence[int], classes: ClassSpec, left: LeftOut
) -> Iterator[tuple[NDArray[np.uint8], str]]:
    """The frames at some places in the sequence of all sources.

    Args:
        sources: As `find_sources` found them.
        wanted: Places, ascending. A picture that is no frame is replaced by the next one that is not wanted itself;
            where there is none, one frame fewer comes out.
        classes: Tell a label map's values.
        left: Takes what was drawn in vain.

    Yields:
        Images, uint8 [H, W, 3], BGR, and what to call them.

    Raises:
        MediaError: A video is damaged before its last wanted frame.
    """
    is_label_map = _label_test(classes)
    start = 0
    for source in sources:
        here = [index - start for index in wanted if start <= index < start + len(source)]
        start += len(source)
        if not here:
            continue
        if isinstance(source, Pictures):
            yield from _draw_pictures(source.files, here, is_label_map, left)
        else:
            yield from _draw_video(source, here)


def nothing_found(paths: Sequence[Path], left: LeftOut) -> CalibrationError:
    """The error for sources without a frame: says what they hold instead."""
    given = ", ".join(map(str, paths)) or "nothing"
    if left.folders or left.label_maps:
        one = (left.folders or left.label_maps)[0]
        beside = _frames_beside(one)
        return CalibrationError(
            f"calibration: {given} holds label maps, not frames ({one}: labels, one a pixel)",
            fix=f"give the camera's pictures: {beside or 'the folder that these label maps belong to'}",
        )
    if left.damaged:
        return CalibrationError(
            f"calibration: no picture in {given} can be decoded ({len(left.damaged)} tried): {left.damaged[0]}",
            fix="copy the files again, or give others with --calibration PATH",
        )
    return CalibrationError(
        f"calibration: no frames found in {given}",
        fix="put images, videos or robot logs into calib/, or use --calibration PATH",
    )


def _under(
    folder: Path, is_label_map: IsLabelMap, left: LeftOut, topic: str | None, *, inside: bool
) -> Iterator[Source]:
    """As `fcnopt.media.list_clips`, but the pictures stay files, of which only those that are drawn are read."""
    if inside or is_label_folder(folder.resolve()):
        left.folders.append(folder)
        return
    pictures = files_in(folder, IMAGE_SUFFIXES)
    if pictures and all(map(is_label_map, _spread(pictures))):
        left.folders.append(folder)
    elif pictures:
        yield Pictures(tuple(pictures))
    for path in files_in(folder, VIDEO_SUFFIXES):
        yield open_clip(path)
    for path in files_in(folder, LOG_SUFFIXES):
        yield open_clip(path, topic=topic)
    for inner in sorted((p for p in folder.iterdir() if p.is_dir()), key=natural_key):
        if is_log(inner) and not inner.name.startswith("."):
            yield open_clip(inner, topic=topic)
        elif not inner.name.startswith("."):
            yield from _under(inner, is_label_map, left, topic, inside=False)


def _draw_pictures(
    files: Sequence[Path], wanted: Sequence[int], is_label_map: IsLabelMap, left: LeftOut
) -> Iterator[tuple[NDArray[np.uint8], str]]:
    for index, following in zip(wanted, (*wanted[1:], len(files)), strict=True):
        for path in files[index:following]:
            if is_label_map(path):
                left.label_maps.append(path)
                continue
            try:
                image = read_image(path)
            except MediaError as error:
                left.damaged.append(error.message)
                continue
            yield image, str(path)
            break


def _draw_video(clip: Clip, wanted: Sequence[int]) -> Iterator[tuple[NDArray[np.uint8], str]]:
    here = set(wanted)
    for frame in clip.images():
        if frame.index in here:
            yield frame.image, f"{clip.name}, frame {frame.index}"
        if frame.index >= wanted[-1]:
            return


def _label_test(classes: ClassSpec) -> IsLabelMap:
    """Tells label maps by content. A camera's grey picture passes for one only if it is all but black."""
    known = np.zeros(256, bool)
    known[: max(len(classes), _CITYSCAPES_IDS)] = True
    known[[_UNLABELLED, _UNLABELLED if classes.ignore_index is None else classes.ignore_index]] = True

    def is_label_map(path: Path) -> bool:
        if not _is_single_channel_png(path):
            return False
        try:
            values = read_label_map(path)
        except MediaError:
            return False
        return bool(known[values].all())

    return is_label_map


def _is_single_channel_png(path: Path) -> bool:
    """Whether it is grey or has a palette; the header tells, so that no colour picture is decoded for it."""
    if path.suffix.lower() != ".png":
        return False
    try:
        with path.open("rb") as file:
            head = file.read(26)
    except OSError:
        return False
    return head.startswith(_PNG) and len(head) == 26 and head[25] in (0, 3)


def _in_label_folder(folder: Path) -> bool:
    here = folder.resolve()
    return any(is_label_folder(place) for place in (here, *here.parents) if place.name)


def _frames_beside(path: Path) -> Path | None:
    """The folder of frames that a folder of label maps in CamVid's layout belongs to."""
    here = path.resolve()
    for place in (here, *here.parents):
        if place.name.endswith("annot") and is_label_folder(place):
            return place.with_name(place.name.removesuffix("annot"))
    return None


def _spread(files: Sequence[Path]) -> list[Path]:
    return [files[index * len(files) // _PROBES] for index in range(_PROBES)] if len(files) > _PROBES else list(files)


def _listed(entries: Iterable[str]) -> str:
    every = list(entries)
    return ", ".join(every[:_SHOWN]) + (", ..." if len(every) > _SHOWN else "")
