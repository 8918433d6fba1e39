"""How fast targets multiply and move data, from public data sheets: what a cost estimate starts from.

Dense rates, without structured sparsity, of one part of each family. Only ratios matter to a search: between
precisions, and between multiplying and moving. Other parts of a family have about the same ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from fcnopt.backends.cpurates import macs_a_cycle
from fcnopt.backends.machine import describe_machine, gpu_capabilities
from fcnopt.backends.targets import Target
from fcnopt.errors import UsageError
from fcnopt.quantize.methods import Quantized

Fallback = Literal["fp16", "bf16", "fp32"]

BYTES: Mapping[str, int] = {"int8": 1, "fp8": 1, "fp16": 2, "bf16": 2, "fp32": 4}
"""Of an element."""


@dataclass(frozen=True)
class Rates:
    """One family.

    Attributes:
        name: Of the family, with the part that stands for it.
        gmacs: Multiply-accumulates in 1e9 a second, by precision; a precision that it lacks is left out.
        gbytes: Memory bandwidth in 1e9 bytes a second.
    """

    name: str
    gmacs: Mapping[str, float]
    gbytes: float


def _gpu(name: str, half_tflops: float, gbytes: float, *, int8: bool = True, fp8: bool = False) -> Rates:
    """Tensor cores multiply 8-bit numbers twice as fast as half ones; a multiply-accumulate is two operations."""
    half = half_tflops / 2 * 1e3
    gmacs = {"fp32": half / 2, "bf16": half, "fp16": half}  # fp32 as TF32, which TensorRT allows by default
    gmacs |= {"int8": 2 * half} if int8 else {}
    return Rates(name, gmacs | ({"fp8": 2 * half} if fp8 else {}), gbytes)


GPUS: Mapping[int, Rates] = {
    75: _gpu("sm75 (NVIDIA T4 data sheet)", 65, 320),
    80: _gpu("sm80 (NVIDIA A100 80GB SXM data sheet)", 312, 2039),
    86: _gpu("sm86 (NVIDIA A10 data sheet)", 125, 600),
    # 170 TOPS INT8 with sparsity for the GPU alone
    87: _gpu("sm87 (NVIDIA Jetson AGX Orin Series technical brief, 64GB)", 42.5, 204.8),
    89: _gpu("sm89 (NVIDIA L4 data sheet)", 121, 300, fp8=True),
    90: _gpu("sm90 (NVIDIA H100 SXM data sheet)", 989.5, 3350, fp8=True),
    # FP16 with FP16 accumulation
    120: _gpu("sm120 (NVIDIA RTX Blackwell GPU architecture white paper, RTX 5090)", 419, 1792, fp8=True),
}
"""By compute capability."""

_GHZ = 2.5
# A core's share of its package: Xeon Platinum 8380 (204.8 GB/s, 40 cores) and 8480+ (307.2 GB/s, 56 cores) data sheets.
_CPU_GBYTES = {"vnni": 204.8 / 40, "amx": 307.2 / 56}


def cpu_rates(isa: tuple[str, ...], cores: int) -> Rates:
    """A CPU's.

    Args:
        isa: As `describe_machine` names extensions.
        cores: That the runtime may use.
    """
    amx = "amx-int8" in isa
    kind = "amx" if amx else "vnni" if "vnni" in isa else "avx512" if "avx512" in isa else "avx2"
    gbytes = _CPU_GBYTES["amx" if amx else "vnni"] * cores
    gmacs = {precision: macs * _GHZ * cores for precision, macs in macs_a_cycle(isa).items()}
    return Rates(f"CPU with {kind}, {cores} cores", gmacs, gbytes)


def rates_of(target: Target) -> Rates:
    """The rates of a target; with several compute capabilities the least one's, as one engine serves all.

    A generation that the table lacks counts as the one before it.
    """
    if target.form != "tensorrt":
        machine = describe_machine()
        return cpu_rates(tuple(machine["isa"]), int(machine["cores"]))
    capabilities = target.compute_capabilities or gpu_capabilities()[:1] or ("sm86",)
    least = min(int(name.removeprefix("sm")) for name in capabilities)
    return GPUS[max((known for known in GPUS if known <= least), default=min(GPUS))]


def fallback_of(target: Target, rates: Rates) -> Fallback:
    """What a layer that is not quantized computes in.

    On OpenVINO a heavy layer: an engine whose float layers are all small takes FP32 for them, which an estimate need
    not know, as it does so only where that costs next to nothing (`fcnopt.backends.openvino_mode`).
    """
    if target.form == "tensorrt":
        return "fp16"
    return "bf16" if target.runtime == "openvino" and "bf16" in rates.gmacs else "fp32"


def check_rate(rates: Rates, precision: Quantized) -> None:
    """Refuse a precision that the family lacks.

    Raises:
        UsageError: It does.
    """
    if precision not in rates.gmacs:
        raise UsageError(
            f"{rates.name} does not compute in {precision}", fix="use --precision int8, or a GPU from sm89 on for fp8"
        )
