"""Compare two precisions of a network on a clip: open what the user named, measure every layer, write the report."""

from __future__ import annotations

import datetime
import itertools
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from fcnopt.backends.base import Progress
from fcnopt.bundle import write_text
from fcnopt.errors import UsageError
from fcnopt.evaluate.pairing import pair
from fcnopt.evaluate.parting import FACTOR_FRAMES, Frames, Network, part
from fcnopt.evaluate.parting_result import Comparison
from fcnopt.graph import io
from fcnopt.graph.passes import optimize
from fcnopt.graph.passes.phases import PhasesPass
from fcnopt.graph.prepost import attach
from fcnopt.inspection import bundle_at
from fcnopt.locate import model_file
from fcnopt.media import Clip, fit_frame, open_clip
from fcnopt.report.page import check_writable
from fcnopt.spec import FrameSpec, ModelSpec

if TYPE_CHECKING:
    import onnx

MAX_FRAMES = 16


@dataclass(frozen=True)
class _Opened:
    name: str
    model: onnx.ModelProto
    spec: ModelSpec | None
    notes: tuple[str, ...] = ()


def compare(
    a: str | Path,
    b: str | Path,
    clip: str | Path,
    *,
    max_frames: int = MAX_FRAMES,
    alone: bool = False,
    json: Path | None = None,
    html: Path | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Find the layers where two precisions of one network part.

    Both graphs run on the CPU as they are written: what an engine's own kernels add is not in the result.

    Args:
        a: The reference: a bundle, or an ONNX file.
        b: What is judged: a bundle, or an ONNX file. Tensors are matched by name.
        clip: A video, an image, or a folder of images.
        max_frames: Most frames, evenly spaced over the clip.
        alone: Also run each layer of B on A's inputs, which tells the layers that lose something from those that
            inherit it. Costs one more run of B a frame.
        json: Where to write the result as data.
        html: Where to write one self-contained page.
        progress: Called as the comparison goes on.

    Raises:
        UsageError: The two take frames of different sizes, have no layer in common, or neither has a spec; a folder
            is no bundle; a report cannot be written where it should be.
        GraphError: A file is no usable ONNX, or a tensor differs in shape.
        BundleError: A bundle is damaged.
        MediaError: The clip cannot be used.
        BackendError: ONNX Runtime is missing, or cannot run a graph.
    """
    if max_frames < 1:
        raise UsageError(f"--max-frames {max_frames}: expected a positive number", fix="compare at least one frame")
    for file in (json, html):
        if file is not None:
            check_writable(file)
    source = open_clip(clip)
    one, two = _named_apart(_open(Path(a)), _open(Path(b)), Path(a), Path(b))
    spec_a, spec_b = _specs(one, two)
    size = _common_size(one.name, two.name, spec_a.frame, spec_b.frame, source)
    graphs = _alike(
        *(
            opened.model if opened.spec else attach(opened.model, spec)
            for opened, spec in ((one, spec_a), (two, spec_b))
        )
    )
    first, second = (Network(opened.name, graph) for opened, graph in zip((one, two), graphs, strict=True))
    count = min(max_frames, len(source))
    report = progress or (lambda _step, _fraction: None)
    report("compare", 0.0)
    steps = itertools.count(1)
    found = part(
        first,
        second,
        pair(first.model, second.model, size),
        lambda: _frames(source, count, spec_a.frame, spec_b.frame),
        clip=source.name,
        alone=alone,
        progress=lambda: report("compare", next(steps) / (count + min(FACTOR_FRAMES, count))),
    )
    result = replace(
        found,
        notes=(*found.notes, *one.notes, *two.notes),
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        command=shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    )
    _write(result, json, html)
    return result


def _open(path: Path) -> _Opened:
    """A bundle's precision graph, or an ONNX file."""
    if path.is_dir():
        bundle = bundle_at(path)
        manifest = bundle.manifest
        model = io.load(bundle.model)
        notes: tuple[str, ...] = ()
        if manifest.precision in ("fp16", "bf16") and not _has_halves(model):
            notes = (
                f"{manifest.name}: its graph is FP32 and {manifest.target} computes it in {manifest.precision} by "
                "itself: none of that can be seen here.",
            )
        return _Opened(path.resolve().name, model, manifest.spec, notes)
    model = io.load(model_file(path))
    return _Opened(path.name, model, io.read_spec(model))


def _alike(one: onnx.ModelProto, two: onnx.ModelProto) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """Both graphs, with the last rewrite for CPUs in both if it is in one, so that their logits can be compared."""
    (last, (did,)), (other, (also,)) = (optimize(graph, passes=(PhasesPass(),), verify=False) for graph in (one, two))
    return (one, two) if bool(did.changed) == bool(also.changed) else (last, other)


def _has_halves(model: onnx.ModelProto) -> bool:
    import onnx

    halves = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
    return any(tensor.data_type in halves for tensor in model.graph.initializer)


def _named_apart(one: _Opened, two: _Opened, a: Path, b: Path) -> tuple[_Opened, _Opened]:
    """The two, by their paths if their names are the same."""
    if one.name != two.name:
        return one, two
    return replace(one, name=str(a)), replace(two, name=str(b))


def _specs(one: _Opened, two: _Opened) -> tuple[ModelSpec, ModelSpec]:
    """What each takes; a file from elsewhere is taken to want what the other does."""
    known = one.spec or two.spec
    if known is None:
        raise UsageError(
            f"neither {one.name} nor {two.name} says how frames are normalized",
            fix="compare with a bundle, or with an ONNX file that `fcnopt export` wrote",
        )
    return one.spec or known, two.spec or known


def _common_size(a: str, b: str, one: FrameSpec, two: FrameSpec, clip: Clip) -> tuple[int, int]:
    """(height, width) of the frames as both networks take them."""
    (height, width), (its_height, its_width) = (
        (spec.height or clip.size[0], spec.width or clip.size[1]) for spec in (one, two)
    )
    if (height, width) != (its_height, its_width):
        raise UsageError(
            f"{a} takes frames of {width}x{height}, {b} of {its_width}x{its_height} (width x height)",
            fix="compare two precisions of one model, exported for one frame size",
        )
    return height, width


def _frames(clip: Clip, count: int, one: FrameSpec, two: FrameSpec) -> Iterator[Frames]:
    """`count` evenly spaced frames, fitted for both networks."""
    wanted = {index * len(clip) // count for index in range(count)}
    for frame in clip.images():
        if frame.index in wanted:
            yield fit_frame(frame.image, one)[None], fit_frame(frame.image, two)[None]
        if frame.index >= max(wanted):
            return


def _write(result: Comparison, json: Path | None, html: Path | None) -> None:
    if json is not None:
        write_text(json, result.to_json())
    if html is not None:
        from fcnopt.report.parting import render

        write_text(html, render(result))
