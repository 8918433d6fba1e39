"""Small robot logs, written by the packages' own writers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from mcap.writer import CompressionType
from mcap_ros2.writer import Writer
from numpy.typing import NDArray

from fcnopt.media.logs.messages import COMPRESSED_IMAGE, IMAGE, ros_types

STEP_NS = 10**8
START_NS = 1_700_000_000_000_000_000


@dataclass(frozen=True)
class Sent:
    """A message: fields by name, and when it was recorded."""

    kind: str
    fields: dict[str, Any]
    log_time: int


def stamp(index: int, step_ns: int = STEP_NS) -> dict[str, int]:
    """Time of the index-th frame."""
    time_ns = START_NS + index * step_ns
    return {"sec": time_ns // 10**9, "nanosec": time_ns % 10**9}


def raw(index: int, pixels: NDArray[np.uint8], encoding: str, size: tuple[int, int], **more: Any) -> Sent:
    """A sensor_msgs/Image; `pixels` are [rows, bytes a row]."""
    fields = {
        "header": {"stamp": stamp(index), "frame_id": "camera"},
        "height": size[0],
        "width": size[1],
        "encoding": encoding,
        "is_bigendian": 0,
        "step": pixels.shape[1],
        "data": pixels.tobytes(),
    }
    return Sent(IMAGE, fields | more, START_NS + index * STEP_NS + 5 * 10**6)


def bgr(index: int, image: NDArray[np.uint8]) -> Sent:
    """A picture as bgr8."""
    return raw(index, image.reshape(len(image), -1), "bgr8", (image.shape[0], image.shape[1]))


def compressed(index: int, data: bytes, format_: str) -> Sent:
    """A sensor_msgs/CompressedImage."""
    fields = {"header": {"stamp": stamp(index), "frame_id": "camera"}, "format": format_, "data": data}
    return Sent(COMPRESSED_IMAGE, fields, START_NS + index * STEP_NS + 5 * 10**6)


def video(index: int, data: bytes, format_: str) -> Sent:
    """A foxglove_msgs/CompressedVideo."""
    fields = {"timestamp": stamp(index), "frame_id": "camera", "data": data, "format": format_}
    return Sent("foxglove_msgs/msg/CompressedVideo", fields, START_NS + index * STEP_NS)


def write_mcap(
    path: Path,
    topics: dict[str, Sequence[Sent]],
    *,
    chunk_size: int = 20_000,
    compression: CompressionType = CompressionType.ZSTD,
) -> Path:
    """An MCAP file by mcap-ros2-support, topics interleaved by log time."""
    sent = sorted(((one.log_time, name, one) for name, every in topics.items() for one in every), key=lambda s: s[:2])
    with path.open("wb") as file, Writer(file, chunk_size=chunk_size, compression=compression) as writer:
        schemas: dict[str, Any] = {}
        for log_time, name, one in sent:
            if one.kind not in schemas:
                definition, _ = ros_types(2).generate_msgdef(one.kind, ros_version=2)
                schemas[one.kind] = writer.register_msgdef(one.kind, definition)
            writer.write_message(name, schemas[one.kind], one.fields, log_time=log_time, publish_time=log_time)
    return path


def as_ros(sent: Sent, version: int = 2) -> Any:
    """The message as an object of rosbags."""
    types = ros_types(version).types
    fields = dict(sent.fields)
    time = types["builtin_interfaces/msg/Time"](**(fields.get("header", {}).get("stamp") or fields.pop("timestamp")))
    if "header" in fields:
        more = {"seq": 0} if version == 1 else {}
        fields["header"] = types["std_msgs/msg/Header"](stamp=time, frame_id="camera", **more)
    else:
        fields["timestamp"] = time
    fields["data"] = np.frombuffer(fields["data"], np.uint8)
    return types[sent.kind](**fields)


def write_bag(path: Path, sent: Iterable[Sent], storage: str = "sqlite3", compression: str = "none") -> Path:
    """A ROS 2 bag by rosbags: a folder."""
    from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin
    from rosbags.rosbag2 import Writer as BagWriter

    store = ros_types(2)
    writer = BagWriter(path, version=9, storage_plugin=StoragePlugin[storage.upper()])
    if compression != "none":
        writer.set_compression(CompressionMode[compression.upper()], CompressionFormat.ZSTD)
    with writer:
        connection = None
        for one in sent:
            connection = connection or writer.add_connection("/cam", one.kind, typestore=store)
            writer.write(connection, one.log_time, store.serialize_cdr(as_ros(one), one.kind))
    return path


def write_ros1(path: Path, sent: Iterable[Sent]) -> Path:
    """A ROS 1 bag by rosbags."""
    from rosbags.rosbag1 import Writer as BagWriter

    store = ros_types(1)
    with BagWriter(path) as writer:
        connection = None
        for one in sent:
            connection = connection or writer.add_connection("/cam", one.kind, typestore=store)
            writer.write(connection, one.log_time, store.serialize_ros1(as_ros(one, 1), one.kind))
    return path


def encode_video(images: Sequence[NDArray[np.uint8]], codec: str = "libx264", gop: int = 4) -> list[bytes]:
    """One Annex B packet a frame, parameter sets before every key frame."""
    context = av.CodecContext.create(codec, "w")
    context.height, context.width = images[0].shape[:2]
    context.pix_fmt, context.time_base = "yuv420p", Fraction(1, 10)
    context.gop_size, context.max_b_frames = gop, 0
    quiet = {"x265-params": "log-level=none:keyint=4:repeat-headers=1:bframes=0"} if codec == "libx265" else {}
    context.options = {"tune": "zerolatency", "preset": "ultrafast", "crf": "18", **quiet}
    packets = []
    for index, image in enumerate(images):
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="bgr24")
        frame.pts, frame.time_base = index, Fraction(1, 10)
        packets += [bytes(packet) for packet in context.encode(frame)]
    return packets + [bytes(packet) for packet in context.encode(None)]
