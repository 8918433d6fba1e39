"""Served bundles. What needs Triton runs in the environment that `make test-serve` makes, and is skipped elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.backends.tiny import tiny_spec
from tests.serving.bundles import tiny_bundle

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from serving.process import ServeProcess


@pytest.fixture(scope="session")
def triton() -> None:
    """NVIDIA Triton, and its clients."""
    if find_spec("pytriton") is None:
        pytest.skip("nvidia-pytriton is not installed here: run make test-serve")


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle for frames of 24 x 32, one at a time, with confidence."""
    return tiny_bundle(tmp_path_factory.mktemp("engines") / "small", tiny_spec(outputs=("labels", "confidence")))


@pytest.fixture(scope="session")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that takes about a tenth of a second a frame."""
    return tiny_bundle(tmp_path_factory.mktemp("engines") / "slow", tiny_spec(768, 1024))


@pytest.fixture(scope="module")
def server(triton: None, small: Path) -> Iterator[ServeProcess]:  # noqa: ARG001
    """The small bundle, served with its defaults."""
    with ServeProcess(small) as process:
        yield process
