"""Pre- and post-processing inside the graph: raw frames in, labels out.

    frames uint8 [N, H, W, 3] -> Cast -> Transpose -> Gather (channel order) -> Sub -> Mul -> normalized
    normalized float32 [N, 3, H, W] -> network -> logits float32 [N, C, H, W]
    logits -> ArgMax -> Cast -> labels uint8 [N, H, W]
    logits -> Softmax -> ReduceMax -> confidence float32 [N, H, W]

Normalization `(x * scale - mean) / std` is computed as `(x - mean / scale) * (scale / std)`: one Sub, one Mul, each
left out where it would do nothing, as is the Gather. No node may follow the cast to uint8: TensorRT knows the type
at a graph's borders only.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from fcnopt.errors import GraphError, UsageError
from fcnopt.graph import io
from fcnopt.graph.checks import check_structure, without_weights
from fcnopt.spec import ModelSpec, Normalization, OutputName

_RESERVED = ("frames", "normalized", "logits", "labels", "confidence")
_Dims = list[int | str]


def attach(model: onnx.ModelProto, spec: ModelSpec) -> onnx.ModelProto:
    """Put what `spec` says around a network, and the spec into its metadata.

    Args:
        model: One input float32 [N, 3, H, W] of normalized pixels in the channel order of the spec's normalization;
            logits float32 [N, C, H, W] as its only output, or as the one called `logits` or `out`. Left unchanged.
        spec: With a size, the result is static in it, and takes one frame at a time where the network takes any
            number; without, batch, height and width stay as the network has them.

    Returns:
        A new model that takes `frames` and gives the outputs of the spec, in its order.

    Raises:
        GraphError: The network has another input or output than that, or has pre- and post-processing already.
        UsageError: The spec's size or number of classes is not the network's.
    """
    if io.read_spec(model) is not None:
        raise GraphError("the model has pre- and post-processing already", fix="use it as it is, or export it again")
    graph = io.import_graph(model)
    network_input, logits = _find_input(graph), _find_logits(graph)
    batch, height, width = _frame_dims(network_input, spec)
    _check_logits(logits, spec, model)
    _free_names(graph, keep=(network_input, logits))
    network_input.shape = [batch, 3, height, width]
    logits.name, logits.shape, logits.dtype = "logits", [batch, len(spec.classes), height, width], np.float32
    _prepend(graph, network_input, spec, [batch, height, width, 3])
    graph.outputs = [_output(graph, logits, name, [batch, height, width]) for name in spec.outputs]
    result = io.export_graph(graph.cleanup().toposort(), like=model)
    io.write_spec(result, spec)
    infer_shapes(result)
    check_structure(result, spec.architecture or "the model")
    return result


def batch_of(model: onnx.ModelProto) -> int | None:
    """How many frames at a time a model takes, by its first input that is no weight; None where that is open."""
    constants = {tensor.name for tensor in model.graph.initializer}
    for value in model.graph.input:
        if value.name not in constants and value.type.tensor_type.shape.dim:
            return value.type.tensor_type.shape.dim[0].dim_value or None
    return None


def infer_shapes(model: onnx.ModelProto) -> None:
    """Write the type and shape of every tensor into the model, in place of those it had; of any size.

    Raises:
        GraphError: Types or shapes contradict each other; names the node.
    """
    light = without_weights(model)
    del light.graph.value_info[:]
    try:
        inferred = onnx.shape_inference.infer_shapes(light, strict_mode=True, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        raise GraphError(
            f"the graph's shapes do not fit: {str(error).strip()}", fix="export the network again for this frame size"
        ) from error
    del model.graph.value_info[:]
    model.graph.value_info.extend(inferred.graph.value_info)


def _find_input(graph: gs.Graph) -> gs.Variable:
    found = ", ".join(_describe(tensor) for tensor in graph.inputs) or "none"
    if len(graph.inputs) != 1:
        raise GraphError(
            f"expected one input float32 [N, 3, H, W], found {len(graph.inputs)}: {found}",
            fix="export the network so that the image is its only input",
        )
    tensor = graph.inputs[0]
    shape = tensor.shape
    if tensor.dtype != np.float32 or shape is None or len(shape) != 4 or shape[1] not in (3, None, *_names(shape)):
        raise GraphError(
            f"expected an input float32 [N, 3, H, W], found {found}",
            fix="export the network in FP32, without its own pre-processing, channels before height and width",
        )
    return tensor


def _find_logits(graph: gs.Graph) -> gs.Variable:
    outputs = graph.outputs
    named = [tensor for tensor in outputs if tensor.name in ("logits", "out")]
    chosen = outputs if len(outputs) == 1 else named
    if len(chosen) != 1:
        raise GraphError(
            f"expected one output, or one called logits, found {', '.join(map(_describe, outputs))}",
            fix="export the network so that the logits are its only output",
        )
    tensor = chosen[0]
    if tensor.dtype not in (np.float32, None) or (tensor.shape is not None and len(tensor.shape) != 4):
        raise GraphError(
            f"expected logits float32 [N, C, H, W] as the output, found {_describe(tensor)}",
            fix="export the network in FP32, without its own argmax",
        )
    if not tensor.inputs:
        raise GraphError(f"the output {tensor.name!r} is not computed by any node", fix="export the network again")
    return tensor


def _frame_dims(tensor: gs.Variable, spec: ModelSpec) -> tuple[int | str, int | str, int | str]:
    """Batch, height and width: the network's where they are fixed, else what the spec makes of them, else a symbol."""
    network = {"N": tensor.shape[0], "H": tensor.shape[2], "W": tensor.shape[3]}
    # One open axis would keep passes from rewriting what is static but for it
    one = None if spec.frame.height is None else 1
    wanted = {"N": one, "H": spec.frame.height, "W": spec.frame.width}
    dims: list[int | str] = []
    for axis, size in network.items():
        fixed = isinstance(size, int)
        if fixed and axis != "N" and wanted[axis] not in (None, size):
            raise UsageError(
                f"frames of {spec.frame.height} x {spec.frame.width} (height x width) do not fit the network, "
                f"which takes {network['H']} x {network['W']}",
                fix="give the network's own size, or export it with dynamic height and width",
            )
        dims.append(size if fixed else wanted[axis] or axis)
    return dims[0], dims[1], dims[2]


def _check_logits(logits: gs.Variable, spec: ModelSpec, model: onnx.ModelProto) -> None:
    """Refuse another number of classes, and logits of another size than the frames."""
    shape = _inferred_shape(logits, spec, model)
    if isinstance(shape[1], int) and shape[1] != len(spec.classes):
        raise UsageError(
            f"the network tells {shape[1]} classes apart, but {len(spec.classes)} class names were given",
            fix=f"give the {shape[1]} classes it was trained for, in label order",
        )
    want = (spec.frame.height, spec.frame.width)
    sizes = zip(shape[2:], want, strict=True)
    if any(isinstance(found, int) and size is not None and found != size for found, size in sizes):
        raise GraphError(
            f"logits are {shape[2]} x {shape[3]} for frames of {want[0]} x {want[1]} (height x width)",
            fix="make the network upsample its logits to the size of its input",
        )


def _inferred_shape(logits: gs.Variable, spec: ModelSpec, model: onnx.ModelProto) -> _Dims:
    """The shape of the logits for frames of the spec's size, as far as ONNX can tell."""
    light = without_weights(model)
    del light.graph.value_info[:]
    dims = next(v for v in light.graph.input if v.name == model.graph.input[0].name).type.tensor_type.shape.dim
    for dim, size in ((dims[2], spec.frame.height), (dims[3], spec.frame.width)):
        if size is not None:
            dim.dim_value = size
    for value in light.graph.output:
        value.type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(light, data_prop=True)
    value = next(v for v in inferred.graph.output if v.name == logits.name)
    shape: _Dims = [d.dim_value if d.HasField("dim_value") else d.dim_param for d in value.type.tensor_type.shape.dim]
    return shape if len(shape) == 4 else list(logits.shape or ("N", "C", "H", "W"))


def _free_names(graph: gs.Graph, *, keep: tuple[gs.Variable, ...]) -> None:
    """Rename tensors of the network that have a name which pre- or post-processing needs."""
    taken = graph.tensors()
    for name in _RESERVED:
        tensor = taken.get(name)
        if tensor is not None and not any(tensor is kept for kept in keep):
            tensor.name = f"network_{name}"
            while tensor.name in taken:
                tensor.name += "_"


def _prepend(graph: gs.Graph, network_input: gs.Variable, spec: ModelSpec, dims: _Dims) -> None:
    """Compute `network_input` from `frames`."""
    batch, height, width, _ = dims
    frames = gs.Variable("frames", np.uint8, dims)
    norm = spec.frame.normalization
    steps: list[tuple[str, str, list[gs.Tensor], dict[str, object]]] = [
        ("Cast", "to_float", [], {"to": onnx.TensorProto.FLOAT}),
        ("Transpose", "to_nchw", [], {"perm": [0, 3, 1, 2]}),
    ]
    if spec.frame.color != norm.color:
        order = gs.Constant("channel_order", np.array([2, 1, 0], np.int64))
        steps.append(("Gather", f"to_{norm.color.lower()}", [order], {"axis": 1}))
    offset, factor = offset_and_factor(norm)
    if offset.any():
        steps.append(("Sub", "subtract_mean", [gs.Constant("frame_mean", offset)], {}))
    if (factor != 1).any():
        steps.append(("Mul", "divide_by_std", [gs.Constant("frame_inverse_std", factor)], {}))
    tensor: gs.Tensor = frames
    for index, (op, name, constants, attributes) in enumerate(steps):
        last = index == len(steps) - 1
        # the network's own input becomes the last step's output, so that none of its nodes is touched
        output = network_input if last else gs.Variable(f"frames_{name}", np.float32)
        graph.nodes.insert(index, gs.Node(op, name, dict(attributes), [tensor, *constants], [output]))
        tensor = output
    network_input.name, network_input.dtype, network_input.shape = "normalized", np.float32, [batch, 3, height, width]
    graph.inputs = [frames]


def offset_and_factor(norm: Normalization) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """`normalized = (x - offset) * factor` for pixels x, both float32 [1, 3, 1, 1], in the normalization's order."""
    mean, std = (np.array(values, np.float64).reshape(1, 3, 1, 1) for values in (norm.mean, norm.std))
    return (mean / norm.scale).astype(np.float32), (norm.scale / std).astype(np.float32)


def _output(graph: gs.Graph, logits: gs.Variable, name: OutputName, dims: _Dims) -> gs.Variable:
    """The graph output called `name`, with the nodes that compute it from the logits."""
    if name == "logits":
        return logits
    if name == "confidence":
        return _confidence(graph, logits, dims)
    classes = gs.Variable("label_indices", np.int64, dims)
    labels = gs.Variable("labels", np.uint8, dims)
    graph.nodes.append(gs.Node("ArgMax", "argmax", {"axis": 1, "keepdims": 0}, [logits], [classes]))
    graph.nodes.append(gs.Node("Cast", "to_uint8", {"to": onnx.TensorProto.UINT8}, [classes], [labels]))
    return labels


def _confidence(graph: gs.Graph, logits: gs.Variable, dims: _Dims) -> gs.Variable:
    axis = 1
    if graph.opset < 13:
        # Softmax flattened everything after its axis then; on the last axis there is nothing to flatten
        last = gs.Variable("logits_nhwc", np.float32)
        graph.nodes.append(gs.Node("Transpose", "confidence_nhwc", {"perm": [0, 2, 3, 1]}, [logits], [last]))
        logits, axis = last, 3
    probabilities = gs.Variable("probabilities", np.float32)
    graph.nodes.append(gs.Node("Softmax", "softmax", {"axis": axis}, [logits], [probabilities]))
    confidence = gs.Variable("confidence", np.float32, dims)
    inputs: list[gs.Tensor] = [probabilities]
    attributes: dict[str, object] = {"keepdims": 0}
    if graph.opset < 18:  # axes became an input in 18
        attributes["axes"] = [axis]
    else:
        inputs.append(gs.Constant("confidence_axes", np.array([axis], np.int64)))
    graph.nodes.append(gs.Node("ReduceMax", "confidence_max", attributes, inputs, [confidence]))
    return confidence


def _names(shape: _Dims) -> list[str]:
    return [dim for dim in shape if isinstance(dim, str)]


def _describe(tensor: gs.Variable) -> str:
    kind = "unknown type" if tensor.dtype is None else np.dtype(tensor.dtype).name
    return f"{tensor.name!r} {kind} {'of unknown rank' if tensor.shape is None else list(tensor.shape)}"
