"""The process that cases run in: python -m faults.worker '{"cases": "module:function", "arguments": {...}, ...}'.

Writes a line of JSON before and after every case, so that who reads them knows which one hangs or kills it.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from faults.case import Case, judged
from faults.watching import MemoryRise, OpenedFiles

CANARY = "canary"


def main() -> None:
    """Run the cases that are asked for."""
    asked = json.loads(sys.argv[1])
    scratch = Path(asked["scratch"]).resolve()
    folder, own = scratch / "case", scratch / "tmp"
    own.mkdir(parents=True, exist_ok=True)
    os.environ["TMPDIR"] = tempfile.tempdir = str(own)
    (scratch / "secret.txt").write_text("nobody may read this", encoding="utf-8")
    opened = OpenedFiles((folder, own))
    os.chdir(own)
    _limit_memory(asked["limit_mib"])
    for number, case in enumerate(_cases(asked["cases"], asked["arguments"])):
        if number >= asked["skip"]:
            _say({"begin": number, "name": case.name})
            _say(_tried(case, folder, opened, scratch / CANARY))


def _say(what: dict[str, Any]) -> None:
    print(json.dumps(what), flush=True)


def _cases(target: str, arguments: dict[str, Any]) -> Iterator[Case]:
    module, name = target.split(":")
    made: Iterator[Case] = getattr(importlib.import_module(module), name)(**arguments)
    return made


def _limit_memory(mib: int) -> None:
    """Let what is absurd fail, instead of the machine: the address space as it is now and `mib` more."""
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[0])
    limit = pages * resource.getpagesize() + (mib << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _tried(case: Case, folder: Path, opened: OpenedFiles, canary: Path) -> dict[str, Any]:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    os.chdir(folder)
    given = case.make(folder)
    _say({"made": case.name})
    with MemoryRise() as rise, opened.noting() as outside:
        start = time.perf_counter()
        outcome, fault = judged(lambda: case.use(given))
        seconds = time.perf_counter() - start
    if outside:
        fault = f"{fault} opened {outside[0]}, outside the folder".strip()
    if canary.exists():
        canary.rmdir() if canary.is_dir() else canary.unlink()
        fault = f"{fault} ran code out of the file".strip()
    return {"outcome": outcome, "fault": fault, "seconds": seconds, "mib": rise.mib}


if __name__ == "__main__":
    main()
