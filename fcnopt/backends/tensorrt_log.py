"""What TensorRT says, read: parser errors with their fix, build errors, and the table of engine layers.

Both flavours (`tensorrt`, `tensorrt_rtx`) talk through a logger; the first one that a process registers serves all
later builders and runtimes, so there is one a module, for good.
"""

from __future__ import annotations

import functools
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from fcnopt.backends.base import EngineLayer
from fcnopt.backends.packages import require

Flavour = Literal["tensorrt", "tensorrt_rtx"]

# (what TensorRT says, what the user can do). Each was seen with TensorRT-RTX 1.7; the first match counts.
FIXES: tuple[tuple[str, str], ...] = (
    (
        r"has type Int32 but must have type",
        "leave biases in float: quantize with `fcnopt build --precision int8`, or give ONNX Runtime's quantizer "
        'extra_options={"QuantizeBias": False}',
    ),
    (
        r"Non-zero zero point",
        "quantize symmetrically, zero point 0: use `fcnopt build --precision int8`, or give ONNX Runtime's quantizer "
        'extra_options={"ActivationSymmetric": True} and int8 activations',
    ),
    (
        r"Defaulting to INT8 instead|UINT8 zero_point only on DLA",
        "quantize activations to int8, not uint8: TensorRT reads uint8 as int8 and clips the upper half",
    ),
    (
        r"UINT8 types for intermediate tensors",
        "let the cast to uint8 be the last node before the output, and a cast from uint8 the first after the input",
    ),
    (
        r"must be of same type|must have (?:the )?same type|types? (?:must|should) match",
        "give all inputs of the node one type: scales, weights and biases of an FP16 layer are FP16, of an FP32 layer "
        "FP32; put a Cast where they meet",
    ),
    (
        r"Could not infer output types.*deconv.*bf16|bf16.*deconv",
        "keep ConvTranspose in FP32 or FP16: TensorRT has no BF16 deconvolution (use --precision fp16)",
    ),
    (
        r"HW-specific datatypes: fp8|fp8.*not supported",
        "FP8 needs compute capability 8.9 or later: leave older ones out of the target, or use --precision int8",
    ),
    (
        r"Plugin not found|No importer registered",
        "replace the operator by standard ONNX ones: TensorRT does not know it",
    ),
    (r"Failed to parse the ONNX model", "export the model again: the file is truncated or is not ONNX"),
    (
        r"out of memory|OutOfMemory|insufficient memory",
        "lower the workspace limit or the largest shape, or close other programs that use the GPU",
    ),
)

_UINT8_WARNING = re.compile(r"Defaulting to INT8 instead")
_NOISE = re.compile(r"catchCudaError|^Invalid Node - |^\[\d+\]$")
_WHERE = re.compile(r"\.? In \w+ at /\S+?:\d+\)?$|^[\w:]+: Error Code \d+: (?:API Usage Error )?|^Assertion failed: ")

_LAYER = re.compile(r"^Name: (?P<name>.*?), LayerType: (?P<kind>\w+), (?P<rest>.*)$", re.MULTILINE)
_NODE = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
_SECTION = re.compile(r"\b(Inputs|Constants|Outputs): \[")
_DATATYPE = re.compile(r"Datatype: (\w+)")
_TYPES = {
    "float": "fp32",
    "fp32": "fp32",
    "half": "fp16",
    "fp16": "fp16",
    "bfloat16": "bf16",
    "bf16": "bf16",
    "int8": "int8",
    "fp8": "fp8",
    "uint8": "uint8",
    "int32": "int32",
    "int64": "int64",
    "bool": "bool",
}
_INDEX_TYPES = {"uint8", "int32", "int64", "bool"}


def load(flavour: Flavour) -> Any:
    """The module of a flavour.

    Raises:
        BackendError: It is not installed.
    """
    return require(flavour)


class Messages:
    """What TensorRT logged while this was listening.

    Attributes:
        errors: Messages of severity ERROR and INTERNAL_ERROR, as they came.
        warnings: Messages of severity WARNING.
        layers: The messages that list engine layers (profiling verbosity DETAILED).
    """

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.warnings: list[str] = []
        self.layers: list[str] = []

    def add(self, severity: str, text: str) -> None:
        """File a message by its severity's name."""
        if severity in ("ERROR", "INTERNAL_ERROR"):
            self.errors.append(text)
        elif severity == "WARNING":
            self.warnings.append(text)
        elif text.startswith("Layers:\n"):
            self.layers.append(text)


class LogBook:
    """A flavour's one logger and who listens to it.

    Args:
        trt: The flavour's module.

    Attributes:
        logger: The `ILogger` to hand to builders, parsers and runtimes.
    """

    def __init__(self, trt: Any) -> None:
        self._listener: Messages | None = None
        self._lock = threading.RLock()
        book = self

        class Logger(trt.ILogger):  # type: ignore[misc]  # the module is only known when it runs
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, text: str) -> None:
                listener = book._listener
                if listener is not None:
                    listener.add(severity.name, text)

        self.logger: Any = Logger()

    @contextmanager
    def listen(self) -> Iterator[Messages]:
        """Collect messages; one listener at a time, others wait."""
        with self._lock:
            outer, self._listener = self._listener, Messages()
            try:
                yield self._listener
            finally:
                self._listener = outer


@functools.cache
def log_book(flavour: Flavour) -> LogBook:
    """The one log book of a flavour."""
    return LogBook(load(flavour))


def explain(text: str) -> tuple[str, str | None]:
    """A TensorRT message, cleaned of its own source places, and the fix if one is known."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not _NOISE.search(line.strip())]
    cleaned = "; ".join(dict.fromkeys(_plain(line) for line in lines)) or " ".join(text.split())
    fix = next((fix for pattern, fix in FIXES if re.search(pattern, text, re.DOTALL)), None)
    return cleaned, fix


def _plain(line: str) -> str:
    previous = ""
    while line != previous:
        previous, line = line, _WHERE.sub("", line).strip()
    return line.removeprefix("(").strip()


def reads_uint8_as_int8(warnings: list[str]) -> bool:
    """Whether the parser said that it takes uint8 quantization for int8, which gives wrong results."""
    return any(_UINT8_WARNING.search(text) for text in warnings)


def parse_layers(text: str) -> tuple[EngineLayer, ...]:
    """The engine layers in a message that begins `Layers:`, one `Name: ..., LayerType: ...` a line.

    A layer's precision is the type of its first input, which is what a convolution multiplies in; where that is an
    index or pixel type (a cast, an argmax), that of its output.
    """
    body = text.split("\nI/O Tensors:", 1)[0]
    found = []
    for match in _LAYER.finditer(body):
        sections = _sections(match["rest"])
        types = {name: [_type_of(t) for t in _DATATYPE.findall(part)] for name, part in sections.items()}
        first = (types.get("Inputs") or types.get("Constants") or [""])[0]
        last = (types.get("Outputs") or [""])[0]
        nodes = tuple(dict.fromkeys(_NODE.findall(match["rest"])))
        found.append(EngineLayer(match["name"], match["kind"], _computed(first, last), nodes))
    return tuple(found)


def parse_inspector(text: str) -> tuple[EngineLayer, ...]:
    """The engine layers in the JSON of TensorRT's `EngineInspector`."""
    found = []
    for layer in json.loads(text).get("Layers", []):
        if not isinstance(layer, dict):  # only names: the engine was built without detailed verbosity
            found.append(EngineLayer(str(layer), "", ""))
            continue
        first, last = (_described(layer.get(part) or [{}]) for part in ("Inputs", "Outputs"))
        nodes = tuple(dict.fromkeys(_NODE.findall(str(layer.get("Metadata", "")))))
        found.append(
            EngineLayer(str(layer.get("Name", "")), str(layer.get("LayerType", "")), _computed(first, last), nodes)
        )
    return tuple(found)


def _sections(rest: str) -> dict[str, str]:
    """The text of Inputs, Constants and Outputs in a layer's line."""
    marks = [(m[1], m.start(), m.end()) for m in _SECTION.finditer(rest)]
    ends = [start for _, start, _ in marks[1:]] + [len(rest)]
    return {name: rest[begin:end] for (name, _, begin), end in zip(marks, ends, strict=True)}


def _described(tensors: list[Any]) -> str:
    """The type in an inspector's words: "Thirty-two wide channel vectorized row major Int8 format"."""
    tensor = tensors[0]
    words = re.findall(r"\w+", str(tensor.get("Datatype") or tensor.get("Format/Datatype") or ""))
    return next((_TYPES[w.lower()] for w in words if w.lower() in _TYPES), "")


def _type_of(word: str) -> str:
    return _TYPES.get(word.lower(), word.lower())


def _computed(first: str, last: str) -> str:
    return last if (first in _INDEX_TYPES or not first) and last else first
