"""A PyTorch module as an ONNX network, one node an operation, named as the module's parts are.

The exporter's own optimizer is left out but for constant folding of shapes: batch norm stays visible, so that what
the graph passes do to it can be seen.
"""

from __future__ import annotations

import ast
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import onnx
import torch
from onnx import numpy_helper
from torch import nn

from fcnopt.errors import GraphError

MIN_OPSET, MAX_OPSET = 18, 23
_SCOPES = "pkg.torch.onnx.name_scopes"
# The one node of a module that bears the module's name; nodes that compute shapes get a longer one.
_NAMESAKES = {"Conv", "ConvTranspose", "BatchNormalization", "Relu", "MaxPool", "AveragePool", "Gemm", "Resize", "Clip"}


def to_onnx(module: nn.Module, size: tuple[int, int], *, dynamic: bool, opset: int) -> onnx.ModelProto:
    """Convert a network.

    Args:
        module: In evaluation mode; float [N, 3, H, W] to logits float [N, C, H, W].
        size: (height, width) of its input; with `dynamic`, one that it can take.
        dynamic: Leave batch, height and width open; otherwise the batch is 1.
        opset: 18 to 23.

    Returns:
        Input `normalized`, output `logits`, weights named as in the module's state dict.

    Raises:
        GraphError: The exporter cannot convert it.
    """
    _set_standard_strides(module)
    # A traced size of 1 would be taken for a constant
    example = torch.zeros(2 if dynamic else 1, 3, *size)
    try:
        with _quiet():
            program = torch.onnx.export(
                module,
                (example,),
                dynamo=True,
                optimize=False,
                verbose=False,
                opset_version=opset,
                input_names=["normalized"],
                output_names=["logits"],
                dynamic_shapes=(_open_axes(),) if dynamic else None,
            )
            if program is None:  # torch gives one unless it is told to write a file
                raise GraphError(f"torch.onnx returned nothing for {type(module).__name__}", fix="update torch")
            model = _folded(program)
    except torch.onnx.OnnxExporterError as error:
        raise _export_error(module, error, dynamic) from error
    if dynamic:
        _check_open(model, module)
    _drop_zero_biases(model, set(module.state_dict()))
    _name_nodes(model)
    return model


def _set_standard_strides(module: nn.Module) -> None:
    """Lay all weights out in order of their axes.

    With channels-last weights, as a checkpoint of a channels-last training has them, torch.export plans other strides
    for activations, and with open axes these become conditions on the size that it cannot prove. A kernel of 1 x 1
    counts as laid out both ways, so that `contiguous()` would leave it.
    """
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.data = tensor.data.clone(memory_format=torch.contiguous_format)


def _open_axes() -> dict[int, Any]:
    return {0: torch.export.Dim("N"), 2: torch.export.Dim("H"), 3: torch.export.Dim("W")}


def _check_open(model: onnx.ModelProto, module: nn.Module) -> None:
    """Refuse an axis that the tracer has quietly fixed, since the module works for one size of it only."""
    dims = model.graph.input[0].type.tensor_type.shape.dim
    fixed = [f"{axis} = {dims[at].dim_value}" for axis, at in (("N", 0), ("H", 2), ("W", 3)) if dims[at].dim_value]
    if fixed:
        raise GraphError(
            f"{type(module).__name__} works for {', '.join(fixed)} only, it cannot be made dynamic",
            fix="export it with a fixed size, without --dynamic",
        )


def _folded(program: Any) -> onnx.ModelProto:
    """The exported graph with shape arithmetic folded and constants as initializers."""
    import onnxscript.optimizer
    from onnx_ir.passes.common import LiftConstantsToInitializersPass

    onnxscript.optimizer.fold_constants(program.model)
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(program.model)
    onnxscript.optimizer.remove_unused_nodes(program.model)
    model: onnx.ModelProto = program.model_proto
    return model


def _export_error(module: nn.Module, error: Exception, dynamic: bool) -> GraphError:
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    reason = next((line for line in str(cause).splitlines() if line.strip()), type(cause).__name__).strip()
    return GraphError(
        f"{type(module).__name__} cannot be converted to ONNX: {reason}",
        fix="export it with a fixed size, without --dynamic"
        if dynamic
        else "make its forward free of branches on values and of code outside torch",
    )


def _drop_zero_biases(model: onnx.ModelProto, weights: set[str]) -> None:
    """Take off the biases of zeros that the exporter gives to convolutions without one."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    dropped = set()
    for node in model.graph.node:
        bias = node.input[2] if node.op_type == "Conv" and len(node.input) == 3 else ""
        if bias in constants and bias not in weights and not numpy_helper.to_array(constants[bias]).any():
            del node.input[2]
            dropped.add(bias)
    used = {name for node in model.graph.node for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used or tensor.name not in dropped]
    if len(kept) < len(model.graph.initializer):
        del model.graph.initializer[:]
        model.graph.initializer.extend(kept)


def _name_nodes(model: onnx.ModelProto) -> None:
    """Name nodes, and the tensors they make, after the module's parts, and drop the exporter's notes.

    The notes hold the stack trace of every node, with the paths of the user's files.
    """
    graph = model.graph
    outputs = {value.name for value in graph.output}
    taken = {tensor.name for tensor in graph.initializer} | {value.name for value in (*graph.input, *graph.output)}
    renamed: dict[str, str] = {}
    for node in graph.node:
        node.name = _unique(_readable_name(node), taken)
        for index, old in enumerate(node.output):
            if old and old not in outputs:
                renamed[old] = node.name if index == 0 else _unique(f"{node.name}_{index}", taken)
        for place, name in enumerate(node.input):
            node.input[place] = renamed.get(name, name)
        node.output[:] = [renamed.get(name, name) for name in node.output]
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    graph.ClearField("value_info")  # under the old names; shapes are inferred anew
    graph.ClearField("metadata_props")
    for value in (*graph.input, *graph.output, *graph.initializer):
        value.ClearField("metadata_props")
    graph.name = "network"


def _readable_name(node: onnx.NodeProto) -> str:
    """`conv1_1` for the one node of a module that does its work, `slice_1` or `conv1_1/add` for others."""
    text = next((entry.value for entry in node.metadata_props if entry.key == _SCOPES), "")
    try:
        scopes = [str(scope) for scope in ast.literal_eval(text)]
    except (SyntaxError, ValueError):
        scopes = []
    # scopes are the modules from the outermost, "", to the innermost, then torch's name of the operation
    operation = scopes[-1] if scopes else node.op_type
    module = scopes[-2] if len(scopes) > 1 and not scopes[-2].startswith("_") else ""
    if not module:
        return operation
    return module if node.op_type in _NAMESAKES else f"{module}/{operation}"


def _unique(name: str, taken: set[str]) -> str:
    count = 1
    unique = name
    while unique in taken:
        count += 1
        unique = f"{name}_{count}"
    taken.add(unique)
    return unique


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch's remarks on its own internals and on packages that are not needed off the console."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
