"""Coverage-guided fuzzing of one reader by atheris: python -m faults.fuzz_readers READER CORPUS LIBFUZZER_OPTIONS...

Runs in any environment with atheris and fcnopt. An error that is not fcnopt's own ends it, and the input stays in the
current folder (libFuzzer's `-artifact_prefix`).
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["fcnopt"]):
    from fcnopt.bundle import Bundle
    from fcnopt.errors import FcnoptError
    from fcnopt.quantize.rangefile import RangeFile

READERS = ("manifest", "range-file", "checkpoint")


def main() -> None:
    """Let libFuzzer call the reader."""
    reader = sys.argv.pop(1)
    folder = Path(tempfile.mkdtemp(prefix="fcnopt-fuzz-"))
    name, read = _reader(reader)
    warnings.simplefilter("ignore")

    def one(data: bytes) -> None:
        (folder / name).write_bytes(data)
        with contextlib.suppress(FcnoptError):
            read(folder / name)

    atheris.Setup(sys.argv, one)
    atheris.Fuzz()


def _reader(name: str) -> tuple[str, Callable[[Path], object]]:
    if name == "manifest":
        return "manifest.json", lambda path: Bundle.read(path.parent)
    if name == "range-file":
        return "net.json", RangeFile.load
    with atheris.instrument_imports(include=["fcnopt"]):
        from fcnopt.models.files import read_state_dict
    return "net.pth", read_state_dict


if __name__ == "__main__":
    main()
