from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

from fcnopt.errors import BackendError, GraphError
from fcnopt.graph.prepost import attach
from fcnopt.models.convert import to_onnx
from fcnopt.models.verify import TOLERANCE, normalize, open_session, random_frames, verify
from fcnopt.spec import NORMALIZATIONS, ClassSpec, FrameSpec, ModelSpec
from tests.models.networks import tiny

SIZE = (33, 47)
SPEC = ModelSpec(FrameSpec(*SIZE), ClassSpec.of_count(5), architecture="tiny FCN")
NETWORK = tiny(32, batch_norm=True)
FRAMES = random_frames(3, *SIZE)


def run(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    with torch.inference_mode():
        logits: NDArray[np.float32] = NETWORK(torch.from_numpy(pixels)).numpy()
    return logits


@pytest.fixture(scope="module")
def network() -> onnx.ModelProto:
    return to_onnx(NETWORK, SIZE, dynamic=False, opset=20)


def test_a_faithful_model_passes_and_is_measured(network: onnx.ModelProto) -> None:
    result = verify(attach(network, SPEC), run, SPEC, [FRAMES], "random frames")
    assert result.count == 3
    assert 0 < result.max_relative_error < TOLERANCE
    assert result.equal_labels > 0.999
    assert str(result).startswith("3 random frames: maximum relative error of the logits ")


@pytest.mark.parametrize(
    "wrong",
    [
        replace(SPEC, frame=replace(SPEC.frame, color="RGB")),
        replace(SPEC, frame=replace(SPEC.frame, normalization=NORMALIZATIONS["unit"])),
        replace(SPEC, frame=replace(SPEC.frame, normalization=replace(SPEC.frame.normalization, mean=(0.486,) * 3))),
    ],
    ids=["channel order", "statistics", "a slightly wrong mean"],
)
def test_wrong_preprocessing_is_found(network: onnx.ModelProto, wrong: ModelSpec) -> None:
    with pytest.raises(GraphError, match=r"tiny FCN does not answer as the network does.*no file was written"):
        verify(attach(network, wrong), run, SPEC, [FRAMES], "random frames")


def test_right_logits_with_wrong_labels_are_found(network: onnx.ModelProto) -> None:
    model = attach(network, SPEC)
    node = next(node for node in model.graph.node if node.op_type == "ArgMax")
    node.op_type = "ArgMin"
    with pytest.raises(GraphError, match="labels differ that are no near-tie"):
        verify(model, run, SPEC, [FRAMES], "random frames")


def test_a_tie_may_go_either_way() -> None:
    """Two classes with the same weights tie everywhere; a bias below the tolerance lets the later one win."""
    graph_side, torch_side = tiny(32, batch_norm=True), tiny(32, batch_norm=True)
    for net in (graph_side, torch_side):
        with torch.no_grad():
            net.score_fr.weight[1] = net.score_fr.weight[0]
            net.score_fr.bias[:2] = 5.0  # far above the others
            net.upscore.weight.zero_()
            net.upscore.weight[range(5), range(5)] = 1.0
    with torch.no_grad():
        torch_side.score_fr.bias[1] += 1e-5

    def run_tied(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            logits: NDArray[np.float32] = torch_side(torch.from_numpy(pixels)).numpy()
        return logits

    model = attach(to_onnx(graph_side, SIZE, dynamic=False, opset=20), SPEC)
    result = verify(model, run_tied, SPEC, [FRAMES], "random frames")
    assert result.equal_labels < 0.5


def test_a_result_that_is_not_finite_is_found(network: onnx.ModelProto) -> None:
    model = attach(network, SPEC)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "frame_inverse_std")
    tensor.CopyFrom(onnx.numpy_helper.from_array(np.full((1, 3, 1, 1), np.nan, np.float32), tensor.name))
    with pytest.raises(GraphError, match="NaN or infinite"):
        verify(model, run, SPEC, [FRAMES], "random frames")


def test_a_fixed_batch_gets_as_many_frames_as_it_takes(network: onnx.ModelProto) -> None:
    pair = onnx.ModelProto()
    pair.CopyFrom(network)
    for value in (pair.graph.input[0], pair.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_value = 2
    assert verify(attach(pair, SPEC), run, SPEC, [FRAMES], "random frames").equal_labels > 0.999


def test_normalization_is_the_textbooks() -> None:
    spec = replace(SPEC, frame=FrameSpec(1, 1, "BGR"))
    frame = np.array([[[[30, 20, 10]]]], np.uint8)
    want = [(10 / 255 - 0.485) / 0.229, (20 / 255 - 0.456) / 0.224, (30 / 255 - 0.406) / 0.225]
    np.testing.assert_allclose(normalize(frame, spec).ravel(), want, rtol=1e-6)


def test_a_model_that_onnx_runtime_refuses_is_named() -> None:
    node = onnx.helper.make_node("Relu", ["x"], ["y"], domain="nobody.knows")
    value = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1]) for n in "xy"]
    graph = onnx.helper.make_graph([node], "g", value[:1], value[1:])
    opsets = [onnx.helper.make_opsetid("nobody.knows", 1), onnx.helper.make_opsetid("", 20)]
    with pytest.raises(BackendError, match="ONNX Runtime refuses the model"):
        open_session(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10))
