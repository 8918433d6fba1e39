"""Coverage-guided input, where atheris is installed: for the manifest, range file and checkpoint readers."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from faults.outcome import Progress, Tally, not_run
from faults.process import run_in

FAMILY = "hostile input"
_MOST_MIB = 2048
_LONGEST_S = 20
_PROMISE = f"no error but fcnopt's own; at most {_MOST_MIB} MiB in all, and {_LONGEST_S} s each"
SEEDS = {"manifest": "engines/net/manifest.json", "range-file": "calib/net.json", "checkpoint": "net.pth"}


def fuzz(seeds: Path, python: Path, seconds: int, progress: Progress | None = None) -> list[Tally]:
    """Fuzz each reader for some seconds.

    Args:
        seeds: What `make_seeds` made.
        python: Of an environment with atheris and what fcnopt needs.
        seconds: For each reader.
        progress: Called as readers are done.
    """
    found = []
    for place, (reader, seed) in enumerate(SEEDS.items()):
        found.append(_row(reader, seeds / seed, python, seconds))
        if progress is not None:
            progress("fuzz", (place + 1) / len(SEEDS))
    return found


def has_atheris(python: Path) -> bool:
    """Whether that Python has it."""
    try:
        return not subprocess.run([python, "-c", "import atheris"], capture_output=True, timeout=60).returncode
    except (OSError, subprocess.TimeoutExpired):
        return False


def _row(reader: str, seed: Path, python: Path, seconds: int) -> Tally:
    what = f"{reader} by atheris, {seconds} s"
    if not has_atheris(python):
        return not_run(FAMILY, what, _PROMISE, "atheris is not installed (--fuzz-python)")
    tally = Tally(FAMILY, what, _PROMISE)
    with tempfile.TemporaryDirectory(prefix="fcnopt-fuzz-") as place:
        corpus = Path(place) / "corpus"
        corpus.mkdir()
        shutil.copy(seed, corpus)
        options = (f"-max_len={max(4096, 2 * seed.stat().st_size)}", f"-max_total_time={seconds}", "-seed=1")
        limits = (f"-rss_limit_mb={_MOST_MIB}", f"-timeout={_LONGEST_S}", "-print_final_stats=1")
        line = [str(python), "-m", "faults.fuzz_readers", reader, str(corpus), *options, *limits]
        done = run_in(Path(place), line, seconds + 300)
    _count(done, tally)
    return tally


def _count(done: subprocess.CompletedProcess[str], tally: Tally) -> None:
    stats = {name: int(value) for name, value in re.findall(r"stat::(\w+):\s+(\d+)", done.stderr)}
    covered = re.findall(r"cov: (\d+)", done.stderr)
    tally.outcomes["inputs"] = stats.get("number_of_executed_units", 0)
    tally.worst_mib = float(stats.get("peak_rss_mb", 0))
    tally.worst_s = float(stats.get("slowest_unit_time_sec", 0))
    tally.notes.append(f"{covered[-1] if covered else 0} edges covered; memory is that of the whole process")
    if done.returncode:
        raised = re.search(r"Uncaught Python exception: ===\n(.*)", done.stdout + done.stderr)
        lines = [raised[1]] if raised else [line for line in done.stderr.splitlines() if "ERROR" in line]
        tally.faults.append(" / ".join(lines[:4])[:400] or done.stderr[-300:].strip())
