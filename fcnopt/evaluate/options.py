"""How to measure, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fcnopt.errors import UsageError
from fcnopt.evaluate.confusion import Unknown


@dataclass(frozen=True)
class BenchOptions:
    """How to measure.

    Attributes:
        max_frames: Most frames, from the clip's start; None for all.
        warmup_frames: Frames that every engine runs first; they are in no figure.
        round_frames: Frames a turn; None chooses so many that 8 to 32 count, more the faster the engines are, besides
            those that start and drain the pipeline. Turns shorter than that are timed whole.
        prefetch: Frames that are decoded ahead of an engine at most; None for as many as it says itself.
        bootstrap_samples: Resampled clips for the intervals of the drop; 0 for no intervals.
        unknown_labels: What to do with values in label maps that are neither class nor ignored.
        keep_samples: Frames kept in the result, with all labels, for a report.
        precisions: Precision by engine name, for tables; the others' is read from their names.
    """

    max_frames: int | None = None
    warmup_frames: int = 4
    round_frames: int | None = None
    prefetch: int | None = None
    bootstrap_samples: int = 2000
    unknown_labels: Unknown = "error"
    keep_samples: int = 0
    precisions: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        lowest = {
            "max_frames": 1,
            "warmup_frames": 0,
            "round_frames": 1,
            "prefetch": 0,
            "bootstrap_samples": 0,
            "keep_samples": 0,
        }
        for name, least in lowest.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise UsageError(f"bench: {name} is {value}, at least {least} is needed", fix=f"give {least} or more")
