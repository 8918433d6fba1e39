from __future__ import annotations

import errno
import itertools
import struct
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from fcnopt.errors import MediaError, UsageError
from fcnopt.media import open_clip
from fcnopt.media.writer import write_image, write_video
from tests.media.conftest import frames


def noisy(count: int) -> list[NDArray[np.uint8]]:
    """Frames that compress badly, so that every part of the file matters."""
    rng = np.random.default_rng(1)
    return [rng.integers(0, 256, (96, 128, 3), np.uint8) for _ in range(count)]


def test_video_round_trip_is_frame_accurate(video: Path) -> None:
    clip = open_clip(video)
    assert (len(clip), clip.size, clip.fps, clip.name, clip.labelled) == (20, (48, 64), 10.0, "drive", False)
    for _ in range(2):  # from the start again
        read = list(clip)
        assert [frame.index for frame in read] == list(range(20))
        np.testing.assert_allclose([frame.timestamp_s for frame in read], np.arange(20) / 10, atol=1e-6)
        for frame, written in zip(read, frames(20), strict=True):
            bar = frame.image[:, :, 1].mean(0) > 190
            assert bar[2 * frame.index : 2 * frame.index + 4].all()
            assert np.abs(frame.image.astype(int) - written).mean() < 5


@pytest.mark.parametrize("suffix", [".mkv", ".avi", ".ts", ".mov"])
def test_length_is_right_for_containers_that_do_not_announce_it(tmp_path: Path, suffix: str) -> None:
    clip = open_clip(write_video(tmp_path / f"v{suffix}", frames(17), 10.0))
    assert len(clip) == 17
    assert sum(1 for _ in clip) == 17


def test_stopping_early_is_no_error(video: Path) -> None:
    assert [frame.index for frame in itertools.islice(open_clip(video), 3)] == [0, 1, 2]


@pytest.mark.parametrize("share", [0.4, 0.7, 0.97])
def test_truncated_video_names_the_frame_reached(tmp_path: Path, share: float) -> None:
    path = write_video(tmp_path / "cut.mp4", noisy(40), 10.0)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    read: list[int] = []
    with pytest.raises(MediaError, match=r"cut\.mp4: 40 frames announced, decoding stopped at frame \d+") as caught:
        read.extend(frame.index for frame in open_clip(path))
    assert 0 < len(read) < 40
    assert f"stopped at frame {len(read)}:" in caught.value.message
    assert "copy the file again" in caught.value.fix


def test_truncated_matroska_is_an_error(tmp_path: Path) -> None:
    path = write_video(tmp_path / "cut.mkv", noisy(40), 10.0)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(MediaError, match=r"cut\.mkv: 4\.00 s announced, but the data ends at frame \d+"):
        open_clip(path)


def test_corrupt_video_is_an_error(tmp_path: Path) -> None:
    path = write_video(tmp_path / "bad.mp4", noisy(40), 10.0)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + len(data) // 8] = b"\x55" * (len(data) // 8)
    path.write_bytes(data)
    with pytest.raises(MediaError, match=r"bad\.mp4: 40 frames announced, decoding stopped at frame \d+: the"):
        list(open_clip(path))


@pytest.mark.parametrize("content", [b"", b"\x00" * 64, b"this is no video at all\n" * 40])
def test_file_that_is_no_video_is_an_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "text.mp4"
    path.write_bytes(content)
    with pytest.raises(MediaError, match=r"text\.mp4: not a video that can be decoded"):
        open_clip(path)


def test_sound_alone_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "sound.wav"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    with pytest.raises(MediaError, match="there is no video in this file"):
        open_clip(path)


def test_video_with_zero_frames_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "none.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.mux(stream.encode())
    with pytest.raises(MediaError, match=r"none\.mp4: "):
        open_clip(path)


def test_frames_that_change_size_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "sizes.ts"
    with av.open(str(path), "w") as container:
        for part, (width, height) in enumerate([(64, 48), (96, 64)]):
            coder = av.CodecContext.create("libx264", "w")
            coder.width, coder.height, coder.pix_fmt = width, height, "yuv420p"
            coder.time_base, coder.framerate = Fraction(1, 10), Fraction(10)
            if part == 0:
                stream = container.add_stream("libx264", rate=10)
                stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            packets = []
            for index in range(8):
                frame = av.VideoFrame.from_ndarray(np.full((height, width, 3), 20 * index, np.uint8), format="bgr24")
                frame.pts, frame.time_base = 8 * part + index, Fraction(1, 10)
                packets += coder.encode(frame)
            for packet in [*packets, *coder.encode()]:
                packet.stream = stream
                container.mux(packet)
    with pytest.raises(MediaError, match=r"sizes\.ts: frame 8 is 96x64, those before it are 64x48") as caught:
        list(open_clip(path))
    assert "scale" in caught.value.fix


def test_failed_write_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no frames to write"):
        write_video(tmp_path / "none.mp4", [], 10.0)
    with pytest.raises(UsageError, match="even size, found 63x48"):
        write_video(tmp_path / "odd.mp4", frames(2, width=63), 10.0)

    def failing() -> Iterator[NDArray[np.uint8]]:
        yield from frames(3)
        raise KeyError("a bug in the source of frames")

    with pytest.raises(KeyError):
        write_video(tmp_path / "half.mp4", failing(), 10.0)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(MediaError, match="cannot be written"):
        write_video(tmp_path / "file" / "v.mp4", frames(2), 10.0)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_full_disk_leaves_no_half_written_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(MediaError, match=r"a\.png: cannot be written: No space left on device") as caught:
        write_image(tmp_path / "a.png", frames(1)[0])
    assert "free space" in caught.value.fix
    assert list(tmp_path.iterdir()) == []


def test_video_turned_by_its_header_is_read_upright(tmp_path: Path) -> None:
    image = np.zeros((48, 64, 3), np.uint8)
    image[:12, :16] = 255
    path = write_video(tmp_path / "phone.mp4", [image] * 3, 10.0)
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 44  # of the track header: rows (a, b, u), (c, d, v), (x, y, w)
    assert struct.unpack_from(">9i", data, matrix) == (65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)
    struct.pack_into(">9i", data, matrix, 0, 65536, 0, -65536, 0, 0, 48 << 16, 0, 1 << 30)  # a quarter turn clockwise
    path.write_bytes(data)
    clip = open_clip(path)
    assert clip.size == (64, 48)
    for frame in clip:
        assert frame.image.shape == (64, 48, 3)
        assert frame.image[2:10, -10:-2].min() > 200  # the top left corner is now at the top right
        assert frame.image[:, :30].max() < 60


@pytest.mark.parametrize("whole", [True, False])
def test_without_an_index_packets_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: bool) -> None:
    from fcnopt.media import video

    monkeypatch.setattr(video, "_announced", lambda _: 0)  # as with a PyAV that does not show the index
    path = write_video(tmp_path / "v.mp4", noisy(40), 10.0)
    if whole:
        assert len(open_clip(path)) == sum(1 for _ in open_clip(path)) == 40
        return
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(MediaError, match=r"v\.mp4: 4\.00 s announced, but the data ends at frame \d+"):
        open_clip(path)
