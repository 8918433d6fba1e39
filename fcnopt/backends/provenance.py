"""What an engine was built and proved with, compared with what is here.

Three cases are told apart. A CPU that computes int8 otherwise than the one that the engine was proved on is refused
before anything is loaded. Another version or device may work: an IR or ONNX file is compiled when it is loaded, and
the known-answer test decides. Where loading or that test then fails, the error says what is other here than it was.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from fcnopt.backends.base import Precision
from fcnopt.backends.machine import cpu_isa, gpu_capabilities, int8_saturates
from fcnopt.backends.packages import version_of
from fcnopt.backends.targets import Target
from fcnopt.errors import BackendError, BundleError

_CAPABILITY = re.compile(r"\bsm(\d{2,3})\b|\((\d{1,2})\.(\d)\)")


@dataclass(frozen=True)
class Provenance:
    """What an engine was built with, in the words of its manifest.

    Attributes:
        name: Of the bundle, for messages.
        target: What it is for.
        precision: Of its graph.
        runtime: Name and version: "openvino 2026.4.1".
        device: As its builder named it: "CPU (...)", "sm86+sm89", "NVIDIA H100 (9.0)".
        machine: That it was proved on, as `describe_machine` describes it; empty where unknown.
    """

    name: str
    target: Target
    precision: Precision
    runtime: str
    device: str
    machine: dict[str, Any] = field(default_factory=dict)

    @property
    def isa(self) -> tuple[str, ...]:
        """Vector extensions of the CPU that it was proved on; empty where unknown."""
        found = self.machine.get("isa")
        return tuple(map(str, found)) if isinstance(found, list | tuple) else ()


@contextmanager
def checked(built: Provenance) -> Iterator[None]:
    """Load and prove an engine in this block.

    Raises:
        BackendError: This CPU computes int8 otherwise than the one that the engine was proved on; or what the block
            raised, with what is other here.
        BundleError: What the block raised, with what is other here.
    """
    check_int8(built)
    try:
        yield
    except (BackendError, BundleError) as error:
        others = differences(built)
        if not others:
            raise
        raise type(error)(f"{error.message} ({'; '.join(others)})", fix=_fix(built, error.fix)) from error


def check_int8(built: Provenance) -> None:
    """Refuse an int8 engine that was proved with VNNI on an x86 CPU without it.

    Its weights take all of int8, with which sums saturate there (`fcnopt.backends.machine.int8_saturates`). Runtimes
    are asked to compute such graphs in float, which is right, but slower than where it was proved.

    Raises:
        BackendError: As said.
    """
    if built.precision != "int8" or built.target.form == "tensorrt" or built.target.device or "vnni" not in built.isa:
        return
    if not int8_saturates(cpu_isa()):
        return
    raise BackendError(
        f"{built.name}: int8 was proved on a CPU with VNNI ({', '.join(built.isa)}), which this one has not "
        f"({', '.join(cpu_isa())}): its int8 sums can saturate",
        fix="run it on a CPU with VNNI, or build it again on this machine, for weights whose sums cannot",
    )


def differences(built: Provenance) -> tuple[str, ...]:
    """What is other here than when the engine was built, each as a part of a sentence."""
    found = []
    here, there = _runtime_here(built), built.runtime
    if here != there:
        found.append(f"it was built with {there}, here is {here}")
    if built.target.runtime.startswith("tensorrt"):
        wanted, have = capabilities_of(built.device), gpu_capabilities()[:1]
        if wanted and have and have[0] not in wanted:
            found.append(f"it was built for {' and '.join(wanted)}, this GPU is {have[0]}")
    elif not built.target.device:
        isa = cpu_isa()
        lacking = [name for name in built.isa if name not in isa]
        if lacking:
            found.append(f"it was proved on a CPU with {', '.join(lacking)}, which this one has not")
    return tuple(found)


def capabilities_of(device: str) -> tuple[str, ...]:
    """The compute capabilities in a builder's words: ("sm86", "sm89") of "sm86+sm89", ("sm90",) of "... (9.0)"."""
    return tuple(f"sm{one or major + minor}" for one, major, minor in _CAPABILITY.findall(device))


def _runtime_here(built: Provenance) -> str:
    """As `built.runtime` is written."""
    module = built.target.runtime.replace("-", "_")
    return f"{module} {version_of(module) or '(not installed)'}"


def _fix(built: Provenance, fix: str) -> str:
    """What the error itself advises, and the version that the engine was built with."""
    module, _, version = built.runtime.partition(" ")
    if not version or _runtime_here(built) == built.runtime:
        return fix
    return f"{fix}; or install {module.replace('_', '-')}=={version}"
