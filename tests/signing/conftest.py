"""Keys, and bundles signed with them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from fcnopt.bundle import loading, sign
from fcnopt.manifest import Manifest
from fcnopt.signing import new_key
from tests.signing.common import ReachedError, make_bundle


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the private keys `release` and `stranger`, and each one's .pub."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("release", "stranger"):
        new_key(folder / name)
    return folder


@pytest.fixture(scope="session")
def unsigned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("engines") / "net", "onnxruntime")


@pytest.fixture
def bundle(unsigned: Path, keys: Path, tmp_path: Path) -> Path:
    """A copy, signed by `release`."""
    place = Path(shutil.copytree(unsigned, tmp_path / "net"))
    sign(place, keys / "release")
    return place


@pytest.fixture
def trusted(keys: Path) -> Path:
    return keys / "release.pub"


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Whether a manifest was parsed; there is no runtime, but who gets to it raises `ReachedError`."""
    seen: list[str] = []
    parse = Manifest.from_json

    def from_json(text: str, where: Path) -> Manifest:
        seen.append("manifest")
        return parse(text, where)

    def reach(*_: Any) -> None:
        raise ReachedError

    monkeypatch.setattr(Manifest, "from_json", from_json)
    monkeypatch.setattr(loading, "open_engine", reach)
    return seen
