"""Random networks: whatever the passes do, the checker agrees, the numbers agree, and a second time changes nothing.

`optimized` asserts all three; here are the networks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import helper

from fcnopt.graph import io
from tests.graph.build import model, ops, optimized

CHANNELS = (2, 4, 6)
LAYERS = (
    "conv",
    "conv",
    "deconv",
    "norm",
    "norm",
    "relu",
    "clip",
    "arithmetic",
    "arithmetic",
    "pad",
    "crop",
    "pool",
    "swap",
    "identity",
    "dropout",
    "residual",
)


@dataclass
class Network:
    """A network as it grows: `tensor` is its end so far."""

    draw: st.DrawFn
    opset: int
    rng: np.random.Generator
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, NDArray[Any]] = field(default_factory=dict)
    shapes: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    outputs: list[str] = field(default_factory=list)
    kernels: list[str] = field(default_factory=list)
    tensor: str = "x"

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.shapes[self.tensor]

    def constant(self, values: NDArray[Any]) -> str:
        name = f"k{len(self.constants)}"
        self.constants[name] = values
        return name

    def floats(self, shape: tuple[int, ...], scale: float = 1.0) -> str:
        return self.constant((self.rng.standard_normal(shape) * scale).astype(np.float32))

    def positive(self, shape: tuple[int, ...]) -> str:
        return self.constant(np.asarray(self.rng.uniform(0.5, 2.0, shape), np.float32))

    def add(self, op: str, shape: tuple[int, int, int], inputs: list[str] | None = None, **attrs: Any) -> None:
        result = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs or [self.tensor], [result], name=f"{op}_{result}", **attrs))
        self.shapes[result], self.tensor = shape, result

    def pick(self, *choices: Any) -> Any:
        return self.draw(st.sampled_from(choices))

    def grow(self, kind: str) -> None:
        getattr(self, f"grow_{kind}")()

    def grow_conv(self) -> None:
        c, h, w = self.shape
        out, group, kernel = self.pick(*CHANNELS), self.pick(1, 2), self.pick(1, 3)
        twins = [
            name for name in self.kernels if c in (self.constants[name].shape[1], 2 * self.constants[name].shape[1])
        ]
        weight = self.pick(*twins) if twins and self.pick(True, False) else None
        if weight is not None:
            out, inner, kernel, _ = self.constants[weight].shape
            group = c // inner
        pads = self.draw(st.lists(st.integers(0, kernel // 2), min_size=4, max_size=4))
        stride, dilation = self.pick(1, 1, 2), self.pick(1, 2)
        reach = (kernel - 1) * dilation + 1
        sizes = [(n + pads[i] + pads[i + 2] - reach) // stride + 1 for i, n in enumerate((h, w))]
        if min(sizes) < 2:
            return
        if weight is None:
            weight = self.floats((out, c // group, kernel, kernel), 1 / kernel)
            self.kernels.append(weight)
        bias = [self.floats((out,))] if self.pick(True, False) else []
        self.add(
            "Conv",
            (out, sizes[0], sizes[1]),
            [self.tensor, weight, *bias],
            group=group,
            pads=pads,
            strides=[stride] * 2,
            dilations=[dilation] * 2,
        )

    def grow_deconv(self) -> None:
        c, h, w = self.shape
        out, group, kernel, stride = self.pick(*CHANNELS), self.pick(1, 2), self.pick(2, 3, 4), self.pick(1, 2)
        pads = self.draw(st.lists(st.integers(0, 1), min_size=4, max_size=4))
        extra = self.draw(st.integers(0, stride - 1))
        sizes = [stride * (n - 1) + kernel + extra - pads[i] - pads[i + 2] for i, n in enumerate((h, w))]
        if max(sizes) > 24 or min(sizes) < 2:
            return
        bias = [self.floats((out,))] if self.pick(True, False) else []
        self.add(
            "ConvTranspose",
            (out, sizes[0], sizes[1]),
            [self.tensor, self.floats((c, out // group, kernel, kernel), 0.5), *bias],
            group=group,
            pads=pads,
            strides=[stride] * 2,
            output_padding=[extra] * 2,
        )

    def grow_norm(self) -> None:
        c = self.shape[0]
        statistics = [self.floats((c,)), self.floats((c,)), self.floats((c,)), self.positive((c,))]
        self.add("BatchNormalization", self.shape, [self.tensor, *statistics])

    def grow_relu(self) -> None:
        self.add("Relu", self.shape)

    def grow_clip(self) -> None:
        low, high = self.pick((-1.0, 1.0), (0.0, 0.8), (-0.5, None), (None, 0.5))
        if self.opset < 11:
            self.add("Clip", self.shape, None, **{k: v for k, v in (("min", low), ("max", high)) if v is not None})
            return
        bounds = ["" if v is None else self.constant(np.array(v, np.float32)) for v in (low, high)]
        self.add("Clip", self.shape, [self.tensor, *bounds])

    def grow_arithmetic(self) -> None:
        c, h, w = self.shape
        op, first = self.pick("Mul", "Div", "Add", "Sub"), self.pick(True, True, False)
        shape = self.pick((), (1,), (c, 1, 1), (1, c, 1, 1), (1, 1), (h, w))
        inputs = [self.tensor, self.positive(shape)]
        self.add(op, self.shape, inputs if first or op == "Div" else inputs[::-1])

    def grow_pad(self) -> None:
        c, h, w = self.shape
        amounts = self.draw(st.lists(st.integers(0, 2), min_size=4, max_size=4))
        full = [0, 0, *amounts[:2], 0, 0, *amounts[2:]]
        shape = (c, h + amounts[0] + amounts[2], w + amounts[1] + amounts[3])
        if self.opset < 11:
            self.add("Pad", shape, None, pads=full)
        else:
            self.add("Pad", shape, [self.tensor, self.constant(np.array(full))])

    def grow_crop(self) -> None:
        c, h, w = self.shape
        start = [self.draw(st.integers(0, (n - 1) // 2)) for n in (h, w)]
        end = [self.draw(st.integers(s + 1, n)) for s, n in zip(start, (h, w), strict=True)]
        shape = (c, end[0] - start[0], end[1] - start[1])
        if self.opset < 10:
            self.add("Slice", shape, None, axes=[2, 3], starts=start, ends=end)
        else:
            self.add("Slice", shape, [self.tensor, *(self.constant(np.array(v)) for v in (start, end, [2, 3]))])

    def grow_pool(self) -> None:
        c, h, w = self.shape
        if min(h, w) >= 4:
            self.add("MaxPool", (c, h // 2, w // 2), None, kernel_shape=[2, 2], strides=[2, 2])

    def grow_swap(self) -> None:
        order = self.draw(st.permutations(range(self.shape[0])))
        self.add("Gather", self.shape, [self.tensor, self.constant(np.array(order))], axis=1)

    def grow_identity(self) -> None:
        self.add("Identity", self.shape)

    def grow_dropout(self) -> None:
        self.add("Dropout", self.shape)

    def grow_residual(self) -> None:
        others = [name for name, shape in self.shapes.items() if shape == self.shape]
        self.add("Add", self.shape, [self.tensor, self.pick(*others)])


@st.composite
def networks(draw: st.DrawFn) -> onnx.ModelProto:
    network = Network(draw, draw(st.sampled_from((9, 11, 13, 18, 21))), np.random.default_rng(draw(st.integers(0, 99))))
    network.shapes["x"] = (4, 9, 10)
    for kind in draw(st.lists(st.sampled_from(LAYERS), min_size=2, max_size=9)):
        network.grow(kind)
        if network.nodes and network.tensor not in network.outputs and draw(st.integers(0, 7)) == 0:
            network.outputs.append(network.tensor)
    if not network.nodes:
        network.grow_relu()
    names = dict.fromkeys([*network.outputs, network.tensor])
    as_nodes = draw(st.booleans())
    return model(
        network.nodes,
        {"x": [2, *network.shapes["x"]]},
        {name: [2, *network.shapes[name]] for name in names},
        network.constants,
        opset=network.opset,
        as_nodes=as_nodes,
        as_inputs=network.opset == 9 and not as_nodes,
    )


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(networks())
def test_random_networks_compute_the_same(before: onnx.ModelProto) -> None:
    after, reports = optimized(before, tolerance=2e-5)
    assert len(ops(after)) <= len(ops(before)) + 2  # a crop that goes on above a deconvolution is a new node
    assert [value.name for value in after.graph.output] == [value.name for value in before.graph.output]
    assert all((report.after != report.before) <= bool(report.changed) for report in reports)


@settings(max_examples=10, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(networks())
def test_graph_round_trip_changes_nothing(before: onnx.ModelProto) -> None:
    after = io.export_graph(io.import_graph(before), like=before)
    onnx.checker.check_model(after, full_check=True)
    assert [(n.op_type, list(n.input), list(n.output)) for n in after.graph.node] == [
        (n.op_type, list(n.input), list(n.output)) for n in before.graph.node
    ]


def test_the_networks_hold_what_the_passes_look_for() -> None:
    """A generator that stopped making, say, grouped or shared convolutions would prove nothing about them."""
    seen: set[str] = set()

    @settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None)
    @given(networks())
    def look(network: onnx.ModelProto) -> None:
        readers = [name for node in network.graph.node for name in node.input]
        seen.update(ops(network))
        for node in network.graph.node:
            attrs = {a.name: helper.get_attribute_value(a) for a in node.attribute}
            if node.op_type in ("Conv", "ConvTranspose"):
                seen.add(f"{node.op_type} group {attrs['group']}")
                seen.add(f"{node.op_type} {'bias' if len(node.input) > 2 else 'no bias'}")
                seen.add("shared weight" if readers.count(node.input[1]) > 1 else "own weight")
                seen.add("dilated" if attrs.get("dilations", [1])[0] > 1 else "dense")
            if readers.count(node.output[0]) > 1:
                seen.add("two readers")
        if len(network.graph.output) > 1:
            seen.add("output in the middle")

    look()
    assert seen >= {
        "Conv",
        "ConvTranspose",
        "BatchNormalization",
        "Relu",
        "Clip",
        "Mul",
        "Div",
        "Add",
        "Sub",
        "Pad",
        "Slice",
        "MaxPool",
        "Gather",
        "Identity",
        "Dropout",
        "Conv group 2",
        "ConvTranspose group 2",
        "Conv bias",
        "Conv no bias",
        "shared weight",
        "dilated",
        "two readers",
        "output in the middle",
    }
