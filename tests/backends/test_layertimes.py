from __future__ import annotations

import numpy as np
import onnx
import pytest

from fcnopt.backends.layertimes import LayerTime, LayerTimer, layer_timer
from fcnopt.backends.targets import Target
from fcnopt.errors import BackendError
from tests.backends.tiny import tiny_onnx, tiny_spec


@pytest.fixture
def model(tmp_path):
    return onnx.load(tiny_onnx(tmp_path / "m.onnx", tiny_spec()))


def frame_for(model):
    height, width = (d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim[1:3])
    return np.zeros((1, height, width, 3), np.uint8)


@pytest.mark.parametrize("target", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("quantized", ["", "uint8"])
def test_every_convolution_has_a_time_under_a_name_of_its_own(tmp_path, target, quantized):
    model = onnx.load(tiny_onnx(tmp_path / "m.onnx", tiny_spec(), quantized=quantized))
    with layer_timer(model, Target.parse(target), "int8" if quantized else "fp32") as timer:
        for _ in range(3):
            timer.run(frame_for(model))
        found = timer.times()
    names = [name for layer in found for name in set(layer.names)]
    for own in ({"conv1", "c1", "relu1", "r1"}, {"conv2", "c2", "relu2", "r2"}):
        assert own.intersection(names), names
    assert len({layer.names for layer in found}) == len(found)
    assert all(layer.ms >= 0 for layer in found)
    assert sum(layer.ms for layer in found) > 0


def test_the_least_time_of_all_runs_counts():
    class Fake(LayerTimer):
        ms = iter((3.0, 1.0, 2.0))

        def run(self, frame):
            assert frame.shape == (1, 1, 1, 3)
            self._add(("a", "b"), next(self.ms))

        def close(self):
            pass

    with Fake() as timer:
        for _ in range(3):
            timer.run(np.zeros((1, 1, 1, 3), np.uint8))
        assert timer.times() == (LayerTime(("a", "b"), 1.0),)


@pytest.mark.parametrize("target", ["tensorrt-rtx:sm86", "onnxruntime:cuda", "openvino:gpu"])
def test_runtimes_that_tell_no_times_are_refused(model, target):
    with pytest.raises(BackendError, match="its layers cannot be timed one by one"):
        layer_timer(model, Target.parse(target), "fp32")
