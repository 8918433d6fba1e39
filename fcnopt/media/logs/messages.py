"""Image messages of ROS and Foxglove: their types, and reading them.

The types are fixed by their standards (sensor_msgs of common_interfaces, foxglove-sdk's schemas), so ROS messages are
read by those and not by the definitions in the log: a log from before ROS 2 Iron has none, and one that was tampered
with cannot choose how it is parsed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from fcnopt.media.logs.base import FAULTS, ImageMessage, LogError
from fcnopt.media.logs.packages import require

Parser = Callable[[bytes], ImageMessage]

IMAGE, COMPRESSED_IMAGE = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
_FOXGLOVE_ROS = {
    "foxglove_msgs/msg/RawImage": (
        "builtin_interfaces/Time timestamp\nstring frame_id\nuint32 width\nuint32 height\nstring encoding\n"
        "uint32 step\nuint8[] data\n"
    ),
    "foxglove_msgs/msg/CompressedImage": (
        "builtin_interfaces/Time timestamp\nstring frame_id\nuint8[] data\nstring format\n"
    ),
    "foxglove_msgs/msg/CompressedVideo": (
        "builtin_interfaces/Time timestamp\nstring frame_id\nuint8[] data\nstring format\n"
    ),
}
_FOXGLOVE_PROTOBUF = ("foxglove.RawImage", "foxglove.CompressedImage", "foxglove.CompressedVideo")
KINDS = frozenset({IMAGE, COMPRESSED_IMAGE, *_FOXGLOVE_ROS, *_FOXGLOVE_PROTOBUF})
"""Types of messages that hold one image each."""


def normalized_kind(name: str) -> str:
    """A type's name as ROS 2 writes it: "sensor_msgs/Image" becomes "sensor_msgs/msg/Image"."""
    package, slash, rest = name.partition("/")
    return name if not slash or "/" in rest else f"{package}/msg/{rest}"


def parser_for(kind: str, encoding: str, schema: bytes = b"") -> Parser:
    """What reads messages of a type.

    Args:
        kind: One of `KINDS`.
        encoding: How they are serialized: "cdr", "ros1" or "protobuf".
        schema: Of protobuf: a serialized FileDescriptorSet.

    Raises:
        LogError: There is no such serialization of this type, or the schema is damaged.
        MediaError: A package is missing.
    """
    if encoding == "protobuf" and kind in _FOXGLOVE_PROTOBUF:
        return _guarded(_protobuf_parser(kind, schema))
    if encoding in ("cdr", "ros1") and kind not in _FOXGLOVE_PROTOBUF:
        store = ros_types(1 if encoding == "ros1" else 2)
        read = store.deserialize_ros1 if encoding == "ros1" else store.deserialize_cdr
        return _guarded(lambda data: read(data, kind))
    raise LogError(
        f"messages of type {kind} are serialized as {encoding!r}", "record them as ROS messages (cdr) or as protobuf"
    )


@functools.cache
def ros_types(version: int) -> Any:
    """The types of ROS `version`, 1 or 2, with Foxglove's images; reading is guarded against lengths that lie.

    Raises:
        MediaError: rosbags is not installed.
    """
    typesys = require("rosbags.typesys")
    store = typesys.get_typestore(typesys.Stores.ROS1_NOETIC if version == 1 else typesys.Stores.ROS2_HUMBLE)
    for kind, definition in _FOXGLOVE_ROS.items():
        store.register(typesys.get_types_from_msg(definition, kind))
    return store


def _protobuf_parser(kind: str, schema: bytes) -> Callable[[bytes], Any]:
    from google.protobuf import (  # type: ignore[import-untyped]  # no type information published
        descriptor_pb2,
        descriptor_pool,
        message,
        message_factory,
    )

    try:
        files = descriptor_pb2.FileDescriptorSet.FromString(schema)
        pool = descriptor_pool.DescriptorPool()
        for file in files.file:  # in the order of their imports, as the MCAP registry asks for
            pool.Add(file)
        cls = message_factory.GetMessageClass(pool.FindMessageTypeByName(kind))
    except (*FAULTS, message.DecodeError) as error:
        raise LogError(f"the protobuf schema of {kind} is damaged: {error}") from error

    def parse(data: bytes) -> Any:
        try:
            return cls.FromString(data)
        except message.DecodeError as error:
            raise LogError(f"no {kind}: {error}") from error

    return parse


def _guarded(parse: Callable[[bytes], Any]) -> Parser:
    def read(data: bytes) -> ImageMessage:
        try:
            return _image(parse(data))
        except (*FAULTS, require("rosbags.serde").SerdeError) as error:
            raise LogError(f"the message ({len(data)} bytes) is damaged: {error}") from error

    return read


def _image(message: Any) -> ImageMessage:
    """What the types have in common, whatever they call it."""
    header = getattr(message, "header", message)
    stamp = header.stamp if header is not message else message.timestamp
    seconds, nanoseconds = (stamp.sec, stamp.nanosec) if hasattr(stamp, "sec") else (stamp.seconds, stamp.nanos)
    return ImageMessage(
        stamp_ns=int(seconds) * 10**9 + int(nanoseconds),
        frame_id=str(header.frame_id),
        format=str(message.encoding if hasattr(message, "encoding") else message.format),
        data=np.frombuffer(message.data, np.uint8).data,
        shape=(int(message.height), int(message.width), int(message.step)) if hasattr(message, "encoding") else None,
    )
