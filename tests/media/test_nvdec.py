"""The GPU's decoder, made of Python: what is asked of PyNvVideoCodec, and what its absence means."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fcnopt.errors import MediaError
from fcnopt.media import open_clip
from tests.media.conftest import frames


class Frame:
    def __init__(self, image: NDArray[np.uint8]) -> None:
        self.shape, self._image = image.shape, image

    def GetPtrToPlane(self, plane: int) -> int:  # noqa: N802  (its name)
        assert plane == 0
        return int(self._image.ctypes.data)


class Codec(SimpleNamespace):
    """The module: gives `count` frames of the clip, in one buffer that it uses again, RGB."""

    OutputColorType = SimpleNamespace(RGB="rgb")

    def __init__(self, count: int = 20, fails_at: int | None = None) -> None:
        super().__init__(asked=None, ended=0)
        codec = self

        class ThreadedDecoder:
            def __init__(self, path: str, buffer_size: int, **choices: Any) -> None:
                codec.asked = (Path(path).name, choices)
                self._size, self._given = buffer_size, 0
                self._buffer = np.zeros((48, 64, 3), np.uint8)
                self._images = [image[..., ::-1] for image in frames(count)]

            def get_batch_frames(self, number: int) -> list[Any]:
                assert number <= self._size
                if fails_at is not None and self._given >= fails_at:
                    raise Exception("unsupported\n codec")
                batch = self._images[self._given : self._given + number]
                self._given += len(batch)
                return list(self._one_buffer(batch))

            def _one_buffer(self, batch: list[NDArray[np.uint8]]) -> Iterator[Frame]:
                for image in batch:
                    yield Frame(np.ascontiguousarray(image))

            def end(self) -> None:
                codec.ended += 1

        self.ThreadedDecoder = ThreadedDecoder


@pytest.fixture
def codec(monkeypatch: pytest.MonkeyPatch) -> Codec:
    made = Codec()
    monkeypatch.setitem(sys.modules, "PyNvVideoCodec", made)
    return made


@pytest.mark.parametrize("decoder", ["nvdec", "auto"])
def test_frames_come_from_the_gpu_in_bgr(video: Path, codec: Codec, decoder: Any) -> None:
    read = list(open_clip(video, decoder=decoder))
    assert codec.asked == ("drive.mp4", {"use_device_memory": False, "output_color_type": "rgb"})
    assert codec.ended == 1
    assert [frame.index for frame in read] == list(range(20))
    np.testing.assert_allclose([frame.timestamp_s for frame in read], np.arange(20) / 10)
    for frame, written in zip(read, frames(20), strict=True):
        np.testing.assert_array_equal(frame.image, written)


def test_pyav_is_what_is_used_unless_asked(video: Path, codec: Codec) -> None:
    assert len(list(open_clip(video))) == 20
    assert codec.asked is None


def test_stopping_early_ends_the_decoder(video: Path, codec: Codec) -> None:
    images = open_clip(video, decoder="nvdec").images()
    next(images)
    del images
    assert codec.ended == 1


@pytest.mark.parametrize("made", [None, Codec(fails_at=0)])
def test_without_package_gpu_or_codec_auto_takes_pyav_and_nvdec_says_why(
    video: Path, monkeypatch: pytest.MonkeyPatch, made: Codec | None
) -> None:
    monkeypatch.setitem(sys.modules, "PyNvVideoCodec", made)  # type: ignore[arg-type]
    assert len(list(open_clip(video, decoder="auto"))) == 20
    why = "PyNvVideoCodec cannot be used here" if made is None else "the GPU cannot decode it: unsupported codec"
    with pytest.raises(MediaError, match=why) as caught:
        list(open_clip(video, decoder="nvdec"))
    assert "PyAV" in caught.value.fix


def test_a_failure_on_the_way_is_an_error_not_a_shorter_clip(video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PyNvVideoCodec", Codec(fails_at=8))
    with pytest.raises(MediaError, match=r"the GPU stopped decoding after 8 frames: unsupported"):
        list(open_clip(video, decoder="auto"))
    monkeypatch.setitem(sys.modules, "PyNvVideoCodec", Codec(count=15))
    with pytest.raises(MediaError, match="20 frames announced, decoding stopped at frame 15"):
        list(open_clip(video, decoder="auto"))
