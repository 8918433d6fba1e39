"""Robot logs as clips: every encoding and container, and what damaged or hostile ones do."""

from __future__ import annotations

import io
import shutil
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("mcap_ros2")
pytest.importorskip("rosbags")

from mcap.writer import CompressionType, IndexType
from mcap.writer import Writer as McapWriter

from fcnopt.errors import MediaError
from fcnopt.media import list_clips, open_clip
from fcnopt.media.logs import messages as kinds
from fcnopt.media.logs import packages, pictures
from fcnopt.media.logs.clip import LogClip
from fcnopt.media.writer import write_image, write_video
from tests.media.conftest import frames, png_bytes
from tests.media.logfiles import (
    START_NS,
    STEP_NS,
    Sent,
    as_ros,
    bgr,
    compressed,
    encode_video,
    raw,
    video,
    write_bag,
    write_mcap,
    write_ros1,
)

Image = NDArray[np.uint8]


def opened(path: Path, topic: str | None = None) -> LogClip:
    clip = open_clip(path, topic=topic)
    assert isinstance(clip, LogClip)
    return clip


def log_of(sent: Sent, folder: Path) -> Path:
    return write_mcap(folder / "one.mcap", {"/cam": [sent]})


def only(path: Path) -> Image:
    (frame,) = open_clip(path)
    return frame.image


# --- encodings


@pytest.mark.parametrize(
    ("encoding", "order"),
    [("bgr8", (0, 1, 2)), ("rgb8", (2, 1, 0)), ("bgra8", (0, 1, 2, 3)), ("rgba8", (2, 1, 0, 3)), ("8UC3", (0, 1, 2))],
)
@pytest.mark.parametrize("padding", [0, 5])
def test_plain_pixels_come_out_exactly(
    encoding: str, order: tuple[int, ...], padding: int, tmp_path: Path, rng: np.random.Generator
) -> None:
    image = rng.integers(0, 256, (7, 11, 4), np.uint8)
    rows = np.pad(image[..., list(order)].reshape(7, -1), ((0, 0), (0, padding)), constant_values=77)
    np.testing.assert_array_equal(only(log_of(raw(0, rows, encoding, (7, 11)), tmp_path)), image[..., :3])


def test_grey_becomes_three_equal_channels(tmp_path: Path, rng: np.random.Generator) -> None:
    grey = rng.integers(0, 256, (7, 11), np.uint8)
    found = only(log_of(raw(0, grey, "mono8", (7, 11)), tmp_path))
    np.testing.assert_array_equal(found, np.repeat(grey[:, :, None], 3, axis=2))


def _rgb_of_yuv(y: Any, u: Any, v: Any) -> NDArray[np.float64]:
    """BT.601, limited range, as floats: BGR."""
    y, u, v = (np.asarray(x, np.float64) for x in (y, u, v))
    y = 255 / 219 * (y - 16)
    r = y + 1.402 * 255 / 224 * (v - 128)
    g = y - (0.344136 * (u - 128) + 0.714136 * (v - 128)) * 255 / 224
    b = y + 1.772 * 255 / 224 * (u - 128)
    return np.clip(np.stack([b, g, r], axis=-1), 0, 255)


@pytest.mark.parametrize(
    ("encoding", "order"), [("uyvy", "uyvy"), ("yuv422", "uyvy"), ("yuyv", "yuyv"), ("yuv422_yuy2", "yuyv")]
)
def test_yuv422_is_converted_by_the_standards_matrix(
    encoding: str, order: str, tmp_path: Path, rng: np.random.Generator
) -> None:
    y = rng.integers(16, 236, (6, 8), np.uint8)
    u, v = rng.integers(16, 241, (2, 6, 4), np.uint8)
    packed = np.empty((6, 4, 4), np.uint8)
    luma = iter((y[:, 0::2], y[:, 1::2]))
    for place, channel in enumerate(order):
        packed[..., place] = u if channel == "u" else v if channel == "v" else next(luma)
    found = only(log_of(raw(0, packed.reshape(6, 16), encoding, (6, 8)), tmp_path))
    expected = _rgb_of_yuv(y, u.repeat(2, axis=1), v.repeat(2, axis=1))
    assert np.abs(found - expected).max() <= 1.6  # fixed point with rounded factors


@pytest.mark.parametrize("encoding", ["nv12", "nv21"])
def test_yuv420_is_converted_by_the_standards_matrix(encoding: str, tmp_path: Path, rng: np.random.Generator) -> None:
    y = rng.integers(16, 236, (6, 8), np.uint8)
    u, v = rng.integers(16, 241, (2, 3, 4), np.uint8)
    colours = np.stack([u, v] if encoding == "nv12" else [v, u], axis=-1).reshape(3, 8)
    found = only(log_of(raw(0, np.vstack([y, colours]), encoding, (6, 8)), tmp_path))
    expected = _rgb_of_yuv(y, *(x.repeat(2, axis=0).repeat(2, axis=1) for x in (u, v)))
    assert np.abs(found - expected).max() <= 1.6


@pytest.mark.parametrize("pattern", ["rggb", "bggr", "gbrg", "grbg"])
def test_bayer_patterns_give_back_an_even_colour(pattern: str, tmp_path: Path) -> None:
    colour = {"b": 30, "g": 90, "r": 200}
    mosaic = np.tile(np.array([[colour[c] for c in pattern[:2]], [colour[c] for c in pattern[2:]]], np.uint8), (4, 6))
    found = only(log_of(raw(0, mosaic, f"bayer_{pattern}8", (8, 12)), tmp_path))
    np.testing.assert_array_equal(found, np.full((8, 12, 3), (30, 90, 200), np.uint8))


@pytest.mark.parametrize("format_", ["jpeg", "rgb8; jpeg compressed bgr8", ""])
def test_jpeg_messages_are_what_opencv_decodes_and_close_to_the_picture(format_: str, tmp_path: Path) -> None:
    image = frames(1)[0]
    _, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 95])
    found = only(log_of(compressed(0, data.tobytes(), format_), tmp_path))
    np.testing.assert_array_equal(found, cv2.imdecode(data, cv2.IMREAD_COLOR))
    # quality 95 quantizes low frequencies by 1 to 2; the bar's edges, whose colour is halved, cost more
    assert np.abs(found[:, 8:].astype(int) - image[:, 8:]).mean() < 2
    assert np.abs(found.astype(int) - image).mean() < 4


def test_png_messages_come_out_exactly(tmp_path: Path, rng: np.random.Generator) -> None:
    image = rng.integers(0, 256, (9, 13, 3), np.uint8)
    data = cv2.imencode(".png", image)[1].tobytes()
    np.testing.assert_array_equal(only(log_of(compressed(0, data, "bgr8; png compressed bgr8"), tmp_path)), image)


def decoded(packets: list[bytes], codec: str) -> list[Image]:
    """By FFmpeg's own parser of the bare stream."""
    with av.open(io.BytesIO(b"".join(packets)), format=codec) as container:
        return [np.asarray(frame.to_ndarray(format="bgr24"), np.uint8) for frame in container.decode(video=0)]


@pytest.mark.parametrize(
    ("make", "format_"), [(compressed, "h264"), (compressed, "video/h264"), (video, "h264"), (video, "h265")]
)
def test_compressed_video_is_what_ffmpeg_decodes(
    make: Callable[[int, bytes, str], Sent], format_: str, tmp_path: Path
) -> None:
    codec = "hevc" if format_ == "h265" else "h264"
    packets = encode_video(frames(10), "libx265" if codec == "hevc" else "libx264")
    assert len(packets) == 10
    clip = opened(write_mcap(tmp_path / "v.mcap", {"/cam": [make(i, p, format_) for i, p in enumerate(packets)]}))
    assert (len(clip), clip.size, clip.fps, clip.dropped) == (10, (48, 64), 10.0, 0)
    for _ in range(2):  # again from the start
        found = list(clip)
        assert [frame.index for frame in found] == list(range(10))
        assert [round(frame.timestamp_s, 6) for frame in found] == [i / 10 for i in range(10)]
        for frame, expected in zip(found, decoded(packets, codec), strict=True):
            np.testing.assert_array_equal(frame.image, expected)


def test_video_that_begins_between_key_frames_begins_at_the_first(tmp_path: Path) -> None:
    packets = encode_video(frames(10), gop=4)
    sent = [video(i, p, "h264") for i, p in enumerate(packets)][2:]
    clip = opened(write_mcap(tmp_path / "v.mcap", {"/cam": sent}))
    assert (len(clip), clip.dropped, clip.start_ns) == (6, 2, START_NS + 4 * STEP_NS)
    for frame, expected in zip(clip, decoded(packets, "h264")[4:], strict=True):
        np.testing.assert_array_equal(frame.image, expected)


def test_video_without_a_key_frame_or_start_codes_is_an_error(tmp_path: Path) -> None:
    packets = encode_video(frames(4))
    path = write_mcap(tmp_path / "v.mcap", {"/cam": [video(i, p, "h264") for i, p in enumerate(packets)][1:]})
    with pytest.raises(MediaError, match=r"v\.mcap: /cam: no key frame in 3 messages"):
        open_clip(path)
    path = write_mcap(tmp_path / "w.mcap", {"/cam": [video(0, b"\1\2\3\4" * 9, "h264")]})
    with pytest.raises(MediaError, match=r"w\.mcap: /cam: message 0: the h264 packet of 36 bytes has no start code"):
        open_clip(path)


def test_damaged_packet_is_an_error_that_names_its_message(tmp_path: Path) -> None:
    packets = encode_video(frames(8), gop=8)
    packets[5] = packets[5][:6] + bytes(255 - b for b in packets[5][6:])
    clip = open_clip(write_mcap(tmp_path / "v.mcap", {"/cam": [video(i, p, "h264") for i, p in enumerate(packets)]}))
    with pytest.raises(MediaError, match=r"v\.mcap: /cam: message [5-8] of 8: the h264 packet|8 frames announced"):
        list(clip)


@pytest.mark.parametrize("message", ["RawImage", "CompressedImage", "CompressedVideo"])
def test_protobuf_messages_of_foxglove_are_read(message: str, tmp_path: Path) -> None:
    images = frames(4)
    packets = encode_video(images)
    path = tmp_path / "p.mcap"
    with path.open("wb") as file:
        _write_protobuf(file, message, images, packets)
    clip = opened(path)
    assert (len(clip), clip.frame_id, clip.start_ns, clip.fps) == (4, "camera", START_NS, 10.0)
    for frame, image, coded in zip(clip, images, decoded(packets, "h264"), strict=True):
        np.testing.assert_array_equal(frame.image, coded if message == "CompressedVideo" else image)


def _write_protobuf(file: io.BufferedWriter, name: str, images: list[Image], packets: list[bytes]) -> None:
    """By a schema as foxglove-sdk has it, made here field by field."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, timestamp_pb2

    time_file = descriptor_pb2.FileDescriptorProto()
    timestamp_pb2.DESCRIPTOR.CopyToProto(time_file)
    own = descriptor_pb2.FileDescriptorProto(
        name=f"foxglove/{name}.proto", package="foxglove", syntax="proto3", dependency=[time_file.name]
    )
    kind = own.message_type.add(name=name)
    kind.field.add(name="timestamp", number=1, type=11, label=1, type_name=".google.protobuf.Timestamp")
    raw_fields = (("frame_id", 7, 9), ("width", 2, 7), ("height", 3, 7), ("encoding", 4, 9), ("step", 5, 7))
    fields = (*raw_fields, ("data", 6, 12)) if name == "RawImage" else (("frame_id", 4, 9), ("data", 2, 12))
    for field, number, type_ in fields if name == "RawImage" else (*fields, ("format", 3, 9)):
        kind.field.add(name=field, number=number, type=type_, label=1)
    files = descriptor_pb2.FileDescriptorSet(file=[time_file, own])
    pool = descriptor_pool.DescriptorPool()
    for each in files.file:
        pool.Add(each)
    cls = message_factory.GetMessageClass(pool.FindMessageTypeByName(f"foxglove.{name}"))
    writer = McapWriter(file)
    writer.start()
    channel = writer.register_channel(
        "/cam", "protobuf", writer.register_schema(f"foxglove.{name}", "protobuf", files.SerializeToString())
    )
    for index, image in enumerate(images):
        png = cv2.imencode(".png", image)[1].tobytes()
        more = {"width": 64, "height": 48, "encoding": "bgr8", "step": 192} if name == "RawImage" else {"format": "x"}
        data = image.tobytes() if name == "RawImage" else png
        if name == "CompressedVideo":
            data, more = packets[index], {"format": "h264"}
        message = cls(frame_id="camera", data=data, **more)
        message.timestamp.FromNanoseconds(START_NS + index * STEP_NS)
        writer.add_message(channel, index, message.SerializeToString(), index)
    writer.finish()


@pytest.mark.parametrize(
    ("sent", "what"),
    [
        (raw(0, np.zeros((4, 16), np.uint8), "16UC1", (4, 8)), "pixels are encoded as '16UC1'"),
        (raw(0, np.zeros((4, 6), np.uint8), "uyvy", (4, 3)), "uyvy of 3x4 cannot be converted"),
        (compressed(0, b"\0\1\2\3", "16UC1; compressedDepth"), "compressed as '16UC1; compressedDepth'"),
        (compressed(0, png_bytes(np.zeros((2, 3), np.uint8), 3)[:30], "png"), "the PNG of 30 bytes is cut off"),
        (compressed(0, b"", "jpeg"), "compressed as 'jpeg'"),
    ],
)
def test_images_that_cannot_be_used_say_why(sent: Sent, what: str, tmp_path: Path) -> None:
    with pytest.raises(MediaError) as caught:
        open_clip(log_of(sent, tmp_path))
    assert "one.mcap: /cam: message 0 of 1: " in caught.value.message
    assert what in caught.value.message


# --- containers


def _db3(folder: Path, sent: list[Sent]) -> Path:
    return next(write_bag(folder / "bag", sent).glob("*.db3"))


CONTAINERS: dict[str, Callable[[Path, list[Sent]], Path]] = {
    "mcap": lambda f, s: write_mcap(f / "log.mcap", {"/cam": s}),
    "mcap lz4": lambda f, s: write_mcap(f / "log.mcap", {"/cam": s}, compression=CompressionType.LZ4),
    "mcap plain": lambda f, s: write_mcap(f / "log.mcap", {"/cam": s}, compression=CompressionType.NONE),
    "bag sqlite3": lambda f, s: write_bag(f / "bag", s),
    "bag mcap": lambda f, s: write_bag(f / "bag", s, "mcap"),
    "bag zstd messages": lambda f, s: write_bag(f / "bag", s, "sqlite3", "message"),
    "db3": _db3,
    "ros 1": lambda f, s: write_ros1(f / "log.bag", s),
}


@pytest.mark.parametrize("container", CONTAINERS)
def test_every_container_keeps_the_contract_of_clips(container: str, tmp_path: Path) -> None:
    images = frames(12)
    path = CONTAINERS[container](tmp_path, [bgr(i, image) for i, image in enumerate(images)])
    clip = opened(path)
    assert (len(clip), clip.size, clip.fps, clip.labelled) == (12, (48, 64), 10.0, False)
    assert (clip.name, clip.topic, clip.frame_id, clip.start_ns) == (f"{path.stem}_cam", "/cam", "camera", START_NS)
    for _ in range(2):
        for index, (frame, image) in enumerate(zip(clip, images, strict=True)):
            assert (frame.index, round(frame.timestamp_s, 9), frame.labels) == (index, index / 10, None)
            np.testing.assert_array_equal(frame.image, image)
    first = iter(clip)
    assert next(first).index == 0
    first.close()  # type: ignore[attr-defined]  # a generator; its file is closed with it


def test_bag_split_into_files_is_one_clip(tmp_path: Path) -> None:
    images = frames(6)
    halves = [write_bag(tmp_path / str(i), [bgr(j, images[j]) for j in range(3 * i, 3 * i + 3)]) for i in range(2)]
    bag = tmp_path / "split"
    bag.mkdir()
    text = (halves[0] / "metadata.yaml").read_text()
    text = text.replace("message_count: 3", "message_count: 6").replace("- 0.db3", "- 0.db3\n  - ../elsewhere/1.db3")
    (bag / "metadata.yaml").write_text(text)
    for half in halves:
        shutil.copy(next(half.glob("*.db3")), bag)
    for frame, image in zip(open_clip(bag), images, strict=True):
        np.testing.assert_array_equal(frame.image, image)
    (bag / "metadata.yaml").write_text(text.replace("message_count: 6", "message_count: 7"))
    with pytest.raises(MediaError, match=r"split: /cam: metadata\.yaml announces 7 messages, the files hold 6"):
        open_clip(bag)
    (bag / "1.db3").unlink()
    with pytest.raises(MediaError, match=r"split: metadata\.yaml names 1\.db3, which is missing"):
        open_clip(bag)


def test_bags_whose_files_are_compressed_say_how_to_unpack_them(tmp_path: Path) -> None:
    bag = write_bag(tmp_path / "bag", [bgr(0, frames(1)[0])], "sqlite3", "file")
    (bag / "bag.db3").touch()  # so that it is told for a bag
    with pytest.raises(MediaError, match="its files are compressed as a whole") as caught:
        open_clip(bag)
    assert "ros2 bag convert" in caught.value.fix


@pytest.mark.parametrize("indexes", [IndexType.NONE, IndexType.ALL])
@pytest.mark.parametrize("chunked", [True, False])
@pytest.mark.parametrize("statistics", [True, False])
def test_mcap_without_index_chunks_or_statistics_is_read_from_end_to_end(
    indexes: IndexType, chunked: bool, statistics: bool, tmp_path: Path
) -> None:
    images = frames(5)
    path = tmp_path / "log.mcap"
    with path.open("wb") as file:
        writer = McapWriter(
            file,
            9_000,
            index_types=indexes,
            use_chunking=chunked,
            use_statistics=statistics,
            repeat_channels=statistics,
        )
        _write_cdr(writer, [bgr(i, image) for i, image in enumerate(images)])
    clip = opened(path)
    assert len(clip) == 5
    for frame, image in zip(clip, images, strict=True):
        np.testing.assert_array_equal(frame.image, image)


def _write_cdr(writer: McapWriter, sent: list[Sent]) -> None:
    writer.start(profile="ros2")
    store = kinds.ros_types(2)
    definition, _ = store.generate_msgdef(kinds.IMAGE, ros_version=2)
    schema = writer.register_schema(kinds.IMAGE, "ros2msg", definition.encode())
    channel = writer.register_channel("/cam", "cdr", schema)
    for one in sent:
        data = bytes(store.serialize_cdr(as_ros(one), one.kind))
        writer.add_message(channel, one.log_time, data, one.log_time)
    writer.finish()


def test_messages_out_of_order_come_by_log_time(tmp_path: Path) -> None:
    images = frames(9)
    order = [0, 3, 1, 2, 6, 4, 5, 8, 7]
    path = tmp_path / "log.mcap"
    with path.open("wb") as file:  # one message a chunk, and then several
        _write_cdr(McapWriter(file, chunk_size=20_000), [bgr(i, images[i]) for i in order])
    for frame, image in zip(open_clip(path), images, strict=True):
        np.testing.assert_array_equal(frame.image, image)


def test_chunks_of_other_topics_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    near, far = frames(6), frames(12)[6:]
    path = tmp_path / "log.mcap"
    topics = {"/near": [bgr(i, f) for i, f in enumerate(near)], "/far": [bgr(i + 50, f) for i, f in enumerate(far)]}
    write_mcap(path, topics, chunk_size=1)
    clip = opened(path, "/far")
    taken: list[int] = []
    from fcnopt.media.logs import mcapfile

    plain = mcapfile.unpacked
    monkeypatch.setattr(mcapfile, "unpacked", lambda *args: (taken.append(1), plain(*args))[1])
    for frame, image in zip(clip, far, strict=True):
        np.testing.assert_array_equal(frame.image, image)
    assert len(taken) == 6


# --- times


def test_times_are_the_headers_or_the_recorders_where_the_header_has_none(tmp_path: Path) -> None:
    images = frames(5)
    unset = {"header": {"stamp": {"sec": 0, "nanosec": 0}, "frame_id": ""}}
    sent = [raw(i, f.reshape(48, -1), "bgr8", (48, 64), **unset) for i, f in enumerate(images)]
    late = [Sent(one.kind, one.fields, 10**9 * (1 + i) ** 2) for i, one in enumerate(sent)]
    clip = opened(write_mcap(tmp_path / "a.mcap", {"/cam": late}))
    assert [frame.timestamp_s for frame in clip] == [0.0, 3.0, 8.0, 15.0, 24.0]
    assert (clip.start_ns, clip.fps) == (10**9, 1 / 6)  # steps of 3, 5, 7 and 9 s: their median is 6
    stamped = [Sent(one.kind, bgr(i, images[i]).fields, one.log_time) for i, one in enumerate(late)]
    path = write_mcap(tmp_path / "b.mcap", {"/cam": stamped})
    assert [round(frame.timestamp_s, 9) for frame in open_clip(path)] == [0.0, 0.1, 0.2, 0.3, 0.4]


def test_rate_is_the_median_so_that_a_gap_does_not_count(tmp_path: Path) -> None:
    image = frames(1)[0]
    sent = [bgr(i if i < 6 else i + 1000, image) for i in range(12)]
    assert open_clip(write_mcap(tmp_path / "log.mcap", {"/cam": sent})).fps == 10.0
    assert open_clip(write_mcap(tmp_path / "one.mcap", {"/cam": sent[:1]})).fps == 0.0


# --- topics


@pytest.fixture
def two_cameras(tmp_path: Path) -> Path:
    left, right = frames(3), frames(5)[2:]
    return write_mcap(
        tmp_path / "two.mcap",
        {"/left": [bgr(i, f) for i, f in enumerate(left)], "/right": [bgr(i, f) for i, f in enumerate(right[:2])]},
    )


def test_one_of_several_topics_has_to_be_named(two_cameras: Path) -> None:
    with pytest.raises(MediaError) as caught:
        open_clip(two_cameras)
    listed = "/left (3 sensor_msgs/msg/Image), /right (2 sensor_msgs/msg/Image)"
    assert caught.value.message == f"{two_cameras}: 2 topics with images: {listed}"
    assert caught.value.fix == "name one: --topic /left"
    with pytest.raises(MediaError, match=r"topic /rear is not in this log; those with images: /left \(3 "):
        open_clip(two_cameras, topic="/rear")
    found = list(open_clip(two_cameras, topic="/right"))
    assert len(found) == 2
    np.testing.assert_array_equal(found[0].image, frames(5)[2])


def test_topics_without_images_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "log.mcap"
    with path.open("wb") as file:
        writer = McapWriter(file)
        writer.start(profile="ros2")
        schema = writer.register_schema("std_msgs/msg/String", "ros2msg", b"string data")
        writer.add_message(writer.register_channel("/chatter", "cdr", schema), 1, b"\0\1\0\0\2\0\0\0a\0", 1)
        writer.finish()
    with pytest.raises(MediaError, match="no topic with images in this log; its topics: /chatter"):
        open_clip(path)
    with pytest.raises(MediaError, match="is no robot log, it has no topic /cam"):
        open_clip(write_image(tmp_path / "a.png", frames(1)[0]), topic="/cam")


def test_logs_are_listed_among_clips(two_cameras: Path, tmp_path: Path) -> None:
    folder = tmp_path / "drives"
    folder.mkdir()
    shutil.move(two_cameras, folder)
    write_bag(folder / "bag", [Sent(one.kind, one.fields, one.log_time) for one in [bgr(0, frames(1)[0])]])
    write_video(folder / "a.mp4", frames(3), 10.0)
    with pytest.raises(MediaError, match="2 topics with images"):
        list_clips(folder)
    (folder / "two.mcap").unlink()
    assert [(clip.name, len(clip)) for clip in list_clips(folder)] == [("a", 3), ("bag_cam", 1)]
    assert [clip.name for clip in list_clips(folder / "bag", topic="/cam")] == ["bag_cam"]


def test_labels_belong_to_frames_by_order(tmp_path: Path) -> None:
    path = write_mcap(tmp_path / "log.mcap", {"/cam": [bgr(i, f) for i, f in enumerate(frames(3))]})
    for index in range(3):
        write_image(tmp_path / "maps" / f"{index}.png", np.full((48, 64), index, np.uint8))
    clip = open_clip(path, tmp_path / "maps")
    assert clip.labelled
    assert [frame.labels[0, 0] for frame in clip if frame.labels is not None] == [0, 1, 2]
    (tmp_path / "maps" / "2.png").unlink()
    with pytest.raises(MediaError, match=r"log\.mcap: /cam: 3 frames, but 2 label maps in .*maps"):
        open_clip(path, tmp_path / "maps")


def test_missing_package_names_the_command_that_installs_it(two_cameras: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(module: str) -> Any:
        raise ModuleNotFoundError(f"No module named {module!r}")

    monkeypatch.setattr(packages.importlib, "import_module", missing)
    with pytest.raises(MediaError, match="mcap is not installed") as caught:
        open_clip(two_cameras, topic="/left")
    assert caught.value.fix == "run: pip install 'fcnopt[logs]'"


# --- damage


def test_change_of_size_and_damage_in_the_middle_name_topic_and_message(tmp_path: Path) -> None:
    sent = [bgr(i, f) for i, f in enumerate(frames(3))]
    path = write_mcap(tmp_path / "size.mcap", {"/cam": [*sent, bgr(3, frames(1, 40, 64)[0])]})
    with pytest.raises(MediaError, match=r"size\.mcap: /cam: frame 3 is 64x40, those before it are 64x48"):
        list(open_clip(path))
    short = raw(2, np.zeros((47, 192), np.uint8), "bgr8", (48, 64))
    path = write_mcap(tmp_path / "short.mcap", {"/cam": [*sent[:2], short]})
    what = r"short\.mcap: /cam: message 2 of 3: bgr8 of 64x48 with 192 bytes a row needs 9216 bytes, found 9024"
    with pytest.raises(MediaError, match=what):
        list(open_clip(path))


def _frames_or_error(path: Path) -> list[Image] | None:
    """What a log gives; None where it is refused, as it should be where it is damaged."""
    try:
        return [frame.image for frame in open_clip(path)]
    except MediaError as error:
        if path.name not in error.message:
            raise
        return None


@pytest.mark.parametrize("container", ["mcap", "mcap lz4", "db3", "ros 1"])
def test_cut_off_log_is_refused_and_never_a_shorter_clip(container: str, tmp_path: Path) -> None:
    path = CONTAINERS[container](tmp_path, [bgr(i, image) for i, image in enumerate(frames(4))])
    whole = path.read_bytes()
    refused = 0
    for size in np.linspace(0, len(whole) - 1, 60).astype(int):
        path.write_bytes(whole[:size])
        found = _frames_or_error(path)
        assert found is None or len(found) == 4
        refused += found is None
    assert refused >= 58  # SQLite's last pages may be an index that is not needed


@pytest.mark.parametrize("container", ["mcap", "mcap plain", "bag sqlite3", "ros 1"])
def test_flipped_bytes_give_an_error_or_the_frames(container: str, tmp_path: Path, rng: np.random.Generator) -> None:
    images = [cv2.resize(image, (16, 12)) for image in frames(3)]
    path = CONTAINERS[container](tmp_path, [bgr(i, image) for i, image in enumerate(images)])
    file = next(path.glob("*.db3")) if path.is_dir() else path
    whole = file.read_bytes()
    refused = 0
    for place in rng.integers(0, len(whole), 150):
        changed = bytearray(whole)
        changed[place] ^= int(rng.integers(1, 256))
        file.write_bytes(changed)
        found = _frames_or_error(path)
        refused += found is None
        if found is not None and container.startswith("mcap"):  # whose chunks have checksums
            np.testing.assert_array_equal(found, images)
    assert refused >= (3 if container == "bag sqlite3" else 10)  # whose pages are half empty


def test_truncated_mcap_says_how_to_recover_it(tmp_path: Path) -> None:
    path = write_mcap(tmp_path / "log.mcap", {"/cam": [bgr(0, frames(1)[0])]})
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(MediaError, match=r"log\.mcap: the file is cut off after \d+ bytes") as caught:
        open_clip(path)
    assert "mcap recover IN -o OUT" in caught.value.fix
    path.write_bytes(b"no log")
    with pytest.raises(MediaError, match="this is not an MCAP file"):
        open_clip(path)


# --- hostile sizes


def _with_chunk(path: Path, compression: bytes, data: bytes, announced: int) -> None:
    """An MCAP file without an index, whose only chunk is given."""

    def record(opcode: int, body: bytes) -> bytes:
        return struct.pack("<BQ", opcode, len(body)) + body

    head = struct.pack("<QQQII", 0, 0, announced, 0, len(compression)) + compression
    chunk = record(0x06, head + struct.pack("<Q", len(data)) + data)
    header = record(0x01, struct.pack("<I", 4) + b"ros2" + struct.pack("<I", 0))
    end = record(0x0F, struct.pack("<I", 0)) + record(0x02, struct.pack("<QQI", 0, 0, 0))
    magic = b"\x89MCAP0\r\n"
    path.write_bytes(magic + header + chunk + end + magic)


@pytest.mark.parametrize("compression", ["zstd", "lz4"])
@pytest.mark.parametrize("announced", [1000, 1 << 40])
def test_chunk_that_unpacks_to_more_than_announced_is_refused(compression: str, announced: int, tmp_path: Path) -> None:
    import lz4.frame
    import zstandard

    bomb = bytes(256 << 20)
    data = zstandard.compress(bomb) if compression == "zstd" else lz4.frame.compress(bomb)
    del bomb
    path = tmp_path / "bomb.mcap"
    _with_chunk(path, compression.encode(), data, announced)
    tracemalloc.start()
    with pytest.raises(MediaError, match=r"bomb\.mcap: .*are announced, (unpacked they are more|more than 1 GiB)"):
        open_clip(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20


def test_record_that_announces_more_than_the_file_is_refused(tmp_path: Path) -> None:
    path = write_mcap(tmp_path / "log.mcap", {"/cam": [bgr(0, frames(1)[0])]}, compression=CompressionType.NONE)
    whole = path.read_bytes()
    place = whole.index(b"\x06", 8 + 9)  # the chunk's record
    assert struct.unpack_from("<Q", whole, place + 1)[0] < len(whole)
    at_data = place + 9 + 32
    assert struct.unpack_from("<Q", whole, at_data)[0] < len(whole)
    path.write_bytes(whole[:at_data] + struct.pack("<Q", 1 << 61) + whole[at_data + 8 :])
    with pytest.raises(MediaError, match=rf"log\.mcap: .*{1 << 61} bytes are announced"):
        open_clip(path)


def test_message_that_announces_more_than_it_holds_is_refused(tmp_path: Path) -> None:
    hostile = raw(0, np.zeros((1, 9), np.uint8), "bgr8", (60_000, 60_000), step=180_000)
    with pytest.raises(MediaError, match="bgr8 of 60000x60000 with 180000 bytes a row is impossible"):
        open_clip(log_of(hostile, tmp_path))
    lying = raw(0, np.zeros((1, 9), np.uint8), "bgr8", (8_000, 8_000), step=24_000)
    with pytest.raises(MediaError, match="needs 192000000 bytes, found 9"):
        open_clip(log_of(lying, tmp_path))
    path = tmp_path / "cdr.mcap"
    data = bytearray(kinds.ros_types(2).serialize_cdr(as_ros(bgr(0, frames(1)[0])), kinds.IMAGE))
    place = data.index(struct.pack("<I", 48 * 64 * 3))
    data[place : place + 4] = b"\xff" * 4
    with path.open("wb") as file:
        writer = McapWriter(file)
        writer.start()
        schema = writer.register_schema(kinds.IMAGE, "ros2msg", b"")
        writer.add_message(writer.register_channel("/cam", "cdr", schema), 1, bytes(data), 1)
        writer.finish()
    with pytest.raises(
        MediaError, match=r"cdr\.mcap: /cam: message 0 of 1: the message .* is damaged: Invalid sequence"
    ):
        open_clip(path)


def _jpeg_of(height: int, width: int) -> bytes:
    data = bytearray(cv2.imencode(".jpg", np.zeros((8, 8, 3), np.uint8))[1].tobytes())
    place = data.index(b"\xff\xc0")
    struct.pack_into(">HH", data, place + 5, height, width)
    return bytes(data)


def _png_of(height: int, width: int) -> bytes:
    data = bytearray(cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))[1].tobytes())
    struct.pack_into(">II", data, 16, width, height)
    struct.pack_into(">I", data, 29, zlib.crc32(data[12:29]))
    return bytes(data)


@pytest.mark.parametrize("make", [_jpeg_of, _png_of])
def test_picture_that_announces_a_size_it_cannot_hold_is_refused_undecoded(
    make: Callable[[int, int], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert only(log_of(compressed(0, make(8, 8), "x"), tmp_path)).shape == (8, 8, 3)
    monkeypatch.setattr(pictures.cv2, "imdecode", lambda *_: pytest.fail("it was decoded"))
    with pytest.raises(MediaError, match=r"a picture of 50000x40000 is announced, in \d+ bytes"):
        open_clip(log_of(compressed(0, make(40_000, 50_000), "x"), tmp_path))


def test_large_even_picture_is_not_taken_for_hostile(tmp_path: Path) -> None:
    """What packs best: one colour, progressive, and a PNG of the same."""
    image = np.full((2160, 3840, 3), 128, np.uint8)
    options = [cv2.IMWRITE_JPEG_PROGRESSIVE, 1, cv2.IMWRITE_JPEG_OPTIMIZE, 1, cv2.IMWRITE_JPEG_QUALITY, 10]
    for suffix, more in ((".jpg", options), (".png", [cv2.IMWRITE_PNG_COMPRESSION, 9])):
        data = cv2.imencode(suffix, image, more)[1].tobytes()
        assert only(log_of(compressed(0, data, suffix[1:]), tmp_path)).shape == image.shape
