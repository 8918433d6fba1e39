"""Robot logs as clips: MCAP files and ROS bags, read without ROS.

Camera topics may hold sensor_msgs/Image, sensor_msgs/CompressedImage (JPEG, PNG, H.264) or Foxglove's RawImage,
CompressedImage and CompressedVideo (as ROS messages or protobuf). Memory is bounded by one chunk of the log (1 GiB at
most) and one image (2^27 pixels); what a log announces is checked against the data before memory is taken for it.
Bags of ROS 1 are read by rosbags as they are: their compressed chunks have no such bound.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fcnopt.errors import MediaError

if TYPE_CHECKING:
    from fcnopt.media.logs.base import Log
    from fcnopt.media.logs.clip import LogClip

__all__ = ["LOG_SUFFIXES", "is_log", "open_log"]

LOG_SUFFIXES = frozenset({".mcap", ".db3", ".bag"})
_SHOWN = 12


def is_log(path: Path) -> bool:
    """Whether a path is a robot log: a file by its suffix, a ROS 2 bag's folder by its metadata."""
    if path.is_dir():
        return (path / "metadata.yaml").is_file() and any(f.suffix in LOG_SUFFIXES for f in path.iterdir())
    return path.suffix.lower() in LOG_SUFFIXES


def open_log(path: Path, topic: str | None = None, labels: tuple[Path, ...] = ()) -> LogClip:
    """Open a camera topic of a log.

    Args:
        path: See `is_log`.
        topic: Its name; None takes the only one there is.
        labels: A label map for each frame, in order, or none at all.

    Raises:
        MediaError: The log is damaged, the topic is not in it, several topics have images and none was named, or a
            package is missing.
    """
    from fcnopt.media.logs.base import LogError
    from fcnopt.media.logs.clip import LogClip

    try:
        log = _opened(path)
    except LogError as error:
        raise MediaError(f"{path}: {error.message}", fix=error.fix) from error
    names = [found.name for found in log.topics]
    if topic is None and len(names) == 1:
        return LogClip(log, log.topics[0], labels)
    for found in log.topics:
        if found.name == topic:
            return LogClip(log, found, labels)
    listed = ", ".join(f"{found.name} ({found.messages} {found.kind})" for found in log.topics[:_SHOWN])
    if not names:
        others = f"; its topics: {', '.join(log.others[:_SHOWN])}" if log.others else ""
        raise MediaError(f"{path}: no topic with images in this log{others}", fix="give a log of a camera")
    if topic is None:
        raise MediaError(f"{path}: {len(names)} topics with images: {listed}", fix=f"name one: --topic {names[0]}")
    what = "holds no images" if topic in log.others else "is not in this log"
    raise MediaError(f"{path}: topic {topic} {what}; those with images: {listed}", fix=f"use --topic {names[0]}")


def _opened(path: Path) -> Log:
    from fcnopt.media.logs.bagfile import BagLog, FolderLog
    from fcnopt.media.logs.mcapfile import McapLog

    if path.is_dir():
        return FolderLog(path)
    return McapLog(path) if path.suffix.lower() == ".mcap" else BagLog(path)
