"""Draw docs/demo.png: a frame of the demo clip, its exact labels, and the labels of the demo's INT8 engine.

Run `fcnopt demo` first, then `python benchmarks/picture.py demo-out`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from fcnopt import load
from fcnopt.media.clips import fit_frame, open_clip
from fcnopt.media.writer import write_image
from fcnopt.report.drawing import blend, legend

FRAME = 40


def main(folder: Path) -> None:
    """Draw from what `fcnopt demo` left in `folder`."""
    bundle = next(folder.glob("engines/*-int8-openvino"))
    frame = list(open_clip(folder / "clip.mp4", folder / "labels"))[FRAME]
    with load(bundle) as engine:
        labels = engine.run(fit_frame(frame.image, engine.spec.frame)[None]).labels[0]
        classes = engine.spec.classes
    if frame.labels is None:
        raise SystemExit(f"{folder}: the clip has no label maps")
    painted = [blend(frame.image, shown, classes, alpha=0.6) for shown in (frame.labels, labels)]
    strip = np.concatenate([frame.image, *painted], axis=1)
    write_image(Path("docs/demo.png"), np.concatenate([strip, legend(classes, strip.shape[1])], axis=0))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo-out"))
