"""A served bundle, asked by Triton's own clients: right answers, clear refusals, and what it says of itself."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from serving.process import ServeProcess

from fcnopt.bundle import load
from fcnopt.serving import BITS
from fcnopt.spec import METADATA_KEY, ModelSpec
from tests.backends.tiny import tiny_spec
from tests.serving.bundles import tiny_bundle
from tests.serving.clients import Asker, Protocol

PROTOCOLS = ("http", "grpc")


@pytest.fixture
def frames(rng: np.random.Generator) -> NDArray[np.uint8]:
    return rng.integers(0, 256, (5, 24, 32, 3), dtype=np.uint8)


@pytest.fixture(params=PROTOCOLS)
def asker(request: pytest.FixtureRequest, server: ServeProcess) -> Iterator[Asker]:
    with Asker(server, request.param, "small") as client:
        yield client


def test_labels_and_confidence_are_those_of_the_local_engine(
    asker: Asker, small: Path, frames: NDArray[np.uint8]
) -> None:
    with load(small) as engine:
        local = engine.run(frames)
    for count in (1, 5):
        answer = asker.ask(frames[:count])
        np.testing.assert_array_equal(answer["labels"], local.labels[:count])
        np.testing.assert_array_equal(answer["confidence"], local.confidence[:count])
        assert answer["problems"].tolist() == [[0]] * count
    assert list(asker.ask(frames, outputs=("labels",))) == ["labels"]


def test_frames_that_no_working_camera_gives_are_flagged(asker: Asker, frames: NDArray[np.uint8]) -> None:
    frames[1], frames[3] = 0, 255
    assert asker.ask(frames)["problems"].ravel().tolist() == [0, BITS["black"], 0, BITS["overexposed"], 0]
    name = {"camera": f"standing-{type(asker.client).__module__}"}
    flags = [asker.ask(frames[:1], parameters=name)["problems"].item() for _ in range(12)]
    assert flags == [0] * 10 + [BITS["frozen"]] * 2


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"frames": np.zeros((9, 24, 32, 3), np.uint8)}, "batch-size must be <= 8 for 'small'"),
        ({"frames": np.zeros((2, 24, 33, 3), np.uint8)}, "Expected [-1,24,32,3], got [2,24,33,3]"),
        ({"frames": np.zeros((1, 3, 24, 32), np.uint8)}, "Expected [-1,24,32,3], got [1,3,24,32]"),
        ({"frames": np.zeros((1, 24, 32), np.uint8)}, "Expected [-1,24,32,3], got [1,24,32]"),
        ({"frames": np.zeros((0, 24, 32, 3), np.uint8)}, "got 0"),
        ({"frames": np.zeros((1, 24, 32, 3), np.float32), "kind": "FP32"}, "model 'small' expects 'UINT8'"),
        ({"name": "image"}, "unexpected inference input 'image'"),
        ({"outputs": ("masks",)}, "unexpected inference output 'masks'"),
        ({"model_version": "7"}, "version 7"),
    ],
)
def test_requests_that_do_not_fit_are_refused_by_name_and_the_next_is_answered(
    asker: Asker, small: Path, frames: NDArray[np.uint8], request_: dict[str, Any], message: str
) -> None:
    assert message in asker.refusal(**request_)
    with load(small) as engine:
        np.testing.assert_array_equal(asker.ask(frames)["labels"], engine.run(frames).labels)


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b'{"inputs": 3}', b'{"inputs": [{}]}', bytes(range(256)) * 4096, b"[" * 10_000],
    ids=["nothing", "half", "list", "number", "nameless", "binary", "deep"],
)
def test_bytes_that_are_no_request_are_refused_and_the_next_is_answered(
    server: ServeProcess, small: Path, frames: NDArray[np.uint8], body: bytes
) -> None:
    request = urllib.request.Request(f"http://{server.http}/v2/models/small/infer", body)
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=30)  # noqa: S310  (http)
    with caught.value as answer:
        assert answer.code in (400, 500)
        assert json.loads(answer.read())["error"]
    with Asker(server, "http", "small") as asker, load(small) as engine:
        np.testing.assert_array_equal(asker.ask(frames)["labels"], engine.run(frames).labels)


def test_eight_clients_at_once_each_get_their_own_labels(
    server: ServeProcess, small: Path, rng: np.random.Generator
) -> None:
    frames = rng.integers(0, 256, (8, 6, 24, 32, 3), dtype=np.uint8)
    with load(small) as engine:
        expected = [engine.run(own).labels for own in frames]

    def client(number: int) -> list[bool]:
        protocol: Protocol = "http" if number % 2 else "grpc"
        with Asker(server, protocol, "small") as asker:
            answers = [asker.ask(own[None])["labels"][0] for own in frames[number]]
        return [np.array_equal(*pair) for pair in zip(answers, expected[number], strict=True)]

    with ThreadPoolExecutor(8) as pool:
        assert [all(same) for same in pool.map(client, range(8))] == [True] * 8


def test_the_model_says_what_frames_and_labels_are(asker: Asker) -> None:
    config = asker.client.get_model_config("small", **({"as_json": True} if "grpc" in str(asker.client) else {}))
    config = config.get("config", config)
    about = {name: value["string_value"] for name, value in config["parameters"].items()}
    spec = ModelSpec.from_json(about[METADATA_KEY])
    assert spec == tiny_spec(outputs=("labels", "confidence"))
    assert about["fcnopt.bundle"] == "small"
    assert json.loads(about["fcnopt.problems"]) == BITS
    assert config["output"][0]["label_filename"] == "labels.txt"


def test_health_and_metrics_are_there_and_what_could_harm_is_not(server: ServeProcess) -> None:
    with Asker(server, "grpc", "small") as asker:
        asker.ask(np.zeros((1, 24, 32, 3), np.uint8))
        assert asker.client.is_server_ready()
        assert asker.client.is_model_ready("small")
        assert asker.client.get_inference_statistics("small").model_stats[0].inference_count > 0
        from tritonclient.utils import InferenceServerException

        with pytest.raises(InferenceServerException, match="restricted"):
            asker.client.unload_model("small")
        with pytest.raises(InferenceServerException, match="restricted"):
            asker.client.register_system_shared_memory("mine", "/psm", 4096)
    for page, words in ((f"http://{server.http}/v2/health/ready", ""), (metrics(server), "nv_inference_count")):
        with urllib.request.urlopen(page, timeout=30) as answer:  # noqa: S310  (http)
            assert answer.status == 200
            assert words in answer.read().decode()


def metrics(server: ServeProcess) -> str:
    return f"http://127.0.0.1:{server.ports[2]}/metrics"


@pytest.fixture(scope="module")
def any_size(triton: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServeProcess]:  # noqa: ARG001
    """An engine for any batch and size, whose requests wait a little for others."""
    bundle = tiny_bundle(tmp_path_factory.mktemp("engines") / "any", tiny_spec(None, None), batch=None)
    with ServeProcess(bundle, "--max-queue-delay-ms", 300, "--max-batch", 4, "--model-name", "any-size") as server:
        yield server


def test_requests_of_several_clients_are_run_as_one(any_size: ServeProcess, frames: NDArray[np.uint8]) -> None:
    with Asker(any_size, "grpc", "any-size") as asker:

        def runs() -> tuple[int, int]:
            stats = asker.client.get_inference_statistics("any-size").model_stats[0]
            return stats.inference_count, stats.execution_count

        before, rounds, joined = runs(), 0, False
        with ThreadPoolExecutor(4) as pool:
            while not joined and rounds < 50:  # on a busy machine four clients may well come one after another
                list(pool.map(lambda number: asker.ask(frames[number : number + 1]), range(4)))
                rounds += 1
                inferences, executions = (now - then for now, then in zip(runs(), before, strict=True))
                joined = executions < inferences
        assert inferences == 4 * rounds
        assert joined


def test_clients_may_send_frames_of_different_sizes_at_once(
    any_size: ServeProcess, rng: np.random.Generator, tmp_path: Path
) -> None:
    sizes = [(24, 32), (48, 64), (24, 32), (16, 80)]
    frames = [rng.integers(0, 256, (1, *size, 3), dtype=np.uint8) for size in sizes]
    with load(tiny_bundle(tmp_path / "any", tiny_spec(None, None), batch=None)) as engine:
        expected = [engine.run(frame).labels for frame in frames]
    with Asker(any_size, "grpc", "any-size") as asker, ThreadPoolExecutor(4) as pool:
        for answer, labels in zip(pool.map(asker.ask, frames), expected, strict=True):
            np.testing.assert_array_equal(answer["labels"], labels)
