"""What this machine can do at most, measured: matrix products in the runtime's own kernels, and copies in memory.

With these a graph has a least time, the roofline's (Williams, Waterman, Patterson, 2009): of each layer the longer of

    MACs / rate        and        (input + weight + output bytes) / bandwidth
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from rivals.int8_share import int8_nodes

from fcnopt.backends.machine import describe_machine, usable_cores
from fcnopt.graph.shapes import infer, tensor_types
from fcnopt.graph.stats import macs_by_node

_BYTES = {"fp32": 4, "bf16": 2, "int8": 1}
_SIZE, _CHAIN = 2048, 4
_ROW = 32
_COPY_BYTES = 256 << 20
_REPEATS = 5


@dataclass(frozen=True)
class Peaks:
    """Rates of the machine.

    Attributes:
        gmacs: Multiply-accumulates in 1e9 a second, by what is multiplied: "fp32", "int8" and, where there is, "bf16".
        gbytes: Bytes read and written in 1e9 a second.
    """

    gmacs: Mapping[str, float]
    gbytes: float

    @classmethod
    def measured(cls, size: int = _SIZE, copy_bytes: int = _COPY_BYTES) -> Peaks:
        """Measure them on all cores; the best of a few repeats each.

        Args:
            size: Rows and columns of the matrices.
            copy_bytes: Far more than the caches hold.
        """
        kinds = ["fp32", "int8", *(["bf16"] if "bf16" in describe_machine()["isa"] else [])]
        return cls({kind: gemm_gmacs(kind, size) for kind in kinds}, copy_gbytes(copy_bytes))

    def rest_of(self, precision: str) -> str:
        """The fastest type for what an engine of this precision leaves float, whichever type a runtime then chooses."""
        return "bf16" if precision == "int8" and "bf16" in self.gmacs else "fp32"


def gemm_gmacs(kind: str, size: int) -> float:
    """Rate of OpenVINO's matrix products in "fp32", "bf16" or "int8"; several in a row, so that ends do not count.

    The better of two kernels for the same product: MatMul's, and that of 1x1 convolutions. Without VNNI, int8 has no
    fast MatMul.

    Args:
        kind: What is multiplied.
        size: Rows and columns, a multiple of 32.
    """
    return max(_rate(kind, size, (size, size)), _rate(kind, size, (1, size, size // _ROW, _ROW)))


def _rate(kind: str, size: int, shape: tuple[int, ...]) -> float:
    import openvino as ov

    compiled = ov.Core().compile_model(
        _products(kind == "int8", size, shape),
        "CPU",
        {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32" if kind == "fp32" else _rest(kind)},
    )
    request = compiled.create_infer_request()
    x = np.random.default_rng(0).random(shape, np.float32)
    seconds = _best(lambda: request.infer({0: x}))
    return _CHAIN * size**3 / seconds / 1e9


def _rest(kind: str) -> str:
    return "bf16" if kind == "bf16" or "bf16" in describe_machine()["isa"] else "f32"


def _products(quantized: bool, size: int, shape: tuple[int, ...]) -> Any:
    """A chain of products of `size` rows, columns and inner places, quantized symmetrically before each if asked for.

    Args:
        quantized: In int8.
        size: Of the weights, [size, size].
        shape: Of what they multiply: [size, size], or [1, size, h, w] with h w = size for 1x1 convolutions.
    """
    import openvino as ov

    ops = ov.opset13
    rng = np.random.default_rng(0)
    kernel = (size, size, 1, 1) if len(shape) == 4 else (size, size)

    def grid(bound: float) -> list[Any]:
        return [ops.constant(np.float32(v)) for v in (-bound, bound * 127 / 128, -bound, bound * 127 / 128)]

    x = ops.parameter(list(shape), np.float32)
    y = x
    for _ in range(_CHAIN):
        weight = ops.constant(rng.standard_normal(kernel, np.float32) / size**0.5)
        factor = ops.fake_quantize(weight, *grid(0.1), 256) if quantized else weight
        y = ops.fake_quantize(y, *grid(4.0), 256) if quantized else y
        if len(shape) == 4:
            y = ops.convolution(y, factor, [1, 1], [0, 0], [0, 0], [1, 1])
        else:
            y = ops.matmul(y, factor, False, False)
    return ov.Model([y], [x])


def copy_gbytes(count: int) -> float:
    """Bandwidth of copies on all cores, reading and writing counted."""
    cores = usable_cores()
    source = np.ones(count // cores * cores, np.uint8).reshape(cores, -1)
    target = np.zeros_like(source)
    with ThreadPoolExecutor(cores) as pool:
        seconds = _best(lambda: list(pool.map(np.copyto, target, source)))
    return 2 * source.size / seconds / 1e9


def roofline_ms(model: onnx.ModelProto, precision: str, peaks: Peaks) -> float:
    """The least time of a graph's convolutions and matrix products; all else is taken to be free.

    Args:
        model: As the runtime gets it, quantized where it is.
        precision: Of the engine; tells what layers that are not quantized could compute in.
        peaks: Of the machine.
    """
    macs, quantized = macs_by_node(model), int8_nodes(model)
    types = tensor_types(infer(model, (1, 1)))
    shapes = {name: kind.static for name, kind in types.items()}
    shapes |= {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    total = 0.0
    for node in model.graph.node:
        name = node.name or node.output[0]
        if name not in macs:
            continue
        kind = "int8" if name in quantized else peaks.rest_of(precision)
        elements = sum(math.prod(shapes.get(tensor) or (0,)) for tensor in (*node.input[:2], node.output[0]))
        compute = macs[name] / peaks.gmacs[kind] / 1e6
        total += max(compute, elements * _BYTES[kind] / peaks.gbytes / 1e6)
    return total


def slope(amounts: list[float], values: list[float]) -> float:
    """Of a line through both in logarithms: 1 where `values` grow in proportion, below 1 where they grow slower."""
    return float(np.polyfit(np.log(amounts), np.log(values), 1)[0])


def _best(run: Any) -> float:
    """Seconds of the fastest of a few runs, after one that does not count."""
    times = []
    for _ in range(_REPEATS + 1):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times[1:])
