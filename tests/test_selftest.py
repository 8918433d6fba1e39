"""The known-answer test as a file: what is announced is held against what is there before memory is taken for it."""

from __future__ import annotations

import io
import os
import re
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from fcnopt.errors import BundleError
from fcnopt.selftest import read_selftest, write_selftest


def packed(path: Path, frame: bytes, labels: bytes = b"", method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("frame.npy", frame)
        archive.writestr("labels.npy", labels or array("(1, 2, 3)", bytes(6)))
    return path


def array(shape: str, data: bytes, dtype: str = "|u1", order: bool = False, version: int = 1) -> bytes:
    header = f"{{'descr': '{dtype}', 'fortran_order': {order}, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY" + bytes((version, 0)) + struct.pack("<H", len(header)) + header + data


def test_it_comes_back_as_it_was_written(tmp_path: Path, rng: np.random.Generator) -> None:
    frame, labels = rng.integers(0, 256, (1, 5, 7, 3), np.uint8), rng.integers(0, 9, (1, 5, 7), np.uint8)
    write_selftest(tmp_path / "a.npz", frame, labels)
    found = read_selftest(tmp_path / "a.npz")
    np.testing.assert_array_equal(found[0], frame)
    np.testing.assert_array_equal(found[1], labels)


@pytest.mark.parametrize(
    ("frame", "what"),
    [
        (array("(1, 2, 3, 3)", bytes(17)), "has 17 of 18 bytes"),
        (array("(1, 2, 3, 3)", bytes(50)), "has over 18 of 18 bytes"),
        (array("(1, 65536, 65536, 3)", b""), r"expected uint8 of at most 402,653,184 bytes"),
        (array("(1, -2, -3, 3)", bytes(18)), "expected uint8"),
        (array("(1, 2, 0, 3)", b""), "expected uint8"),
        (array("(1, 2, 3, 3)", bytes(18), order=True), "expected uint8"),
        (array("(1, 2, 3, 3)", bytes(18 * 8), "<f8"), "is float64"),
        (array("(1, 2, 3, 3)", bytes(18), version=2), "version"),
        (array("(1, 2, 4, 3)", bytes(24)), r"found \[1, 2, 4, 3\] and \[1, 2, 3\]"),
        (array("(2, 2, 3, 3)", bytes(36)), r"found \[2, 2, 3, 3\]"),
        (b"not an array", "ValueError"),
        (array("(1, 2, 3, 3", bytes(18)), "no known-answer test"),
        (b"", "ValueError"),
    ],
)
def test_another_array_is_refused_with_what_it_is(tmp_path: Path, frame: bytes, what: str) -> None:
    with pytest.raises(BundleError, match=what):
        read_selftest(packed(tmp_path / "a.npz", frame))


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    path = packed(tmp_path / "a.npz", array("(1, 2, 3, 3)", bytes(200 << 20)))
    assert path.stat().st_size < 1 << 20
    tracemalloc.start()
    with pytest.raises(BundleError, match="has over 18 of 18 bytes"):
        read_selftest(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_bomb_in_a_packing_that_numpy_does_not_use_is_refused_unopened(tmp_path: Path, method: int) -> None:
    path = packed(tmp_path / "a.npz", array("(1, 2, 3, 3)", bytes(64 << 20)), method=method)
    assert path.stat().st_size < 1 << 16
    tracemalloc.start()
    with pytest.raises(BundleError, match=r"frame\.npy is neither stored nor deflated"):
        read_selftest(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20


def test_what_is_no_archive_is_refused(tmp_path: Path) -> None:
    path, bare = tmp_path / "a.npz", io.BytesIO()
    np.save(bare, np.zeros(3, np.uint8))
    encrypted = bytearray(packed(tmp_path / "e.npz", array("(1,)", b"1")).read_bytes())
    encrypted[6] |= 1
    encrypted[encrypted.index(b"PK\x01\x02") + 8] |= 1
    for content in (b"", b"words", bare.getvalue(), bytes(encrypted)):
        path.write_bytes(content)
        with pytest.raises(BundleError, match=re.escape(str(path)) + ": is no known-answer test"):
            read_selftest(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(BundleError, match="is no file"):
        read_selftest(path)
