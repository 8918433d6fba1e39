"""What an engine is for, as the user writes it: `tensorrt-rtx:sm86,sm89`, `openvino`, `onnxruntime:cuda`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

from fcnopt.errors import UsageError

Runtime = Literal["tensorrt", "tensorrt-rtx", "openvino", "onnxruntime"]
Form = Literal["tensorrt", "openvino", "onnxruntime"]
"""Which runtime's rules a quantized graph is made by."""

DEVICES: dict[str, tuple[str, ...]] = {"openvino": ("cpu", "gpu"), "onnxruntime": ("cpu", "cuda")}
"""The devices that can be named for a runtime, its default first."""
EXAMPLES = (
    "tensorrt",
    "tensorrt-rtx",
    "tensorrt-rtx:sm86,sm89",
    "openvino",
    "openvino:gpu",
    "onnxruntime",
    "onnxruntime:cuda",
)

_CAPABILITY = re.compile(r"sm(\d{2,3})|(\d{1,2})\.(\d)")


@dataclass(frozen=True)
class Target:
    """A runtime and its device.

    Attributes:
        runtime: Which runtime.
        device: "cpu", "gpu" (an Intel GPU, for OpenVINO) or "cuda"; empty for the runtime's default.
        compute_capabilities: For TensorRT-RTX: GPU generations to compile for, as "sm86"; empty for this machine's.
    """

    runtime: Runtime
    device: str = ""
    compute_capabilities: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.runtime not in get_args(Runtime):
            raise _unknown(self.runtime)
        if self.device and self.device not in DEVICES.get(self.runtime, ())[1:]:
            raise _unknown(f"{self.runtime}:{self.device}")
        if self.compute_capabilities and self.runtime != "tensorrt-rtx":
            raise UsageError(
                f"target {self.runtime}: compute capabilities {', '.join(self.compute_capabilities)} cannot be chosen",
                fix="use tensorrt-rtx to build for other GPUs; tensorrt builds for the GPU of this machine",
            )

    @classmethod
    def parse(cls, text: str) -> Target:
        """Read what a user wrote; `str(target)` writes it.

        Raises:
            UsageError: It names no target; the fix lists them.
        """
        runtime, _, rest = text.strip().lower().partition(":")
        words = [word.strip() for word in rest.split(",") if word.strip()]
        if runtime not in get_args(Runtime) or (rest.strip() == "") != (":" not in text):
            raise _unknown(text)
        kind: Runtime = runtime  # type: ignore[assignment]  # checked in the line above
        if not words:
            return cls(kind)
        if runtime == "tensorrt-rtx":
            return cls(kind, compute_capabilities=tuple(dict.fromkeys(map(capability_name, words))))
        known = DEVICES.get(runtime, ())
        if len(words) != 1 or words[0] not in known:
            raise _unknown(text)
        return cls(kind, "" if words[0] == known[0] else words[0])

    def __str__(self) -> str:
        detail = self.device or ",".join(self.compute_capabilities)
        return f"{self.runtime}:{detail}" if detail else self.runtime

    @property
    def file_safe(self) -> str:
        """For file names: "tensorrt-rtx-sm86-sm89"."""
        return str(self).replace(":", "-").replace(",", "-")

    @property
    def form(self) -> Form:
        """The form of a quantized graph that it wants; ONNX Runtime on a GPU may hand all to TensorRT."""
        if self.runtime == "openvino":
            return "openvino"
        return "onnxruntime" if self.runtime == "onnxruntime" and self.device != "cuda" else "tensorrt"

    def runs_here(self) -> bool:
        """Whether this machine has the runtime and the device; looks, but loads no runtime."""
        from fcnopt.backends.machine import gpu_capabilities
        from fcnopt.backends.packages import installed

        if not installed(self.runtime.replace("-", "_")):
            return False
        if self.runtime.startswith("tensorrt"):
            here = gpu_capabilities()
            wanted = self.compute_capabilities
            return bool(here) and (not wanted or here[0] in wanted) and installed("cuda")
        if self.device:
            from fcnopt.backends.survey import devices_of

            return self.device in devices_of(self.runtime)
        return True


def capability_name(text: str) -> str:
    """A compute capability as TensorRT-RTX names it: "sm86" of "sm86", "SM86", "sm_86" or "8.6".

    Raises:
        UsageError: It is none.
    """
    found = _CAPABILITY.fullmatch(text.strip().lower().replace("_", ""))
    if not found:
        raise UsageError(f"{text!r} is not a compute capability", fix="write sm86 or 8.6, for example")
    return "sm" + (found[1] or found[2] + found[3])


def _unknown(text: str) -> UsageError:
    return UsageError(f"target {text!r} is not known", fix=f"use one of {', '.join(EXAMPLES)}")
