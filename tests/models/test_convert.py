from __future__ import annotations

import logging
from collections import Counter

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from fcnopt.errors import GraphError
from fcnopt.models.convert import MAX_OPSET, MIN_OPSET, to_onnx
from fcnopt.models.verify import open_session
from tests.models.networks import tiny


@pytest.fixture(scope="module")
def converted() -> onnx.ModelProto:
    return to_onnx(tiny(batch_norm=True), (33, 47), dynamic=False, opset=20)


def test_every_layer_is_one_node_and_batch_norm_stays(converted: onnx.ModelProto) -> None:
    onnx.checker.check_model(converted, full_check=True)
    kinds = Counter(node.op_type for node in converted.graph.node)
    kinds.pop("Slice")
    assert kinds == {"Conv": 18, "BatchNormalization": 15, "Relu": 15, "MaxPool": 5, "ConvTranspose": 3, "Add": 2}


def test_nodes_are_named_as_the_modules_parts(converted: onnx.ModelProto) -> None:
    names = {node.name: node for node in converted.graph.node}
    assert len(names) == len(converted.graph.node)
    for name, kind in {"conv1_1": "Conv", "bn4_3": "BatchNormalization", "relu6": "Relu", "pool5": "MaxPool"}.items():
        assert names[name].op_type == kind
        assert list(names[name].output) == [name]
    assert names["upscore8"].input[1] == "upscore8.weight"


def test_weights_keep_their_names_and_values(converted: onnx.ModelProto) -> None:
    state = tiny(batch_norm=True).state_dict()
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in converted.graph.initializer}
    want = {name for name in state if not name.endswith("num_batches_tracked")}
    assert want <= set(found)
    for name in want:
        np.testing.assert_array_equal(found[name], state[name].numpy())


def test_no_bias_of_zeros_is_made_up(converted: onnx.ModelProto) -> None:
    convs = [node for node in converted.graph.node if node.op_type == "Conv"]
    assert [node.name for node in convs if len(node.input) == 3] == ["score_fr", "score_pool4", "score_pool3"]


def test_a_networks_own_bias_of_zeros_stays() -> None:
    network = tiny(32)
    with torch.no_grad():
        network.conv1_1.bias.zero_()
    model = to_onnx(network, (33, 47), dynamic=False, opset=20)
    assert next(node for node in model.graph.node if node.name == "conv1_1").input[2] == "conv1_1.bias"


def test_nothing_of_the_users_machine_is_in_the_file(converted: onnx.ModelProto) -> None:
    assert b".py" not in converted.SerializeToString()


@pytest.mark.parametrize("opset", [MIN_OPSET, MAX_OPSET])
def test_other_opsets_give_the_same_logits(opset: int) -> None:
    network = tiny(32, batch_norm=True)
    model = to_onnx(network, (33, 47), dynamic=False, opset=opset)
    assert [entry.version for entry in model.opset_import if entry.domain == ""] == [opset]
    x = torch.randn(1, 3, 33, 47, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        want = network(x).numpy()
    found = open_session(model)({"normalized": x.numpy()})["logits"]
    np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-5)


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        """Another path for bright frames, which no fixed graph can have."""
        return x * 2 if x.sum() > 0 else x


def test_a_network_that_cannot_be_converted_is_refused_in_one_line() -> None:
    with pytest.raises(GraphError, match="Branching cannot be converted to ONNX: ") as error:
        to_onnx(Branching(), (8, 8), dynamic=False, opset=20)
    assert "\n" not in error.value.message
    assert "branches on values" in error.value.fix


class Fixed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        """Works for one size only."""
        return x + torch.ones(1, 3, 8, 8)


def test_a_network_of_one_size_is_refused_as_dynamic() -> None:
    with pytest.raises(GraphError, match="Fixed works for H = 8, W = 8 only") as error:
        to_onnx(Fixed(), (8, 8), dynamic=True, opset=20)
    assert "without --dynamic" in error.value.fix


def test_conversion_is_silent_and_leaves_logging_as_it_was(capfd: pytest.CaptureFixture[str]) -> None:
    before = logging.getLogger("torch.onnx").level
    to_onnx(nn.Sequential(nn.Conv2d(3, 2, 1)).eval(), (4, 4), dynamic=False, opset=20)
    assert logging.getLogger("torch.onnx").level == before
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("padding", ["same", "caffe"])
def test_channels_last_weights_convert_with_open_axes(padding: str) -> None:
    network = tiny(padding=padding).to(memory_format=torch.channels_last)
    assert not network.conv1_1.weight.is_contiguous()
    model = to_onnx(network, (64, 96), dynamic=True, opset=20)
    x = torch.randn(2, 3, 97, 131, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        want = network(x).numpy()
    np.testing.assert_allclose(open_session(model)({"normalized": x.numpy()})["logits"], want, rtol=1e-4, atol=1e-4)
