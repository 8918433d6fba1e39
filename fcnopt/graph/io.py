"""ONNX files: read with every check that a stranger's file needs, written so that no half of one ever loads.

Nothing of a model is trusted before it is checked: external data is looked for only inside the file's own folder,
and its place is judged before a byte of it is read.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO

import onnx
import onnx_graphsurgeon as gs
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # publishes no types
from onnx import external_data_helper, numpy_helper
from onnx_graphsurgeon.logger import G_LOGGER

from fcnopt.errors import GraphError
from fcnopt.graph.checks import check_model, tensors_of
from fcnopt.graph.hashes import graph_hash, weights_hash
from fcnopt.leftovers import clear_up, part_of
from fcnopt.spec import METADATA_KEY, ModelSpec

__all__ = [
    "EXTERNAL_ABOVE_BYTES",
    "export_graph",
    "graph_hash",
    "import_graph",
    "load",
    "read_spec",
    "save",
    "weights_hash",
    "write_spec",
]

# A protobuf message ends at 2 GiB; what is not weights (nodes, names, shapes) stays far below the difference.
EXTERNAL_ABOVE_BYTES = 2**31 - 2**27
_MIN_IR = 4  # the first that lets constants be no inputs, which is what onnx-graphsurgeon makes of them
_STAYS_BYTES = 1024  # smaller constants stay in the model, where shape inference reads them
_ALIGNMENT = 4096  # of tensors in the data file, so that a reader can map them


def load(path: str | Path, *, check: bool = True) -> onnx.ModelProto:
    """Read an ONNX file with its weights, external ones too.

    Args:
        path: The file.
        check: Also refuse unknown operators and opsets, graphs that the ONNX checker refuses, and weights that are
            NaN or infinite.

    Returns:
        The model, all tensors in memory.

    Raises:
        GraphError: The file is missing, not ONNX or cut off; its external data is missing, cut off or outside its
            folder; or one of the checks fails. The message names the file and the tensor or node.
    """
    path = Path(path)
    model = _parse(path)
    _load_external(model, path)
    if check:
        check_model(model, str(path))
    return model


def save(model: onnx.ModelProto, path: str | Path, *, external_above: int = EXTERNAL_ABOVE_BYTES) -> Path:
    """Write a model so that `path` either is the whole of it or stays what it was.

    Everything goes to temporary files in the same folder first. Where a data file is needed, an older model of the
    name is removed before the data it points to is replaced: at no moment does a model stand beside another's data.
    What a killed process left is removed.

    Args:
        model: With its weights in memory; unchanged afterwards.
        path: The file to write; its folder is made if it is missing.
        external_above: Bytes of weights above which they go to `<name>.data` beside the file.

    Returns:
        `path`.

    Raises:
        GraphError: The folder cannot be written, or the disk is full; nothing is left behind.
    """
    path = Path(path)
    external = sum(map(_payload, tensors_of(model))) > external_above
    part, data = part_of(path), path.with_name(f"{path.name}.data")
    data_part = part.with_suffix(".data.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        clear_up(path)
        if external:
            model = _copy(model)
            _write(data_part, lambda file: _move_out(model, data.name, file))
        _write(part, lambda file: file.write(model.SerializeToString()))
        if external:
            path.unlink(missing_ok=True)
            data_part.replace(data)
        part.replace(path)
    except OSError as error:
        raise _write_error(path, error) from error
    finally:
        for leftover in (part, data_part):
            with contextlib.suppress(OSError):  # gone already, or in a folder that could not be made
                leftover.unlink()
    return path


def read_spec(model: onnx.ModelProto) -> ModelSpec | None:
    """The spec in the model's metadata, None for a model that has none.

    Raises:
        UsageError: There is one, but of another schema version or damaged.
    """
    for entry in model.metadata_props:
        if entry.key == METADATA_KEY:
            return ModelSpec.from_json(entry.value)
    return None


def write_spec(model: onnx.ModelProto, spec: ModelSpec) -> None:
    """Put `spec` into the model's metadata, in place of an older one."""
    kept = [entry for entry in model.metadata_props if entry.key != METADATA_KEY]
    kept.append(onnx.StringStringEntryProto(key=METADATA_KEY, value=spec.to_json()))
    del model.metadata_props[:]
    model.metadata_props.extend(kept)


def import_graph(model: onnx.ModelProto) -> gs.Graph:
    """The model as an onnx-graphsurgeon graph that shares its weights; `export_graph` is the way back.

    Constants that are also graph inputs (as every one was before IR version 4) become constants only.
    """
    with G_LOGGER.suppress(G_LOGGER.ERROR):  # it would print that NumPy has no FP8, which it keeps all the same
        return gs.import_onnx(model)


def export_graph(graph: gs.Graph, *, like: onnx.ModelProto) -> onnx.ModelProto:
    """The graph as a model, with what onnx-graphsurgeon drops taken over from the model it came from.

    Args:
        graph: Made by `import_graph`, changed or not.
        like: Where IR version, producer, documentation, and metadata (the spec in it) come from.

    Returns:
        A new model.
    """
    model: onnx.ModelProto = gs.export_onnx(graph, do_type_check=False)
    for name in ("domain", "model_version", "doc_string"):
        if like.HasField(name):
            setattr(model, name, getattr(like, name))
    model.ir_version = max(like.ir_version, _MIN_IR)
    model.metadata_props.extend(like.metadata_props)
    return model


def _parse(path: Path) -> onnx.ModelProto:
    if not path.is_file():
        raise _missing(path)
    try:
        model = onnx.load_model(path, load_external_data=False, format="protobuf")
    except DecodeError as error:
        raise GraphError(
            f"{path}: expected an ONNX model, found {path.stat().st_size} bytes that are not one, or are cut off",
            fix="export the model again, or copy the whole file",
        ) from error
    except OSError as error:
        raise GraphError(f"{path}: cannot be read: {error.strerror}", fix="check the file's permissions") from error
    if not model.ir_version or not model.opset_import or not model.HasField("graph"):
        raise GraphError(
            f"{path}: expected an ONNX model, found no graph, IR version or opset in its {path.stat().st_size} bytes",
            fix="export the model again, or copy the whole file",
        )
    return model


def _missing(path: Path) -> GraphError:
    if path.is_dir():
        return GraphError(f"{path}: expected an ONNX file, found a folder", fix="name the .onnx file inside it")
    if not path.parent.is_dir():
        return GraphError(f"{path}: no such file; the folder {path.parent} is missing too", fix="check the path")
    names = [entry.name for entry in path.parent.iterdir() if entry.suffix == ".onnx"]
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.4)
    fix = f"did you mean {', '.join(near)}?" if near else "check the path, or run 'fcnopt export' first"
    return GraphError(f"{path}: no such file", fix=fix)


def _load_external(model: onnx.ModelProto, path: Path) -> None:
    external = [tensor for tensor in tensors_of(model) if external_data_helper.uses_external_data(tensor)]
    for tensor in external:
        _judge_location(tensor, path)
    for tensor in external:
        try:
            external_data_helper.load_external_data_for_tensor(tensor, str(path.parent))
        except (OSError, ValueError, onnx.checker.ValidationError) as error:
            raise GraphError(
                f"{path}: external data of {tensor.name!r} in {_location(tensor)!r} cannot be read: {error}",
                fix="copy the data file again, whole, beside the model",
            ) from error


def _judge_location(tensor: onnx.TensorProto, path: Path) -> None:
    location, folder = _location(tensor), path.parent.resolve()
    found = (folder / location).resolve()
    if not location or Path(location).is_absolute() or "\\" in location or not found.is_relative_to(folder):
        raise GraphError(
            f"{path}: external data of {tensor.name!r} is at {location!r}, outside the model's folder",
            fix="do not use this file unless you trust it; export it again with its data beside it",
        )
    if not found.is_file():
        raise GraphError(
            f"{path}: external data of {tensor.name!r} is at {location!r}, and there is no such file",
            fix="copy the data file beside the model: a large ONNX model is two files",
        )


def _location(tensor: onnx.TensorProto) -> str:
    return next((entry.value for entry in tensor.external_data if entry.key == "location"), "")


def _payload(tensor: onnx.TensorProto) -> int:
    return len(tensor.raw_data) if tensor.HasField("raw_data") else tensor.ByteSize()


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def _move_out(model: onnx.ModelProto, name: str, file: IO[bytes]) -> None:
    """Write the weights of `model` to `file`, called `name`, and leave references to it in their place."""
    for tensor in tensors_of(model):
        if _payload(tensor) < _STAYS_BYTES:
            continue
        if not tensor.HasField("raw_data"):
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))
        offset = file.tell() + -file.tell() % _ALIGNMENT
        file.seek(offset)
        file.write(tensor.raw_data)
        length = len(tensor.raw_data)
        external_data_helper.set_external_data(tensor, name, offset=offset, length=length)
        tensor.ClearField("raw_data")


def _write(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    with path.open("xb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())


def _write_error(path: Path, error: OSError) -> GraphError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return GraphError(
            f"{path}: the disk is full; nothing was written",
            fix=f"free space on the disk of {path.parent}, or write to another",
        )
    return GraphError(f"{path}: cannot be written: {error.strerror}", fix="check the folder and its permissions")
