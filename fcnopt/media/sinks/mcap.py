"""Label maps as ROS 2 messages in an MCAP file, which Foxglove, rosbag2 and `open_clip` read.

    /fcnopt/labels     sensor_msgs/Image, mono8: a pixel's value is its label
    /fcnopt/overlay    sensor_msgs/CompressedImage, JPEG: the frame with the palette's colours laid over it

Both have the frame's time in their headers and as log time. The classes are the metadata record `fcnopt.classes`: each
value is JSON.
"""

from __future__ import annotations

import json
import struct
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np
from numpy.typing import NDArray

from fcnopt.media.base import Frame
from fcnopt.media.logs.messages import COMPRESSED_IMAGE, IMAGE, ros_types
from fcnopt.media.logs.packages import require
from fcnopt.media.sinks.base import LabelSink
from fcnopt.version import __version__

LABELS_TOPIC, OVERLAY_TOPIC = "/fcnopt/labels", "/fcnopt/overlay"
CLASSES_RECORD = "fcnopt.classes"
_QUALITY = 85


class McapSink(LabelSink):
    """A `.mcap` of profile ros2, its chunks compressed by zstd."""

    _file: BinaryIO | None = None
    _writer: Any = None

    def _open(self, part: Path) -> None:
        self._store = ros_types(2)
        writer_module = require("mcap.writer")
        self._table = np.zeros((256, 3), np.uint8)  # black where a label is no class
        self._table[: len(self.source.classes)] = np.asarray(self.source.classes.palette, np.uint8)[:, ::-1]
        self._file = part.open("wb")
        self._writer = writer_module.Writer(self._file)
        self._writer.start(profile="ros2", library=f"fcnopt {__version__}")
        self._channels = {
            topic: self._writer.register_channel(topic, "cdr", self._registered(kind))
            for topic, kind in ((LABELS_TOPIC, IMAGE), (OVERLAY_TOPIC, COMPRESSED_IMAGE))
        }
        classes = {key: json.dumps(value) for key, value in asdict(self.source.classes).items()}
        self._writer.add_metadata(CLASSES_RECORD, classes)

    def _registered(self, kind: str) -> int:
        definition, _ = self._store.generate_msgdef(kind, ros_version=2)
        return int(self._writer.register_schema(kind, "ros2msg", definition.encode()))

    def _write(self, frame: Frame, labels: NDArray[np.uint8]) -> None:
        time_ns = self.source.time_ns(frame)
        types = self._store.types
        stamp = types["builtin_interfaces/msg/Time"](sec=time_ns // 10**9, nanosec=time_ns % 10**9)
        header = types["std_msgs/msg/Header"](stamp=stamp, frame_id=self.source.frame_id)
        height, width = labels.shape
        image = types[IMAGE](
            header=header, height=height, width=width, encoding="mono8", is_bigendian=0, step=width, data=labels.ravel()
        )
        self._add(LABELS_TOPIC, IMAGE, image, time_ns, frame.index)
        blended = cv2.addWeighted(self._table[labels], 0.5, frame.image, 0.5, 0.0)
        done, data = cv2.imencode(".jpg", blended, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
        if not done:
            raise OSError(f"frame {frame.index} cannot be encoded as JPEG")
        overlay = types[COMPRESSED_IMAGE](header=header, format="jpeg", data=data.ravel())
        self._add(OVERLAY_TOPIC, COMPRESSED_IMAGE, overlay, time_ns, frame.index)

    def _add(self, topic: str, kind: str, message: Any, time_ns: int, sequence: int) -> None:
        data = bytes(self._store.serialize_cdr(message, kind))
        self._writer.add_message(self._channels[topic], time_ns, data, time_ns, sequence)

    def _close(self) -> None:
        file, self._file = self._file, None
        if file is None:
            return
        with file:
            if self._writer is not None:
                self._writer.finish()

    def _faults(self) -> tuple[type[Exception], ...]:
        return (struct.error,)  # a time that the message cannot hold
