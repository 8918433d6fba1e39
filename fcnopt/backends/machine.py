"""Facts about this machine: what benchmark results are recorded with, and what decides which targets run here."""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fcnopt.backends.packages import version_of

RUNTIMES = ("torch", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx")

# The flags of /proc/cpuinfo (x86, then ARM) that decide how fast convolutions run, as words.
_ISA = {
    "avx2": ("avx2", "avx512f"),
    "avx512": ("avx512f",),
    "vnni": ("avx512_vnni", "avx_vnni"),
    "bf16": ("avx512_bf16", "amx_bf16", "bf16"),
    "fp16": ("avx512_fp16", "amx_fp16", "asimdhp"),
    "amx-int8": ("amx_int8",),
    "amx-bf16": ("amx_bf16",),
    "neon": ("asimd",),
    "dotprod": ("asimddp",),
    "i8mm": ("i8mm",),
}
# CUdevice_attribute values of cuda.h
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76


def describe_machine() -> dict[str, Any]:
    """What this machine is, ready for JSON.

    Returns:
        `cpu` (model), `cores` (those this process may use), `isa` (such as "avx512", "vnni", "bf16", "amx-int8"),
        `memory_gib`, `gpus` (each with name, driver, compute_capability, memory_mib), `os`, `python`, and `versions`
        of the runtimes installed.
    """
    info = _read("/proc/cpuinfo")
    return {
        "cpu": _cpu_model(info),
        "cores": usable_cores(),
        "isa": list(isa_of(info)),
        "memory_gib": _memory_gib(_read("/proc/meminfo")),
        "gpus": gpus(),
        "os": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: version for name in RUNTIMES if (version := version_of(name))},
    }


def usable_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache  # asked for every layer that is quantized
def cpu_isa() -> tuple[str, ...]:
    """The vector extensions of this machine that matter, as `describe_machine` names them."""
    return isa_of(_read("/proc/cpuinfo"))


def int8_saturates(isa: Sequence[str] | None = None) -> bool:
    """Whether integer kernels of a CPU add pairs of int8 products in 16 bits, where sums saturate.

    Those of x86 without VNNI do (VPMADDUBSW; OpenVINO's documentation, "Saturation (overflow) issue workaround"; ONNX
    Runtime's, "Quantize ONNX models"). Sums of weights within `fcnopt.graph.optimizers.NARROW` always fit.

    Args:
        isa: As `cpu_isa` tells it; None for that of this machine.
    """
    found = cpu_isa() if isa is None else isa
    return "avx2" in found and "vnni" not in found


def isa_of(cpuinfo: str) -> tuple[str, ...]:
    """The vector extensions that matter, from the text of /proc/cpuinfo."""
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", cpuinfo, re.MULTILINE)
    flags = set(found[1].split()) if found else set()
    return tuple(word for word, any_of in _ISA.items() if flags.intersection(any_of))


def gpu_capabilities() -> tuple[str, ...]:
    """The compute capability ("sm86") of each NVIDIA GPU, by the driver alone; empty where there is none."""
    return _driver()[0]


def gpu_problem() -> str:
    """Why no NVIDIA GPU can be used here, with CUDA's error number; empty where one can."""
    return _driver()[1]


@functools.cache
def _driver() -> tuple[tuple[str, ...], str]:
    """The GPUs' compute capabilities, and the reason where there are none."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        # What the CUDA runtime answers where there is no driver.
        return (), "cudaError 35 (cudaErrorInsufficientDriver): no NVIDIA driver is installed (libcuda.so.1)"
    count = ctypes.c_int()
    error = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    if error or not count.value:
        return (), f"cudaError {error or 100}: the NVIDIA driver finds no usable GPU"
    return tuple(
        f"sm{_attribute(driver, i, _CAPABILITY_MAJOR)}{_attribute(driver, i, _CAPABILITY_MINOR)}"
        for i in range(count.value)
    ), ""


def gpus() -> list[dict[str, Any]]:
    """The NVIDIA GPUs as nvidia-smi lists them; empty where it is missing or fails."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    query = [tool, "--query-gpu=name,driver_version,compute_cap,memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)  # noqa: S603 (fixed words)
    except (OSError, subprocess.SubprocessError):
        return []
    return parse_gpus(done.stdout)


def parse_gpus(text: str) -> list[dict[str, Any]]:
    """Read nvidia-smi's lines `name, driver, compute capability, memory in MiB`."""
    found = []
    for line in text.splitlines():
        words = [word.strip() for word in line.split(",")]
        if len(words) == 4:
            name, driver, capability, memory = words
            found.append(
                {
                    "name": name,
                    "driver": driver,
                    "compute_capability": capability,
                    "memory_mib": int(memory) if memory.isdigit() else None,
                }
            )
    return found


def _attribute(driver: ctypes.CDLL, device: int, attribute: int) -> int:
    value = ctypes.c_int()
    driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
    return value.value


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _cpu_model(cpuinfo: str) -> str:
    found = re.search(r"^(?:model name|Model)\s*:\s*(.*)$", cpuinfo, re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()


def _memory_gib(meminfo: str) -> float | None:
    found = re.search(r"^MemTotal:\s*(\d+) kB", meminfo, re.MULTILINE)
    return round(int(found[1]) / 2**20, 1) if found else None
