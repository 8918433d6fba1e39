"""Frames, labels and timings as a Rerun recording (`.rrd`), which the viewer of https://rerun.io shows.

    /camera             the classes: names and colours (AnnotationContext)
    /camera/image       the frame, JPEG
    /camera/labels      the label map (SegmentationImage)
    /timings/NAME_ms    milliseconds (Scalars)

The timelines are `frame`, its index, and `time`: the log's clock where the clip has one, else since its start.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from fcnopt.errors import UsageError
from fcnopt.media.base import Frame
from fcnopt.media.logs.packages import require
from fcnopt.media.sinks.base import LabelSink

_QUALITY = 85
_FLUSH_EVERY = 16  # frames; what is not flushed is held in memory
_PATIENCE_S = 60.0


class RerunLog(LabelSink):
    """A label sink that keeps the frames and, if told, timings too.

    Raises:
        UsageError: The file is not named `.rrd`.
        MediaError: Something is there that is not to be replaced.
    """

    _recording: Any = None

    def __init__(self, path: Path, *, overwrite: bool = False) -> None:
        if path.suffix.lower() != ".rrd":
            raise UsageError(f"{path}: a Rerun recording must be .rrd", fix="name the file with .rrd at its end")
        super().__init__(path, overwrite=overwrite)

    def timings(self, times_ms: Mapping[str, float]) -> None:
        """Add milliseconds by name to the frame written last.

        Raises:
            MediaError: They cannot be written.
        """
        with self._told():
            for name, value in times_ms.items():
                self._recording.log(f"timings/{name}_ms", self._rerun.Scalars(value), strict=True)

    def _open(self, part: Path) -> None:
        self._rerun = require("rerun", "rerun")
        self._reader = require("rerun.chunk", "rerun").RrdReader
        self._recording = self._rerun.RecordingStream("fcnopt", default_enabled=True)
        self._recording.save(str(part))
        classes = self.source.classes
        entries = [
            (label, name, color) for label, (name, color) in enumerate(zip(classes.names, classes.palette, strict=True))
        ]
        self._recording.log("camera", self._rerun.AnnotationContext(entries), static=True, strict=True)

    def _write(self, frame: Frame, labels: NDArray[np.uint8]) -> None:
        rerun, recording = self._rerun, self._recording
        time_ns = self.source.time_ns(frame)
        recording.set_time("frame", sequence=frame.index)
        if self.source.start_ns:
            recording.set_time("time", timestamp=np.datetime64(time_ns, "ns"))
        else:
            recording.set_time("time", duration=np.timedelta64(time_ns, "ns"))
        done, data = cv2.imencode(".jpg", frame.image, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
        if not done:
            raise OSError(f"frame {frame.index} cannot be encoded as JPEG")
        image = rerun.EncodedImage(contents=data.tobytes(), media_type="image/jpeg")
        recording.log("camera/image", image, strict=True)
        recording.log("camera/labels", rerun.SegmentationImage(labels), strict=True)
        if frame.index % _FLUSH_EVERY == 0:
            recording.flush(timeout_sec=_PATIENCE_S)

    def _close(self) -> None:
        recording, self._recording = self._recording, None
        if recording is None:
            return
        try:
            recording.flush(timeout_sec=_PATIENCE_S)
        finally:
            recording.disconnect()
        # Its thread writes the file and tells of a full disk only on the console; but then the footer is missing.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._reader(str(self._part)).store()

    def _faults(self) -> tuple[type[Exception], ...]:
        return (RuntimeError, ValueError)
