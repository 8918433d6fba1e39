from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fcnopt.errors import CheckpointError, UsageError
from fcnopt.models.user import load_user_module, logits_only

CODE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, n_class=21):
        super().__init__()
        self.score = nn.Conv2d(3, n_class, 3, padding=1)
        self.drop = nn.Dropout(0.9)

    def forward(self, x):
        return self.drop(self.score(x))

class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.score = nn.Conv2d(3, 4, 1)

    def forward(self, x):
        return {"out": self.score(x), "aux": x}

class Strict(Net):
    def __init__(self, num_classes):
        super().__init__(num_classes)

class Demanding(Net):
    def __init__(self, backbone):
        super().__init__()

def make():
    return Net(3)

def nothing():
    return 3

NUMBER = 3
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A module in the current folder, under a name that no other test has imported."""
    name = "net_" + "".join(c if c.isalnum() else "_" for c in request.node.name)
    (tmp_path / f"{name}.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    return name


def test_a_class_in_the_current_folder_is_loaded_with_its_weights(package: str, tmp_path: Path) -> None:
    source = load_user_module(f"{package}:Net", classes=6).module
    torch.save({"state_dict": {f"module.{k}": v for k, v in source.state_dict().items()}}, tmp_path / "net.pth")
    loaded = load_user_module(f"{package}:Net", tmp_path / "net.pth", classes=6)
    x = torch.randn(1, 3, 5, 7)
    assert torch.equal(loaded.module(x), source(x))  # equal twice: dropout is off
    assert loaded.description == f"{package}:Net"
    assert loaded.architecture is None


def test_the_class_count_is_handed_in_where_it_is_asked_for(package: str) -> None:
    assert load_user_module(f"{package}:Net").module(torch.ones(1, 3, 2, 2)).shape[1] == 21
    assert load_user_module(f"{package}:Strict", classes=7).module(torch.ones(1, 3, 2, 2)).shape[1] == 7
    assert load_user_module(f"{package}:make", classes=7).module(torch.ones(1, 3, 2, 2)).shape[1] == 3
    with pytest.raises(UsageError, match="needs the argument 'num_classes'") as error:
        load_user_module(f"{package}:Strict")
    assert error.value.fix == "say --classes"


def test_weights_of_another_class_count_are_refused(package: str, tmp_path: Path) -> None:
    torch.save(load_user_module(f"{package}:Net", classes=6).module.state_dict(), tmp_path / "net.pth")
    with pytest.raises(CheckpointError, match=r"score\.weight has shape \[6, 3, 3, 3\], expected \[21, 3, 3, 3\]"):
        load_user_module(f"{package}:Net", tmp_path / "net.pth")


def test_weights_of_another_module_are_refused(package: str, tmp_path: Path) -> None:
    torch.save({"scores.weight": torch.ones(21, 3, 3, 3), "score.bias": torch.ones(21)}, tmp_path / "net.pth")
    with pytest.raises(CheckpointError, match=r"missing score\.weight \(nearest: scores\.weight\)"):
        load_user_module(f"{package}:Net", tmp_path / "net.pth")


def test_without_a_checkpoint_a_note_says_whose_weights_they_are(package: str) -> None:
    assert "weights are those that" in load_user_module(f"{package}:Net").notes[0]


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("Net", "is not of the form package.module:Class"),
        (":Net", "is not of the form"),
        ("a b:Net", "is not of the form"),
        ("no_such_package_here.models:Net", "cannot be imported: No module named 'no_such_package_here'"),
        ("{}:Missing", "has no attribute 'Missing'"),
        ("{}:NUMBER", "is a int, expected a class"),
        ("{}:nothing", r"made a int, expected an nn\.Module"),
        ("{}:Demanding", "needs the argument 'backbone'"),
    ],
)
def test_a_wrong_name_is_a_usage_error(package: str, what: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_user_module(what.format(package))


def test_the_logits_are_taken_out_of_a_dict(package: str) -> None:
    module = load_user_module(f"{package}:Named").module
    x = torch.ones(1, 3, 2, 2)
    assert torch.equal(logits_only(module, module(x))(x), module(x)["out"])
    with pytest.raises(UsageError, match="returned tuple, expected logits"):
        logits_only(module, (x, x))


@pytest.mark.parametrize("name", ["FCN8s", "FCN32s"])
@pytest.mark.usefixtures("torchfcn_models")
def test_torchfcn_is_taken_as_it_is(name: str) -> None:
    loaded = load_user_module(f"torchfcn.models:{name}", classes=3)
    with torch.inference_mode():
        assert loaded.module(torch.zeros(1, 3, 33, 47)).shape == (1, 3, 33, 47)
