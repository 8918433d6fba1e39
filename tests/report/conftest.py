from __future__ import annotations

import pytest

from fcnopt.evaluate.bench import BenchOptions, BenchResult, bench
from tests.evaluate.fakes import FakeClip, FakeRunner, wrong_corner


def measured(*, labelled: bool = True, frames: int = 12, keep: int = 3) -> BenchResult:
    return bench(
        FakeClip(frames=frames, labelled=labelled),
        [FakeRunner("openvino int8", wrong_corner, inference_ms=1.0), FakeRunner("openvino bf16")],
        FakeRunner(change=lambda labels, call: wrong_corner(labels) if call % 3 == 0 else labels, inference_ms=4.0),
        BenchOptions(warmup_frames=1, round_frames=6, bootstrap_samples=100, keep_samples=keep),
        machine={
            "cpu": "EPYC <9B45>",
            "isa": ["avx512", "vnni"],
            "gpus": [{"name": "H100", "memory_mib": 81559}],
            "driver": None,
        },
        versions={"openvino": "2026.4"},
        command="fcnopt bench fake.mp4 --labels 'a & b'",
        date="2026-11-22T09:00:00+00:00",
    )


@pytest.fixture(scope="session")
def result() -> BenchResult:
    return measured()
