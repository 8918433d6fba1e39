"""The frames that a build calibrates on: those named, else what lies in calib/."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fcnopt.backends.base import Progress
from fcnopt.errors import CalibrationError
from fcnopt.quantize.frames import CalibrationFrames
from fcnopt.quantize.select import collect_diverse
from fcnopt.quantize.sources import LeftOut, find_sources, nothing_found
from fcnopt.settings import BuildSettings
from fcnopt.spec import ModelSpec

if TYPE_CHECKING:
    import onnx


def calibration_frames(
    given: str | Path | Sequence[str | Path] | None,
    settings: BuildSettings,
    spec: ModelSpec,
    model: onnx.ModelProto,
    *,
    needed: bool,
    progress: Progress,
) -> CalibrationFrames | None:
    """The calibration frames named, else those in calib/; None where there are none and none are needed.

    Args:
        given: Images, folders, videos and robot logs; None takes calib/.
        settings: Say how many, and which.
        spec: Of the model.
        model: FP32; judges frames where `settings.select` is diverse.
        needed: Whether having none is an error.
        progress: Called as frames are judged.

    Raises:
        CalibrationError: There are none, and they are needed.
    """
    if given is not None:
        paths = [Path(given)] if isinstance(given, str | Path) else [Path(p) for p in given]
        return _collect(paths, settings, spec, model, progress)
    calib, left = settings.calib, LeftOut()
    if calib.is_dir() and find_sources([calib], spec.classes, left, settings.topic):
        return _collect([calib], settings, spec, model, progress)
    if needed and left.folders:
        raise nothing_found([calib], left)
    if needed:
        raise CalibrationError(
            "int8 needs calibration frames (as fp8 does), and there are none: no --calibration was given and "
            f"{calib}/ has no images, folders or videos",
            fix=f"put 32 or more frames as the car's camera gives them into {calib}/, or give --calibration PATH "
            "(images, a folder, a video). Do not use the clip that you evaluate on",
        )
    return None


def _collect(
    paths: Sequence[Path], settings: BuildSettings, spec: ModelSpec, model: onnx.ModelProto, progress: Progress
) -> CalibrationFrames:
    if settings.select == "even":
        return CalibrationFrames.collect(paths, spec, limit=settings.max_frames, topic=settings.topic)
    progress("pick frames", 0.0)
    return collect_diverse(
        paths,
        spec,
        model,
        limit=settings.max_frames,
        topic=settings.topic,
        progress=lambda done: progress("pick frames", done),
    )
