from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fcnopt.errors import BackendError, GraphError
from fcnopt.evaluate.probe import Probe
from fcnopt.graph import io
from fcnopt.quantize.casts import to_half
from tests.quantize import nets


def test_tensors_are_those_of_the_reference_implementation(rng: np.random.Generator) -> None:
    model, frame = nets.fcn(rng), nets.images(rng, 1)[0]
    with Probe(model, ["conv2_relu", "labels", "logits"], "net") as probe:
        found = probe.read(frame)
    assert list(found) == ["conv2_relu", "labels", "logits"]
    np.testing.assert_allclose(
        found["conv2_relu"], nets.exact(_showing(model, "conv2_relu"), frame, "conv2_relu"), 1e-4, 1e-4
    )
    assert len(model.graph.output) == 1  # the model is left as it was


def test_half_precision_is_rounded_at_every_result(rng: np.random.Generator) -> None:
    """ONNX Runtime's CPU by itself does not: it takes its own casts between two results out."""
    half, report = to_half(nets.fcn(rng), {}, "fp16")
    assert report.half > 5
    frame = nets.images(rng, 1)[0]
    names = ["conv1_relu", "conv2_relu", "conv3_relu"]
    with Probe(half, names, "half") as probe:
        found = probe.read(frame)
    assert {value.dtype for value in found.values()} == {np.dtype(np.float16)}
    for before, weighted, after in (("conv1_relu", "conv2", "conv2_relu"),):
        fed = _layer(half, weighted, found[before])
        # the sum is taken in float32 from rounded inputs, then rounded: at most the last bit may differ by order
        assert np.mean(fed == found[after]) > 0.99
        # and this is not what comes out where inputs were never rounded
        loose = nets.run(_showing(half, *names), frame, [after])[0]
        assert np.mean(fed == loose) < 0.95


def _layer(model: onnx.ModelProto, weighted: str, data: np.ndarray) -> np.ndarray:
    """ReLU of one convolution of 3 x 3, padded by 1, in float64 from the half weights, rounded to half."""
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    node = nets.producer(model, weighted)
    weight, bias = (constants[name].astype(np.float64) for name in node.input[1:])
    padded = np.pad(data.astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    result = np.einsum("nchwij,ocij->nohw", windows, weight) + bias[:, None, None]
    return np.maximum(result, 0).astype(np.float16)


def test_readers_of_a_given_tensor_read_what_is_given(rng: np.random.Generator) -> None:
    model, frame = nets.fcn(rng), nets.images(rng, 1)[0]
    names = ["conv1_relu", "conv2_relu", "conv3_relu"]
    with Probe(model, names, "net") as probe:
        true = probe.read(frame)
    with Probe(model, names, "net", given=names) as probe:
        same = probe.read(frame, true)
        other = probe.read(frame, {**true, "conv2_relu": 2 * true["conv2_relu"]})
    for name in names:
        np.testing.assert_array_equal(same[name], true[name])
    np.testing.assert_array_equal(other["conv2_relu"], true["conv2_relu"])  # what is written is not what is read
    assert np.abs(other["conv3_relu"] - true["conv3_relu"]).max() > 0.1


def test_what_is_given_is_cast_and_may_overflow(rng: np.random.Generator) -> None:
    half, _ = to_half(nets.fcn(rng), {}, "fp16")
    frame = nets.images(rng, 1)[0]
    with Probe(half, ["conv2_relu", "conv3_relu"], "half", given=["conv2_relu"]) as probe:
        found = probe.read(frame, {"conv2_relu": np.full((1, 32, *nets.SIZE), 1e6, np.float32)})
    assert not np.isfinite(found["conv3_relu"].astype(np.float32)).all()
    assert np.isfinite(found["conv2_relu"]).all()


def test_a_model_beyond_protobuf_goes_through_a_file(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    model, frame = nets.fcn(rng), nets.images(rng, 1)[0]
    with Probe(model, ["logits"], "net") as probe:
        expected = probe.read(frame)["logits"]
    written = []
    save = io.save
    monkeypatch.setattr(io, "EXTERNAL_ABOVE_BYTES", 1000)
    monkeypatch.setattr(io, "save", lambda model, path: written.append(path) or save(model, path, external_above=1000))
    with Probe(model, ["logits"], "net") as probe:
        np.testing.assert_array_equal(probe.read(frame)["logits"], expected)
    assert len(written) == 1
    assert not written[0].exists()


def test_errors_name_the_network(rng: np.random.Generator) -> None:
    with pytest.raises(GraphError, match="no tensor 'nothing'"):
        Probe(nets.fcn(rng), ["nothing"], "net")
    bf16, _ = to_half(nets.fcn(rng), {}, "bf16")
    with pytest.raises(BackendError, match=r"engines/bf: ONNX Runtime cannot run the network") as caught:
        Probe(bf16, ["logits"], "engines/bf")
    assert "bfloat16" in caught.value.fix
    with Probe(nets.fcn(rng), ["logits"], "net") as probe, pytest.raises(BackendError, match="net: inference failed"):
        probe.read(np.zeros((1, 8, 8, 3), np.uint8))


def _showing(model: onnx.ModelProto, *names: str) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    half = any(tensor.data_type == TensorProto.FLOAT16 for tensor in model.graph.initializer)
    kind = TensorProto.FLOAT16 if half else TensorProto.FLOAT
    copy.graph.output.extend(helper.make_tensor_value_info(name, kind, None) for name in names)
    return copy
