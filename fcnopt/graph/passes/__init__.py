"""Graph passes, in the one order that they run in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import onnx

from fcnopt.graph.passes.activation import ActivationPass
from fcnopt.graph.passes.base import Outcome, Pass
from fcnopt.graph.passes.batchnorm import BatchNormPass
from fcnopt.graph.passes.border import BorderPass
from fcnopt.graph.passes.crop import CropPass
from fcnopt.graph.passes.dead import DeadCodePass
from fcnopt.graph.passes.fold import ConstantFoldPass
from fcnopt.graph.passes.frame_input import FrameInputPass
from fcnopt.graph.passes.groups import FusionGroup, fusion_groups
from fcnopt.graph.passes.noop import NoopPass
from fcnopt.graph.passes.pad import PadPass
from fcnopt.graph.passes.permutation import PermutationPass
from fcnopt.graph.passes.phases import PhasesPass
from fcnopt.graph.passes.pipeline import PassReport, run_passes
from fcnopt.graph.passes.proof import TOLERANCE
from fcnopt.graph.passes.scale_shift import ScaleShiftPass
from fcnopt.graph.passes.view import GraphView
from fcnopt.graph.shapes import Size

__all__ = [
    "CPU_PASSES",
    "PASSES",
    "TOLERANCE",
    "WHOLE_FRAMES",
    "FusionGroup",
    "GraphView",
    "Outcome",
    "Pass",
    "PassReport",
    "fusion_groups",
    "optimize",
]

# Constants first, so that what follows sees them; BatchNormalization before plain arithmetic, so that a convolution
# takes its own normalization rather than its neighbour's scale; crops last, when only real work stands above them.
PASSES: tuple[Pass[Any], ...] = (
    DeadCodePass(),
    ConstantFoldPass(),
    NoopPass(),
    PadPass(),
    BatchNormPass(),
    PermutationPass(),
    ScaleShiftPass(),
    ActivationPass(),
    CropPass(),
)

WHOLE_FRAMES: tuple[Pass[Any], ...] = (FrameInputPass(),)
"""For INT8 on a CPU, before it is quantized."""
CPU_PASSES: tuple[Pass[Any], ...] = (BorderPass(), PhasesPass())
"""For graphs that a CPU runtime shall run, after precision is set.

TensorRT is not offered constant borders, where they were not measured; the search for them ends at its symmetric Q/DQ.
"""


def optimize(
    model: onnx.ModelProto,
    *,
    passes: Sequence[Pass[Any]] = PASSES,
    verify: bool = True,
    strict: bool = False,
    size: Size | None = None,
    progress: Callable[[str, float], None] | None = None,
) -> tuple[onnx.ModelProto, tuple[PassReport, ...]]:
    """Rewrite a graph so that it does less and computes the same.

    Args:
        model: With its weights in memory; it is not changed.
        passes: Which passes, in which order.
        verify: After each pass that changed something, run the ONNX checker and compare with the graph before it on
            random inputs (two sizes if the graph is dynamic); without, only the checker.
        strict: Raise where a pass made a graph that is invalid or not equivalent; else what it did is taken back, and
            its report says so under `declined`.
        size: (height, width) at which the MACs of a dynamic graph are counted.
        progress: Called with what is being done and the share that is done.

    Returns:
        The new model, and a report a pass in the order they ran.

    Raises:
        GraphError: If strict, a pass made a graph that is invalid or not equivalent; the message names the pass. Else
            only if the model does not run as it is.
        BackendError: ONNX Runtime, which verifies, is not installed.
    """
    report = progress or (lambda _step, _fraction: None)
    return run_passes(model, passes, verify=verify, strict=strict, size=size, progress=report)
