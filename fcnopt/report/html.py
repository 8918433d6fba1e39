"""A benchmark as one HTML page that needs nothing else: no network, no scripts, pictures inside."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from fcnopt.evaluate.observe import FrameSample
from fcnopt.evaluate.result import BenchResult, EngineResult
from fcnopt.report.charts import DropScale, LatencyAxis
from fcnopt.report.drawing import Image, colorize, difference
from fcnopt.report.page import template
from fcnopt.report.words import interval_note, interval_text, number, signed, unjudged_note, verdicts
from fcnopt.spec import ClassSpec

_PICTURE_WIDTH = 560
_JPEG_QUALITY = 85
_STAGES = ("decode", "preprocess", "inference", "postprocess")


@dataclass(frozen=True)
class Picture:
    """An embedded picture; `source` is a data URL."""

    caption: str
    kind: str
    source: str


@dataclass(frozen=True)
class Pictures:
    """Those of one frame: `first` image, truth and reference; `engines` as (labels, difference)."""

    first: tuple[Picture, ...]
    engines: tuple[tuple[Picture, Picture], ...]


def render(result: BenchResult) -> str:
    """The page.

    Args:
        result: The benchmark; its samples, where it has any, are shown frame by frame.

    Returns:
        UTF-8 text of an HTML file.
    """
    filters: dict[str, Callable[..., Any]] = {
        "number": number,
        "signed": signed,
        "interval": interval_text,
        "plain": _plain,
    }
    scale, axis = DropScale.of(result), LatencyAxis.of(result)
    classes = ClassSpec(result.classes, result.palette)
    return template("template.html", filters).render(
        result=result,
        verdicts=list(zip(result.engines, verdicts(result), strict=True)),
        fastest=max(row.fps for row in result.rows),
        interval_note=interval_note(result),
        unjudged_note=unjudged_note(result),
        worst={engine.name: result.worst_class(engine) for engine in result.engines},
        scale=scale,
        bars=[[scale.bar(engine, c) for engine in result.engines] for c in range(len(classes))],
        axis=axis,
        stages=[_stage_shares(row) for row in result.rows],
        stage_names=_STAGES,
        samples=[(sample, _pictures(sample, result, classes)) for sample in result.samples],
        colors=["#{:02x}{:02x}{:02x}".format(*color) for color in result.palette],
    )


def _stage_shares(engine: EngineResult) -> tuple[tuple[str, float, float], ...]:
    """(stage, ms a frame, share of their sum in percent)."""
    times = [(name, float(getattr(engine.stages, f"{name}_ms"))) for name in _STAGES]
    total = sum(ms for _, ms in times) or 1.0
    return tuple((name, ms, 100.0 * ms / total) for name, ms in times)


def _pictures(sample: FrameSample, result: BenchResult, classes: ClassSpec) -> Pictures:
    image, truth = sample.frame.image, sample.frame.labels
    first = [Picture("frame", "image", _jpeg(image))]
    if result.truth == "labels" and truth is not None:
        first.append(Picture("truth", "truth", _png(colorize(truth, classes))))
    first.append(
        Picture(f"{result.reference.name} (reference)", "reference", _png(colorize(sample.reference, classes)))
    )
    engines = []
    for name, labels in sample.engines.items():
        share = 100.0 * float(np.mean(labels != sample.reference))
        shown = Picture(name, "engine", _png(colorize(labels, classes)))
        differing = _jpeg(difference(image, labels, sample.reference))
        engines.append((shown, Picture(f"{share:.2f} % differ", "difference", differing)))
    return Pictures(tuple(first), tuple(engines))


def _jpeg(image: Image) -> str:
    return _encoded(_smaller(image, cv2.INTER_AREA), ".jpg", [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])


def _png(image: Image) -> str:
    return _encoded(_smaller(image, cv2.INTER_NEAREST), ".png", [cv2.IMWRITE_PNG_COMPRESSION, 9])


def _smaller(image: Image, interpolation: int) -> Image:
    height, width = image.shape[:2]
    if width <= _PICTURE_WIDTH:
        return image
    size = (_PICTURE_WIDTH, max(1, round(height * _PICTURE_WIDTH / width)))
    return cv2.resize(image, size, interpolation=interpolation).astype(np.uint8)


def _encoded(image: Image, suffix: str, options: list[int]) -> str:
    _, data = cv2.imencode(suffix, image, options)
    kind = {".jpg": "jpeg", ".png": "png"}[suffix]
    return f"data:image/{kind};base64,{base64.b64encode(data.tobytes()).decode('ascii')}"


def _plain(value: Any) -> str:
    """A machine fact in words: lists with commas, nested facts as `name: value`."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_plain(v)}" for key, v in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_plain(v) for v in value) or "none"
    if value is None:
        return "none"
    return value if isinstance(value, str) else json.dumps(value)
