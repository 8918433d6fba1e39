"""A bundle with one byte flipped, wherever it is: it is refused, signed or not."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import fcnopt
from faults.case import judged
from faults.outcome import Progress, Tally
from faults.watching import MemoryRise
from fcnopt.bundle import MANIFEST, SIGNATURE, Bundle
from fcnopt.signing import new_key

FAMILY = "flipped bytes"
_PROMISE = "a bundle with any one byte changed is refused with a message that names the file"
_ALSO = {SIGNATURE: ("signed by an unknown key",)}
"""What names a file as well: the key is all that is in a signature beside the signature itself."""


def flips(
    bundle: Path, count: int = 500, every: int = 1, seed: int = 0, progress: Progress | None = None
) -> list[Tally]:
    """Flip bytes of a copy of a bundle, one at a time, and load it.

    Args:
        bundle: A whole one, not signed.
        count: Random flips over all files, each file as often.
        every: Of manifest.json's bytes, and of the signature's, which are flipped: 1 for each of them.
        seed: Of places and values.
        progress: Called as they go by.
    """
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory(prefix="fcnopt-flips-") as place:
        copy, key = Path(shutil.copytree(bundle, Path(place) / bundle.name)), Path(place) / "key"
        unsigned = _random(copy, count, rng, (), progress)
        manifest = _sweep(copy, MANIFEST, every, rng, (), progress)
        public = new_key(key)
        fcnopt.sign(copy, key)
        signed = _random(copy, count, rng, (public,), progress)
        return [
            unsigned,
            manifest,
            signed,
            *(_sweep(copy, n, every, rng, (public,), progress) for n in (MANIFEST, SIGNATURE)),
        ]


def _random(
    copy: Path, count: int, rng: np.random.Generator, keys: tuple[Path, ...], progress: Progress | None
) -> Tally:
    """Places in every file, each file as often, of all files in turn."""
    files = sorted(copy.iterdir())
    tally = Tally(FAMILY, f"random flips over {len(files)} files, {_kind(keys)}", _PROMISE)
    for number in range(count):
        file = files[number % len(files)]
        _one(copy, file, int(rng.integers(0, file.stat().st_size)), int(rng.integers(1, 256)), keys, tally)
        if progress is not None:
            progress(tally.what, (number + 1) / count)
    return _proved(copy, keys, tally)


def _sweep(
    copy: Path, name: str, every: int, rng: np.random.Generator, keys: tuple[Path, ...], progress: Progress | None
) -> Tally:
    file = copy / name
    size = file.stat().st_size
    which = "every byte" if every == 1 else f"every {every}th byte"
    tally = Tally(FAMILY, f"{which} of {name}, {_kind(keys)}", _PROMISE)
    for at in range(0, size, every):
        _one(copy, file, at, int(rng.integers(1, 256)), keys, tally)
        if progress is not None:
            progress(tally.what, (at + 1) / size)
    return _proved(copy, keys, tally)


def _kind(keys: tuple[Path, ...]) -> str:
    return "signed" if keys else "unsigned"


def _one(copy: Path, file: Path, at: int, mask: int, keys: tuple[Path, ...], tally: Tally) -> None:
    """Flip, load, and flip back."""
    start = time.perf_counter()
    with MemoryRise() as rise, _changed(file, at, mask):
        outcome, fault = judged(lambda: _loaded(copy, keys), (file.name, *_ALSO.get(file.name, ())))
    if not fault and outcome == "loaded":
        fault = "loaded as if nothing was wrong"
    place = f"{file.name}, byte {at} ^ {mask:#04x}: "
    tally.add(outcome, seconds=time.perf_counter() - start, mib=rise.mib, fault=place + fault if fault else "")


@contextlib.contextmanager
def _changed(file: Path, at: int, mask: int) -> Iterator[None]:
    with file.open("r+b") as content:
        content.seek(at)
        before = content.read(1)
        content.seek(at)
        content.write(bytes((before[0] ^ mask,)))
    try:
        yield
    finally:
        with file.open("r+b") as content:
            content.seek(at)
            content.write(before)


def _loaded(copy: Path, keys: tuple[Path, ...]) -> str:
    """First what is quick: where the manifest is refused, there is nothing to load."""
    Bundle.read_trusted(copy, keys)
    fcnopt.load(copy, trusted_keys=keys).close()
    return "loaded"


def _proved(copy: Path, keys: tuple[Path, ...], tally: Tally) -> Tally:
    """With every byte back in its place it loads: so it was the flip that was refused."""
    if _loaded(copy, keys) != "loaded":
        raise AssertionError(copy)
    tally.notes.append("loads again with the byte put back")
    return tally
