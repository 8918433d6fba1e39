"""State dicts from files: `.pth` in both of torch's formats, and safetensors.

Nothing in a file is executed: pickles are read with `weights_only=True`, with NumPy's plain scalars allowed on top,
since trainers (wkentaro/pytorch-fcn's among them) save their best score as one.
"""

from __future__ import annotations

import difflib
import pickle
import re
import struct
import zipfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fcnopt.errors import CheckpointError
from fcnopt.origin import ORIGIN_KEY, Origin

# Where trainers put the state dict, and what wrappers (DataParallel, torch.compile, Lightning) put before its keys.
_WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "module", "net", "network", "checkpoint")
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.")
_DEEPEST = 16  # wrappers within wrappers; the deepest that trainers write is 2
_MOST_REPEATED = 4  # weights that are shared stand under each of their names
_SAVE_FIX = "save the weights alone, torch.save(model.state_dict(), 'weights.pth'), and give that file"
_NOT_A_CHECKPOINT_FIX = "give a .pth file written by torch.save(model.state_dict(), ...) or a .safetensors file"


@dataclass(frozen=True)
class StateDict:
    """The tensors of a checkpoint by name, floating point ones as float32, all finite.

    Attributes:
        tensors: Without wrapper prefixes.
        notes: What was unwrapped or converted, one line each.
        origin: Of a slimmed network, what it was made from.
    """

    tensors: dict[str, Tensor]
    notes: tuple[str, ...] = ()
    origin: Origin | None = None


def read_state_dict(path: str | Path, *, expected: Collection[str] = ()) -> StateDict:
    """Read a checkpoint's state dict, on the CPU.

    Args:
        path: The file.
        expected: Names that the module has; a prefix stays where the names with it are among them.

    Raises:
        CheckpointError: The file is missing, empty, truncated, not a checkpoint, needs more than weights to be
            unpickled, holds no state dict, holds other tensors than weights, more of them than its bytes can be, NaN
            or Inf, or what it says of its original is damaged.
    """
    path = Path(path)
    _check_file(path)
    content = _read_safetensors(path) if _is_safetensors(path) else _read_pickle(path)
    tensors, place = _find_tensors(content, path)
    _check_tensors(tensors, path)
    tensors, prefix = _strip_prefixes(tensors, frozenset(expected))
    notes = [f"weights read from {place!r}"] if place else []
    notes += [f"prefix {prefix!r} taken off the keys"] if prefix else []
    kinds = sorted({str(t.dtype).removeprefix("torch.") for t in tensors.values() if t.is_floating_point()})
    if kinds != ["float32"] and kinds:
        notes.append(f"weights are {' and '.join(kinds)} in the file, exported as float32")
    found = content.get(ORIGIN_KEY) if isinstance(content, Mapping) else None
    origin = None if found is None else Origin.from_json(found, path)
    return StateDict({name: _checked(name, tensor, path) for name, tensor in tensors.items()}, tuple(notes), origin)


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise CheckpointError(f"{path}: is a folder, expected a checkpoint file", fix="name the .pth file in it")
    if not path.is_file():
        siblings = [p.name for p in path.parent.iterdir() if p.is_file()] if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, siblings, n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise CheckpointError(f"{path}: no such file{hint}", fix="give the path of the trained network's .pth file")
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path}: the file is empty", fix="copy or save the checkpoint again")
    if path.suffix.lower() == ".onnx":
        raise CheckpointError(
            f"{path}: this is an ONNX file already, expected a trained PyTorch network",
            fix="skip the export: give it to fcnopt optimize or fcnopt build",
        )


def _is_safetensors(path: Path) -> bool:
    if path.suffix.lower() == ".safetensors":
        return True
    with path.open("rb") as file:
        start = file.read(9)
    # eight bytes of header length, then the header, a JSON object
    return len(start) == 9 and start[8:] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size


def _read_safetensors(path: Path) -> Any:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise CheckpointError(
            f"{path}: safetensors is not installed, it is needed to read this file", fix="pip install safetensors"
        ) from error
    try:
        return load_file(path)
    except SafetensorError as error:
        raise CheckpointError(
            f"{path}: not a complete safetensors file: {error}", fix="copy or save the checkpoint again"
        ) from error


def _read_pickle(path: Path) -> Any:
    _check_archive(path)
    try:
        with torch.serialization.safe_globals(_numpy_scalars()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise _unpickling_error(path, error) from error
    except Exception as error:  # damaged bytes make the unpickler fail in any way: struct.error, TypeError, ...
        if "TorchScript" in str(error):
            raise CheckpointError(
                f"{path}: this is a TorchScript program, expected a state dict",
                fix="load it with torch.jit.load and save its state_dict()",
            ) from error
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path}: cannot be read, it is truncated or not a checkpoint: {reason}", fix=_NOT_A_CHECKPOINT_FIX
        ) from error


def _check_archive(path: Path) -> None:
    """Refuse what would unpack to more than it is: torch writes its archives uncompressed."""
    try:
        if not zipfile.is_zipfile(path):  # raises, too, on archives that say they span several disks
            return
        with zipfile.ZipFile(path) as archive:
            entries = [
                entry for entry in archive.infolist() if entry.filename.split("/")[1:2] != ["code"]
            ]  # TorchScript's
            packed = [entry.filename for entry in entries if entry.compress_type != zipfile.ZIP_STORED]
    except (ValueError, OSError, NotImplementedError, zipfile.BadZipFile, struct.error) as error:
        raise CheckpointError(
            f"{path}: cannot be read, it is truncated or not a checkpoint: {error}", fix=_NOT_A_CHECKPOINT_FIX
        ) from error
    if packed:
        raise CheckpointError(
            f"{path}: {packed[0]} in it is compressed, expected an archive as torch.save writes it, uncompressed",
            fix=_SAVE_FIX,
        )


def _unpickling_error(path: Path, error: pickle.UnpicklingError) -> CheckpointError:
    text = str(error)
    found = re.search(r"GLOBAL ([\w.]+)", text) or re.search(r"class ([\w.]+)", text)
    if found:
        return CheckpointError(
            f"{path}: unpickling it would run {found[1]}, which is more than weights, so it was not loaded",
            fix=_SAVE_FIX,
        )
    return CheckpointError(f"{path}: not a checkpoint, or a truncated one", fix=_NOT_A_CHECKPOINT_FIX)


def _numpy_scalars() -> list[Any]:
    """What a NumPy number needs to be unpickled: its constructor under NumPy 1's and 2's name, and the data types."""
    scalar = np.float64(0).__reduce__()[0]
    types = [type(np.dtype(code)) for code in ("f2", "f4", "f8", "i4", "i8", "u1", "?")]
    return [(scalar, "numpy.core.multiarray.scalar"), (scalar, "numpy._core.multiarray.scalar"), np.dtype, *types]


def _find_tensors(content: Any, path: Path) -> tuple[dict[str, Tensor], str]:
    """The innermost state dict, and the names it lies under, joined by dots."""
    place: list[str] = []
    while isinstance(content, Mapping) and len(place) <= _DEEPEST:
        tensors = {str(k): v for k, v in content.items() if isinstance(v, Tensor)}
        wrapper = next((name for name in _WRAPPERS if isinstance(content.get(name), Mapping)), None)
        if wrapper is None:
            if tensors:
                return tensors, ".".join(place)
            break
        place.append(wrapper)
        content = content[wrapper]
    if isinstance(content, Mapping):
        found = f"keys {', '.join(map(repr, list(content)[:6]))}" if content else "an empty dict"
    else:
        found = f"a {type(content).__name__}"
    at = f" under {'.'.join(place)!r}" if place else ""
    raise CheckpointError(
        f"{path}: holds no weights: expected a state dict{at} (tensors by name), found {found}", fix=_SAVE_FIX
    )


def _check_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Refuse tensors that are no weights, or that are more than the file's bytes: views can repeat these at will."""
    most = path.stat().st_size * _MOST_REPEATED
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_nested or tensor.is_quantized or tensor.is_meta:
            what = "quantized" if tensor.is_quantized else "without values" if tensor.is_meta else "sparse or nested"
            raise CheckpointError(f"{path}: {name} is {what}, expected a plain tensor of weights", fix=_SAVE_FIX)
        most -= tensor.numel() * tensor.element_size()
        if most < 0:
            raise CheckpointError(
                f"{path}: at {name} its tensors have over {_MOST_REPEATED} times the bytes that the file has",
                fix="do not use this file unless you trust it; " + _SAVE_FIX,
            )


def _strip_prefixes(tensors: dict[str, Tensor], expected: frozenset[str]) -> tuple[dict[str, Tensor], str]:
    """Take off the prefixes that every key has, until the first of `expected` appears."""
    stripped = ""
    while not expected & tensors.keys():
        prefix = next((p for p in _PREFIXES if all(k.startswith(p) for k in tensors)), None)
        if prefix is None:
            break
        tensors = {k.removeprefix(prefix): v for k, v in tensors.items()}
        stripped += prefix
    return tensors, stripped


def _checked(name: str, tensor: Tensor, path: Path) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    tensor = tensor.detach().to(torch.float32)
    bad = int((~torch.isfinite(tensor)).sum())
    if bad:
        raise CheckpointError(
            f"{path}: {name} has {bad} of {tensor.numel()} values NaN or Inf", fix="train again from a sound checkpoint"
        )
    return tensor
