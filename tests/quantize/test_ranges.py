from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from fcnopt.errors import CalibrationError
from fcnopt.quantize.ranges import CLEAN_DB, Observer, decibels, observe, round_to, sample
from tests.quantize.nets import Net, fcn, images, run

TENSORS = ("normal", "conv1_relu", "conv2_relu", "logits")


def test_ranges_are_those_of_the_values_themselves(rng: np.random.Generator) -> None:
    model, frames = fcn(rng), images(rng, 5)
    found = observe(model, frames, tensors=TENSORS, quantized=("conv2_relu",))
    tapped = observe_reference(model, frames)
    assert found.frames == 5
    assert set(found.tensors) == set(TENSORS)
    for name, values in tapped.items():
        tensor = found.tensors[name]
        assert (tensor.minimum, tensor.maximum) == (values.min(), values.max())
        assert tensor.rms == pytest.approx(np.sqrt(np.mean(values.astype(float) ** 2)), rel=0.05)
        assert bool(tensor.intervals) == (name == "conv2_relu")
    kept = found.tensors["conv2_relu"].intervals
    assert kept["minmax"][255] == (0.0, tapped["conv2_relu"].max())


def observe_reference(model, frames) -> dict[str, np.ndarray]:
    from fcnopt.graph.taps import expose

    runs = [run(expose(model, TENSORS), frame, TENSORS) for frame in frames]
    return {name: np.stack([values[i] for values in runs]) for i, name in enumerate(TENSORS)}


def test_progress_counts_frames(rng: np.random.Generator) -> None:
    seen: list[int] = []
    observe(fcn(rng), images(rng, 3), tensors=("normal",), quantized=(), progress=seen.append)
    assert seen == [1, 2, 3]


def test_noise_is_what_rounding_adds(rng: np.random.Generator) -> None:
    values = rng.normal(size=4096).astype(np.float32)
    observer = Observer(histogram=False)
    observer.update(values)
    found = observer.result()
    assert found.noise_db["fp16"] == pytest.approx(73.5, abs=1.5)
    assert found.noise_db["bf16"] == pytest.approx(55.5, abs=1.5)
    tiny = Observer(histogram=False)
    tiny.update(values * np.float32(1e-7))  # below float16's subnormals for the most part
    assert tiny.result().noise_db["fp16"] < 20
    assert tiny.result().noise_db["bf16"] == pytest.approx(55.5, abs=1.5)


def test_bfloat16_rounding_is_to_nearest_even() -> None:
    import ml_dtypes

    bits = np.random.default_rng(0).integers(0x30000000, 0x4F000000, 20000, dtype=np.uint32)
    bits[:100] = (bits[:100] & np.uint32(0xFFFF0000)) | np.uint32(0x8000)  # ties
    values = bits.view(np.float32)
    np.testing.assert_array_equal(round_to(values, "bf16"), values.astype(ml_dtypes.bfloat16).astype(np.float32))


def test_float16_overflow_is_infinite() -> None:
    assert np.isinf(round_to(np.array([70000.0], np.float32), "fp16")).all()
    assert decibels(1.0, float("inf")) == -CLEAN_DB
    assert decibels(1.0, 0.0) == CLEAN_DB


@pytest.mark.parametrize("shape", [(1, 64, 36, 48), (1, 3, 360, 480), (1, 7, 31, 17)])
def test_samples_are_bounded_repeatable_and_reach_every_place_in_time(shape: tuple[int, ...]) -> None:
    values = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    limit = 2048
    first = sample(values, limit, 0)
    np.testing.assert_array_equal(first, sample(values, limit, 0))
    assert first.size <= limit
    turns = -(-values.size // limit) + 8
    seen = np.unique(np.concatenate([sample(values, limit, turn) for turn in range(turns)]))
    assert seen.size > 0.98 * values.size


def test_small_tensors_are_seen_whole() -> None:
    values = np.arange(100, dtype=np.float32).reshape(1, 4, 5, 5)
    assert sample(values, 100, 3).size == 100


def test_memory_does_not_grow_with_the_number_of_frames(rng: np.random.Generator) -> None:
    values = [rng.normal(size=(1, 16, 64, 64)).astype(np.float32) for _ in range(4)]
    observer = Observer(histogram=True)
    for index in range(4):
        observer.update(values[index])
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for index in range(60):
        observer.update(values[index % 4])
    kept = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert values[0].nbytes == 262144
    assert kept < 40_000  # one histogram, replaced, is 32 KiB; sixty tensors would be 15 MiB


def test_no_frames_is_an_error(rng: np.random.Generator) -> None:
    with pytest.raises(CalibrationError, match="no frames were given"):
        observe(fcn(rng), [], tensors=("normal",), quantized=())


def test_values_that_are_not_finite_name_frame_and_tensor(rng: np.random.Generator) -> None:
    net = Net(rng)
    x = net.frames()
    x = net.node("Mul", [x, net.const("huge", np.array(3e38, np.float32))], "overflowing")
    model = net.model([("overflowing", 1, [1, 3, 24, 32])])
    with pytest.raises(CalibrationError, match="calibration frame 0, tensor 'overflowing': values are not finite"):
        observe(model, images(rng, 1), tensors=("overflowing",), quantized=())


@pytest.mark.parametrize("reach", [1e-44, 1e-40, 1e-37, 1e-20])
def test_tiny_tensor_has_finite_intervals(reach: float) -> None:
    observer = Observer(histogram=True)
    for gain in (1, 2):
        observer.update(np.linspace(-reach, gain * reach, 1000, dtype=np.float32))
    found = observer.result()
    for by_levels in found.intervals.values():
        for levels, (low, high) in by_levels.items():
            most = 2.001 * reach * (2 if levels == 448 else 1)  # FP8 leaves headroom
            assert -most <= low < 0 < high <= most
