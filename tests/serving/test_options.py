"""How an engine may be served, and what is refused before anything is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fcnopt.bundle import load
from fcnopt.errors import UsageError
from fcnopt.serving import ServedModel, ServeOptions
from tests.backends.tiny import tiny_spec
from tests.serving.bundles import tiny_bundle


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"http_port": 0}, "http_port is 0"),
        ({"grpc_port": 8000}, "ports 8000, 8000, 8002"),
        ({"max_batch": 0}, "max_batch is 0"),
        ({"max_queue": 0}, "max_queue is 0"),
        ({"max_queue_delay_ms": 50.0, "timeout_ms": 50.0}, "max_queue_delay_ms is 50"),
        ({"timeout_ms": 0.5}, "timeout_ms is 0.5"),
        ({"max_latency_ms": float("nan")}, "max_latency_ms is nan"),
        ({"model_name": "my model"}, "model name 'my model'"),
        ({"model_name": "x" * 61}, "model name"),
    ],
)
def test_choices_that_are_not_possible_are_refused(choice: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ServeOptions(**choice)


def test_names_that_triton_does_not_take_are_made_ones_that_it_does(tmp_path: Path) -> None:
    with load(tiny_bundle(tmp_path / "my engine+1", tiny_spec())) as engine:
        assert ServedModel.of(engine, ServeOptions()).name == "my-engine-1"
        assert ServedModel.of(engine, ServeOptions(model_name="seg")).name == "seg"


def test_a_request_holds_eight_frames_or_the_batch_of_the_engine(tmp_path: Path) -> None:
    sizes = {}
    for batch in (1, 12, None):
        with load(tiny_bundle(tmp_path / f"b{batch}", tiny_spec(), batch=batch)) as engine:
            sizes[batch] = ServedModel.of(engine, ServeOptions()).max_batch
    assert sizes == {1: 8, 12: 12, None: 8}


def test_shared_memory_is_that_of_requests_and_answers_twice(small: Path) -> None:
    with load(small) as engine:
        model = ServedModel.of(engine, ServeOptions(max_batch=4))
    frame, labels, confidence = 24 * 32 * 3, 24 * 32, 24 * 32 * 4
    assert model.shared_bytes == 2 * 4 * (frame + labels + confidence)
