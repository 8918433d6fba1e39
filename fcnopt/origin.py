"""What a slimmed network came from, as data that travels with it: in its checkpoint, its ONNX file, its bundles."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol

from fcnopt.errors import CheckpointError

ORIGIN_KEY = "fcnopt.origin"
"""In a checkpoint's top level, and in an ONNX file's metadata."""


class _Entry(Protocol):
    key: str
    value: str


@dataclass(frozen=True)
class Origin:
    """The network that a slimmed one was made from, and what the slimming cost.

    Attributes:
        checkpoint: Its file's name.
        sha256: Of that file.
        padding: Its convention of padding, which a checkpoint's keys do not show.
        at_once: Whether it was trained "at once".
        accuracy: What was lost against it in FP32, on frames held out: the fields of `AccuracyClaim`.
    """

    checkpoint: str
    sha256: str
    padding: Literal["same", "caffe"]
    at_once: bool = False
    accuracy: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        words = isinstance(self.checkpoint, str) and isinstance(self.sha256, str)
        if not words or not re.fullmatch(r"[0-9a-f]{64}", self.sha256):
            raise ValueError(f"sha256 {self.sha256!r:.80} is no SHA-256")
        if self.padding not in ("same", "caffe") or not isinstance(self.at_once, bool):
            raise ValueError(f"padding {self.padding!r:.40} or at_once {self.at_once!r:.40} is unknown")
        if not isinstance(self.accuracy, dict):
            raise TypeError(f"accuracy is {self.accuracy!r:.60}")

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: object, where: object) -> Origin:
        """Read what `to_json` wrote; `where` is named in errors.

        Raises:
            CheckpointError: It is damaged.
        """
        try:
            if not isinstance(text, str):
                raise TypeError(f"found {type(text).__name__}")
            return cls(**json.loads(text))
        except (ValueError, TypeError, RecursionError) as error:
            raise CheckpointError(
                f"{where}: what it says of its original is damaged: {error}", fix="slim the network again"
            ) from error

    @classmethod
    def find(cls, metadata: Iterable[_Entry], where: object) -> Origin | None:
        """The origin among an ONNX file's `metadata_props`; None where there is none."""
        return next((cls.from_json(entry.value, where) for entry in metadata if entry.key == ORIGIN_KEY), None)
