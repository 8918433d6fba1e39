"""Known-answer tests (selftest.npz) that are no such thing: zip bombs, sizes that are not there, other arrays, code."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from faults.case import Case
from faults.mutations import mutated
from faults.standin import StandInRunner
from fcnopt.selftest import SELFTEST, run_selftest

_FRAME, _LABELS = np.zeros((1, 64, 96, 3), np.uint8), np.zeros((1, 64, 96), np.uint8)


def cases(seeds: str, count: int, seed: int = 0) -> Iterator[Case]:
    """Every hand-made one, then damaged ones, to `count` in all."""
    made = [Case(name, partial(_made, make), _read) for name, make in HOSTILE.items()]
    yield from made
    rng = np.random.default_rng(seed)
    whole = (Path(seeds) / "engines/net" / SELFTEST).read_bytes()
    for number in range(count - len(made)):
        yield Case(f"damaged {number}", partial(_written, mutated(whole, rng)), _read)


def _made(make: Callable[[Path], bytes | None], folder: Path) -> Path:
    content = make(folder)
    return folder / SELFTEST if content is None else _written(content, folder)


def _written(content: bytes, folder: Path) -> Path:
    (folder / SELFTEST).write_bytes(content)
    return folder / SELFTEST


def _read(path: Path) -> str:
    """As `load` does, with a runner for frames of any size: the least that is known of what the file may hold."""
    run_selftest(StandInRunner(height=None, width=None), path, 0.0)
    return "read"


def _saved(**arrays: NDArray[Any]) -> Callable[[Path], bytes]:
    def make(_: Path) -> bytes:
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]  # arrays by name
        return buffer.getvalue()

    return make


def _announced(
    shape: str, data: bytes = b"", dtype: str = "|u1", method: int = zipfile.ZIP_DEFLATED
) -> Callable[[Path], bytes]:
    """A frame whose header announces a shape; its data is something else."""
    return lambda _: _packed(_array(shape, data, dtype), _array("(1, 64, 96)", bytes(64 * 96)), method)


def _array(shape: str, data: bytes, dtype: str = "|u1") -> bytes:
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


def _packed(frame: bytes, labels: bytes, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as packed:
        packed.writestr("frame.npy", frame)
        packed.writestr("labels.npy", labels)
    return buffer.getvalue()


def _bomb(_: Path) -> bytes:
    """1.3 GiB of zeros in 6 MiB, of a shape that fits them."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as packed:
        for name, shape, size in (
            ("frame", "(1, 18432, 18432, 3)", 3 * 18432**2),
            ("labels", "(1, 18432, 18432)", 18432**2),
        ):
            with packed.open(f"{name}.npy", "w", force_zip64=True) as member:
                member.write(_array(shape, b""))
                for _piece in range(size >> 20):
                    member.write(bytes(1 << 20))
    return buffer.getvalue()


def _packed_at_once(_: Path) -> bytes:
    """1 GiB of zeros in a few KiB, by a method that zipfile unpacks in one piece."""
    return _packed(_array("(1, 16384, 16384, 3)", bytes(1 << 30)), _array("(1, 64, 96)", b""), zipfile.ZIP_BZIP2)


def _code(folder: Path) -> bytes:
    class Runs:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return os.mkdir, (str(folder.parent / "canary"),)

    return _packed(_array("(1,)", pickle.dumps(Runs()), "|O"), _array("(1,)", b"1"))


def _encrypted(_: Path) -> bytes:
    content = bytearray(_packed(_array("(1,)", b"1"), _array("(1,)", b"1")))
    content[6] |= 1  # the local header's flag
    content[content.index(b"PK\x01\x02") + 8] |= 1
    return bytes(content)


def _unknown_method(_: Path) -> bytes:
    content = bytearray(_packed(_array("(1,)", b"1"), _array("(1,)", b"1")))
    content[8] = content[content.index(b"PK\x01\x02") + 10] = 99
    return bytes(content)


def _bare(_: Path) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, _FRAME)
    return buffer.getvalue()


def _many(_: Path) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as packed:
        for number in range(50_000):
            packed.writestr(str(number), b"")
    return buffer.getvalue()


def _twice(_: Path) -> bytes:
    """Two members of one name: which one counts?"""
    content = _packed(_array("(1, 64, 96, 3)", _FRAME.tobytes()), _array("(1, 64, 96)", _LABELS.tobytes()))
    buffer = io.BytesIO(content)
    with zipfile.ZipFile(buffer, "a") as packed, np.testing.suppress_warnings() as quiet:
        quiet.filter(UserWarning)
        packed.writestr("frame.npy", _array("(1,)", b"1"))
    return buffer.getvalue()


def _pipe(folder: Path) -> None:
    os.mkfifo(folder / SELFTEST)


HOSTILE: dict[str, Callable[[Path], bytes | None]] = {
    "a whole one": _saved(frame=_FRAME, labels=_LABELS),
    "bomb": _bomb,
    "bomb that is unpacked at once": _packed_at_once,
    "a frame of a petabyte": _announced("(1, 16777216, 16777216, 3)"),
    "a frame of 30 GiB": _announced("(1, 102400, 102400, 3)"),
    "a frame of more than 64 bits": _announced("(18446744073709551616, 3)"),
    "a frame of negative size": _announced("(1, -64, 96, 3)", bytes(100)),
    "a frame of too few bytes": _announced("(1, 64, 96, 3)", bytes(100)),
    "a shape that is no tuple": _announced("5", b"12345"),
    "a shape that is code": _announced("__import__('os').getcwd()"),
    "a shape of 100,000 numbers": _announced("(" + "1," * 30_000 + ")", b"1"),
    "floats": _saved(frame=_FRAME.astype(np.float64), labels=_LABELS),
    "words": _saved(frame=np.array("words"), labels=np.array("words")),
    "records": _saved(frame=np.zeros(3, [("a", "i4")]), labels=_LABELS),
    "an array missing": _saved(frame=_FRAME),
    "other sizes": _saved(frame=_FRAME, labels=_LABELS[:, :5]),
    "no frames": _saved(frame=_FRAME[:0], labels=_LABELS[:0]),
    "two frames": _saved(frame=np.concatenate([_FRAME] * 2), labels=np.concatenate([_LABELS] * 2)),
    "code": _code,
    "encrypted": _encrypted,
    "compressed by nobody's method": _unknown_method,
    "lzma that is not": lambda _: _packed(b"", b"", zipfile.ZIP_LZMA),
    "one bare array": _bare,
    "50,000 members": _many,
    "one name twice": _twice,
    "a pipe": _pipe,
    "a pickle": lambda _: pickle.dumps({"frame": 1}),
    "nothing": lambda _: b"",
}
