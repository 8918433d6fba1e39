"""The way into a car on the tiny network: every step is done, and a step that goes wrong says so."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("openvino", reason="the engine runs on it")

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import vehicle
from faults.case import Fault
from vehicle_steps import deployed, live, native, recorded, rows, served
from vehicle_steps.page import as_markdown

from fcnopt.backends.base import Outputs, Precision
from fcnopt.backends.machine import cpu_isa
from fcnopt.builder import build
from fcnopt.bundle import load
from fcnopt.errors import BundleError, UsageError
from fcnopt.settings import BuildSettings

_QUICK = ("sign", "run", "logs", "deploy", "threads", "deadlines")  # cpp is built by tests/deployment


@pytest.fixture(scope="module")
def bundle(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = BuildSettings(folder=tmp_path_factory.mktemp("engines"), name="tiny")
    # what OpenVINO computes in where nobody tells it, as Triton's backend does
    precision: Precision = "bf16" if "bf16" in cpu_isa() else "fp32"
    return build(tiny_model, precision=precision, target="openvino", settings=settings)


def ran(monkeypatch: pytest.MonkeyPatch, out: Path, *words: object) -> tuple[int, dict[str, Any], str]:
    """Exit code, JSON and page."""
    monkeypatch.setattr(sys, "argv", ["vehicle.py", *map(str, words), "--out", str(out)])
    with pytest.raises(SystemExit) as done:
        vehicle.main()
    return (
        int(done.value.code or 0),
        json.loads(out.with_suffix(".json").read_text()),
        out.with_suffix(".md").read_text(),
    )


def test_every_step_is_done_and_right(
    bundle: Path, street: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {file.name: file.read_bytes() for file in bundle.iterdir()}
    words = (street / "clip.mp4", bundle, "--only", ",".join(_QUICK), "--seconds", 0.4)
    code, found, page = ran(monkeypatch, tmp_path / "found", *words)
    assert [row for row in found["rows"] if row["fault"]] == []
    assert code == 0
    assert list(dict.fromkeys(row["step"] for row in found["rows"])) == list(_QUICK)
    done = {row["what"]: row["figures"] for row in found["rows"] if not row["reason"]}
    missing = {row["what"] for row in found["rows"] if row["reason"]}
    assert {name for name in missing if "rerun" not in name and "TensorRT" not in name and "rtx" not in name} == {
        "triton: config.pbtxt",
        "triton: the repository in NVIDIA Triton, check.py asks it",
    }
    assert "is not signed" in done["unsigned, loaded with a key"]["refused"]
    assert "engine.bin: SHA-256 is" in done["a bit of engine.bin changed"]["refused"]
    assert done["fcnopt run to .mkv"]["frames"] == 6
    assert done["max_latency_ms at 0.5 times the engine's median latency"]["frames"] == 6
    assert done["a camera of 30 fps, drop-oldest"]["frames"] == 12
    assert "form for CPUs" in done["autoware, CPU bundle"]["refused"]
    assert found["command"] == f"python benchmarks/vehicle.py clip.mp4 tiny --only {','.join(_QUICK)} --seconds 0.4"
    assert page == as_markdown(found)
    assert f"{len(found['rows'])} rows: 0 wrong, {len(missing)} not run" in page
    for text in (page, json.dumps(found)):
        assert str(street) not in text
        assert str(bundle.parent) not in text
        assert "fcnopt-vehicle-" not in text, "a folder of this machine"
    assert {file.name: file.read_bytes() for file in bundle.iterdir()} == before, "the bundle itself was changed"


def test_one_wrong_pixel_is_a_wrong_row_and_an_exit_code(
    bundle: Path, street: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = recorded.from_video

    def off_by_a_pixel(path: Path) -> list[rows.Labels]:
        labels = [each.copy() for each in read(path)]
        labels[2][5, 7] ^= 1
        return labels

    monkeypatch.setattr(recorded, "from_video", off_by_a_pixel)
    monkeypatch.setattr(recorded, "from_mcap", lambda _: [])
    code, found, page = ran(monkeypatch, tmp_path / "found", street / "clip.mp4", bundle, "--only", "run")
    video, folder, mcap, _ = found["rows"]
    assert code == 1
    assert video["result"] == "WRONG: 99.99729% of labels are equal, expected all"
    assert folder["result"] == "ok"
    assert mcap["result"] == "WRONG: 0 frames, expected 6"
    assert "4 rows: 2 wrong" in page
    assert "| WRONG: 99.99729% of labels" in page


def test_what_is_not_here_is_said_and_is_no_failure(
    bundle: Path, street: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native.shutil, "which", lambda _: None)
    code, found, page = ran(monkeypatch, tmp_path / "found", street / "clip.mp4", bundle, "--only", "cpp,serve")
    assert code == 0
    cpp, serve = (row["result"] for row in found["rows"])
    assert cpp.startswith("not run: not installed: cmake, g++")
    assert serve == "not run: no environment with fcnopt[serve] was given (--serve-python)"
    assert "2 rows: 0 wrong, 2 not run" in page


def test_a_step_that_bursts_does_not_take_the_others_with_it() -> None:
    def bursts() -> rows.Figures:
        raise ZeroDivisionError("why not")

    row = rows.tried("run", "this", "that", bursts)
    assert (row.fault, row.reason, row.result) == (
        *("ZeroDivisionError: why not", ""),
        "WRONG: ZeroDivisionError: why not",
    )


def raising(error: Exception) -> Callable[[], object]:
    def do() -> object:
        raise error

    return do


def test_only_the_right_refusal_counts(bundle: Path, tmp_path: Path) -> None:
    error = BundleError(f"{tmp_path}/net: is not signed", fix=f"sign {tmp_path}/net")
    found = rows.refusal(BundleError, "not signed", raising(error), tmp_path)
    assert found == {"refused": "net: is not signed", "fix": "sign net"}
    with pytest.raises(Fault, match=r"for another reason: .*is not signed"):
        rows.refusal(BundleError, "unknown key", raising(error), tmp_path)
    with pytest.raises(Fault, match="refused by BundleError"):
        rows.refusal(UsageError, "not signed", raising(error), tmp_path)
    engines = []

    def loaded() -> object:
        engines.append(load(bundle))
        return engines[0]

    with pytest.raises(Fault, match="was not refused"):
        rows.refusal(BundleError, "not signed", loaded, tmp_path)
    with pytest.raises(UsageError, match="closed"):
        engines[0].run(np.zeros((1, 64, 96, 3), np.uint8))


def outputs(*places: tuple[int, int]) -> list[Outputs]:
    return [Outputs(np.zeros((1, 2, 2), np.uint8), index=index, skipped=skipped) for index, skipped in places]


def test_a_frame_that_is_neither_a_result_nor_skipped_is_noticed() -> None:
    live._accounted(outputs((0, 0), (3, 2), (4, 0)), 5)
    with pytest.raises(Fault, match="result 3 came as 2"):
        live._accounted(outputs((0, 0), (3, 1)), 4)
    with pytest.raises(Fault, match="the last result is of frame 1, the camera gave 3"):
        live._accounted(outputs((0, 0), (1, 0)), 3)


def test_a_served_engine_is_judged_by_what_its_clients_saw() -> None:
    right = {"sent": 5, "answered": 5, "wrong": 0, "rejected": 0, "failed": 0, "lost": 0, "said": {}}
    right |= {"answers_per_s": 9.5, "latency_ms": {"p50": 1.0, "p90": 1.5, "p99": 2.0, "max": 3.0}}
    assert served._loaded(right)["latency ms"] == {"p50": 1.0, "p99": 2.0, "max": 3.0}
    for name in ("wrong", "rejected", "failed", "lost"):
        with pytest.raises(Fault, match=f"1 {name}"):
            served._loaded(right | {name: 1})
    with pytest.raises(Fault, match="none answered"):
        served._loaded(right | {"answered": 0})
    with pytest.raises(Fault, match="2 of 3 label maps are equal"):
        served._asked({"frames": 3, "equal": 2})
    for found in ({"exit_code": 1, "left": 0}, {"exit_code": 0, "left": 2}):
        with pytest.raises(Fault, match=r"exit code \d, \d processes left"):
            served._stopped(found | {"said": "bye", "stop_s": 1.0})
    with pytest.raises(Fault, match="no answer: metrics"):
        served._ready({"ready": {"health": True, "metrics": False}, "mib": 1.0})


def test_a_server_that_does_not_start_is_a_wrong_row(
    bundle: Path, street: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho no pytriton here >&2\nexit 3\n")
    python.chmod(0o755)
    words = (street / "clip.mp4", bundle, "--only", "serve", "--serve-python", python, "--frames", 2)
    code, found, _ = ran(monkeypatch, tmp_path / "found", *words)
    assert code == 1
    assert [row["fault"] for row in found["rows"]] == ["serving.visit exits with 3: no pytriton here"]
    assert found["command"].endswith("--serve-python PYTHON --frames 2 --only serve")


def test_a_deployment_whose_sums_do_not_hold_is_noticed(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deploy = deployed.deploy

    def damaged(*arguments: Any, **options: Any) -> Path:
        place = deploy(*arguments, **options)
        (place / "README.md").write_text("changed")
        return place

    monkeypatch.setattr(deployed, "deploy", damaged)
    with pytest.raises(Fault, match=r"sha256sum: README\.md: FAILED"):
        deployed.deployed(bundle, "docker", tmp_path)


def test_choices_are_checked(bundle: Path, street: Path) -> None:
    with pytest.raises(UsageError, match="unknown steps fly"):
        vehicle.Options(street, bundle, only=("fly",))
    for options in ({"frames": 0}, {"seconds": 0.0}):
        with pytest.raises(UsageError, match="above 0 is needed"):
            vehicle.Options(street, bundle, **options)  # type: ignore[arg-type]
