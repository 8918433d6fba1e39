"""What the server makes of requests, without a server."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from fcnopt.backends.base import FrameStatus
from fcnopt.bundle import load
from fcnopt.plausibility import DEFAULT, Plausibility
from fcnopt.serving.answers import BITS, Answers, Served, bits_of


@dataclass
class Request:
    """As PyTriton hands them over."""

    frames: NDArray[np.uint8]
    requested_output_names: list[str] | None = None
    parameters: dict[str, object] | None = None

    def __getitem__(self, name: str) -> NDArray[np.uint8]:
        assert name == "frames"
        return self.frames


@pytest.fixture
def frames(rng: np.random.Generator) -> NDArray[np.uint8]:
    return rng.integers(0, 256, (6, 24, 32, 3), dtype=np.uint8)


def test_requests_are_run_as_one_and_each_gets_its_own_labels(small: Path, frames: NDArray[np.uint8]) -> None:
    with load(small) as engine:
        alone = engine.run(frames)
        answers = Answers(engine, None, DEFAULT)
        first, second, third = answers.answer([Request(frames[:1]), Request(frames[1:4]), Request(frames[4:])])
        assert answers.served == Served(requests=3, frames=6, runs=1)
    for answer, part in ((first, slice(0, 1)), (second, slice(1, 4)), (third, slice(4, 6))):
        assert list(answer) == ["labels", "confidence", "problems"]
        np.testing.assert_array_equal(answer["labels"], alone.labels[part])
        np.testing.assert_array_equal(answer["confidence"], alone.confidence[part])
        np.testing.assert_array_equal(answer["problems"], np.zeros((len(answer["labels"]), 1), np.uint8))


def test_only_what_a_request_asks_for_is_sent_back(small: Path, frames: NDArray[np.uint8]) -> None:
    with load(small) as engine:
        (answer,) = Answers(engine, None, DEFAULT).answer([Request(frames, ["problems"])])
    assert list(answer) == ["problems"]


def test_frames_are_frozen_against_those_of_the_same_camera_alone(small: Path, frames: NDArray[np.uint8]) -> None:
    """Clients that send the same frame are no camera that stands still, and cameras may take turns."""
    standing = Request(frames[:1], parameters={"camera": "front"})
    with load(small) as engine:
        answers = Answers(engine, None, Plausibility(frozen_frames=2))
        nameless = answers.answer([Request(frames[:1]) for _ in range(4)])
        first = answers.answer([standing, Request(frames[1:2], parameters={"camera": "rear"}), standing])
        (second,) = answers.answer([standing])
        (in_one,) = answers.answer([Request(np.repeat(frames[:1], 4, 0))])
        assert answers.served.implausible == 3
    assert [int(answer["problems"][0, 0]) for answer in (*nameless, *first)] == [0] * 7
    assert second["problems"].tolist() == [[BITS["frozen"]]]
    assert in_one["problems"].ravel().tolist() == [0, 0, BITS["frozen"], BITS["frozen"]]


def test_cameras_without_end_do_not_fill_the_memory(small: Path, frames: NDArray[np.uint8]) -> None:
    standing = Request(frames[:1], parameters={"camera": "front"})
    with load(small) as engine:
        answers = Answers(engine, None, Plausibility(frozen_frames=1))
        answers.answer([standing])
        answers.answer([Request(frames[:1], parameters={"camera": f"{number}"}) for number in range(63)])
        (kept,) = answers.answer([standing])
        answers.answer([Request(frames[:1], parameters={"camera": f"{number}"}) for number in range(100, 164)])
        (forgotten,) = answers.answer([standing])
    assert (kept["problems"].item(), forgotten["problems"].item()) == (BITS["frozen"], 0)


def test_black_and_late_frames_say_so(small: Path, frames: NDArray[np.uint8]) -> None:
    frames[1] = 0
    with load(small) as engine:
        answers = Answers(engine, 1e-6, DEFAULT)
        (answer,) = answers.answer([Request(frames)])
        (unwatched,) = Answers(engine, None, None).answer([Request(frames)])
        assert (answers.served.late, answers.served.implausible) == (6, 1)
    assert answer["problems"].ravel().tolist() == [1, 1 + 2, 1, 1, 1, 1]
    assert not unwatched["problems"].any()


def test_every_problem_has_a_bit_of_its_own() -> None:
    status = FrameStatus(late=True, problems=("black", "overexposed", "frozen", "wrong-size"))
    assert bits_of(status) == sum(BITS.values()) == 31
    assert bits_of(FrameStatus()) == 0
