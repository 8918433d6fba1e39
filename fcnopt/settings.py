"""The choices of a build, as data, and how they are read from words."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self, get_args

from fcnopt.accuracy import ValidationSource
from fcnopt.backends.base import BuildOptions, Precision
from fcnopt.errors import UsageError
from fcnopt.evaluate.budget import Budget, BudgetOn
from fcnopt.locate import CALIB, ENGINES
from fcnopt.media.logs import is_log
from fcnopt.quantize.methods import Method
from fcnopt.quantize.select import Select

_ANY_DROP = 100.0  # points; no network loses more


@dataclass(frozen=True)
class BuildSettings:
    """The less common choices of `build`.

    Attributes:
        method: How ranges are chosen for int8 and fp8: auto, minmax, percentile, entropy (int8 only) or mse.
        max_frames: Most calibration frames.
        select: Which of all that are given: even (spacing), or diverse, those that cover them.
        topic: Of robot logs among the calibration frames; None takes the only one with images of each.
        name: The bundle's name; None makes one of model, precision and target.
        folder: Where bundles go, and where the newest model is looked for.
        calib: Where frames are looked for when none are named, and where ranges are kept.
        recalibrate: Measure ranges and decide anew even where kept ranges and decisions exist, and replace those.
        validation: Frames that accuracy is measured on, and the budget to be kept on them; None for neither.
        batch: Frames that the engine computes at once; None leaves the model as it was exported.
        optimize: Run the graph passes first.
        backend: Choices for the runtime's builder.
    """

    method: Method = "auto"
    max_frames: int = 64
    select: Select = "even"
    topic: str | None = None
    name: str | None = None
    folder: Path = ENGINES
    calib: Path = CALIB
    recalibrate: bool = False
    validation: ValidationSource | None = None
    batch: int | None = None
    optimize: bool = True
    backend: BuildOptions = field(default_factory=BuildOptions)

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise UsageError(f"method {self.method!r} is unknown", fix=f"use one of {', '.join(get_args(Method))}")
        if self.select not in get_args(Select):
            raise UsageError(f"select {self.select!r} is unknown", fix=f"use one of {', '.join(get_args(Select))}")
        if self.max_frames < 1:
            raise UsageError(f"max_frames is {self.max_frames}", fix="give at least one frame")
        if self.batch is not None and self.batch < 1:
            raise UsageError(f"batch is {self.batch}", fix="give 1 or more frames at a time")
        if self.name is not None and (not self.name or Path(self.name).name != self.name or self.name[0] == "."):
            raise UsageError(f"name {self.name!r} is not a folder name", fix="give a plain name without slashes")

    @classmethod
    def parse(
        cls,
        *,
        shapes: str | None = None,
        workspace_mib: int | None = None,
        version_compatible: bool = False,
        hardware_compatible: bool = False,
        timing_cache: Path | None = None,
        no_optimize: bool = False,
        validation: Path | None = None,
        labels: Path | None = None,
        max_miou_drop: float | None = None,
        max_class_drop: float | None = None,
        budget_on: BudgetOn | None = None,
        topic: str | None = None,
        html: Path | None = None,
        **others: Any,
    ) -> Self:
        """Settings from words: `shapes` as "1x360x480,1x360x480,4x720x960" (min, best, max); others as in the class.

        `html`, the page of a budget's search, is no setting: it is refused where there will be no search.
        """
        if workspace_mib is not None and workspace_mib < 1:
            raise UsageError(f"workspace is {workspace_mib} MiB", fix="give 1 MiB or more")
        backend = BuildOptions(
            shapes=_parse_shapes(shapes) if shapes else None,
            workspace_bytes=None if workspace_mib is None else workspace_mib << 20,
            version_compatible=version_compatible,
            hardware_compatible=hardware_compatible,
            timing_cache=timing_cache,
        )
        source = _parse_validation(validation, labels, max_miou_drop, max_class_drop, budget_on)
        if source is not None and topic is not None and is_log(source.clip):
            source = replace(source, topic=topic)
        if html is not None and (source is None or source.budget is None):
            raise UsageError(
                f"--html {html} was given without a budget: there would be no search to show",
                fix="add --validation CLIP_OR_FOLDER with --max-miou-drop or --max-class-drop, or leave --html out",
            )
        return cls(optimize=not no_optimize, backend=backend, validation=source, topic=topic, **others)


def _parse_validation(
    clip: Path | None,
    labels: Path | None,
    max_miou_drop: float | None,
    max_class_drop: float | None,
    on: BudgetOn | None,
) -> ValidationSource | None:
    if clip is None:
        given = {
            "--max-miou-drop": max_miou_drop,
            "--max-class-drop": max_class_drop,
            "--budget-on": on,
            "--labels": labels,
        }
        unused = next((name for name, value in given.items() if value is not None), None)
        if unused is not None:
            raise UsageError(
                f"{unused} was given without frames to measure on",
                fix="add --validation CLIP_OR_FOLDER, of frames that calibration does not use",
            )
        return None
    if not clip.exists():
        raise UsageError(f"--validation {clip}: no such file or folder", fix="give a video or a folder of images")
    limited = max_miou_drop is not None or max_class_drop is not None
    if not limited:
        if on is not None:
            raise UsageError(
                f"--budget-on {on} was given without a budget", fix="add --max-miou-drop or --max-class-drop"
            )
        return ValidationSource(clip, labels)
    most = _ANY_DROP if max_miou_drop is None else max_miou_drop
    return ValidationSource(clip, labels, Budget(most, max_class_drop, on or "interval"))


def _parse_shapes(text: str) -> tuple[tuple[int, int, int], tuple[int, int, int], tuple[int, int, int]]:
    """The (N, H, W) of "1x360x480,1x360x480,4x720x960"."""
    try:
        least, best, most = ([int(number) for number in part.lower().split("x")] for part in text.split(","))
        shapes = (least[0], least[1], least[2]), (best[0], best[1], best[2]), (most[0], most[1], most[2])
    except (ValueError, IndexError) as error:
        raise UsageError(
            f"shapes {text!r} are not three sizes", fix="give MIN,BEST,MAX such as 1x360x480,1x360x480,4x720x960"
        ) from error
    if any(not 1 <= low <= middle <= high for low, middle, high in zip(*shapes, strict=True)):
        raise UsageError(f"shapes {text!r} do not grow from MIN over BEST to MAX", fix="order them by size")
    return shapes


def checked_precision(precision: str) -> Precision:
    """`precision` if it is one, else `UsageError`."""
    if precision not in get_args(Precision):
        raise UsageError(f"precision {precision!r} is unknown", fix=f"use one of {', '.join(get_args(Precision))}")
    return precision  # type: ignore[return-value]
