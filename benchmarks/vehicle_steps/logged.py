"""The clip as robot logs: read with their times, run, and held against what other readers make of the messages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from faults.case import Fault
from numpy.typing import NDArray

import fcnopt
from fcnopt.media import open_clip
from fcnopt.media.logs.messages import IMAGE, ros_types
from fcnopt.recording import RunOptions
from vehicle_steps.recorded import timed_from_mcap
from vehicle_steps.rows import Figures, NotRun, Row, Work, demand_equal, equal_labels, labels_of, size_mb, tried

STEP = "logs"
_TOPIC = "/camera"  # of `faults.logfiles` too
_VIDEO = "foxglove_msgs/msg/CompressedVideo"
_STEP_NS, _START_NS = 10**8, 1_700_000_000_000_000_000
_Image = NDArray[np.uint8]
_Stamped = list[tuple[int, _Image]]
_Write = Callable[[Path, Sequence[_Image]], Path]
_Read = Callable[[Path], _Stamped]


def steps(work: Work) -> list[Row]:
    """Rows of this step."""
    folder = work.place("logged")
    kinds: tuple[tuple[str, str, str, _Write, _Read], ...] = (
        ("raw.mcap", "an MCAP of raw images", "mcap-ros2-support", _write_raw, _read_mcap),
        ("jpeg.mcap", "an MCAP of JPEGs", "mcap-ros2-support and OpenCV", _write_jpeg, _read_mcap),
        ("h264.mcap", "an MCAP of H.264", "mcap-ros2-support and FFmpeg", _write_h264, _read_h264),
        ("bag", "a ROS 2 bag of JPEGs", "rosbags and OpenCV", _write_bag, _read_bag),
    )
    return [
        tried(
            STEP,
            f"the clip as {words}, run to .mcap",
            f"its times, and label maps equal to engine.run's on what {readers} read",
            lambda file=file, write=write, read=read: _logged(work, folder / file, write, read),
        )
        for file, words, readers, write, read in kinds
    ]


def _logged(work: Work, log: Path, write: _Write, read: _Read) -> Figures:
    try:
        write(log, [frame.image for frame in work.pictures])
        sent = read(log)
    except ImportError as error:
        raise NotRun(f"{error.name} is not installed") from error
    expected = labels_of(work.bundle, [image for _, image in sent])
    output = log.with_name(f"{log.stem}-labels.mcap")
    done = fcnopt.run(log, work.bundle, output, options=RunOptions(topic=_TOPIC))
    found = timed_from_mcap(output)
    if [time_ns for time_ns, _ in found] != [time_ns for time_ns, _ in sent]:
        raise Fault("the labels' times are not those of the log's messages")
    with fcnopt.load(work.bundle) as engine, engine.stream(open_clip(log, topic=_TOPIC)) as outputs:
        streamed = [out.labels[0] for out in outputs]
    demand_equal(streamed, expected)
    return {
        **demand_equal([labels for _, labels in found], expected),
        "times": "equal to the nanosecond",
        "fps end to end": round(done.fps, 1),
        "log MB": size_mb(log),
        "labels as of the clip": f"{equal_labels(expected, work.labels):.2%}",
    }


def _write_jpeg(path: Path, images: Sequence[_Image]) -> Path:
    from faults.logfiles import write_mcap

    return write_mcap(path, images)


def _write_bag(path: Path, images: Sequence[_Image]) -> Path:
    from faults.logfiles import write_bag

    return write_bag(path, images)


def _write_raw(path: Path, images: Sequence[_Image]) -> Path:
    """sensor_msgs/Image, bgr8."""

    def fields(stamp: dict[str, int], image: _Image) -> dict[str, Any]:
        size = {"height": image.shape[0], "width": image.shape[1], "step": 3 * image.shape[1]}
        kept = {"encoding": "bgr8", "is_bigendian": 0, "data": image.tobytes()}
        return {"header": {"stamp": stamp, "frame_id": "camera"}} | size | kept

    return _write(path, IMAGE, (fields(_stamp(index), image) for index, image in enumerate(images)))


def _write_h264(path: Path, images: Sequence[_Image]) -> Path:
    """foxglove_msgs/CompressedVideo: one Annex B packet a frame, no frame after a later one."""
    encoder = av.CodecContext.create("libx264", "w")
    encoder.height, encoder.width = images[0].shape[:2]
    encoder.pix_fmt, encoder.time_base, encoder.gop_size = "yuv420p", Fraction(1, 10), 10
    encoder.options = {"tune": "zerolatency", "preset": "ultrafast", "crf": "18"}
    packets: list[bytes] = []
    for index, image in enumerate(images):
        picture = av.VideoFrame.from_ndarray(image, format="bgr24")
        picture.pts, picture.time_base = index, Fraction(1, 10)
        packets += [bytes(packet) for packet in encoder.encode(picture)]
    packets += [bytes(packet) for packet in encoder.encode(None)]
    stamped = ({"timestamp": _stamp(index), "data": data} for index, data in enumerate(packets))
    return _write(path, _VIDEO, ({**each, "frame_id": "camera", "format": "h264"} for each in stamped))


def _write(path: Path, kind: str, messages: Iterable[dict[str, Any]]) -> Path:
    """An MCAP file by mcap-ros2-support."""
    from mcap_ros2.writer import Writer

    definition, _ = ros_types(2).generate_msgdef(kind, ros_version=2)
    with path.open("wb") as file, Writer(file) as writer:
        schema = writer.register_msgdef(kind, definition)
        for index, fields in enumerate(messages):
            time_ns = _START_NS + index * _STEP_NS
            writer.write_message(_TOPIC, schema, fields, log_time=time_ns, publish_time=time_ns)
    return path


def _stamp(index: int) -> dict[str, int]:
    time_ns = _START_NS + index * _STEP_NS
    return {"sec": time_ns // 10**9, "nanosec": time_ns % 10**9}


def _messages(path: Path) -> Iterator[Any]:
    from mcap.reader import make_reader
    from mcap_ros2.decoder import DecoderFactory

    with path.open("rb") as file:
        reader = make_reader(file, decoder_factories=[DecoderFactory()])
        for *_, message in reader.iter_decoded_messages(topics=[_TOPIC]):
            yield message


def _read_mcap(path: Path) -> _Stamped:
    return [(_time_ns(message.header.stamp), _picture(message)) for message in _messages(path)]


def _read_h264(path: Path) -> _Stamped:
    decoder, times, images = av.CodecContext.create("h264", "r"), [], []
    for message in _messages(path):
        times.append(_time_ns(message.timestamp))
        images += decoder.decode(av.Packet(bytes(message.data)))
    images += decoder.decode(None)
    return [
        (time_ns, np.asarray(image.to_ndarray(format="bgr24"), np.uint8))
        for time_ns, image in zip(times, images, strict=True)
    ]


def _read_bag(path: Path) -> _Stamped:
    from rosbags.highlevel import AnyReader
    from rosbags.typesys import Stores, get_typestore

    with AnyReader([path], default_typestore=get_typestore(Stores.ROS2_HUMBLE)) as reader:
        messages = [reader.deserialize(data, each.msgtype) for each, _, data in reader.messages()]
    return [(_time_ns(message.header.stamp), _picture(message)) for message in messages]


def _time_ns(stamp: Any) -> int:
    return int(stamp.sec) * 10**9 + int(stamp.nanosec)


def _picture(message: Any) -> _Image:
    data = np.frombuffer(message.data, np.uint8)
    if hasattr(message, "height"):
        return data.reshape(message.height, message.width, 3)
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)
