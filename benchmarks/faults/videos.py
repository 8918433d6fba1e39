"""Truncated and corrupt video: the stream ends with an error, or gives every frame that the clip announces."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np

from faults.outcome import Progress, Tally
from faults.probing import Cases, probe
from faults.seeds import as_mjpeg, remuxed
from fcnopt.media import open_clip
from fcnopt.media.writer import write_video

FAMILY = "video"
_BOUND_MIB = 1536  # frames of 2^27 pixels are the largest that are decoded, 384 MiB each as BGR
_PROMISE = (
    f"the stream ends with a MediaError or after every frame announced; at most {_BOUND_MIB} MiB and 60 s each, no hang"
)


def shortened(clip: Path, folder: Path, frames: int) -> list[Path]:
    """The first frames as MP4 and Matroska (H.264), AVI (Motion JPEG), and the robot logs that can be written."""
    folder.mkdir(parents=True, exist_ok=True)
    images = [np.array(frame.image) for frame in itertools.islice(open_clip(clip).images(), frames)]
    made = [write_video(folder / f"{clip.stem}.mp4", images, 10.0)]
    made += [remuxed(made[0], folder / f"{clip.stem}.mkv"), as_mjpeg(images, folder / f"{clip.stem}.avi")]
    try:
        from faults.logfiles import write_bag, write_mcap
    except ImportError:
        return made
    made.append(write_mcap(folder / f"{clip.stem}.mcap", images))
    if not (folder / "bag").exists():
        write_bag(folder / "bag", images)
    return [*made, folder / "bag"]


def videos(
    clip: Path, work: Path, count: int = 100, frames: int = 24, seed: int = 0, progress: Progress | None = None
) -> list[Tally]:
    """Damage the beginning of a clip, in every container, `count` times each, and stream what is left.

    Args:
        clip: A video.
        work: Folder for its shortened copies.
        count: Mutations of each.
        frames: Of each copy.
        seed: Of the damage.
        progress: Called as they go by.
    """
    return [_row(path, count, seed, progress) for path in shortened(clip, work / "clips", frames)]


def _row(path: Path, count: int, seed: int, progress: Progress | None) -> Tally:
    arguments = {"paths": [str(path)], "count": count, "seed": seed}
    cases = Cases("faults.recordings:clips", arguments, count, bound_mib=_BOUND_MIB, bound_s=60.0)
    what = f"{path.suffix[1:] or 'ROS 2 bag'}: cut, flipped, zeroed, repeated, huge sizes"
    return probe(cases, Tally(FAMILY, what, _PROMISE, needed=("refused: MediaError",)), progress)
