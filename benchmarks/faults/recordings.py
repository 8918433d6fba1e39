"""Pictures, label maps, videos and robot logs: damaged ones, and headers that announce what is not there."""

from __future__ import annotations

import shutil
import struct
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from faults.case import Case, Fault
from faults.mutations import mutated
from faults.standin import StandInRunner, engine_of
from fcnopt.media import open_clip
from fcnopt.media.files import read_image
from fcnopt.media.labels import read_label_map

PICTURES = ("picture.png", "picture.jpg", "picture.bmp", "picture.ppm", "picture.webp", "labels.png")
LOGS = ("clip.mcap", "bag")


def pictures(seeds: str, count: int, seed: int = 0) -> Iterator[Case]:
    """Every picture that announces too much, then damaged ones, to `count` in all."""
    _read_picture(Path(seeds) / "picture.png")  # what is imported on first use is no input's memory
    _read_picture(Path(seeds) / "labels.png")
    made = [Case(name, partial(_made, f"net{kind}", make), _read_picture) for (name, kind), make in HOSTILE.items()]
    made += [Case(name, partial(_made, "labels.png", make), _read_picture) for name, make in LABELS.items()]
    yield from made
    rng = np.random.default_rng(seed)
    whole = {name: (Path(seeds) / name).read_bytes() for name in PICTURES}
    for number in range(count - len(made)):
        name = PICTURES[number % len(PICTURES)]
        yield Case(f"{name} {number}", partial(_written, name, mutated(whole[name], rng)), _read_picture)


def clips(paths: list[str], count: int, seed: int = 0, streamed: bool = True) -> Iterator[Case]:
    """Every clip damaged in `count` ways; a folder has one of its files damaged."""
    rng = np.random.default_rng(seed)
    for path in map(Path, paths):
        length = len(open_clip(path))
        use = partial(_streamed if streamed else _read, length)
        files = sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]
        whole = {file: file.read_bytes() for file in files}
        for number in range(count):
            file = files[number % len(files)]
            yield Case(f"{path.name} {number}", partial(_damaged, path, file, mutated(whole[file], rng)), use)


def _damaged(clip: Path, file: Path, content: bytes, folder: Path) -> Path:
    if clip.is_dir():
        shutil.copytree(clip, folder / clip.name)
        (folder / clip.name / file.name).write_bytes(content)
        return folder / clip.name
    return _written(clip.name, content, folder)


def _made(name: str, make: Callable[[], bytes], folder: Path) -> Path:
    return _written(name, make(), folder)


def _written(name: str, content: bytes, folder: Path) -> Path:
    (folder / name).write_bytes(content)
    return folder / name


def _read_picture(path: Path) -> str:
    image = read_label_map(path) if path.name == "labels.png" else read_image(path)
    return "read" if image.dtype == np.uint8 else "of another type"


def _read(length: int, path: Path) -> str:
    """Decode all of it. How many frames there are is what the clip says, which damage can change."""
    clip = open_clip(path)
    announced = len(clip)
    return _counted(sum(1 for _ in clip.images()), announced, length)


def _streamed(length: int, path: Path) -> str:
    """As an engine streams it; the stream ends with an error, or after as many frames as the clip announces."""
    clip = open_clip(path)
    announced = len(clip)
    with engine_of(StandInRunner()) as engine, engine.stream(clip.images(), stall_s=60) as stream:
        return _counted(sum(1 for _ in stream), announced, length)


def _counted(frames: int, announced: int, length: int) -> str:
    if frames != announced:
        raise Fault(f"{announced} frames announced, and {frames} came without an error")
    return "all frames" if frames == length else "all frames of another count"


def _png(width: int, height: int, rows: bytes, color: int = 2) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, color, 0, 0, 0))
    palette = chunk(b"PLTE", bytes(768)) if color == 3 else b""
    return b"\x89PNG\r\n\x1a\n" + header + palette + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def _png_bomb() -> bytes:
    """16,000 x 16,000 pixels of zeros, all of them there: 768 MB in 4 MB."""
    packer = zlib.compressobj(1)
    row = bytes(1 + 3 * 16_000)
    return _png(16_000, 16_000, b"".join(packer.compress(row) for _ in range(16_000)) + packer.flush())


def _jpeg(width: int, height: int) -> bytes:
    frame = struct.pack(">BHHB", 8, height, width, 3) + bytes((1, 17, 0, 2, 17, 0, 3, 17, 0))
    scan = b"\xff\xda\x00\x0c\x03\x01\x00\x02\x00\x03\x00\x00\x3f\x00" + bytes(500)
    return b"\xff\xd8\xff\xc0" + struct.pack(">H", 2 + len(frame)) + frame + scan + b"\xff\xd9"


def _bmp(width: int, height: int) -> bytes:
    return (
        b"BM"
        + struct.pack("<IHHIIiiHHIIiiII", 154, 0, 0, 54, 40, width, height, 1, 24, 0, 100, 0, 0, 0, 0)
        + bytes(100)
    )


def _webp(width: int, height: int) -> bytes:
    extended = (
        b"VP8X" + struct.pack("<IB3x", 10, 0) + struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    )
    lossless = b"VP8L" + struct.pack("<IBI", 5, 0x2F, (width - 1 & 0x3FFF) | (height - 1 & 0x3FFF) << 14) + b"\0" * 9
    return b"RIFF" + struct.pack("<I", 4 + len(extended) + len(lossless)) + b"WEBP" + extended + lossless


HOSTILE: dict[tuple[str, str], Callable[[], bytes]] = {
    ("a PNG bomb", ".png"): _png_bomb,
    ("a PNG of 2^62 pixels", ".png"): lambda: _png(0x7FFFFFFF, 0x7FFFFFFF, zlib.compress(b"x")),
    ("a PNG of 32,000 x 32,000", ".png"): lambda: _png(32_000, 32_000, zlib.compress(bytes(1 << 20))),
    ("a grey PNG of 32,000 x 32,000", ".png"): lambda: _png(32_000, 32_000, zlib.compress(bytes(1 << 20)), color=0),
    ("a PNG of no pixels", ".png"): lambda: _png(0, 0, b""),
    ("a JPEG of 65,500 x 65,500", ".jpg"): lambda: _jpeg(65_500, 65_500),
    ("a JPEG of 30,000 x 30,000", ".jpg"): lambda: _jpeg(30_000, 30_000),
    ("a BMP of 30,000 x 30,000", ".bmp"): lambda: _bmp(30_000, 30_000),
    ("a BMP upside down", ".bmp"): lambda: _bmp(30_000, -30_000),
    ("a PPM of 30,000 x 30,000", ".ppm"): lambda: b"P6\n30000 30000\n255\n" + bytes(100),
    ("a PPM of 10^30 pixels", ".ppm"): lambda: b"P6\n" + b"9" * 30 + b" 1\n255\n" + bytes(100),
    ("a WebP of 16,383 x 16,383", ".webp"): lambda: _webp(16_383, 16_383),
    ("a picture of nothing", ".png"): lambda: b"",
}
LABELS: dict[str, Callable[[], bytes]] = {
    "a grey label map of 32,000 x 32,000": lambda: _png(32_000, 32_000, zlib.compress(bytes(1 << 20)), color=0),
    "a label map by palette of 32,000 x 32,000": lambda: _png(32_000, 32_000, zlib.compress(bytes(1 << 20)), color=3),
}
