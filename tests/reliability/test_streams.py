"""Damaged video, bad cameras, failing runtimes, little memory, and very many frames, in short."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from faults import cameras as camera_faults
from faults.cameras import SCENES, Scene, cameras
from faults.endurance import endurance, watch
from faults.memory import out_of_memory
from faults.outcome import Tally
from faults.recordings import _streamed
from faults.standin import StandInRunner, engine_of
from faults.videos import videos

from fcnopt.media.video import VideoClip


def test_damaged_clips_end_with_an_error_or_all_frames(seeds: Path, tmp_path: Path) -> None:
    tallies = videos(seeds / "clip.mp4", tmp_path, 12, 6)
    assert {"mp4", "mkv", "avi"} <= {tally.what.split(":")[0] for tally in tallies}
    for tally in tallies:
        assert tally.faults == []
        assert tally.held, tally.verdict


def test_a_clip_that_just_ends_early_is_noticed(seeds: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = VideoClip.images
    monkeypatch.setattr(VideoClip, "images", lambda self: itertools.islice(whole(self), len(self) - 1))
    with pytest.raises(Exception, match="8 frames announced, and 7 came without an error"):
        _streamed(8, seeds / "clip.mp4")


def test_cameras_and_runtimes_that_fail(seeds: Path) -> None:
    tallies = cameras(seeds / "engines" / "net", 1)
    assert len(tallies) == len(SCENES)
    for tally in tallies:
        assert tally.faults == [], tally.what
        assert tally.runs == 2


def _silent(_: int, __: int) -> Iterator[Any]:
    threading.Event().wait(3)
    yield None


def test_a_hang_and_an_error_that_names_nothing_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(camera_faults, "_PATIENCE_S", 0.5)
    monkeypatch.setattr(camera_faults, "_STALL_S", None)
    hangs = Tally("cameras", "hang", "nothing")
    camera_faults._one(engine_of(StandInRunner()), Scene("silent", _silent, "MediaError"), "block", hangs)
    assert "no end after" in hangs.faults[0]
    monkeypatch.setattr(camera_faults, "_STALL_S", 0.05)
    monkeypatch.setattr(camera_faults, "_PATIENCE_S", 20.0)
    words = Tally("cameras", "words", "nothing")
    scene = Scene("silent", _silent, "MediaError", "the lens is dirty", leaves=True)
    camera_faults._one(engine_of(StandInRunner()), scene, "block", words)
    assert "does not say 'the lens is dirty'" in words.faults[0]


def test_a_long_stream_stays_as_it_is(seeds: Path) -> None:
    for tally in endurance(seeds / "engines" / "net", 5000):
        assert tally.faults == []
        assert tally.outcomes["frames"] == 2500


def test_a_stream_that_leaks_is_noticed() -> None:
    tally = Tally("endurance", "leak", "nothing")
    with engine_of(StandInRunner(leaks=100_000)) as engine:
        watch(engine, "block", 500, tally)
    assert "memory grew by" in tally.faults[0]


def test_a_leak_of_threads_is_noticed() -> None:
    tally, done = Tally("endurance", "threads", "nothing"), threading.Event()

    class Leaking(StandInRunner):
        def infer(self, frames: Any) -> Any:
            threading.Thread(target=done.wait, daemon=True).start()
            return super().infer(frames)

    with engine_of(Leaking()) as engine:
        watch(engine, "block", 100, tally)
    done.set()
    assert any("threads grew" in fault for fault in tally.faults)


def test_little_memory_is_an_error_and_no_crash(seeds: Path) -> None:
    (tally,) = out_of_memory(seeds / "engines" / "net", 3)
    assert tally.faults == []
    assert tally.outcomes["done"] >= 1
