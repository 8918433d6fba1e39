"""Clips made of picture files: one image, or a folder of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fcnopt.media.base import Clip, Frame, with_labels
from fcnopt.media.files import read_image


class ImageClip(Clip):
    """Pictures in a given order; they may differ in size, as those of some data sets do.

    Args:
        name: For tables and file names.
        images: At least one file.
        labels: A label map for each, or none at all.

    Raises:
        MediaError: The first picture, which gives `size`, cannot be read.
    """

    fps = 0.0

    def __init__(self, name: str, images: tuple[Path, ...], labels: tuple[Path, ...] = ()) -> None:
        self.name = name
        self.labelled = bool(labels)
        height, width = read_image(images[0]).shape[:2]
        self.size = (height, width)
        self._images = images
        self._labels = labels

    def __len__(self) -> int:
        return len(self._images)

    def __iter__(self) -> Iterator[Frame]:
        for frame in self.images():
            yield with_labels(frame, self._labels)

    def images(self) -> Iterator[Frame]:
        """The frames, label maps left unread."""
        for index, path in enumerate(self._images):
            yield Frame(index, 0.0, read_image(path))
