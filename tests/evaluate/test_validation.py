from __future__ import annotations

import errno
import hashlib
import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NoReturn

import numpy as np
import pytest
from numpy.typing import NDArray

from fcnopt.errors import MediaError
from fcnopt.evaluate.bench import bench
from fcnopt.evaluate.budget import Budget
from fcnopt.evaluate.observe import FrameHasher
from fcnopt.evaluate.validation import Validation
from tests.evaluate.fakes import SMALL, FakeClip, FakeRunner


def worse(labels: NDArray[np.uint8], call: int) -> NDArray[np.uint8]:
    labels[: 2 + call % 2, :] = 0
    return labels


def of(clip: FakeClip, budget: Budget | None = None, **others: frozenset[str]) -> Validation:
    runner = FakeRunner()
    return Validation(clip, runner.spec, runner, budget, **others)


@pytest.mark.parametrize("labelled", [True, False])
def test_figures_are_those_of_a_benchmark(labelled: bool) -> None:
    clip = FakeClip(frames=16, labelled=labelled)
    found = of(clip).measure(FakeRunner("int8", worse))
    # the benchmark runs its warm-up frames first, which an engine of changing labels would notice: an even number
    result = bench(clip, [FakeRunner("int8", worse)], FakeRunner(), SMALL)
    assert found.verdict.drop == pytest.approx(result.engines[0].drop.miou)
    assert found.equal_labels == pytest.approx(result.engines[0].equal_labels)
    assert found.verdict.drop > 1


def test_an_equal_candidate_loses_nothing_and_keeps_a_budget_of_nothing() -> None:
    validation = of(FakeClip(), Budget(0.0, 0.0, min_pixels=1))
    found = validation.measure(FakeRunner("int8"))
    assert found.verdict.kept
    assert (found.verdict.drop, found.equal_labels) == (0.0, 100.0)
    assert not validation.measure(FakeRunner("int8", worse)).verdict.kept


def test_counts_give_the_same_verdict_again() -> None:
    validation = of(FakeClip(), Budget(1.0))
    found = validation.measure(FakeRunner("int8", worse))
    again = validation.judged(found.counts, found.equal_labels, found.date)
    assert (again.verdict, again.date) == (found.verdict, found.date)
    with pytest.raises(MediaError, match="has changed"):
        validation.judged(found.counts[:-1], found.equal_labels, found.date)
    assert validation.fits(found.counts)
    others = found.counts.copy()
    others[0, 1, 0] += 1
    assert not validation.fits(found.counts[:-1])
    assert not validation.fits(others), "of another truth"


def test_frames_and_reference_decide_the_key() -> None:
    clip = FakeClip()
    keys = {of(clip).key, of(FakeClip()).key}
    assert len(keys) == 1
    assert of(FakeClip(frames=11)).key not in keys
    runner = FakeRunner(change=worse)
    assert Validation(clip, runner.spec, runner, None).key not in keys


def test_the_hash_is_that_of_the_frames_as_the_model_takes_them() -> None:
    clip = FakeClip()
    hasher = FrameHasher(FakeRunner().spec.frame)
    for frame in clip.images():
        hasher.add(frame.image)
    assert of(clip).sha256 == hasher.sha256


def test_frames_that_were_calibrated_on_are_refused() -> None:
    clip = FakeClip()
    images = [frame.image for frame in clip.images()]
    seen = frozenset(hashlib.sha256(np.ascontiguousarray(image).data).hexdigest() for image in images[:3])
    with pytest.raises(MediaError, match=r"3 of 12 validation frames were calibrated on") as error:
        of(clip, calibration=seen)
    assert "--calibration" in str(error.value.fix)


def test_label_ids_that_are_no_class_are_named_with_clip_and_frame() -> None:
    clip = FakeClip()
    labels = clip._frames[5].labels
    assert labels is not None
    labels[0, 0] = 77
    with pytest.raises(MediaError, match=r"fake\.mp4, frame 5: label map has the values 77, expected 0\.\.3"):
        of(clip)


def full(**options: Any) -> IO[bytes]:
    return Path("/dev/full").open("w+b", buffering=options.get("buffering", -1))


class _Short(io.BytesIO):
    """Takes the first half of what is written, as a file does whose disk gets full meanwhile."""

    def write(self, data: Any) -> int:
        return super().write(data[: len(data) // 2])


def nowhere(**_: object) -> NoReturn:
    raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")


@pytest.mark.parametrize(
    ("opened", "reason"),
    [(full, "No space left"), (lambda **_: _Short(), "No space left"), (nowhere, "No usable temporary directory")],
)
def test_a_full_temporary_folder_is_an_error_with_its_fix(
    opened: Callable[..., Any], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "TemporaryFile", opened)
    with pytest.raises(MediaError, match=rf"fake\.mp4: the reference's labels cannot be kept in .*: {reason}") as error:
        of(FakeClip())
    assert "set TMPDIR" in str(error.value.fix)


def test_a_clip_without_frames_is_refused() -> None:
    with pytest.raises(MediaError, match="no frames"):
        of(FakeClip(frames=0))
