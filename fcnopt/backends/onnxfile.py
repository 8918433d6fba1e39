"""What builders must know of an ONNX file besides handing it to a runtime. Weights beside the file are not read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fcnopt.errors import BuildError


def read_structure(model: Path) -> Any:
    """The `onnx.ModelProto` in a file, without the weights that lie beside it.

    Raises:
        BuildError: It is missing, truncated or not ONNX.
    """
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # has no type information

    try:
        proto = onnx.load(model, load_external_data=False)
    except OSError as error:
        raise BuildError(f"{model}: cannot be read: {error.strerror}", fix="name an existing ONNX file") from error
    except DecodeError as error:
        raise BuildError(f"{model}: is truncated or not an ONNX file", fix="export the model again") from error
    if not proto.graph.output:
        raise BuildError(f"{model}: is truncated: its graph has no outputs", fix="export the model again")
    return proto


def external_files(model: Path) -> tuple[Path, ...]:
    """The files beside `model` that hold its weights, if they are not inside.

    Raises:
        BuildError: The model cannot be read, or one of them lies outside its folder.
    """
    from onnx.external_data_helper import uses_external_data

    from fcnopt.graph.checks import tensors_of

    names = {
        entry.value
        for tensor in tensors_of(read_structure(model))
        if uses_external_data(tensor)
        for entry in tensor.external_data
        if entry.key == "location"
    }
    root = model.resolve().parent
    for name in names:
        if not (root / name).resolve().is_relative_to(root):
            raise BuildError(
                f"{model.name}: its weights are in {name!r}, outside the model's folder",
                fix="save the model again with its weights beside it",
            )
    return tuple(model.parent / name for name in sorted(names))
