"""wkentaro's torchfcn, as PyPI has it."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from types import ModuleType

import pytest


@pytest.fixture
def torchfcn_models(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """`torchfcn.models`, skipped where torchfcn is not installed.

    Its networks need torch alone, but their files import what downloads their weights (fcn, torchvision), and the
    package imports its trainer; empty modules stand in for these.
    """
    found = importlib.util.find_spec("torchfcn")
    if found is None or found.submodule_search_locations is None:
        missing = "torchfcn is not installed (pip install --no-deps torchfcn)"
        if "CI" in os.environ:  # the gate installs it
            pytest.fail(missing)
        pytest.skip(missing)
    package = ModuleType("torchfcn")
    package.__path__ = list(found.submodule_search_locations)
    for name in [name for name in sys.modules if name.split(".")[0] == "torchfcn"]:
        monkeypatch.delitem(sys.modules, name)
    for module in (package, ModuleType("fcn"), ModuleType("torchvision")):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    models = importlib.import_module("torchfcn.models")
    for name in [name for name in sys.modules if name.startswith("torchfcn.")]:
        monkeypatch.setitem(sys.modules, name, sys.modules.pop(name))  # gone again when the test ends
    return models
