from __future__ import annotations

import pytest

from fcnopt.backends.cpurates import macs_a_cycle


@pytest.mark.parametrize(
    ("isa", "cycle"),
    [
        ((), {"fp32": 16, "int8": 64 / 3}),
        (("avx2", "vnni"), {"fp32": 16, "int8": 64}),
        (("avx2", "avx512"), {"fp32": 32, "int8": 128 / 3}),
        (("avx2", "avx512", "vnni", "bf16"), {"fp32": 32, "int8": 128, "bf16": 64}),
        (("avx2", "avx512", "vnni", "bf16", "amx-int8"), {"fp32": 32, "int8": 1024, "bf16": 512}),
    ],
)
def test_wider_vectors_and_dot_products_multiply_more_in_a_cycle(isa: tuple[str, ...], cycle: dict[str, float]) -> None:
    assert macs_a_cycle(isa) == pytest.approx(cycle)
