"""Where label maps are written: a lossless video, a folder of PNGs, or messages in an MCAP file."""

from __future__ import annotations

from pathlib import Path

from fcnopt.errors import UsageError
from fcnopt.media.sinks.base import LabelSink, LabelSource, opened

__all__ = ["LabelSink", "LabelSource", "open_sink", "opened"]


def open_sink(path: str | Path, *, overwrite: bool = False) -> LabelSink:
    """What writes labels to `path`: `.mkv`, `.mcap`, or without a suffix a folder.

    Raises:
        UsageError: The suffix is another one.
        MediaError: Something is there already that is not to be replaced, or a package is missing.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix == ".mkv":
        from fcnopt.media.sinks.video import VideoSink

        return VideoSink(path, overwrite=overwrite)
    if suffix == ".mcap":
        from fcnopt.media.sinks.mcap import McapSink

        return McapSink(path, overwrite=overwrite)
    if not suffix or path.is_dir():
        from fcnopt.media.sinks.folder import FolderSink

        return FolderSink(path, overwrite=overwrite)
    raise UsageError(
        f"{path}: labels are not written as {suffix}",
        fix="name a lossless video (.mkv), a log (.mcap), or a folder (no suffix)",
    )
