"""Any network that a user has as a class: imported, instantiated and loaded."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fcnopt.errors import UsageError
from fcnopt.models.checkpoint import Loaded, check_keys
from fcnopt.models.files import read_state_dict

_CLASS_COUNT_NAMES = ("n_class", "n_classes", "num_classes", "classes", "nclass")
_FORM_FIX = "give package.module:Class, where Class() makes an nn.Module; the current folder is searched too"


class _LogitsOf(nn.Module):
    """Takes the logits out of the dict that torchvision's segmentation networks return."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        """The entry `out`."""
        result: Tensor = self.net(x)["out"]
        return result


def load_user_module(name: str, checkpoint: str | Path | None = None, *, classes: int | None = None) -> Loaded:
    """Load a user's own network.

    Args:
        name: `package.module:Class`; the class, or a function that returns the module.
        checkpoint: Its weights, loaded strictly; None keeps what the class itself loads or makes.
        classes: Number of classes, handed to the class where a parameter of it asks for one (`n_class`, ...).

    Raises:
        UsageError: The name is malformed, cannot be imported, or does not make an `nn.Module`.
        CheckpointError: The checkpoint cannot be read or is not this module's.
    """
    module = _instantiate(name, _import(name), classes)
    notes: tuple[str, ...] = ()
    if checkpoint is None:
        notes = (f"weights are those that {name} comes with: no checkpoint was given",)
    else:
        path = Path(checkpoint)
        state = read_state_dict(path, expected=module.state_dict().keys())
        fix = f"give the checkpoint that was saved from {name}; say --classes if it tells another number of them apart"
        check_keys(module.state_dict(), state.tensors, name, path, fix=fix)
        module.load_state_dict(state.tensors, strict=True)
        notes = state.notes
    return Loaded(module.float().cpu().eval().requires_grad_(False), name, None, notes)


def logits_only(module: nn.Module, output: Any) -> nn.Module:
    """`module`, made to return the logits alone, given what it returned for some frames.

    Raises:
        UsageError: It returned neither a tensor nor a dict with `out`.
    """
    if isinstance(output, Tensor):
        return module
    if isinstance(output, dict) and isinstance(output.get("out"), Tensor):
        return _LogitsOf(module).eval()
    raise UsageError(
        f"{type(module).__name__} returned {type(output).__name__}, expected logits float [N, C, H, W]",
        fix="wrap it in a class that returns the logits as one tensor, or in a dict as 'out'",
    )


def _import(name: str) -> Callable[..., Any]:
    where, _, what = name.partition(":")
    if not where or not what or not all(part.isidentifier() for part in (*where.split("."), what)):
        raise UsageError(f"module: {name!r} is not of the form package.module:Class", fix=_FORM_FIX)
    try:
        with _current_folder_on_path():
            found = getattr(importlib.import_module(where), what)
    except ModuleNotFoundError as error:
        missing = error.name or where
        fix = _FORM_FIX if where.startswith(missing) else f"install what {where} needs: pip install {missing}"
        raise UsageError(f"module: {where} cannot be imported: {error}", fix=fix) from error
    except ImportError as error:
        raise UsageError(f"module: {where} cannot be imported: {error}", fix=_FORM_FIX) from error
    except AttributeError as error:
        raise UsageError(f"module: {error}", fix=_FORM_FIX) from error
    if not callable(found):
        raise UsageError(f"module: {name} is a {type(found).__name__}, expected a class", fix=_FORM_FIX)
    return found  # type: ignore[no-any-return]  # callable, as was checked


def _instantiate(name: str, make: Callable[..., Any], classes: int | None) -> nn.Module:
    parameters = inspect.signature(make).parameters
    count = next((p for p in _CLASS_COUNT_NAMES if p in parameters), None)
    arguments = {count: classes} if count and classes is not None else {}
    needed = [
        p.name
        for p in parameters.values()
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) and p.name not in arguments
    ]
    if needed:
        fix = "say --classes" if needed == [count] else "write a function without parameters that makes it, and name it"
        raise UsageError(f"module: {name} needs the argument {needed[0]!r}, which is not known", fix=fix)
    module = make(**arguments)
    if not isinstance(module, nn.Module):
        raise UsageError(f"module: {name}() made a {type(module).__name__}, expected an nn.Module", fix=_FORM_FIX)
    return module


@contextmanager
def _current_folder_on_path() -> Iterator[None]:
    """Find modules in the current folder, as `python -m` does and an installed command does not."""
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
