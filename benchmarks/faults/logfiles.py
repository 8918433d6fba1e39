"""Robot logs of JPEGs, by the packages' own writers."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mcap_ros2.writer import Writer
from numpy.typing import NDArray
from rosbags.rosbag2 import StoragePlugin
from rosbags.rosbag2 import Writer as BagWriter

from fcnopt.media.logs.messages import COMPRESSED_IMAGE, ros_types

_STEP_NS = 10**8
_START_NS = 1_700_000_000_000_000_000
_TOPIC = "/camera"


def write_mcap(path: Path, images: Iterable[NDArray[np.uint8]]) -> Path:
    """An MCAP file of sensor_msgs/CompressedImage, in several chunks."""
    definition, _ = ros_types(2).generate_msgdef(COMPRESSED_IMAGE, ros_version=2)
    with path.open("wb") as file, Writer(file, chunk_size=10_000) as writer:
        schema = writer.register_msgdef(COMPRESSED_IMAGE, definition)
        for time_ns, data in _timed(images):
            header = {"stamp": {"sec": time_ns // 10**9, "nanosec": time_ns % 10**9}, "frame_id": "camera"}
            fields = {"header": header, "format": "jpeg", "data": data}
            writer.write_message(_TOPIC, schema, fields, log_time=time_ns, publish_time=time_ns)
    return path


def write_bag(path: Path, images: Iterable[NDArray[np.uint8]]) -> Path:
    """A ROS 2 bag of the same messages, a folder with an SQLite file."""
    store = ros_types(2)
    types: Any = store.types
    with BagWriter(path, version=9, storage_plugin=StoragePlugin.SQLITE3) as writer:
        connection = writer.add_connection(_TOPIC, COMPRESSED_IMAGE, typestore=store)
        for time_ns, data in _timed(images):
            stamp = types["builtin_interfaces/msg/Time"](sec=time_ns // 10**9, nanosec=time_ns % 10**9)
            header = types["std_msgs/msg/Header"](stamp=stamp, frame_id="camera")
            message = types[COMPRESSED_IMAGE](header=header, format="jpeg", data=np.frombuffer(data, np.uint8))
            writer.write(connection, time_ns, store.serialize_cdr(message, COMPRESSED_IMAGE))
    return path


def _timed(images: Iterable[NDArray[np.uint8]]) -> Iterable[tuple[int, bytes]]:
    for index, image in enumerate(images):
        yield _START_NS + index * _STEP_NS, cv2.imencode(".jpg", image)[1].tobytes()
