"""Quantize an ONNX file with NVIDIA Model Optimizer: INT8 for TensorRT.

    python with_modelopt.py model.onnx frames.npy quantized.onnx --method entropy

Runs in Model Optimizer's own environment. Its guide has networks that take float tensors and calibrates them with a
float array [N, C, H, W], so that is what it gets: everything from the first convolution to the ArgMax, and the
calibration frames as the model's own first nodes normalize them. What stands before and after is put back around the
result, so that it takes uint8 frames and gives labels like every other file. All other options are its defaults.

`frames.npy` holds uint8 [N, H, W, 3], all of which are used. Beside the result, quantized.facts.json holds seconds and
versions.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from modelopt.onnx.quantization import quantize
from numpy.typing import NDArray
from onnx.utils import Extractor


def main() -> None:
    """Read, cut, quantize, join, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("frames", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--method", choices=("entropy", "max"), default="entropy")
    parser.add_argument("--exclude-op", action="append", default=[], help="do not quantize this operator")
    parser.add_argument("--exclude-node", action="append", default=[], help="do not quantize the node of this name")
    args = parser.parse_args()
    model = onnx.shape_inference.infer_shapes(onnx.load(args.model))
    start, end = cuts(model)
    data = normalized(model, start, np.load(args.frames))
    with tempfile.TemporaryDirectory() as folder:
        body, written = Path(folder, "body.onnx"), Path(folder, "quantized.onnx")
        onnx.save(Extractor(model).extract_model([start], [end]), body)
        began = time.perf_counter()
        quantize(
            str(body),
            quantize_mode="int8",
            calibration_data=data,
            calibration_method=args.method,
            op_types_to_exclude=args.exclude_op or None,
            nodes_to_exclude=[f"^{name}$" for name in args.exclude_node] or None,
            output_path=str(written),
        )
        seconds = time.perf_counter() - began
        joined = join(model, onnx.load(written), start, end)
    onnx.checker.check_model(joined)
    onnx.save(joined, args.output)
    facts = {"seconds": seconds, "versions": {name: version(name) for name in ("nvidia-modelopt", "onnxruntime-gpu")}}
    args.output.with_suffix(".facts.json").write_text(json.dumps(facts), encoding="utf-8")


def cuts(model: onnx.ModelProto) -> tuple[str, str]:
    """The tensors between which Model Optimizer works: what the first Conv reads, and what ArgMax reads."""
    first = next(node for node in model.graph.node if node.op_type == "Conv")
    last = next(node for node in model.graph.node if node.op_type == "ArgMax")
    return first.input[0], last.input[0]


def normalized(model: onnx.ModelProto, start: str, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The frames as the first Conv gets them, float32 [N, 3, H, W]."""
    name = model.graph.input[0].name
    front = Extractor(model).extract_model([name], [start])
    session = onnxruntime.InferenceSession(front.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {name: frame[None]})[0] for frame in frames])


def join(model: onnx.ModelProto, body: onnx.ModelProto, start: str, end: str) -> onnx.ModelProto:
    """Put a model's own first and last nodes around its quantized body, whose opset they take.

    Cast, Transpose, Sub and ArgMax mean the same in every opset from 13 on.
    """
    extractor = Extractor(model)
    inputs, outputs = ([value.name for value in values] for values in (model.graph.input, model.graph.output))
    front = extractor.extract_model(inputs, [start])
    tail = extractor.extract_model([end], outputs)
    nodes = [*front.graph.node, *body.graph.node, *tail.graph.node]
    constants = {t.name: t for part in (front, body, tail) for t in part.graph.initializer}
    written = [name for node in nodes for name in node.output]
    if len(written) != len(set(written)):
        raise ValueError("the quantized body gives a tensor the name of one outside of it")
    graph = onnx.helper.make_graph(
        nodes, model.graph.name, model.graph.input, model.graph.output, list(constants.values())
    )
    joined = onnx.helper.make_model(graph, opset_imports=body.opset_import, ir_version=body.ir_version)
    joined.metadata_props.extend(model.metadata_props)
    return joined


if __name__ == "__main__":
    main()
