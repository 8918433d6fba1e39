from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from fcnopt.errors import UsageError
from fcnopt.graph.batch import with_batch
from tests.backends.tiny import tiny_onnx, tiny_spec

ALL = ("labels", "confidence", "logits")


@pytest.mark.parametrize("quantized", ["", "int8"])
@pytest.mark.parametrize("given", [1, None])
def test_several_frames_at_a_time_give_what_each_gives_alone(
    tmp_path: Path, rng: np.random.Generator, quantized: str, given: int | None
) -> None:
    path = tiny_onnx(tmp_path / "m.onnx", tiny_spec(outputs=ALL), batch=given, quantized=quantized)  # type: ignore[arg-type]
    model = onnx.load(path)
    before = model.SerializeToString()
    three = with_batch(model, 3)
    assert model.SerializeToString() == before, "the model handed in is left as it is"
    onnx.checker.check_model(three, full_check=True)
    assert [d.dim_value for d in three.graph.input[0].type.tensor_type.shape.dim] == [3, 24, 32, 3]
    frames = rng.integers(0, 256, (3, 24, 32, 3), np.uint8)
    session = onnxruntime.InferenceSession(three.SerializeToString(), providers=["CPUExecutionProvider"])
    single = onnxruntime.InferenceSession(before, providers=["CPUExecutionProvider"])
    together = session.run(list(ALL), {"frames": frames})
    apart = [single.run(list(ALL), {"frames": frames[i : i + 1]}) for i in range(3)]
    for place in range(len(ALL)):
        joined = np.concatenate([part[place] for part in apart])
        np.testing.assert_allclose(together[place], joined, rtol=1e-5, atol=1e-5)


def test_a_graph_that_has_the_batch_already_is_given_back(tmp_path: Path) -> None:
    model = onnx.load(tiny_onnx(tmp_path / "m.onnx", tiny_spec(), batch=2))
    assert with_batch(model, 2) is model
    with pytest.raises(UsageError, match="frames: the graph is made for 2 frames at a time, 4 are wanted"):
        with_batch(model, 4)
    with pytest.raises(UsageError, match="batch is 0"):
        with_batch(model, 0)


def test_a_graph_with_the_number_of_frames_in_a_constant_is_refused() -> None:
    nodes = [helper.make_node("Reshape", ["frames", "shape"], ["labels"])]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("frames", TensorProto.UINT8, [1, 2, 3, 3])],
        [helper.make_tensor_value_info("labels", TensorProto.UINT8, [1, 18])],
        [numpy_helper.from_array(np.array([1, 18]), "shape")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    with pytest.raises(UsageError, match="cannot take 4 frames at a time") as caught:
        with_batch(model, 4)
    assert "--dynamic" in caught.value.fix


def test_what_is_joined_to_a_frame_is_repeated(rng: np.random.Generator) -> None:
    joined = np.full((1, 1, 4, 5), 7, np.float32)
    graph = helper.make_graph(
        [helper.make_node("Concat", ["frames", "constant"], ["labels"], axis=1)],
        "joined",
        [helper.make_tensor_value_info("frames", TensorProto.FLOAT, [1, 3, 4, 5])],
        [helper.make_tensor_value_info("labels", TensorProto.FLOAT, [1, 4, 4, 5])],
        [numpy_helper.from_array(joined, "constant")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    two = with_batch(model, 2)
    onnx.checker.check_model(two, full_check=True)
    frames = rng.standard_normal((2, 3, 4, 5), np.float32)
    session = onnxruntime.InferenceSession(two.SerializeToString(), providers=["CPUExecutionProvider"])
    (have,) = session.run(None, {"frames": frames})
    np.testing.assert_array_equal(have, np.concatenate([frames, joined.repeat(2, axis=0)], axis=1))


def test_a_resize_to_sizes_of_one_frame_is_refused() -> None:
    """Its result would be broadcast to the skip branch: every frame would get the first one's."""
    nodes = [
        helper.make_node("MaxPool", ["frames"], ["small"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Resize", ["small", "", "", "sizes"], ["large"], name="up", mode="nearest"),
        helper.make_node("Add", ["large", "frames"], ["labels"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("frames", TensorProto.FLOAT, [1, 3, 4, 6])],
        [helper.make_tensor_value_info("labels", TensorProto.FLOAT, [1, 3, 4, 6])],
        [numpy_helper.from_array(np.array([1, 3, 4, 6]), "sizes")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with pytest.raises(UsageError, match="cannot take 2 frames at a time: Resize 'up' gives 1 of 2"):
        with_batch(model, 2)
