"""From calibration frames to the ranges of a network, kept in a range file.

    frames -> reach of every channel -> equalize -> ranges of the equalized network's tensors

The factors of the equalization are kept with the ranges: ranges mean nothing without them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fcnopt.errors import CalibrationError
from fcnopt.graph.io import import_graph
from fcnopt.graph.shapes import tensor_types
from fcnopt.quantize.balance import observe_channels
from fcnopt.quantize.equalize import apply, equalize
from fcnopt.quantize.frames import CalibrationFrames
from fcnopt.quantize.judge import observable
from fcnopt.quantize.placement import Placement
from fcnopt.quantize.rangefile import RangeFile
from fcnopt.quantize.ranges import Ranges, observe

if TYPE_CHECKING:
    import onnx

Progress = Callable[[str, float], None]

# Half precision asks for largest magnitudes and rounding noise only; a few frames and the headroom cover those.
_HALF_FRAMES = 16
# Factors need not be exact, as every one of them leaves the network what it is.
_EQUALIZE_FRAMES = 16


def ranges_for_half(model: onnx.ModelProto, frames: CalibrationFrames, progress: Progress) -> Ranges:
    """Ranges of the tensors that half precision is judged by."""
    return _observe(model, frames.subset(_HALF_FRAMES), (), progress)


def ranges_for_integers(
    model: onnx.ModelProto,
    placement: Placement,
    frames: CalibrationFrames,
    range_file: Path | None,
    progress: Progress,
    *,
    also: Sequence[str] = (),
    equalized: bool = True,
) -> tuple[onnx.ModelProto, Ranges, bool]:
    """Equalize a network and take the ranges of its tensors, or do as a range file says.

    Args:
        model: Optimized FP32 graph; unchanged afterwards.
        placement: What will be quantized in it.
        frames: Calibration frames.
        range_file: Read if it exists, else written.
        progress: Called as the work goes on.
        also: Further tensors whose ranges a file shall hold.
        equalized: Whether to equalize; a range file that exists decides for itself.

    Returns:
        The equalized network, the ranges of its tensors, and whether they come from the file.

    Raises:
        CalibrationError: The range file is damaged or belongs to something else; a tensor is not finite.
    """
    if range_file is not None and range_file.exists():
        stored = RangeFile.load(range_file)
        stored.check(model, frames, name=str(range_file))
        return _as_stored(model, stored.ranges, range_file), stored.ranges, True
    source, factors = model, dict[str, tuple[float, ...]]()
    if equalized:
        sample = frames.subset(_EQUALIZE_FRAMES)
        channels = observe_channels(model, placement.tensors, sample, partial(progress, "equalize channels"))
        source, changed = equalize(model, channels, placement.layers)
        factors = {entry.tensor: entry.factors for entry in changed}
    ranges = replace(
        _observe(source, frames, tuple(dict.fromkeys((*placement.tensors, *also))), progress), factors=factors
    )
    if range_file is not None:
        RangeFile.of(ranges, model, frames).save(range_file)
    return source, ranges, False


def _as_stored(model: onnx.ModelProto, ranges: Ranges, range_file: Path) -> onnx.ModelProto:
    """The network that the ranges were taken of."""
    known = {name: np.array(values, np.float32) for name, values in ranges.factors.items()}
    source, changed = apply(model, known)
    missing = sorted(set(known) - {entry.tensor for entry in changed})
    if missing:
        raise CalibrationError(
            f"{range_file}: it has factors for the channels of {missing[0]!r}, which this graph cannot divide",
            fix=f"delete {range_file} to calibrate again",
        )
    return source


def _observe(
    model: onnx.ModelProto, frames: CalibrationFrames, quantized: tuple[str, ...], progress: Progress
) -> Ranges:
    types = {name: kind.elem_type for name, kind in tensor_types(model).items()}
    tensors = tuple(dict.fromkeys((*observable(import_graph(model), types), *quantized)))
    progress("calibrate", 0.0)
    return observe(
        model,
        frames.spread(),
        tensors=tensors,
        quantized=quantized,
        progress=lambda done: progress("calibrate", done / frames.count),
    )
