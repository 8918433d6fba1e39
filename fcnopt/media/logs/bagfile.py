"""ROS bags, through the `rosbags` package: SQLite files of ROS 2, bags of ROS 1, and ROS 2's folders of files."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePath
from typing import Any

from fcnopt.media.logs.base import FAULTS, Log, LogError, Logged, Topic
from fcnopt.media.logs.mcapfile import McapLog
from fcnopt.media.logs.messages import KINDS, parser_for
from fcnopt.media.logs.packages import require
from fcnopt.media.logs.unpacking import unpacked

METADATA = "metadata.yaml"
_MOST_METADATA = 16 << 20
_REINDEX = "copy the bag again, or index it anew (ros2 bag reindex)"


class BagLog(Log):
    """One file: `.db3` of ROS 2, `.bag` of ROS 1.

    Args:
        path: The file.
        compression: Of every message: "zstd", or "" for none. The file does not say.

    Raises:
        LogError: It is no bag, or is damaged.
        MediaError: A package is missing.
    """

    def __init__(self, path: Path, compression: str = "") -> None:
        self.path = path
        self._compression = compression
        self._encoding = "ros1" if path.suffix.lower() == ".bag" else "cdr"
        with self._opened() as reader:
            found = [(c.topic, c.msgtype, int(c.msgcount)) for c in reader.connections]
        images: dict[str, Topic] = {}
        for name, kind, count in found:
            if kind in KINDS:
                images[name] = Topic(name, kind, count + (images[name].messages if name in images else 0))
        self.topics = tuple(images[name] for name in sorted(images))
        self.others = tuple(sorted({name for name, _, _ in found} - images.keys()))

    def messages(self, topic: str) -> Iterator[Logged]:
        """The messages of a topic; see `Log.messages`."""
        with self._opened() as reader:
            connections = [c for c in reader.connections if c.topic == topic]
            if not connections:  # the package takes none for all
                return
            for connection, log_time, data in reader.messages(connections):
                plain = unpacked(bytes(data), self._compression) if self._compression else bytes(data)
                yield Logged(log_time, partial(parser_for(connection.msgtype, self._encoding), plain))

    @contextlib.contextmanager
    def _opened(self) -> Iterator[Any]:
        """A reader; what it raises becomes `LogError`."""
        module = require("rosbags.rosbag1" if self._encoding == "ros1" else "rosbags.rosbag2")
        try:
            with module.Reader(self.path) as reader:
                yield reader
        except (*FAULTS, module.ReaderError, require("apsw").Error) as error:
            raise LogError(f"the bag cannot be read: {type(error).__name__}: {error}", _REINDEX) from error


class FolderLog(Log):
    """A ROS 2 bag: a folder with `metadata.yaml` and `.db3` or `.mcap` files, one after another.

    Raises:
        LogError: A file is missing or damaged, or holds other messages than the metadata says.
        MediaError: A package is missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        metadata = _read_metadata(path / METADATA)
        try:
            opener = _opener(metadata)
            # their names alone: a bag holds its own files, whatever a path in it says
            files = [path / PurePath(str(name)).name for name in metadata["relative_file_paths"]]
            announced = {
                str(entry["topic_metadata"]["name"]): int(entry["message_count"])
                for entry in metadata["topics_with_message_count"]
            }
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise LogError(f"{METADATA} is malformed: {type(error).__name__}: {error}", _REINDEX) from error
        self._logs = [self._file(file, opener) for file in files]
        self.topics = self._joined()
        self.others = tuple(sorted({name for log in self._logs for name in log.others}))
        for topic in self.topics:
            if topic.messages != announced.get(topic.name, 0):
                raise LogError(
                    f"{topic.name}: {METADATA} announces {announced.get(topic.name, 0)} messages, "
                    f"the files hold {topic.messages}",
                    _REINDEX,
                )

    def messages(self, topic: str) -> Iterator[Logged]:
        """The messages of a topic; see `Log.messages`."""
        for log in self._logs:
            try:
                yield from log.messages(topic)
            except LogError as error:
                raise LogError(f"{log.path.name}: {error.message}", error.fix) from error

    def _file(self, file: Path, opener: Callable[[Path], Log]) -> Log:
        if not file.is_file():
            raise LogError(f"{METADATA} names {file.name}, which is missing", "copy the whole folder")
        try:
            return opener(file)
        except LogError as error:
            raise LogError(f"{file.name}: {error.message}", error.fix) from error

    def _joined(self) -> tuple[Topic, ...]:
        """The topics of all files, their messages added up."""
        joined: dict[str, Topic] = {}
        for topic in (topic for log in self._logs for topic in log.topics):
            before = joined[topic.name].messages if topic.name in joined else 0
            joined[topic.name] = Topic(topic.name, topic.kind, before + topic.messages)
        return tuple(joined[name] for name in sorted(joined))


def _read_metadata(file: Path) -> dict[str, Any]:
    yaml = require("ruamel.yaml")  # which rosbags brings
    try:
        if file.stat().st_size > _MOST_METADATA:
            raise LogError(f"{METADATA} has over {_MOST_METADATA >> 20} MiB", _REINDEX)
        found = yaml.YAML(typ="safe").load(file.read_text("utf-8"))["rosbag2_bagfile_information"]
    except (*FAULTS, RecursionError, yaml.YAMLError) as error:
        raise LogError(f"{METADATA} cannot be read: {type(error).__name__}: {error}", _REINDEX) from error
    if not isinstance(found, dict):
        raise LogError(f"{METADATA} is malformed", _REINDEX)
    return found


def _opener(metadata: dict[str, Any]) -> Callable[[Path], Log]:
    """What opens the files of a bag with this metadata."""
    storage, mode = str(metadata["storage_identifier"]), str(metadata.get("compression_mode") or "none").lower()
    if mode == "file":
        raise LogError("its files are compressed as a whole", "unpack it: ros2 bag convert, or unzstd and reindex")
    if mode == "message" and metadata.get("compression_format") != "zstd":
        raise LogError(f"its messages are compressed by {metadata.get('compression_format')!r}", "compress by zstd")
    if storage == "mcap" and mode != "message":
        return McapLog
    if storage == "sqlite3":
        return partial(BagLog, compression="zstd" if mode == "message" else "")
    raise LogError(f"its storage is {storage!r}, {mode} compression", "convert it to mcap or sqlite3: ros2 bag convert")
