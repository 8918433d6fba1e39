"""What a comparison of two precisions found, as data; JSON in and out of reports has a version."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import Any

from fcnopt.evaluate.distance import Distance
from fcnopt.evaluate.pairing import Unmatched

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class LayerParting:
    """One layer.

    Attributes:
        name: Of its weighted node in A.
        op: That node's operator.
        tensor: The result compared, by its name in A.
        inputs: Results of the layers that it reads; empty where it reads the frames.
        result: The distance of its result.
        drop_db: SQNR of its noisiest input less that of its result; None where its inputs are exact.
        added_db: SQNR with the noise that it adds itself, by difference; infinite where it adds none.
        alone: The distance of its result where it alone is in B's precision, if that was measured.
    """

    name: str
    op: str
    tensor: str
    inputs: tuple[str, ...]
    result: Distance
    drop_db: float | None
    added_db: float
    alone: Distance | None = None

    @property
    def own_db(self) -> float:
        """The SQNR by its own noise: alone where it was measured, else added."""
        return self.added_db if self.alone is None else self.alone.sqnr_db

    def to_dict(self) -> dict[str, Any]:
        """As JSON; an `added_db` of null adds nothing, or has no end where the result's state is broken."""
        return {
            "name": self.name,
            "op": self.op,
            "tensor": self.tensor,
            "inputs": list(self.inputs),
            "result": self.result.to_dict(),
            "drop_db": self.drop_db,
            "added_db": self.added_db if math.isfinite(self.added_db) else None,
            "alone": None if self.alone is None else self.alone.to_dict(),
        }


@dataclass(frozen=True)
class Comparison:
    """All layers of two networks.

    Attributes:
        a: The reference's name.
        b: The name of the network judged.
        clip: The name of what they were run on.
        frames: How many were compared.
        size: Of the frames as the networks take them, (height, width).
        equal_labels: Share of pixels with the same label, in percent; None where a network gives none.
        layers: In A's order.
        only_a: Layers of A that could not be compared.
        only_b: Layers of B that A does not know.
        logits: The tensor of class scores among the layers' results, None where there is no such one.
        notes: What the reader should know.
        date: When, ISO 8601.
        command: That ran it.
    """

    a: str
    b: str
    clip: str
    frames: int
    size: tuple[int, int]
    equal_labels: float | None
    layers: tuple[LayerParting, ...]
    only_a: tuple[Unmatched, ...]
    only_b: tuple[Unmatched, ...]
    logits: str | None
    notes: tuple[str, ...] = ()
    date: str = ""
    command: str = ""

    @property
    def alone(self) -> bool:
        """Whether layers were also measured alone."""
        return any(layer.alone is not None for layer in self.layers)

    def worst(self, count: int | None = None) -> tuple[LayerParting, ...]:
        """The layers that add noise, most first, by `LayerParting.own_db`; at most `count`."""
        noisy = [layer for layer in self.layers if layer.own_db != math.inf]
        return tuple(sorted(noisy, key=lambda layer: layer.own_db)[:count])

    def to_dict(self) -> dict[str, Any]:
        """As JSON data."""
        return {
            "schema_version": SCHEMA_VERSION,
            "a": self.a,
            "b": self.b,
            "clip": self.clip,
            "frames": self.frames,
            "size": list(self.size),
            "equal_labels": self.equal_labels,
            "logits": self.logits,
            "layers": [layer.to_dict() for layer in self.layers],
            "worst": [layer.name for layer in self.worst()],
            "only_a": [asdict(entry) for entry in self.only_a],
            "only_b": [asdict(entry) for entry in self.only_b],
            "notes": list(self.notes),
            "date": self.date,
            "command": self.command,
        }

    def to_json(self) -> str:
        """As JSON text."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False)
