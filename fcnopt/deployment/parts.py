"""What the stacks need to know of an engine, and the files of a bundle that they need, as they were verified."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fcnopt.backends.onnxfile import read_structure
from fcnopt.bundle import MANIFEST, MODEL, SIGNATURE, Bundle, sha256_of, write_text
from fcnopt.errors import BundleError
from fcnopt.selftest import SELFTEST
from fcnopt.signing import hash_member

PROOF = "bundle"
"""The folder with the manifest, its signature and the known-answer test, which no stack loads."""
SUMS = "SHA256SUMS"


@dataclass(frozen=True)
class Tensor:
    """An input or output of an engine.

    Attributes:
        name: As the engine calls it.
        dtype: NumPy's name of its type.
        dims: Sizes of its axes, the batch first; None where an axis is open.
    """

    name: str
    dtype: str
    dims: tuple[int | None, ...]


@dataclass(frozen=True)
class Interface:
    """What an engine takes and gives.

    Attributes:
        frames: uint8 [N, H, W, 3].
        outputs: `labels` uint8 [N, H, W], and others in the order of the spec.
    """

    frames: Tensor
    outputs: tuple[Tensor, ...]

    @property
    def batch(self) -> int | None:
        """Frames that it computes at once; None where that is open."""
        return self.frames.dims[0]


def verified_graph(bundle: Bundle) -> Any:
    """The `onnx.ModelProto` that the engine was built from, parsed from the bytes that were hashed.

    Raises:
        BundleError: The bundle is damaged.
    """
    with tempfile.TemporaryDirectory(prefix="fcnopt-") as scratch:
        copy = Path(scratch) / MODEL
        bundle.verify({MODEL: copy})
        return read_structure(copy)


def interface_of(bundle: Bundle, model: Any) -> Interface:
    """What the engine of a bundle takes and gives.

    Args:
        bundle: The bundle.
        model: Its `verified_graph`.

    Raises:
        BundleError: The graph is not one that fcnopt built.
    """
    graph = model.graph
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [_tensor(value) for value in graph.input if value.name not in weights]
    outputs = {value.name: _tensor(value) for value in graph.output}
    wanted = bundle.manifest.spec.outputs
    fits = len(inputs) == 1 and len(inputs[0].dims) == 4 and set(outputs) == set(wanted)
    if not fits or any(tensor.dims[:1] != inputs[0].dims[:1] for tensor in outputs.values()):
        raise BundleError(
            f"{bundle.model}: expected frames [N, H, W, 3] and outputs {', '.join(wanted)} of as many frames, found "
            f"{', '.join(map(_described, inputs)) or 'no input'} and {', '.join(map(_described, outputs.values()))}",
            fix="build the bundle again",
        )
    return Interface(inputs[0], tuple(outputs[name] for name in wanted))


def copy_parts(bundle: Bundle, folder: Path, parts: Mapping[str, Path]) -> None:
    """Copy files of a bundle to where a stack wants them, and what proves them to the folder `PROOF`.

    Args:
        bundle: The bundle; all of it is verified.
        folder: The deployment.
        parts: Where each file goes within `folder`, by its name in the bundle. What is copied is what was hashed.

    Raises:
        BundleError: The bundle is damaged, or was changed meanwhile.
    """
    proof = folder / PROOF
    copies = {name: folder / place for name, place in parts.items()} | {SELFTEST: proof / SELFTEST}
    for place in copies.values():
        place.parent.mkdir(parents=True, exist_ok=True)
    bundle.verify(copies)
    for name in (MANIFEST, SIGNATURE):
        if (bundle.path / name).exists():
            hash_member(bundle.path / name, proof / name)
    copy = Bundle.read(proof)
    if copy.manifest != bundle.manifest or copy.signer != bundle.signer:
        raise BundleError(f"{bundle.path}: was changed while it was copied", fix="deploy it again")


def write_sums(folder: Path) -> None:
    """Write the SHA-256 of every file, for `sha256sum -c SHA256SUMS` where the folder arrives."""
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    write_text(folder / SUMS, "".join(f"{sha256_of(folder / name)}  {name.as_posix()}\n" for name in files))


def described(bundle: Bundle) -> dict[str, Any]:
    """What the READMEs of all stacks say of a bundle."""
    manifest = bundle.manifest
    return {
        "name": bundle.path.resolve().name,
        "manifest": manifest,
        "target": bundle.target,
        "frame": manifest.spec.frame,
        "classes": manifest.spec.classes,
        "outputs": manifest.spec.outputs,
        "signer": bundle.signer,
        "trusted": bundle.trusted,
        "min_agreement": f"{manifest.min_agreement * 100:.1f} %",
    }


def engine_names(bundle: Bundle, stem: str) -> dict[str, str]:
    """What a bundle's engine files are called where the first of them must be called `stem`.

    The first is loaded by its name, and OpenVINO finds the weights of model.xml in model.bin. Weights of an ONNX file
    keep theirs, since the file names them.
    """
    first, *others = bundle.manifest.engine
    names = {first: stem}
    for name in others:
        keeps = first == MODEL
        names[name] = name if keeps else str(Path(stem).with_suffix(Path(name).suffix))
    return names


def _tensor(value: Any) -> Tensor:
    import onnx

    kind = value.type.tensor_type
    dims = tuple(int(dim.dim_value) or None for dim in kind.shape.dim)
    return Tensor(value.name, onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name, dims)


def _described(tensor: Tensor) -> str:
    return f"{tensor.name} {tensor.dtype} [{', '.join('?' if size is None else str(size) for size in tensor.dims)}]"
