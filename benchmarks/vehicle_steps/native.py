"""The C++ deployment: built by its README's commands, run on the clip's raw frames, and timed by turns with Python."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from faults.case import Fault

import fcnopt
from fcnopt.bundle import Bundle
from fcnopt.errors import BundleError
from vehicle_steps.deployed import deployed
from vehicle_steps.rows import Figures, NotRun, Row, Work, demand_equal, median, refusal, size_mb, tried

STEP = "cpp"
_TURNS = 5
_SAID = re.compile(r"(\d+) frames .* p50 ([\d.]+) ms, p99 ([\d.]+) ms")


def steps(work: Work) -> list[Row]:
    """Rows of this step."""
    folder = work.place("native")
    rows = [tried(STEP, "deploy to cpp, build by the README's commands", "compiled", lambda: _built(work, folder))]
    if rows[0].fault or rows[0].reason:
        return rows
    return [
        *rows,
        tried(STEP, "the clip's raw frames", "label maps equal to engine.run's, bit for bit",
              lambda: _run(work, folder)),
        tried(STEP, "a changed bundle", "refused", lambda: _refused(work, folder)),
        tried(STEP, f"a frame in C++ and in Python, by turns, {_TURNS} times the clip", "timed",
              lambda: _timed(work, folder)),
    ]  # fmt: skip


def _built(work: Work, folder: Path) -> Figures:
    missing = [tool for tool in ("cmake", "g++") if shutil.which(tool) is None]
    missing += [name for name in ("zlib.h",) if not Path("/usr/include", name).is_file()]
    if missing or Bundle.read(work.bundle).target.runtime != "openvino":
        raise NotRun(f"not installed: {', '.join(missing)}" if missing else "the bundle is not OpenVINO's")
    place, figures = deployed(work.bundle, "cpp", folder)
    commands = re.findall(r"^    (cmake .*)$", (place / "README.md").read_text("utf-8"), re.MULTILINE)
    for name, command in zip(("configure s", "compile s"), commands, strict=True):
        start = time.perf_counter()
        done = subprocess.run(  # as a reader of the README would
            ["bash", "-c", command],  # noqa: S607
            cwd=place,
            capture_output=True,
            text=True,
            env=_environment(),
            timeout=1800,
        )
        if done.returncode:
            raise Fault(f"{command}: {(done.stdout + done.stderr)[-400:]}")
        figures[name] = round(time.perf_counter() - start, 1)
    return figures | {"program MB": size_mb(place / "build" / "fcnopt_run")}


def _run(work: Work, folder: Path) -> Figures:
    work.fitted.tofile(folder / "frames.raw")
    count, *_ = _labelled(work, folder)
    labels = np.fromfile(folder / "labels.raw", np.uint8).reshape(count, *work.fitted.shape[1:3])
    return demand_equal(list(labels), work.raw_labels)


def _refused(work: Work, folder: Path) -> Figures:
    """A bundle with a bit of its weights flipped, as C++ and as Python say it."""
    bundle = folder / "cpp" / "bundle" / work.bundle.name
    file = bundle / Bundle.read(bundle).manifest.engine[-1]
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    try:
        done = _program(folder, work, check=False)
        refusal(BundleError, file.name, lambda: fcnopt.load(bundle), folder)
    finally:
        file.write_bytes(whole)
    if done.returncode != 1 or f"{file.name}: SHA-256 is" not in done.stderr:
        raise Fault(f"exit code {done.returncode}: {done.stderr[-300:]}")
    return {"refused": done.stderr.splitlines()[0].replace(f"{folder / 'cpp'}/", "").removeprefix("error: ")}


def _timed(work: Work, folder: Path) -> Figures:
    native, python = [], []
    for _ in range(_TURNS):
        native.append(_labelled(work, folder)[1])
        with fcnopt.load(work.bundle) as engine:
            times = [engine.run(frame[None], plausibility=None).latency_ms for frame in work.fitted]
        python.append(median(times))
    return {
        "C++ p50 ms": {"median": median(native), "least": min(native)},
        "Python p50 ms": {"median": median(python), "least": min(python)},
    }


def _labelled(work: Work, folder: Path) -> tuple[int, float, float]:
    """Frames, and the median and 99th percentile of their milliseconds, as the program says them."""
    found = _SAID.search(_program(folder, work).stdout)
    if found is None:
        raise Fault("the program does not say what it did")
    return int(found[1]), float(found[2]), float(found[3])


def _program(folder: Path, work: Work, *, check: bool = True) -> subprocess.CompletedProcess[str]:
    place = folder / "cpp"
    words = [place / "bundle" / work.bundle.name, folder / "frames.raw", folder / "labels.raw"]
    line = [str(place / "build" / "fcnopt_run"), *map(str, words)]
    done = subprocess.run(line, capture_output=True, text=True, env=_environment(), timeout=1800)
    if check and done.returncode:
        raise Fault(f"fcnopt_run exits with {done.returncode}: {done.stderr[-300:]}")
    return done


def _environment() -> dict[str, str]:
    """This Python first, so that `python3` in the README's commands is the one with OpenVINO; no keys from outside."""
    kept = {name: value for name, value in os.environ.items() if name != "FCNOPT_TRUSTED_KEYS"}
    return kept | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "LC_ALL": "C"}
