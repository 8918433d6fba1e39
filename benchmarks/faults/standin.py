"""A runner that computes next to nothing: for faults of what is around the network, and faults of its own."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fcnopt.backends.base import Outputs, Runner
from fcnopt.engine import Engine
from fcnopt.manifest import Manifest
from fcnopt.spec import ClassSpec, FrameSpec, ModelSpec

CLASSES = 5


@dataclass(frozen=True)
class Failing:
    """When inference fails.

    Attributes:
        at: Number of the call, from 0.
        make: The error.
        once: Whether calls after it work again.
    """

    at: int
    make: Callable[[], BaseException]
    once: bool = True


class StandInRunner(Runner):
    """Labels are the blue channel, modulo the number of classes.

    Args:
        height: Of frames; None takes any.
        width: The same.
        failing: When it raises.
        takes_s: How long a call takes.
        leaks: Bytes that every call keeps, to see that growth is noticed.
    """

    name = "stand-in"
    batch = 1

    def __init__(
        self,
        height: int | None = 64,
        width: int | None = 96,
        *,
        failing: Failing | None = None,
        takes_s: float = 0.0,
        leaks: int = 0,
        resize: Any = "stretch",
        in_flight: int = 1,
    ) -> None:
        self.spec = ModelSpec(FrameSpec(height, width, resize=resize), ClassSpec.of_count(CLASSES))
        self.in_flight = in_flight
        self._failing, self._takes_s, self._leaks = failing, takes_s, leaks
        self._kept: list[bytes] = []
        self.calls = 0

    def infer(self, frames: Any) -> Outputs:
        """Label, or fail."""
        call, self.calls = self.calls, self.calls + 1
        if self._failing is not None and (
            call == self._failing.at or (call > self._failing.at and not self._failing.once)
        ):
            raise self._failing.make()
        if self._takes_s:
            time.sleep(self._takes_s)
        if self._leaks:
            self._kept.append(b"\1" * self._leaks)
        return Outputs(np.asarray(frames)[..., 0] % CLASSES)


def engine_of(runner: Runner) -> Engine:
    """An engine as `load` makes it, without a bundle."""
    words = dict.fromkeys(("name", "created", "fcnopt", "device", "runtime"), "stand-in")
    manifest = Manifest(
        **words,
        spec=runner.spec,
        target="openvino",
        precision="fp32",
        engine=(),
        files={},
        sources={},
        min_agreement=1.0,
    )
    return Engine(runner, manifest)
