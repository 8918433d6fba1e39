from __future__ import annotations

import sys

import pytest

from fcnopt.backends.packages import EXTRAS, installed, pip_command, require, version_of
from fcnopt.errors import BackendError


@pytest.mark.parametrize(("module", "extra"), EXTRAS.items())
def test_a_missing_runtime_names_the_command_that_installs_it(monkeypatch, module, extra):
    monkeypatch.setitem(sys.modules, module, None)  # what Python does to a module that must not be found
    with pytest.raises(BackendError, match=f"{module} is not installed") as caught:
        require(module)
    assert caught.value.fix == f'run: pip install "fcnopt[{extra}]"'
    assert pip_command(module) in caught.value.fix


def test_a_library_that_cannot_be_loaded_is_told_from_a_missing_one(monkeypatch, tmp_path):
    (tmp_path / "openvino.py").write_text("raise ImportError('libtbb.so.12: cannot open shared object file')")
    monkeypatch.delitem(sys.modules, "openvino", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(BackendError, match="installed but cannot be loaded: libtbb") as caught:
        require("openvino")
    assert "--force-reinstall" in caught.value.fix


def test_versions_are_known_without_importing():
    assert version_of("onnxruntime")
    assert version_of("cupy_that_is_not_there") is None
    assert not installed("cupy_that_is_not_there")
