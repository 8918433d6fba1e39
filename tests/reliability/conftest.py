"""Small files of every kind, made once."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))


@pytest.fixture(scope="session")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `faults.seeds.make_seeds` makes, a bundle of a small network among it."""
    from faults.seeds import SEEDS, make_seeds

    folder = make_seeds(tmp_path_factory.mktemp("seeds") / "seeds", precision="int8")
    missing = [name for name in SEEDS if not (folder / name).is_file()]
    assert not missing
    return folder
