"""A served engine at twice its capacity, where an environment with the server is at hand."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from faults.outcome import Tally, not_run
from faults.process import BENCHMARKS, run_in

FAMILY = "load"
_WHAT = "the served engine at 2x its capacity"
_PROMISE = "every request is answered rightly or clearly rejected, none is lost; the queue is bounded, memory flat"


def served(bundle: Path, python: Path | None, minutes: float = 10.0) -> list[Tally]:
    """Overload `fcnopt serve`.

    Args:
        bundle: What is served.
        python: Of an environment with fcnopt[serve]; its NumPy is another than the one here. None does not run it.
        minutes: How long.
    """
    if python is None or not (BENCHMARKS / "serving" / "overload.py").is_file():
        return [not_run(FAMILY, _WHAT, _PROMISE, "no environment with fcnopt[serve] was given (--serve-python)")]
    with tempfile.TemporaryDirectory(prefix="fcnopt-load-") as place:
        out = Path(place) / "found.json"
        words = (str(bundle.resolve()), "--minutes", str(minutes), "--out", str(out))
        done = run_in(BENCHMARKS, [str(python), "-m", "serving.overload", *words], 60 * minutes + 900)
        if not out.is_file():
            said = done.stderr.strip()[-300:]
            return [Tally(FAMILY, _WHAT, _PROMISE, faults=[f"exit code {done.returncode} before the end: {said}"])]
        return [counted(json.loads(out.read_text("utf-8")), done.returncode)]


def counted(found: dict[str, Any], code: int) -> Tally:
    """The row of what `serving.overload` found."""
    load, memory = found["overload"], found["memory_mib"]
    tally = Tally(FAMILY, f"{_WHAT}, {load['seconds'] / 60:.1f} minutes", _PROMISE, needed=("answered", "rejected"))

    def p99(name: str) -> str:
        return str(load[name].get("p99"))

    for name in ("answered", "rejected", "failed", "wrong", "lost"):
        if load[name]:
            tally.outcomes[name] = load[name]
    tally.faults += [f"{load[name]} {name}" for name in ("failed", "wrong", "lost") if load[name]]
    if not memory["flat"]:
        tally.faults.append(f"memory grew by {memory['growth']} MiB")
    if code and not tally.faults:
        tally.faults.append(f"serving.overload exits with {code}")
    tally.worst_mib, tally.worst_s = float(memory["growth"]), load["latency_ms"].get("max", 0.0) / 1e3
    tally.notes.append(
        f"capacity {found['capacity']['answers_per_s']} answers/s, {found['clients']} clients; p99 {p99('latency_ms')} "
        f"ms, of rejections {p99('rejection_ms')} ms; peak {memory['peak']} MiB"
    )
    return tally
