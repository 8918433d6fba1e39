"""Label maps as a folder of 8-bit grey PNGs, a pixel's value is its label; the form that `--labels` takes.

OUT/000000.png ...    named by the frame's index in the clip
OUT/timestamps.csv    index, seconds since the clip's first frame, nanoseconds on the clock of its log
OUT/classes.json      names, palette (R, G, B) and ignore_index; the form that `--classes` takes
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TextIO

import cv2
import numpy as np
from numpy.typing import NDArray

from fcnopt.errors import MediaError
from fcnopt.leftovers import exchange
from fcnopt.media.base import Frame
from fcnopt.media.sinks.base import LabelSink

CLASSES, TIMESTAMPS = "classes.json", "timestamps.csv"


class FolderSink(LabelSink):
    """A folder that is replaced as a whole."""

    _times: TextIO | None = None

    def _open(self, part: Path) -> None:
        part.mkdir()
        (part / CLASSES).write_text(json.dumps(asdict(self.source.classes), indent=1) + "\n", encoding="utf-8")
        self._times = (part / TIMESTAMPS).open("w", encoding="utf-8")
        self._times.write("index,timestamp_s,time_ns\n")

    def _write(self, frame: Frame, labels: NDArray[np.uint8]) -> None:
        if self._times is None:
            raise RuntimeError("FolderSink is used outside its context")
        time_ns = self.source.time_ns(frame)
        done, data = cv2.imencode(".png", labels)
        if not done:
            raise OSError(f"frame {frame.index} cannot be encoded as PNG")
        (self._part / f"{frame.index:06d}.png").write_bytes(data.tobytes())
        self._times.write(f"{frame.index},{(time_ns - self.source.start_ns) / 1e9:.9f},{time_ns}\n")

    def _close(self) -> None:
        times, self._times = self._times, None
        if times is not None:
            times.close()

    def _check_place(self) -> None:
        if not self.path.exists() or (self.path.is_dir() and not any(self.path.iterdir())):
            return
        if not self._replaces:
            raise MediaError(f"{self.path}: is there already", fix="name another place, or add --overwrite")
        if not (self.path / CLASSES).is_file() or not (self.path / TIMESTAMPS).is_file():
            raise MediaError(f"{self.path}: is no folder of labels, and is not replaced", fix="name another folder")

    def _take_place(self) -> None:
        exchange(self._part, self.path)
