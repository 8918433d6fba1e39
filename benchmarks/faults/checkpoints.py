"""Checkpoints that do more than hold weights: code, cycles, tensors without bytes, zip bombs; and damaged ones."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from faults.case import Case, Fault
from faults.mutations import mutated
from fcnopt.models.checkpoint import load
from fcnopt.slimming.state import Work

_SEEDS = ("net.pth", "old.pth", "net.safetensors")
_SECRET = b"nobody may read this"


def cases(seeds: str, count: int, seed: int = 0) -> Iterator[Case]:
    """Every hand-made one, then damaged ones, to `count` in all."""
    for name in _SEEDS:  # what is imported on first use is no input's memory
        _read(Path(seeds) / name)
    whole = [(Path(seeds) / name).read_bytes() for name in _SEEDS]
    made = [Case("a whole one", partial(_written, "net.pth", whole[0]), _read)]
    made += [Case(name, partial(_made, make), _read) for name, make in HOSTILE.items()]
    yield from made
    rng = np.random.default_rng(seed)
    state = (Path(seeds) / "state.pt").read_bytes()
    for number in range(count - len(made)):
        place = number % (len(whole) + 1)
        if place == len(whole):
            yield Case(f"state {number}", partial(_written, "state.pt", mutated(state, rng)), _read_state)
        else:
            suffix = Path(_SEEDS[place]).suffix
            yield Case(
                f"{_SEEDS[place]} {number}", partial(_written, f"net{suffix}", mutated(whole[place], rng)), _read
            )


def _made(make: Callable[[Path], bytes | None], folder: Path) -> Path:
    path = folder / "net.pth"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sparse and nested tensors call themselves a prototype
        content = make(path)
    if content is not None:
        path.write_bytes(content)
    return path


def _written(name: str, content: bytes, folder: Path) -> Path:
    (folder / name).write_bytes(content)
    return folder / name


def _read(path: Path) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = load(path, padding="same")
    for tensor in loaded.module.state_dict().values():
        if _SECRET in tensor.numpy().tobytes():
            raise Fault("a file outside was read into the weights")
    return "read"


def _read_state(path: Path) -> str:
    return "read" if Work(path.parent).load("state", "k") is not None else "not of this key"


class _Runs:
    """Unpickled without care, it makes a file."""

    def __init__(self, *call: Any) -> None:
        self._call = call

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self._call[0], self._call[1:]


def _canary(path: Path) -> str:
    return str(path.parents[1] / "canary")


def _saved(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def _code(call: Callable[..., Any], argument: Callable[[Path], str], path: Path) -> bytes:
    return _saved({"score_fr.weight": _Runs(call, argument(path))})


def _plain_code(path: Path) -> bytes:
    return pickle.dumps({"a": _Runs(os.mkdir, _canary(path))})


def _code_in_old_format(path: Path) -> bytes:
    buffer = io.BytesIO()
    torch.save({"a": _Runs(os.mkdir, _canary(path))}, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def _code_under_an_allowed_name(path: Path) -> bytes:
    """Numpy's scalar constructor, which fcnopt allows, with an object data type: its bytes are a pickle."""
    scalar = np.float64(0).__reduce__()[0]
    return pickle.dumps({"a": _Runs(scalar, np.dtype("O"), pickle.dumps(_Runs(os.mkdir, _canary(path))))}, protocol=2)


def _tensors(**tensors: Any) -> Callable[[Path], bytes]:
    return lambda _: _saved({name: make() for name, make in tensors.items()})


def _cyclic(_: Path) -> bytes:
    content: dict[str, Any] = {}
    content["state_dict"] = content
    return _saved(content)


def _nested(_: Path) -> bytes:
    content: Any = {"a": torch.ones(1)}
    for _level in range(200):
        content = {"model": content}
    return _saved(content)


def _zip_bomb(_: Path) -> bytes:
    """Deflate packs zeros a thousandfold: 256 MiB in 256 KiB."""
    return _recompressed(_saved({"score_fr.weight": torch.zeros(64 << 20)}))


def _recompressed(content: bytes) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    return packed.getvalue()


def _aliases(_: Path) -> bytes:
    """One half-precision tensor under ten thousand names: each would be converted on its own."""
    shared = torch.zeros(1 << 20, dtype=torch.float16)
    return _saved({f"layer{number}.weight": shared for number in range(10_000)})


def _big_pickle(_: Path) -> bytes:
    """Opcodes that build a list of a hundred million entries out of a kilobyte: (l) extended by itself, doubling."""
    body = b"\x80\x02]q\x00" + b"K\x01a" * 8
    for _step in range(24):
        body += b"h\x00h\x00\x86q\x00"
    return body + b"."


def _safetensors(header: dict[str, Any], data: bytes = b"") -> Callable[[Path], bytes]:
    text = json.dumps(header).encode()
    return lambda _: struct.pack("<Q", len(text)) + text + data


def _link_in_tar(path: Path) -> bytes:
    """Torch's oldest format is a tar file; its members may be links to anywhere."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in ("storages", "tensors", "pickle"):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, str(path.parents[1] / "secret.txt")
            tar.addfile(member)
    return buffer.getvalue()


def _linked_record(path: Path) -> bytes:
    """A zip with names that lead out of any folder it is unpacked to."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as packed:
        packed.writestr("../../canary", "x")
        packed.writestr("archive/data.pkl", pickle.dumps({}))
        packed.writestr("archive/version", "3\n")
    del path
    return buffer.getvalue()


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _huge_old_storage(_: Path) -> bytes:
    """Torch's older format announces how long a storage is before its bytes come."""
    buffer = io.BytesIO()
    torch.save({"score_fr.weight": torch.zeros(3)}, buffer, _use_new_zipfile_serialization=False)
    content = buffer.getvalue()
    for number in (1 << 40, 1 << 28):
        content = content.replace(struct.pack("<q", 3), struct.pack("<q", number))
    return content


HOSTILE: dict[str, Callable[[Path], bytes | None]] = {
    "code": partial(_code, os.mkdir, _canary),
    "code by eval": partial(_code, eval, lambda path: f"open({_canary(path)!r}, 'w')"),
    "code, plain pickle": _plain_code,
    "code, old format": _code_in_old_format,
    "code in a NumPy scalar": _code_under_an_allowed_name,
    "cyclic": _cyclic,
    "nested 200 deep": _nested,
    "expanded": _tensors(a=lambda: torch.zeros(1).expand(10**12)),
    "expanded half": _tensors(a=lambda: torch.zeros(1, dtype=torch.float16).expand(1 << 30)),
    "many aliases": _aliases,
    "sparse": _tensors(
        a=lambda: torch.sparse_coo_tensor(torch.zeros(2, 1, dtype=torch.long), [1.0], (1 << 20, 1 << 20))
    ),
    "sparse rows": _tensors(a=lambda: torch.eye(3).to_sparse_csr()),
    "meta": _tensors(a=lambda: torch.empty(5, device="meta")),
    "nested tensor": _tensors(a=lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])),
    "quantized": _tensors(a=lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)),
    "complex": _tensors(a=lambda: torch.zeros(3, dtype=torch.complex64)),
    "no tensors": _tensors(a=lambda: "words"),
    "zip bomb": _zip_bomb,
    "pickle bomb": _big_pickle,
    "old storage of a terabyte": _huge_old_storage,
    "links in a tar file": _link_in_tar,
    "names that lead out": _linked_record,
    "pipe": _pipe,
    "endless device": _device,
    "safetensors of a terabyte": _safetensors(
        {"a": {"dtype": "F32", "shape": [1 << 38], "data_offsets": [0, 1 << 40]}}
    ),
    "safetensors beyond its end": _safetensors(
        {"a": {"dtype": "F32", "shape": [4], "data_offsets": [1 << 60, 1 << 61]}}
    ),
    "safetensors that overlap": _safetensors(
        {name: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for name in "ab"}, b"1234"
    ),
    "safetensors deep": lambda _: struct.pack("<Q", 100_000) + b'{"a":' + b"[" * 99_995,
}
