from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fcnopt.evaluate
from fcnopt.errors import GateError, UsageError
from fcnopt.evaluate.bench import BenchOptions, bench
from fcnopt.evaluate.result import BenchResult, check_gates, result_schema
from fcnopt.media.clips import fit_frame
from fcnopt.spec import FrameSpec, ModelSpec
from tests.evaluate.fakes import CLASSES, FakeClip, FakeRunner, wrong_corner

SCHEMA = Path(fcnopt.evaluate.__file__).with_name("benchmark.schema.json")


@pytest.fixture(scope="module")
def result() -> BenchResult:
    return bench(
        FakeClip(),
        [FakeRunner("openvino int8", wrong_corner, sleep_s=0.002)],
        FakeRunner(),
        BenchOptions(warmup_frames=1, round_frames=6, bootstrap_samples=100, keep_samples=2),
        machine={"cpu": "two cores", "memory_gib": 24.0, "gpus": []},
        versions={"openvino": "2026.4"},
        command="fcnopt bench fake.mp4",
        date="2026-11-22T09:00:00+00:00",
    )


def test_json_brings_back_the_result(result: BenchResult) -> None:
    assert result.samples
    again = BenchResult.from_json(result.to_json())
    assert again == result
    assert again.samples == ()
    assert again.engines[0].latency == result.engines[0].latency
    assert again.machine == {"cpu": "two cores", "memory_gib": 24.0, "gpus": []}


def test_a_result_of_the_first_version_is_read_without_what_it_did_not_have(result: BenchResult) -> None:
    data = result.to_dict() | {"schema_version": 1}
    for name in ("frames_sha256", "truth_pixels", "truth_blocks"):
        del data[name]
    again = BenchResult.from_json(json.dumps(data))
    assert again == replace(result, frames_sha256=None, truth_pixels=None, truth_blocks=None)
    assert again.unjudged == ("",) * 4
    assert BenchResult.from_json(again.to_json()) == again


def test_a_result_without_modes_is_read_and_written_as_it_was(result: BenchResult) -> None:
    """Readers that know nothing of modes still read results in which nothing but latency was benched."""
    data = result.to_dict()
    assert not {"mode", "in_flight", "batch"} & set(data["engines"][0])
    assert BenchResult.from_json(json.dumps(data)).engines[0].mode == "latency"
    fast = replace(result.engines[0], mode="throughput", in_flight=2, batch=4)
    both = replace(result, engines=(*result.engines, fast))
    data = both.to_dict()
    assert {name: data["engines"][1][name] for name in ("mode", "in_flight", "batch")} == {
        "mode": "throughput",
        "in_flight": 2,
        "batch": 4,
    }
    assert list(faults(json.loads(SCHEMA.read_text("utf-8")), data)) == []
    assert BenchResult.from_json(both.to_json()) == both


def test_the_frames_are_named_by_their_hash_and_counted_by_class(result: BenchResult) -> None:
    clip = FakeClip()
    bytes_of_all = b"".join(frame.image.tobytes() for frame in clip)
    assert result.frames_sha256 == hashlib.sha256(bytes_of_all).hexdigest()
    expected = np.bincount(np.stack([clip.truth(i) for i in range(12)]).ravel(), minlength=4)
    assert result.truth_pixels == tuple(expected)
    assert result.truth_blocks == (4, 4, 4, 4)  # 12 frames in blocks of 3
    assert result.unjudged == ("too few pixels to judge",) * 4
    shifted = replace(result, truth_pixels=(0, 10_000, 10_000, 1), truth_blocks=(0, 4, 3, 1))
    assert shifted.unjudged == ("not in the truth", "", "in too few frames to judge", "too few pixels to judge")


def test_the_hash_is_of_the_frames_as_the_reference_takes_them() -> None:
    """RGB at half the size: the same hash as calibration frames of such a model have."""
    spec = ModelSpec(FrameSpec(12, 16, color="RGB"), CLASSES)
    runner = FakeRunner(change=lambda labels, _: labels // 80)  # of what is now the red channel
    runner.spec = spec
    found = bench(FakeClip(frames=3), [], runner, BenchOptions(warmup_frames=0, bootstrap_samples=0))
    fitted = b"".join(fit_frame(frame.image, spec.frame).tobytes() for frame in FakeClip(frames=3))
    assert found.frames_sha256 == hashlib.sha256(fitted).hexdigest()


def test_the_dict_is_the_parsed_json(result: BenchResult) -> None:
    assert result.to_dict() == json.loads(result.to_json())
    assert "samples" not in result.to_dict()
    assert result.to_dict()["schema_version"] == 2


def test_the_schema_file_is_that_of_the_classes() -> None:
    assert json.loads(SCHEMA.read_text("utf-8")) == result_schema()


def test_a_result_fits_the_schema_and_a_changed_one_does_not(result: BenchResult) -> None:
    schema, data = json.loads(SCHEMA.read_text("utf-8")), result.to_dict()
    assert list(faults(schema, data)) == []
    data["engines"][0]["fps"] = "fast"
    data["engines"][0]["drop"]["miou_interval"] = [1.0]
    data["truth"] = "guess"
    del data["reference"]["latency"]
    assert len(list(faults(schema, data))) == 4


KINDS: dict[str, Any] = {"string": str, "integer": int, "number": (int, float), "object": dict, "array": list}


def faults(schema: dict[str, Any], data: Any, path: str = "") -> Any:
    """What in `data` breaks `schema`: the keywords that result_schema uses, and no other."""
    known = {"$schema", "title", "type", "additionalProperties", "required", "properties", "anyOf", "items"}
    assert set(schema) <= known | {"prefixItems", "minItems", "maxItems", "enum", "const"}
    if "anyOf" in schema:
        if data is not None and [*faults(schema["anyOf"][0], data, path)]:
            yield path
        return
    if ("enum" in schema and data not in schema["enum"]) or ("const" in schema and data != schema["const"]):
        yield path
        return
    if "type" in schema and not isinstance(data, KINDS[schema["type"]]):
        yield path
        return
    if isinstance(data, dict):
        yield from (f"{path}.{name}" for name in set(schema.get("required", ())) - set(data))
        for name, value in data.items():
            more = schema.get("properties", {}).get(name, schema.get("additionalProperties"))
            if more is False:
                yield f"{path}.{name}"
            else:
                yield from faults(more, value, f"{path}.{name}")
    if isinstance(data, list):
        if not schema.get("minItems", 0) <= len(data) <= schema.get("maxItems", len(data)):
            yield path
            return
        kinds = schema.get("prefixItems", [schema.get("items")] * len(data))
        for index, (kind, value) in enumerate(zip(kinds, data, strict=True)):
            yield from faults(kind, value, f"{path}[{index}]")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(schema_version=3), "schema version 3, this fcnopt reads 2"),
        (lambda d: d["engines"][0].pop("fps"), r"result\.engines\[0\]: missing fps"),
        (lambda d: d["engines"][0].update(extra=1), r"result\.engines\[0\]: unknown extra"),
        (lambda d: d.update(frames="12"), r"result\.frames: expected integer, found '12'"),
        (lambda d: d.update(truth="guess"), r"result\.truth: expected one of"),
        (lambda d: d["palette"].__setitem__(0, [1, 2]), r"result\.palette\[0\]: expected an array of 3"),
    ],
)
def test_a_damaged_file_is_told_what_is_wrong(result: BenchResult, change: Any, message: str) -> None:
    data = result.to_dict()
    change(data)
    with pytest.raises(UsageError, match=message):
        BenchResult.from_json(json.dumps(data))


@pytest.mark.parametrize("text", ["", "[]", "{", "null"])
def test_what_is_not_a_result_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="bench result"):
        BenchResult.from_json(text)


def test_the_worst_class_is_the_one_that_loses_most(result: BenchResult) -> None:
    engine = result.engines[0]
    worst = result.worst_class(engine)
    assert worst is not None
    assert worst[1] == max(d for d in engine.drop.iou if d is not None)
    assert result.classes[engine.drop.iou.index(worst[1])] == worst[0]
    absent = replace(engine, drop=replace(engine.drop, iou=(None,) * 4))
    assert result.worst_class(absent) is None


def test_the_range_of_the_speedup_goes_round_by_round(result: BenchResult) -> None:
    reference = replace(result.reference, fps_rounds=(2.0, 4.0))
    engine = replace(result.engines[0], fps_rounds=(12.0, 20.0))
    assert replace(result, reference=reference).speedup_range(engine) == (5.0, 6.0)
    # rounds that cannot be paired, and a single one, say nothing of it
    assert replace(result, reference=reference).speedup_range(replace(engine, fps_rounds=(12.0, 20.0, 20.0))) is None
    single = replace(result, reference=replace(reference, fps_rounds=(2.0,)))
    assert single.speedup_range(replace(engine, fps_rounds=(12.0,))) is None


def test_open_gates_let_pass(result: BenchResult) -> None:
    check_gates(result)
    check_gates(result, max_miou_drop=99, max_class_drop=99, min_fps=0.001)


def test_each_gate_names_engine_measured_and_wanted(result: BenchResult) -> None:
    engine = result.engines[0]
    name, drop = result.worst_class(engine) or ("", 0.0)
    with pytest.raises(GateError) as caught:
        check_gates(result, max_miou_drop=0.25, max_class_drop=1, min_fps=1e6)
    miou, worst, fps = caught.value.message.split("; ")
    assert miou.startswith(f"openvino int8: mIoU drop {engine.drop.miou:.2f} points (95 % interval ")
    assert miou.endswith("at most 0.25 wanted")
    assert worst == f"openvino int8: IoU drop of class {name} {drop:.2f} points, at most 1 wanted"
    assert fps == f"openvino int8: {engine.fps:.1f} FPS end to end, at least 1e+06 wanted"
    assert caught.value.exit_code == 1


def test_the_reference_is_not_gated(result: BenchResult) -> None:
    fast = replace(result.engines[0], fps=1e6)
    check_gates(replace(result, engines=(fast,)), min_fps=1e5)


@pytest.mark.parametrize(
    ("name", "value"),
    [("max_miou_drop", float("nan")), ("max_class_drop", float("nan")), ("min_fps", float("nan")), ("min_fps", -1.0)],
)
def test_a_gate_that_could_not_hold_back_anything_is_refused(result: BenchResult, name: str, value: float) -> None:
    with pytest.raises(UsageError, match=f"gate {name} is {value:g}"):
        check_gates(result, **{name: value})


def test_a_gate_can_ask_for_a_gain(result: BenchResult) -> None:
    with pytest.raises(GateError, match="at most -100 wanted"):
        check_gates(result, max_miou_drop=-100)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"schema_version": 2, "clip": ' + '{"a":' * 50_000])
def test_json_that_is_too_deep_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="bench result cannot be read"):
        BenchResult.from_json(text)


def test_a_number_that_no_float_holds_is_refused(result: BenchResult) -> None:
    data = json.loads(result.to_json())
    data["reference"]["fps"] = 10**400
    with pytest.raises(UsageError, match=r"reference\.fps: expected a number that a float can hold"):
        BenchResult.from_json(json.dumps(data))
