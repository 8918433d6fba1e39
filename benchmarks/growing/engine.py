"""One engine in a process of its own: time a batch, and most memory. Prints JSON.

    python -m growing.engine FOLDER --runs 10

FOLDER holds engine files and the manifest that names them.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import numpy as np
from race.wire import peak_mib

from fcnopt.backends.opening import open_engine
from fcnopt.backends.targets import Target
from fcnopt.manifest import Manifest

_WARM_UP = 2


def main() -> None:
    """Load, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--runs", type=int, default=10)
    args = parser.parse_args()
    where = args.folder / "manifest.json"
    manifest = Manifest.from_json(where.read_text(encoding="utf-8"), where)
    files = tuple(args.folder / name for name in manifest.engine)
    before = peak_mib()
    with open_engine(files, Target.parse(manifest.target), manifest.precision, manifest.spec) as runner:
        size = manifest.spec.frame
        shape = runner.batch or 1, size.height, size.width, 3
        frames = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        times = [runner.infer(frames).inference_ms for _ in range(_WARM_UP + args.runs)][_WARM_UP:]
    found = {"ms": statistics.median(times), "least_ms": min(times), "peak_mib": peak_mib(), "before_mib": before}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
