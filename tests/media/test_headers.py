"""Sizes that pictures announce, and those that are refused before a decoder takes memory for them."""

from __future__ import annotations

import struct
from pathlib import Path

import cv2
import numpy as np
import pytest

from fcnopt.errors import MediaError
from fcnopt.media.files import read_image
from fcnopt.media.headers import MAX_PIXELS, picture_size
from fcnopt.media.labels import read_label_map
from tests.media.conftest import png_bytes


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".ppm", ".pgm", ".pbm", ".webp"])
@pytest.mark.parametrize("size", [(1, 1), (17, 300), (511, 5)])
def test_the_size_is_the_one_that_opencv_decodes(suffix: str, size: tuple[int, int]) -> None:
    image = np.full((*size, 3), 200, np.uint8)
    shown = image if suffix not in (".pgm", ".pbm") else image[..., 0]
    data = cv2.imencode(suffix, shown)[1].tobytes()
    assert picture_size(data) == size


def test_lossless_extended_and_upside_down_pictures() -> None:
    image = np.full((13, 21, 3), 99, np.uint8)
    lossless = cv2.imencode(".webp", image, [cv2.IMWRITE_WEBP_QUALITY, 101])[1].tobytes()
    assert lossless[12:16] == b"VP8L"
    assert picture_size(lossless) == (13, 21)
    alpha = cv2.imencode(".webp", np.full((13, 21, 4), 99, np.uint8), [cv2.IMWRITE_WEBP_QUALITY, 50])[1].tobytes()
    assert alpha[12:16] == b"VP8X"
    assert picture_size(alpha) == (13, 21)
    bmp = bytearray(cv2.imencode(".bmp", image)[1].tobytes())
    bmp[22:26] = struct.pack("<i", -13)
    assert picture_size(bytes(bmp)) == (13, 21)


@pytest.mark.parametrize(
    "text", [b"P6\n# made by hand\n21 13\n255\n", b"P5 21\n13 255\n", b"P6\t21\r\n#x\n#y\n 13 \n255 "]
)
def test_netpbm_headers_with_comments(text: bytes) -> None:
    assert picture_size(text + bytes(900)) == (13, 21)


@pytest.mark.parametrize(
    "data", [b"", b"P6", b"P6\nx", b"BM", b"GIF89a" + bytes(20), b"RIFF0000WEBPVP9 ", b"\xff\xd8\xff\xe0\0"]
)
def test_what_tells_no_size_is_none(data: bytes) -> None:
    assert picture_size(data) is None


def test_a_picture_larger_than_any_cameras_is_refused_by_its_header(tmp_path: Path) -> None:
    side = int(MAX_PIXELS**0.5) + 1
    tiny = png_bytes(np.zeros((4, 12), np.uint8), 2)
    huge = tiny[:16] + struct.pack(">II", side, side) + tiny[24:]
    (tmp_path / "a.png").write_bytes(huge)
    with pytest.raises(MediaError, match=rf"a picture of {side}x{side} is announced, more than 134,217,728 pixels"):
        read_image(tmp_path / "a.png")
    with pytest.raises(MediaError, match="is announced"):
        read_label_map(tmp_path / "a.png")
