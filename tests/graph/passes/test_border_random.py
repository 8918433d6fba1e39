"""Random padded networks: what is left of their borders is exact, and nothing is done twice."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper

from fcnopt.graph.passes import border_plan
from fcnopt.graph.stats import stats_of
from tests.graph.build import model
from tests.graph.passes.test_border import Values, conv, rewritten


@st.composite
def networks(draw: st.DrawFn) -> onnx.ModelProto:
    """One to three stages under a wide padding, of any kernels and poolings, with crops or whole readers."""
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    height, width, pad = (draw(st.integers(*bounds)) for bounds in ((9, 24), (9, 24), (3, 20)))
    nodes: list[onnx.NodeProto] = []
    values: Values = {}
    x, inner, size, outputs = "x", 3, (height, width), []
    for stage in range(draw(st.integers(1, 3))):
        for layer in range(draw(st.integers(1, 2))):
            kernel, out = draw(st.sampled_from((1, 3, 3, 5))), draw(st.integers(2, 5))
            around = pad if x == "x" else draw(st.sampled_from((kernel // 2, 0)))
            if min(size) + 2 * around < kernel + 2:
                continue
            made, more = conv(rng, x, f"c{stage}{layer}", (out, inner, kernel, kernel), pads=[around] * 4)
            nodes, values, x, inner = nodes + made, values | more, f"c{stage}{layer}", out
            size = (size[0] + 2 * around - kernel + 1, size[1] + 2 * around - kernel + 1)
        kernel, up = draw(st.sampled_from((2, 3))), draw(st.integers(0, 1))
        if min(size) < kernel + 2:
            break
        op = draw(st.sampled_from(("MaxPool", "AveragePool")))
        attrs = {"kernel_shape": [kernel] * 2, "strides": [2, 2], "ceil_mode": up}
        nodes.append(helper.make_node(op, [x], [f"p{stage}"], name=f"p{stage}", **attrs))
        x, size = f"p{stage}", tuple((n - kernel + up) // 2 + 1 for n in size)
        if draw(st.booleans()):
            bounds = [sorted(draw(st.lists(st.integers(0, n), min_size=2, max_size=2, unique=True))) for n in size]
            values |= {f"{x}.{what}": np.array([b[i] for b in bounds]) for i, what in enumerate(("from", "to"))}
            values["axes"] = np.array([2, 3])
            nodes.append(helper.make_node("Slice", [x, f"{x}.from", f"{x}.to", "axes"], [f"{x}.crop"]))
            outputs.append(f"{x}.crop")
    nodes.append(helper.make_node("GlobalMaxPool", [x], ["y"]))
    return model(nodes, {"x": [1, 3, height, width]}, {name: [None] * 4 for name in ("y", *outputs)}, values)


@given(networks())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_random_networks(before: onnx.ModelProto) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(border_plan, "_WRITE_MACS", 0)
        made, _ = rewritten(before)
    assert (stats_of(made).macs or 0) <= (stats_of(before).macs or 0)
