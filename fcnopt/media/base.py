"""What every clip is: frames with index, timestamp and, where known, a label map."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fcnopt.media.labels import check_label_map, load_labels

Decoder = Literal["pyav", "nvdec", "auto"]
"""What decodes a video: the CPU by PyAV, the GPU by PyNvVideoCodec, or the GPU where it can."""


@dataclass(frozen=True)
class Frame:
    """One frame of a clip.

    Attributes:
        index: Place in the clip, from 0.
        timestamp_s: Seconds since the clip's first frame, 0.0 where unknown (an image folder).
        image: uint8 [H, W, 3], BGR.
        labels: uint8 [H, W], where known.
    """

    index: int
    timestamp_s: float
    image: NDArray[np.uint8]
    labels: NDArray[np.uint8] | None = None


class Clip(ABC):
    """A source of frames that can be read more than once, each time from the start.

    Attributes:
        name: For tables and file names.
        size: (height, width) of its frames; of the first one, where the pictures of a folder differ.
        fps: Frames per second as recorded, 0.0 where unknown (an image folder).
        labelled: Whether frames come with label maps.
    """

    name: str
    size: tuple[int, int]
    fps: float
    labelled: bool

    @abstractmethod
    def __iter__(self) -> Iterator[Frame]:
        """The frames, in order, decoded as they are asked for.

        Raises:
            MediaError: A frame cannot be decoded or has no fitting label map; names file and frame.
        """

    def images(self) -> Iterator[Frame]:
        """The frames without label maps; a clip that reads these from files overrides it, to save their time."""
        yield from self

    @abstractmethod
    def __len__(self) -> int:
        """How many frames there are."""


def with_labels(frame: Frame, maps: Sequence[Path]) -> Frame:
    """The frame with its label map of `maps`, which has one a frame, or is empty.

    Raises:
        MediaError: The map cannot be read, or has another size than the frame.
    """
    if not maps:
        return frame
    labels = load_labels(maps[frame.index])
    check_label_map(labels, (frame.image.shape[0], frame.image.shape[1]), source=str(maps[frame.index]))
    return replace(frame, labels=labels)
