"""Rows of the table, and what the steps work with."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from faults.case import Fault
from numpy.typing import NDArray
from rivals.measure import Progress

import fcnopt
from fcnopt.engine import Engine
from fcnopt.errors import FcnoptError
from fcnopt.media import open_clip
from fcnopt.media.base import Frame
from fcnopt.media.clips import fit_frame, restore_labels

Figures = dict[str, Any]
Labels = NDArray[np.uint8]


class NotRun(Exception):  # noqa: N818  (nothing went wrong: something that the step needs is not here)
    """Why a step cannot be done on this machine."""


@dataclass(frozen=True)
class Row:
    """One thing that was done, and what came of it.

    Attributes:
        step: Of the way.
        what: Was done.
        checked: How far its result was held against something, in a few words.
        figures: What was found, by name.
        fault: What is wrong; empty where nothing is.
        reason: Why it was not run; empty where it was.
        seconds: How long all of it took.
    """

    step: str
    what: str
    checked: str
    figures: Figures = field(default_factory=dict)
    fault: str = ""
    reason: str = ""
    seconds: float = 0.0

    @property
    def result(self) -> str:
        """In a word or a line."""
        if self.reason:
            return f"not run: {self.reason}"
        return f"WRONG: {self.fault}" if self.fault else "ok"

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self) | {"result": self.result}


def tried(step: str, what: str, checked: str, do: Callable[[], Figures]) -> Row:
    """A row of what `do` finds; whatever it raises is the row's fault, so that the other rows are still done."""
    start = time.perf_counter()
    figures: Figures = {}
    fault = reason = ""
    try:
        figures = do()
    except NotRun as missing:
        reason = str(missing)
    except Fault as found:
        fault = str(found)
    except Exception as error:  # noqa: BLE001  (whatever it is, the step failed)
        fault = f"{type(error).__name__}: {error}"
    return Row(step, what, checked, figures, fault, reason, round(time.perf_counter() - start, 2))


def refusal(kind: type[FcnoptError], words: str, do: Callable[[], object], folder: Path) -> Figures:
    """The message of what must be refused, without folders of this machine.

    Raises:
        Fault: It was not refused, or by another error, or for another reason.
    """
    try:
        done = do()
    except kind as error:
        if words not in error.message or not error.fix:
            raise Fault(f"refused for another reason: {error}") from error
        return {"refused": error.message.replace(f"{folder}/", ""), "fix": error.fix.replace(f"{folder}/", "")}
    except FcnoptError as error:
        raise Fault(f"refused by {type(error).__name__}: {error}") from error
    if isinstance(done, Engine):
        done.close()
    raise Fault("was not refused")


def equal_labels(found: Sequence[Labels], expected: Sequence[Labels]) -> float:
    """The share of labels that are equal, of as many frames.

    Raises:
        Fault: There are more or fewer frames, or they have another size.
    """
    if len(found) != len(expected):
        raise Fault(f"{len(found)} frames, expected {len(expected)}")
    if any(a.shape != b.shape for a, b in zip(found, expected, strict=True)):
        raise Fault(f"label maps of {found[0].shape}, expected {expected[0].shape}")
    return float(np.mean([np.mean(a == b) for a, b in zip(found, expected, strict=True)]))


def demand_equal(found: Sequence[Labels], expected: Sequence[Labels]) -> Figures:
    """Figures of label maps that are the same in every pixel.

    Raises:
        Fault: They are not.
    """
    share = equal_labels(found, expected)
    if share != 1.0:
        raise Fault(f"{share:.5%} of labels are equal, expected all")
    return {"frames": len(found), "equal labels": "100 %"}


def size_mb(path: Path) -> float:
    """Of a file, or of all in a folder, in megabytes."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return round(sum(file.stat().st_size for file in files) / 1e6, 2)


def median(values: Sequence[float]) -> float:
    """Rounded to what a table shows."""
    return round(float(np.median(values)), 2)


@dataclass(frozen=True)
class Work:
    """What steps work with.

    Attributes:
        clip: A video.
        given: The bundle.
        bundle: A copy of the bundle, for this run alone.
        folder: For everything that is written; vanishes.
        frames: Most frames of the clip.
        serve_python: Of an environment with fcnopt[serve]; None where there is none.
        seconds: How long a load or a camera lasts.
        progress: Called as the work goes on.
    """

    clip: Path
    given: Path
    bundle: Path
    folder: Path
    frames: int | None
    serve_python: Path | None
    seconds: float
    progress: Progress

    @cached_property
    def pictures(self) -> list[Frame]:
        """The clip's first frames."""
        clip = open_clip(self.clip)
        return [frame for frame, _ in zip(clip.images(), range(self.frames or len(clip)), strict=False)]

    @cached_property
    def fitted(self) -> NDArray[np.uint8]:
        """The same as the engine takes them, uint8 [N, H, W, 3]."""
        with fcnopt.load(self.bundle) as engine:
            return np.stack([fit_frame(frame.image, engine.spec.frame) for frame in self.pictures])

    @cached_property
    def raw_labels(self) -> list[Labels]:
        """What `engine.run` says of each of `fitted`, one at a time: what every other way is held against."""
        with fcnopt.load(self.bundle) as engine:
            found = [engine.run(frame[None]).labels[0] for frame in self.fitted]
        if len(found) > 1 and len({labels.tobytes() for labels in found}) == 1:
            raise Fault("all frames of the clip have the same labels, which would prove little")
        return found

    @cached_property
    def labels(self) -> list[Labels]:
        """The same at the clip's own size."""
        return labels_of(self.bundle, [frame.image for frame in self.pictures])

    def place(self, name: str) -> Path:
        """A new folder."""
        path = self.folder / name
        path.mkdir(parents=True)
        return path


def labels_of(bundle: Path, images: Sequence[NDArray[np.uint8]]) -> list[Labels]:
    """What `engine.run` says of pictures, one at a time, at their own size."""
    with fcnopt.load(bundle) as engine:
        spec = engine.spec.frame
        return [
            restore_labels(engine.run(fit_frame(image, spec)[None]).labels[0], (image.shape[0], image.shape[1]), spec)
            for image in images
        ]
