from __future__ import annotations

import json
from dataclasses import asdict
from typing import Literal

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper
from scipy.special import rel_entr, softmax

from fcnopt.errors import CalibrationError
from fcnopt.graph.io import import_graph
from fcnopt.graph.taps import expose, logits_name
from fcnopt.quantize import choose, sessions
from fcnopt.quantize.choose import Evidence, Judge, best, measure, warnings
from fcnopt.quantize.placement import place
from fcnopt.quantize.qdq import Form, Grid, insert
from fcnopt.quantize.sessions import OpenVinoSession, Session, judging
from tests.quantize.nets import fcn, images, run
from tests.quantize.test_refine import joined


def changed(model: onnx.ModelProto, name: str, change) -> onnx.ModelProto:
    """The same network with one constant changed."""
    other = onnx.ModelProto()
    other.CopyFrom(model)
    tensor = next(t for t in other.graph.initializer if t.name == name)
    tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)).astype(np.float32), name))
    return other


def test_least_divergence_wins_and_the_first_of_equals() -> None:
    entries = [
        Evidence("minmax", 0.02, 30.0, 0.99),
        Evidence("mse", 0.01, 20.0, 0.98),
        Evidence("entropy", 0.01, 21.0, 0.99),
    ]
    assert best(entries).name == "mse"


def test_divergence_is_that_of_the_class_probabilities(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choose, "_CLASS_PIXELS", 10)
    model, frames = fcn(rng), images(rng, 3)
    bias = np.array([0.0, 0.2, -0.1, 0.4], np.float32)
    other = changed(model, "score.bias", lambda values: values + bias)
    evidence = Judge(model, frames, "logits")("shifted", other)
    divergences, classes, equal, signal, noise = [], [], [], 0.0, 0.0
    for frame in frames:
        want, have = (run(expose(m, ["logits"]), frame, ["logits"])[0].astype(np.float64) for m in (model, other))
        p, q = softmax(want, axis=1), softmax(have, axis=1)
        divergences.append(rel_entr(p, q).sum(axis=1))
        classes.append(want.argmax(axis=1))
        equal.append((want.argmax(axis=1) == have.argmax(axis=1)).mean())
        signal, noise = signal + (want**2).sum(), noise + ((want - have) ** 2).sum()
    assert evidence.name == "shifted"
    each, label = np.concatenate(divergences), np.concatenate(classes)
    enough = [c for c in range(want.shape[1]) if np.count_nonzero(label == c) >= 10]
    assert len(enough) >= 2, "several classes count"
    of_classes = np.mean([each[label == c].mean() for c in enough])
    assert evidence.divergence == pytest.approx((each.mean() + of_classes) / 2, rel=1e-3)
    assert of_classes != pytest.approx(each.mean(), rel=1e-2), "classes differ"
    assert evidence.divergence > 1e-5
    assert evidence.equal_labels == pytest.approx(np.mean(equal))
    assert evidence.equal_labels < 1
    assert evidence.logits_db == pytest.approx(10 * np.log10(signal / noise))


def test_network_itself_does_not_diverge(rng: np.random.Generator) -> None:
    model = fcn(rng)
    assert Judge(model, images(rng, 2), "logits")("same", model) == Evidence("same", 0.0, 300.0, 1.0)


def test_large_frames_are_judged_at_a_spread_of_pixels(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = fcn(rng)
    frames = images(rng, 4)
    bias = np.array([0.0, 0.2, -0.1, 0.4], np.float32)
    other = changed(model, "score.bias", lambda values: values + bias)
    whole = Judge(model, frames, "logits")("all", other)
    monkeypatch.setattr("fcnopt.quantize.choose._PIXELS", 150)
    part = Judge(model, frames, "logits")("some", other)
    assert part.divergence == pytest.approx(whole.divergence, rel=0.1)
    assert part.divergence != whole.divergence


def test_every_candidate_is_measured_in_order(rng: np.random.Generator) -> None:
    model, steps = fcn(rng), []
    worse = changed(model, "score.bias", lambda values: values + np.arange(4))
    found = measure(Judge(model, images(rng, 1), "logits"), {"a": lambda: worse, "b": lambda: model}, steps.append)
    assert [entry.name for entry in found] == ["a", "b"]
    assert found[0].divergence > found[1].divergence == 0.0
    assert steps == [0.5, 1.0]


@pytest.mark.parametrize(("share", "lines"), [(1.0, 0), (0.9, 0), (0.899, 1), (0.5, 1)])
def test_user_is_warned_below_nine_labels_of_ten(share: float, lines: int) -> None:
    found = warnings(Evidence("minmax", 0.1, 3.0, share), "int8", alone=True)
    assert len(found) == lines
    assert all(line.startswith(f"WARNING: int8 by minmax leaves only {share:.1%}") for line in found)


def test_method_that_changes_most_labels_is_refused() -> None:
    with pytest.raises(
        CalibrationError, match=r"by mse leaves only 49\.9% of the labels .* 50% are the least"
    ) as error:
        warnings(Evidence("mse", 0.1, 1.0, 0.499), "int8", alone=True)
    for part in ("--precision fp16", "--calibration PATH", "--method auto"):
        assert part in error.value.fix
    with pytest.raises(CalibrationError) as error:
        warnings(Evidence("mse", 0.1, 1.0, 0.499), "fp8", alone=False)
    assert error.value.message.startswith("fp8 by mse")
    assert "every --method was tried" in error.value.fix


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_logits_that_are_not_numbers_are_refused(rng: np.random.Generator, precision: Literal["int8", "fp8"]) -> None:
    model, frames = fcn(rng), images(rng, 2)
    placement = place(import_graph(model), "logits")
    broken = dict.fromkeys(placement.tensors, Grid(np.inf, 0, precision))
    judge = Judge(model, frames, "logits")
    found = judge("mse", insert(model, placement, broken, "tensorrt"))
    assert best([found, judge("same", model)]).name == "same", "worse than any other"
    json.dumps(asdict(found), allow_nan=False)
    with pytest.raises(CalibrationError, match=rf"{precision} by mse: the logits are not finite"):
        warnings(found, precision, alone=True)


def test_graphs_that_openvino_joins_wrongly_are_judged_by_onnx_runtime(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "int8_saturates", lambda: False)
    plain, join = fcn(rng), joined(rng)
    assert isinstance(judging(plain, logits_name(plain)), OpenVinoSession)
    assert isinstance(judging(join, logits_name(join)), OpenVinoSession), "floats are joined rightly"
    quantized = _quantized(join, "int8", "tensorrt")
    assert isinstance(judging(quantized, logits_name(join)), Session)


@pytest.mark.parametrize("form", ["tensorrt", "openvino"])
@pytest.mark.parametrize("cpu", ["here", "without VNNI"])
def test_what_is_judged_is_the_graph_and_not_what_a_cpu_s_integers_make_of_it(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, form: Form, cpu: str
) -> None:
    """Weights of full range under activations of full range: in 16 bits their sums would saturate."""
    if cpu != "here":
        monkeypatch.setattr(sessions, "int8_saturates", lambda: True)
    kind: Literal["int8", "uint8"] = "int8" if form == "tensorrt" else "uint8"
    model = _quantized(fcn(rng), kind, form, reach=1.0)
    name = logits_name(model)
    plain = onnxruntime.SessionOptions()
    plain.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    sure = onnxruntime.InferenceSession(expose(model, [name]).SerializeToString(), plain)
    with judging(model, name) as session:
        for frame in images(rng, 2):
            (found,), (expected,) = session.run(frame), sure.run([name], {sure.get_inputs()[0].name: frame})
            assert np.abs(found - expected).max() < 0.02 * np.abs(expected).max()


def test_openvino_judges_joins_of_uint8_as_onnx_runtime_does(
    rng: np.random.Generator, saturates: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    saturates[0] = True  # weights that no CPU's sums saturate with
    monkeypatch.setattr(sessions, "int8_saturates", lambda: False)
    join = _quantized(joined(rng), "uint8", "openvino")
    name = logits_name(join)
    assert "Concat" in {node.op_type for node in join.graph.node}
    with judging(join, name) as fast, Session(join, (name,)) as sure:
        assert isinstance(fast, OpenVinoSession)
        for frame in images(rng, 3):
            (found,), (expected,) = fast.run(frame), sure.run(frame)
            assert np.abs(found - expected).max() < 0.02 * np.abs(expected).max()


def _quantized(
    model: onnx.ModelProto, kind: Literal["int8", "uint8"], form: Form, reach: float = 8.0
) -> onnx.ModelProto:
    placement = place(import_graph(model), logits_name(model))
    return insert(model, placement, dict.fromkeys(placement.tensors, Grid.over((0.0, reach), kind)), form)
