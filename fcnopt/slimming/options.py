"""The choices of a slimming, as data."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

from fcnopt.choices import read_normalization, read_size
from fcnopt.errors import UsageError
from fcnopt.evaluate.budget import Budget, BudgetOn

if TYPE_CHECKING:
    from fcnopt.models.fcn import Padding

Device = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True)
class RecoveryOptions:
    """How the narrow network is trained.

    Attributes:
        minutes: How long; the learning rate falls to zero over this time, however fast the machine is.
        steps: Where given, as many steps in place of `minutes`: the same network on every run.
        batch: Crops a step.
        crop: (height, width) of a crop; None takes about 0.7 of the frame each way, in multiples of 32.
        rate: Largest learning rate; None means 3e-4 with batch norm and 5e-5 without.
        label_weight: Of the cross-entropy with label maps, where there are any, beside a distillation loss of weight 1.
        seed: Of everything drawn.
        device: cpu, cuda, or auto, which takes the GPU where there is one.
    """

    minutes: float = 40.0
    steps: int | None = None
    batch: int = 4
    crop: tuple[int, int] | None = None
    rate: float | None = None
    label_weight: float = 0.25
    seed: int = 0
    device: Device = "auto"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.minutes) and self.minutes > 0):
            raise UsageError(f"minutes is {self.minutes:g}, expected more than 0", fix="give the recovery some time")
        if (self.steps is not None and self.steps < 1) or self.batch < 1:
            raise UsageError(f"steps {self.steps} or batch {self.batch} is below 1", fix="give at least 1 of each")
        if self.crop is not None and (len(self.crop) != 2 or min(self.crop) < 32):
            raise UsageError(f"crop {self.crop!r} is not (height, width) of 32 or more", fix="give a larger crop")
        if self.rate is not None and not (math.isfinite(self.rate) and self.rate > 0):
            raise UsageError(f"rate is {self.rate:g}, expected more than 0", fix="leave it out for the usual one")
        if not (math.isfinite(self.label_weight) and self.label_weight >= 0):
            raise UsageError(f"label_weight is {self.label_weight:g}", fix="give 0 or more")
        if self.device not in get_args(Device):
            raise UsageError(f"device {self.device!r} is unknown", fix=f"use one of {', '.join(get_args(Device))}")


@dataclass(frozen=True)
class SlimOptions:
    """How a network is slimmed.

    Attributes:
        speedup: Time of the original's INT8 network over the slimmed one's, on the target.
        budget: What may be lost against the original on held-out frames.
        size: (height, width) of the frames to run on; None takes that of the frames given.
        topic: Of a robot log among the frames; None takes the only one with images.
        target: As `Target.parse` reads it, where the engine shall run; None takes the best here.
        padding: As in `ExportOptions`.
        at_once: As in `ExportOptions`.
        normalize: As in `ExportOptions`.
        multiple: Widths are multiples of it; None means 16 on CPUs and 32 on GPUs, as INT8 kernels compute.
        holdout: Share of the frames that nothing is trained on: they decide whether the budget is kept.
        max_frames: Most frames used, evenly spaced over those given; they are kept on disk meanwhile.
        statistics_frames: How many of them the worth of channels is measured on.
        recovery: How the narrow network is trained.
    """

    speedup: float = 2.0
    budget: Budget = field(default_factory=lambda: Budget(0.5))
    size: tuple[int, int] | None = None
    topic: str | None = None
    target: str | None = None
    padding: Padding | None = None
    at_once: bool = False
    normalize: str | None = None
    multiple: int | None = None
    holdout: float = 0.125
    max_frames: int = 1000
    statistics_frames: int = 32
    recovery: RecoveryOptions = field(default_factory=RecoveryOptions)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.speedup) and self.speedup > 1):
            raise UsageError(f"speedup is {self.speedup:g}, expected more than 1", fix="give how many times as fast")
        if not 0 < self.holdout <= 0.5:
            raise UsageError(f"holdout is {self.holdout:g}, expected up to 0.5", fix="give a share such as 0.125")
        if self.multiple is not None and self.multiple < 1:
            raise UsageError(f"multiple is {self.multiple}", fix="give 1 or more")
        if self.max_frames < 1 or self.statistics_frames < 1:
            raise UsageError("max_frames or statistics_frames is below 1", fix="give at least 1 of each")
        if self.size is not None and (len(self.size) != 2 or min(self.size) < 32):
            raise UsageError(f"size {self.size!r} is not (height, width) of 32 or more", fix="give a larger size")
        if self.normalize is not None:
            read_normalization(self.normalize)

    @classmethod
    def parse(
        cls,
        *,
        size: str | None = None,
        max_miou_drop: float = 0.5,
        budget_on: BudgetOn = "interval",
        minutes: float = 40.0,
        device: Device = "auto",
        **others: Any,
    ) -> Self:
        """Options from words: `size` as "HEIGHTxWIDTH"; others as in the classes."""
        return cls(
            size=None if size is None else read_size(size),
            budget=Budget(max_miou_drop, on=budget_on),
            recovery=RecoveryOptions(minutes=minutes, device=device),
            **others,
        )
