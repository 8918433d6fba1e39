from __future__ import annotations

import pytest

from fcnopt.backends.targets import Target
from fcnopt.quantize.rates import GPUS, Rates, cpu_rates, fallback_of, rates_of


@pytest.mark.parametrize("capability", sorted(GPUS))
def test_tensor_cores_are_twice_as_fast_in_eight_bits(capability: int) -> None:
    rates = GPUS[capability]
    assert rates.name.startswith(f"sm{capability} (NVIDIA ")
    assert rates.gmacs["int8"] == 2 * rates.gmacs["fp16"]
    assert ("fp8" in rates.gmacs) == (capability >= 89)
    assert rates.gmacs.get("fp8", rates.gmacs["int8"]) == rates.gmacs["int8"]
    assert rates.gmacs["fp32"] < rates.gmacs["fp16"]


@pytest.mark.parametrize(
    ("target", "family"),
    [
        ("tensorrt-rtx:sm86", "sm86"),
        ("tensorrt-rtx:sm120,sm89", "sm89"),
        ("tensorrt-rtx:sm88", "sm87"),
        ("tensorrt-rtx:sm121", "sm120"),
        ("tensorrt-rtx:sm70", "sm75"),
    ],
)
def test_least_capability_decides_and_unknown_ones_count_as_the_one_before(target: str, family: str) -> None:
    assert rates_of(Target.parse(target)).name.split()[0] == family


@pytest.mark.parametrize(("here", "family"), [((), "sm86"), (("sm90",), "sm90")])
def test_target_without_capability_is_the_gpu_of_this_machine(
    monkeypatch: pytest.MonkeyPatch, here: tuple[str, ...], family: str
) -> None:
    monkeypatch.setattr("fcnopt.quantize.rates.gpu_capabilities", lambda: here)
    assert rates_of(Target.parse("tensorrt")).name.split()[0] == family


@pytest.mark.parametrize(
    ("isa", "name", "int8", "half"),
    [
        (("avx2",), "avx2", 4 / 3, None),
        (("avx2", "avx512"), "avx512", 4 / 3, None),
        (("avx2", "avx512", "vnni"), "vnni", 4, None),
        (("avx2", "vnni"), "vnni", 4, None),
        (("avx2", "avx512", "vnni", "bf16"), "vnni", 4, 2),
        (("avx2", "avx512", "vnni", "bf16", "amx-int8", "amx-bf16"), "amx", 32, 16),
    ],
)
def test_cpu_rates_follow_its_extensions(isa: tuple[str, ...], name: str, int8: float, half: float | None) -> None:
    rates = cpu_rates(isa, 4)
    assert rates.name == f"CPU with {name}, 4 cores"
    assert rates.gmacs["int8"] == pytest.approx(int8 * rates.gmacs["fp32"])
    assert rates.gmacs.get("bf16") == (None if half is None else pytest.approx(half * rates.gmacs["fp32"]))
    assert cpu_rates(isa, 8).gmacs["int8"] == 2 * rates.gmacs["int8"]


def test_openvino_falls_back_to_bf16_only_where_the_cpu_has_it() -> None:
    target = Target.parse("openvino")
    assert fallback_of(target, Rates("a", {"fp32": 1, "int8": 4}, 1)) == "fp32"
    assert fallback_of(target, Rates("b", {"fp32": 1, "bf16": 2, "int8": 4}, 1)) == "bf16"
    assert fallback_of(Target.parse("onnxruntime"), Rates("b", {"fp32": 1, "bf16": 2}, 1)) == "fp32"
    assert fallback_of(Target.parse("onnxruntime:cuda"), Rates("b", {"fp32": 1, "bf16": 2}, 1)) == "fp16"
