"""Sign a bundle, load it by key, and see that nothing else is loaded where keys are required."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

from faults.case import Fault

import fcnopt
from fcnopt.bundle import sign
from fcnopt.engine import Engine
from fcnopt.errors import BundleError
from fcnopt.evaluate.memory import PeakMemory
from fcnopt.signing import MANIFEST, SIGNATURE, new_key
from vehicle_steps.rows import Figures, Row, Work, demand_equal, median, refusal, tried

_TURNS = 3
STEP = "sign"


def steps(work: Work) -> list[Row]:
    """Rows of this step."""
    folder = work.place("signed")
    bundle = Path(shutil.copytree(work.bundle, folder / work.bundle.name))
    public = new_key(folder / "release")

    def keyed() -> object:
        return fcnopt.load(bundle, trusted_keys=[public])

    def refused(words: str, load: Callable[[], object] = keyed) -> Figures:
        return refusal(BundleError, words, load, folder)

    rows = [
        tried(STEP, "unsigned, loaded with a key", "refused", lambda: refused("is not signed")),
        tried(
            STEP, "new key, sign, load with it", "labels of load without keys", lambda: _signed(work, bundle, public)
        ),
    ]
    stranger = new_key(folder / "stranger")
    rows.append(
        tried(
            STEP,
            "signed, loaded with another key",
            "refused",
            lambda: refused("unknown key", lambda: fcnopt.load(bundle, trusted_keys=[stranger])),
        )
    )
    for name in (MANIFEST, *sorted(file.name for file in bundle.iterdir() if file.name != MANIFEST)):
        rows.append(
            tried(STEP, f"a bit of {name} changed", "refused", lambda name=name: _changed(bundle / name, refused))
        )
    rows.append(tried(STEP, "all as it was, load again", "loads", lambda: _loads(keyed)))
    return rows


def _signed(work: Work, bundle: Path, public: Path) -> Figures:
    start = time.perf_counter()
    finger = sign(bundle, public.with_suffix(""))
    sign_ms = round(1e3 * (time.perf_counter() - start), 1)
    plain_s, keyed_s = [], []
    for _ in range(_TURNS):
        for seconds, keys in ((plain_s, ()), (keyed_s, (public,))):
            start = time.perf_counter()
            fcnopt.load(bundle, trusted_keys=keys).close()
            seconds.append(time.perf_counter() - start)
    with PeakMemory() as memory, fcnopt.load(bundle, trusted_keys=[public]) as engine:
        found = [engine.run(frame[None]).labels[0] for frame in work.fitted]
    return {
        **demand_equal(found, work.raw_labels),
        "key": finger,
        "sign ms": sign_ms,
        "load s": median(plain_s),
        "load s with key": median(keyed_s),
        "MiB at most on top": round((memory.peak_mib or 0) - (memory.start_mib or 0)),
    }


def _changed(file: Path, refused: Callable[[str], Figures]) -> Figures:
    """Flip a bit in the middle of a file; what is refused must be the file, or the signature."""
    whole = file.read_bytes()
    place = len(whole) // 2
    file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    try:
        return refused("sign" if file.name in (MANIFEST, SIGNATURE) else file.name)
    finally:
        file.write_bytes(whole)


def _loads(load: Callable[[], object]) -> Figures:
    engine = load()
    if not isinstance(engine, Engine):
        raise Fault("load gave no engine")
    engine.close()
    return {}
