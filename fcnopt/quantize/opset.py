"""The opset that a rewrite needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fcnopt.errors import GraphError

if TYPE_CHECKING:
    import onnx

_CONVERTED_TO = 20  # at least: what fcnopt exports, and what TensorRT 10 reads


def opset_of(model: onnx.ModelProto) -> int:
    """Version of the standard operators."""
    return max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)


def at_least_opset(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """The model itself if its opset is new enough, else a converted copy.

    Raises:
        GraphError: ONNX's converter cannot convert it.
    """
    if opset_of(model) >= opset:
        return model
    import onnx.version_converter

    try:
        converted = onnx.version_converter.convert_version(model, max(opset, _CONVERTED_TO))
    except (RuntimeError, ValueError) as error:
        raise GraphError(
            f"opset {opset_of(model)}: this precision needs {opset}, and the conversion failed: {error}",
            fix=f"export the model again with opset {max(opset, _CONVERTED_TO)}",
        ) from error
    if not converted.metadata_props:  # the converter drops them, the model's spec among them
        converted.metadata_props.extend(model.metadata_props)
    return converted
