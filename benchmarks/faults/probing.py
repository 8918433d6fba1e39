"""Running cases in a process that may hang, crash or take too much memory, and saying so."""

from __future__ import annotations

import json
import queue
import shutil
import signal
import subprocess
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from faults.outcome import Progress, Tally
from faults.process import environment, program

_MOST_DEATHS = 20
_PATIENCE_S = 60.0
_START_S = 300.0  # for libraries to be imported, and for an input to be made


@dataclass(frozen=True)
class Cases:
    """What to run, and within what.

    Attributes:
        target: "module:function" that gives the cases, in the same order each time.
        arguments: For it, ready for JSON.
        count: How many it gives, for the progress.
        bound_mib: Most memory that one may take.
        bound_s: Longest time that one may take; it is killed, and called hanging, at five times as long.
        limit_mib: Address space for all of them, so that the machine is safe.
    """

    target: str
    arguments: dict[str, Any] = field(default_factory=dict)
    count: int = 1
    bound_mib: float = 256.0
    bound_s: float = 20.0
    limit_mib: int = 4 << 10


def probe(cases: Cases, tally: Tally, progress: Progress | None = None) -> Tally:
    """Run cases one after another and count into `tally` what came; a dead process is replaced by another."""
    done = deaths = 0
    with tempfile.TemporaryDirectory(prefix="fcnopt-faults-") as scratch:
        while deaths < _MOST_DEATHS:
            stopped_at, why = _run(cases, tally, Path(scratch), done, progress)
            if stopped_at is None:
                if why:  # it could not even begin
                    tally.faults.append(why)
                return tally
            tally.add(why.split(":")[0], fault=why)
            done, deaths = stopped_at + 1, deaths + 1
    tally.faults.append(f"given up after {deaths} dead processes")
    return tally


def _run(cases: Cases, tally: Tally, scratch: Path, skip: int, progress: Progress | None) -> tuple[int | None, str]:
    """One process: the case that it stopped at and why; None where it came to the end."""
    shutil.rmtree(scratch / "case", ignore_errors=True)
    asked = {"cases": cases.target, "arguments": cases.arguments, "skip": skip, "limit_mib": cases.limit_mib}
    errors = scratch / "stderr"
    with errors.open("wb") as stderr:
        worker = subprocess.Popen(
            program("worker", json.dumps({**asked, "scratch": str(scratch)})),
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=environment(),
            text=True,
        )
    lines = _lines(worker)
    at: int | None = None
    name = ""
    try:
        patience_s = _START_S
        while (line := lines.get(timeout=patience_s)) is not None:
            said = json.loads(line)
            patience_s = 5 * cases.bound_s if "made" in said else _START_S
            if "begin" in said:
                at, name = said["begin"], said["name"]
            if "outcome" not in said:
                continue
            _count(tally, cases, name, said)
            if progress is not None:
                progress(tally.what, min(1.0, ((at or 0) + 1) / cases.count))
        code = worker.wait(_PATIENCE_S)
    except (queue.Empty, subprocess.TimeoutExpired):
        return at, f"hangs: {name}"
    finally:
        worker.kill()
        worker.communicate()  # its pipe is closed
    if code == 0:
        return None, ""
    return at, f"died by {_cause(code)}: {name}: {errors.read_text('utf-8', 'replace')[-300:].strip()}"


def _count(tally: Tally, cases: Cases, name: str, said: dict[str, Any]) -> None:
    fault = said["fault"]
    if said["mib"] > cases.bound_mib:
        fault = f"{fault} took {said['mib']:.0f} MiB, more than {cases.bound_mib:.0f}".strip()
    if said["seconds"] > cases.bound_s:
        fault = f"{fault} took {said['seconds']:.1f} s, more than {cases.bound_s:g}".strip()
    tally.add(said["outcome"], seconds=said["seconds"], mib=said["mib"], fault=f"{name}: {fault}" if fault else "")


def _lines(worker: subprocess.Popen[str]) -> queue.Queue[str | None]:
    """The worker's lines as they come; None at their end."""
    lines: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        for line in worker.stdout or ():
            if line.startswith("{"):
                lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    return lines


def _cause(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"
