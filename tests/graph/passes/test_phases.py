from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from fcnopt.graph.compare import compare, observe, random_feeds
from fcnopt.graph.passes import PassReport, optimize
from fcnopt.graph.passes.phases import PhasesPass
from tests.graph.build import attribute, changed, declined, model, node, ops

CHANNELS, CLASSES = 4, 3


def segmenting(
    rng: np.random.Generator,
    kernel: int = 4,
    *,
    stride: int = 2,
    group: int = 1,
    bias: bool = False,
    size: tuple[int | None, int | None] = (5, 6),
    batch: int | None = 2,
    keepdims: int = 0,
    opset: int = 17,
    also: str = "",
    **attrs: Any,
) -> onnx.ModelProto:
    """A transposed convolution, ArgMax and a Cast to uint8; `also` names a further output."""
    classes = CLASSES if group == 1 else CHANNELS
    constants = {"w": rng.standard_normal((CHANNELS, classes // group, kernel, kernel), np.float32)}
    if bias:
        constants["b"] = rng.standard_normal(classes, np.float32)
    nodes = [
        helper.make_node(
            "ConvTranspose",
            ["x", *constants],
            ["logits"],
            name="up",
            kernel_shape=[kernel, kernel],
            group=group,
            **({"strides": [stride, stride]} | attrs),
        ),
        helper.make_node("ArgMax", ["logits"], ["classes"], name="argmax", axis=1, keepdims=keepdims),
        helper.make_node("Cast", ["classes"], ["labels"], name="to_uint8", to=TensorProto.UINT8),
    ]
    outputs: dict[str, Any] = {"labels": [None] * (4 if keepdims else 3)}
    made = model(nodes, {"x": [batch, CHANNELS, *size]}, outputs, constants, opset=opset, output_type=TensorProto.UINT8)
    if also:
        made.graph.output.append(helper.make_tensor_value_info(also, TensorProto.FLOAT, [None] * 4))
    return made


def rewritten(before: onnx.ModelProto) -> tuple[onnx.ModelProto, tuple[PassReport, ...]]:
    """The model after the pass, its labels all the same on inputs of another seed."""
    after, reports = optimize(before, passes=(PhasesPass(),), strict=True)
    onnx.checker.check_model(after, full_check=True)
    feeds = list(random_feeds(before, seed=7, samples=2))
    for want, have in zip(observe(before, feeds), observe(after, feeds), strict=True):
        np.testing.assert_array_equal(have.outputs["labels"], want.outputs["labels"])
        assert len(np.unique(want.outputs["labels"])) > 1, "the test must be able to fail"
    return after, reports


@pytest.mark.parametrize("stride", [2, 3, 8])
@pytest.mark.parametrize("more", [0, 1, 2])
def test_kernels_of_a_multiple_of_the_stride_and_others(stride: int, more: int, rng: np.random.Generator) -> None:
    made, reports = rewritten(segmenting(rng, stride * 2 - more, stride=stride))
    assert ops(made) == ["Conv", "Reshape", "ArgMax", "Cast", "Reshape", "DepthToSpace", "Squeeze", "Slice"]
    assert changed(reports) == ["ArgMax 'argmax' before the interleaving of ConvTranspose 'up'"]
    assert attribute(node(made, "DepthToSpace"), "blocksize") == stride


def test_kernel_smaller_than_the_stride(rng: np.random.Generator) -> None:
    made, _ = rewritten(segmenting(rng, 2, stride=3, bias=True))
    assert attribute(node(made, "Conv"), "kernel_shape") == [1, 1]


@pytest.mark.parametrize("pads", [[1, 1, 1, 1], [0, 1, 2, 1], [3, 0, 0, 3]])
def test_padding_becomes_a_crop_of_labels(pads: list[int], rng: np.random.Generator) -> None:
    assert ops(rewritten(segmenting(rng, 4, pads=pads))[0])[0] == "Conv"


@pytest.mark.parametrize("group", [2, 4])
def test_groups_and_bias(group: int, rng: np.random.Generator) -> None:
    made, _ = rewritten(segmenting(rng, 4, group=group, bias=True))
    assert attribute(node(made, "Conv"), "group") == group


def test_dynamic_size(rng: np.random.Generator) -> None:
    assert ops(rewritten(segmenting(rng, 16, stride=8, pads=[4] * 4, size=(None, None), batch=None))[0])[0] == "Conv"


def test_kept_axis(rng: np.random.Generator) -> None:
    assert "Squeeze" not in ops(rewritten(segmenting(rng, 4, keepdims=1))[0])


def test_output_padding_within_the_kernel_of_a_phase(rng: np.random.Generator) -> None:
    assert ops(rewritten(segmenting(rng, 3, output_padding=[1, 1]))[0])[0] == "Conv"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"also": "logits"}, "the logits are read by others too"),
        ({"kernel": 3, "stride": 1}, "not those of an upsampling"),
        ({"strides": [2, 4]}, "not those of an upsampling"),
        ({"dilations": [2, 2]}, "it is dilated"),
        ({"output_shape": [10, 12]}, "derives its padding"),
        ({"output_padding": [1, 1]}, "writes more than its inputs reach"),
        ({"opset": 12}, "opset 12 is too old"),
    ],
)
def test_left_alone(options: dict[str, Any], reason: str, rng: np.random.Generator) -> None:
    made, reports = rewritten(segmenting(rng, **options))
    assert "ConvTranspose" in ops(made)
    assert reason in declined(reports)


def test_proof_compares_labels_where_logits_moved(rng: np.random.Generator) -> None:
    class Wrong(PhasesPass):
        def rewrite(self, view: Any, match: Any) -> str:
            match.deconv.inputs[1].values = -match.deconv.inputs[1].values
            return super().rewrite(view, match)

    before = segmenting(rng, 4)
    after, reports = optimize(before, passes=(Wrong(),))
    assert compare(before, after).equal_labels == 1.0
    assert "of the labels of output 'labels' are the same" in declined(reports)
