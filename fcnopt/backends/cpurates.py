"""How many multiply-accumulates a CPU core does in a cycle, in each precision, by its vector extensions.

Peaks, after the Intel 64 and IA-32 Architectures Optimization Reference Manual. Two 512-bit FMA units: 32 in FP32, 128
in INT8 with VPDPBUSD, 64 in BF16 with VDPBF16PS. One AMX unit: 1024 in INT8, 512 in BF16. AVX2 without VNNI: 16 in
FP32, and three instructions for 32 in INT8.
"""

from __future__ import annotations

from collections.abc import Collection

_FLOAT = {"avx2": 16, "avx512": 32}


def macs_a_cycle(isa: Collection[str]) -> dict[str, float]:
    """Multiply-accumulates of one core in a cycle, by precision; bf16 only where the CPU multiplies it.

    Args:
        isa: As `describe_machine` names extensions.
    """
    floats = _FLOAT["avx512" if "avx512" in isa else "avx2"]
    cycle = {"fp32": floats, "int8": 4 * floats if "vnni" in isa else floats * 4 / 3}
    if "bf16" in isa:
        cycle["bf16"] = 2 * floats
    if "amx-int8" in isa:
        cycle |= {"int8": 1024, "bf16": 512}
    return cycle
