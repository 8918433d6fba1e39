"""Load, run and stream with little memory: python -m faults.short MIB BUNDLE; 0 is no limit. Writes a line of JSON."""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path
from typing import Any

import numpy as np

import fcnopt
from fcnopt.errors import FcnoptError
from fcnopt.selftest import SELFTEST

_FRAMES = 8


def main() -> None:
    """Limit, work, tell."""
    limit_mib, bundle = int(sys.argv[1]), Path(sys.argv[2])
    before, hard = _space_mib(), resource.getrlimit(resource.RLIMIT_AS)[1]
    with np.load(bundle / SELFTEST) as known:
        frame, labels = known["frame"], known["labels"]
    if limit_mib:
        resource.setrlimit(resource.RLIMIT_AS, (limit_mib << 20, hard))
    try:
        outcome, fault = _worked(bundle, frame, labels)
    except FcnoptError as error:
        outcome, fault = (
            f"refused: {type(error).__name__}",
            "" if error.message and error.fix else "an error without words",
        )
    except MemoryError:
        outcome, fault = "refused: MemoryError", ""
    except ImportError as error:  # the system's loader has no room for a library, and says so
        outcome, fault = (
            "refused: ImportError",
            "" if "failed to map" in str(error) or "allocate" in str(error) else str(error),
        )
    except Exception as error:  # noqa: BLE001  (that this is another's is what is looked for)
        outcome, fault = f"crashed: {type(error).__name__}", f"{type(error).__name__}: {str(error)[:300]}"
    if limit_mib:
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
    print(json.dumps({"outcome": outcome, "fault": fault, "before_mib": before, "after_mib": _space_mib()}), flush=True)


def _worked(bundle: Path, frame: Any, labels: Any) -> tuple[str, str]:
    with fcnopt.load(bundle) as engine:
        if not np.mean(engine.run(frame).labels == labels) > 0.99:
            return "wrong", "other labels than the known answer"
        streamed = [out.labels for out in engine.stream([frame[0]] * _FRAMES, stall_s=60)]
    wrong = sum(not np.mean(each == labels) > 0.99 for each in streamed)
    if len(streamed) != _FRAMES or wrong:
        return "wrong", f"{len(streamed)} of {_FRAMES} frames, {wrong} of them wrong"
    return "done", ""


def _space_mib() -> int:
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[0])
    return pages * resource.getpagesize() >> 20


if __name__ == "__main__":
    main()
