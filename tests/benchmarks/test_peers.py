from __future__ import annotations

import io
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("openvino", reason="contenders run on it")
pytest.importorskip("onnxruntime", reason="contenders run on it")

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import peers
from race import contenders, making, page, plot, process, rounds, scripts, wire
from rivals import environment

from fcnopt.errors import BackendError, UsageError
from fcnopt.spec import ClassSpec

_PROGRAM = """
import sys
import numpy as np
from race.wire import Lap, serve

class Echo:
    left = 5
    def rewind(self): self.left = 5
    def run(self, frames):
        count = min(frames, self.left)
        self.left -= count
        if frames == 4: raise RuntimeError("error: the engine burst")
        print("noise on standard output")
        lap = Lap([np.full((2, 3), self.left, np.uint8) for _ in range(count)])
        lap.times_ms["latency"] = [7.0] * count
        lap.seconds = 0.5
        return lap
    def network(self, runs): return [1.5] * runs

serve(Echo)
"""


def _silent(_step: str, _fraction: float) -> None:
    """Progress that nobody watches."""


@pytest.fixture
def echo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> partial[process.Process]:
    """Starts a contender that answers what it is asked, in a package `race` that holds the real protocol too."""
    folder = tmp_path / "race"
    folder.mkdir()
    (folder / "__init__.py").write_text(f"__path__ = [{str(folder)!r}, {str(Path(wire.__file__).parent)!r}]")
    (folder / "echo.py").write_text(_PROGRAM)
    monkeypatch.setattr(process, "_HERE", tmp_path)
    return partial(process.Process, [sys.executable, "echo"], tmp_path / "echo.log")


def test_a_message_comes_back_as_it_was_sent() -> None:
    stream = io.BytesIO()
    wire.send(stream, {"a": [1, 2.5]}, b"12\n3")
    wire.send(stream, {"b": None})
    stream.seek(0)
    assert wire.receive(stream) == ({"a": [1, 2.5], "bytes": 4}, b"12\n3")
    assert wire.receive(stream) == ({"b": None, "bytes": 0}, b"")
    with pytest.raises(EOFError):
        wire.receive(stream)


def test_a_message_that_is_cut_is_an_end() -> None:
    whole = io.BytesIO()
    wire.send(whole, {"a": 1}, b"12345")
    for kept in (3, len(whole.getvalue()) - 1):
        with pytest.raises(EOFError):
            wire.receive(io.BytesIO(whole.getvalue()[:kept]))


@pytest.mark.parametrize(
    ("frames", "turn", "expected"), [(101, 26, [25, 25, 25, 26]), (5, 3, [2, 3]), (4, 9, [4]), (6, 3, [3, 3])]
)
def test_turns_are_of_equal_length(frames: int, turn: int, expected: list[int]) -> None:
    assert rounds.Course(frames, turn).turns() == expected


def test_a_process_answers_in_its_turn_and_ends(echo: partial[process.Process], tmp_path: Path) -> None:
    with echo() as contender:
        lap = contender.run(3)
        assert [labels.tolist() for labels in lap.labels] == [[[2, 2, 2], [2, 2, 2]]] * 3
        assert lap.times_ms["latency"] == [7.0] * 3
        assert lap.seconds == 0.5
        assert contender.network(2) == [1.5, 1.5]
        assert len(contender.run(3).labels) == 2
        assert contender.peak_mib is not None
        assert 1 < contender.peak_mib < 500
        assert contender.start_s > 0
    assert contender._process.returncode == 0
    assert "noise" in (tmp_path / "echo.log").read_text()  # and not on the pipe


def test_a_process_that_fails_says_its_last_words(echo: partial[process.Process]) -> None:
    with echo() as contender, pytest.raises(BackendError, match="echo failed: RuntimeError: error: the engine burst"):
        contender.run(4)


def test_a_program_that_is_missing_fails_to_start(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"nobody failed: .*No module named"):
        process.Process([sys.executable, "nobody"], tmp_path / "nobody.log")


def test_who_fails_in_the_race_is_out_and_the_rest_goes_on(echo: partial[process.Process]) -> None:
    def fails() -> process.Process:
        raise BackendError("it does not start", fix="none")

    course = rounds.Course(frames=5, round_frames=3, network_runs=2)
    runners, out = rounds.race({"a": echo, "never": fails, "b": echo}, course, _silent)
    assert out == {"never": "it does not start"}
    assert list(runners) == ["a", "b"]
    assert [len(one.labels) for one in runners.values()] == [5, 5]
    assert runners["a"].network_ms == [1.5] * 4
    assert runners["a"].process._process.returncode == 0
    figures = runners["a"].figures()
    assert figures["fps"] == pytest.approx(5.0)
    assert figures["rounds_fps"] == [4.0, 6.0]
    assert figures["latency_p50_ms"] == 7.0
    runners, _ = rounds.race({"a": echo}, rounds.Course(5, 3, laps=3), _silent)
    assert len(runners["a"].labels) == 5
    assert len(runners["a"].figures()["rounds_fps"]) == 6
    runners, out = rounds.race({"a": echo, "b": echo}, rounds.Course(9, 3), _silent)
    assert not runners
    assert out["a"] == "it gave labels for 2 of 3 frames"


def test_turns_rotate(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    class Fake:
        failed = ""

        def __init__(self, name: str) -> None:
            self.name = name

        def turn(self, _frames: int, _course: rounds.Course) -> None:
            order.append(self.name)

    monkeypatch.setattr(rounds, "_SETTLE_S", 0.0)
    field: Any = [(name, Fake(name)) for name in "abc"]
    for number in range(3):
        rounds._round(field, number, 1, rounds.Course(3))
    assert "".join(order) == "abcbcacab"


def test_everyone_is_compared_with_the_reference(echo: partial[process.Process]) -> None:
    runners, _ = rounds.race({"ref": echo, "other": echo}, rounds.Course(4, 2), _silent)
    runners["other"].labels[0] = np.ones((2, 3), np.uint8)
    classes = ClassSpec(tuple("abcd"), ((0, 0, 0),) * 4)
    found = rounds.results(runners, "ref", None, classes)
    assert found["ref"]["equal_labels"] == 100
    assert found["other"]["equal_labels"] == 75
    assert found["other"]["x"] == pytest.approx(1.0)
    assert found["other"]["drop"] > 0
    with pytest.raises(BackendError, match="nobody did not come through"):
        rounds.results(runners, "nobody", None, classes)


class _Mean(scripts.Script):
    """A network of two classes: bright red, or not."""

    def infer(self, x: Any) -> Any:
        return np.concatenate([np.zeros_like(x[:, :1]), x[:, :1]], axis=1)


@pytest.mark.parametrize("size", [(64, 96), (32, 48), (80, 120)])
def test_a_script_gives_labels_of_the_frames_size(street: Path, size: tuple[int, int]) -> None:
    task = scripts.Task(str(street / "clip.mp4"), size, "RGB", 1 / 255, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    script = _Mean(task)
    lap = script.run(4)
    assert [labels.shape for labels in lap.labels] == [(64, 96)] * 4
    assert lap.labels[0].dtype == np.uint8
    assert lap.seconds > sum(lap.times_ms["latency"]) / 1e3
    assert all(len(times) == 4 for times in lap.times_ms.values())
    assert len(script.run(4).labels) == 2
    script.rewind()
    np.testing.assert_array_equal(script.run(1).labels[0], lap.labels[0])
    assert len(script.network(3)) == 3
    if size == (64, 96):
        frame = next(task.frames())
        np.testing.assert_array_equal(lap.labels[0], frame[:, :, 0] > 127.5)


def test_a_script_normalizes_as_the_task_says() -> None:
    task = scripts.Task("none", (2, 2), "RGB", 0.5, (1.0, 2.0, 3.0), (2.0, 4.0, 8.0))
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    expected = (image * 0.5 - np.array([1.0, 2.0, 3.0])) / np.array([2.0, 4.0, 8.0])
    np.testing.assert_allclose(_Mean(task).prepare(image)[0], expected.transpose(2, 0, 1), rtol=1e-6)


def test_clip_readers_are_added_to_an_environment_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(environment, "run", lambda command, _log: commands.append(command))
    (tmp_path / "nncf").mkdir()
    environment.add_readers("nncf", tmp_path)
    environment.add_readers("nncf", tmp_path)
    assert len(commands) == 1
    assert commands[0][-2:] == ["-r", str(environment.HERE / "readers.txt")]
    pins = (environment.HERE / "readers.txt").read_text()
    constraints = (Path(__file__).parents[2] / "constraints.txt").read_text()
    assert all(line in constraints.splitlines() for line in pins.splitlines())


def test_contenders_without_what_they_need_are_skipped_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def ready(_: making.Kitchen) -> contenders.Ready:
        raise BackendError("pip failed", fix="none")

    kitchen: Any = None
    fine = contenders.Ready(["python", "x"])
    field = {
        "fine": contenders.Contender("Fine", lambda _: fine, (lambda: "",)),
        "bare": contenders.Contender("Bare", ready, (lambda: "", lambda: "it has no GPU")),
        "broken": contenders.Contender("Broken", ready),
    }
    assert peers.get_ready(field, kitchen) == ({"fine": fine}, {"bare": "it has no GPU", "broken": "pip failed"})
    monkeypatch.setattr(contenders, "gpu_problem", lambda: "no driver")
    on_gpu = [name for name in contenders.CONTENDERS if name.startswith(("torch-cuda", "torch-fp16", "ort-cuda"))]
    assert len(on_gpu) == 3
    assert {contenders.CONTENDERS[name].missing() for name in on_gpu} == {"no driver"}
    monkeypatch.setattr(contenders.shutil, "which", lambda _name: None)
    assert "C++ compiler" in contenders.CONTENDERS["torch-compile"].missing()


def test_files_are_made_once_for_the_same_inputs(tmp_path: Path) -> None:
    class Exported:
        path = tmp_path / "network.onnx"

    for name in ("network.onnx", "frames.npy"):
        (tmp_path / name).write_text("1")
    size = (2, 2)
    task = scripts.Task("none", size, "RGB", 1.0, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    exported: Any = Exported
    here, frames = tmp_path, tmp_path / "frames.npy"
    kitchen = making.Kitchen(here, exported, here, 0.0, task, here, 1, frames, here, here, _silent)
    calls: list[Path] = []

    def make(stem: Path) -> making.Made:
        calls.append(stem)
        stem.with_suffix(".onnx").write_text("made")
        return making.Made(stem.with_suffix(".onnx"), 2.0, {"tool": "1"})

    first = kitchen.keep("x", "recipe", make)
    assert kitchen.keep("x", "recipe", make) == first
    assert len(calls) == 1
    kitchen.keep("x", "other", make)
    frames.write_text("2")
    kitchen.keep("x", "recipe", make)
    assert len(set(calls)) == 3
    first.path.unlink()
    frames.write_text("1")
    assert kitchen.keep("x", "recipe", make) == first
    assert len(calls) == 4


def test_a_folder_that_is_no_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="is no bundle"):
        contenders.of_bundles((tmp_path,))
    (tmp_path / "manifest.json").write_text("{}")
    assert [one.title for one in contenders.of_bundles((tmp_path,)).values()] == [
        f"fcnopt, {tmp_path.name}, latency",
        f"fcnopt, {tmp_path.name}, throughput",
    ]


def _row(name: str, fps: float, **others: Any) -> dict[str, Any]:
    figures = {"rounds_fps": [fps, fps / 2, fps * 2], "rounds_latency_ms": [500 / fps, 800 / fps, 300 / fps]}
    figures |= {"x": fps, "latency_p50_ms": 500 / fps, "latency_p99_ms": 700 / fps, "network_ms": 400 / fps}
    accuracy = {"miou": 70.0, "drop": 0.1, "drop_interval": (0.0, 0.2), "equal_labels": 99.5}
    worst = {"worst_class": {"name": "Car", "drop": 0.4}}
    built = {"build_s": 3.0, "start_s": 1.0, "peak_mib": 300.0, "versions": {name: "1"}}
    return (
        {"name": name, "title": name.upper(), "ours": False}
        | figures
        | accuracy
        | worst
        | built
        | {"fps": fps}
        | others
    )


def _found() -> dict[str, Any]:
    rows = [_row("torch", 1.0), _row("nncf", 10.0), _row("fcnopt", 25.0, ours=True)]
    skipped = {"name": "gpu", "title": "GPU", "ours": False, "skipped": "no\ndriver"}
    machine = {"cpu": "CPU", "cores": 2, "isa": ["vnni"], "memory_gib": 8, "versions": {"openvino": "1"}, "gpus": []}
    facts = {"command": "python benchmarks/peers.py x", "clip": "x", "size": (360, 480), "frames": 8}
    return {"machine": machine, "truth": "label maps", "calibration": 64, "rows": [*rows, skipped], **facts}


def test_the_page_ranks_claims_and_says_who_was_skipped() -> None:
    text = page.as_markdown(_found())
    assert text.index("| TORCH |") < text.index("| NNCF |") < text.index("| **FCNOPT** |")
    assert "| **FCNOPT** | 25.00 | 25.00 | 20.0 | 28.0 | 16.0 | 70.00 | +0.10 (+0.00 to +0.20) | +0.40 Car |" in text
    assert "| FCNOPT | 2.50 (2.50 to 2.50); 2.50 (2.50 to 2.50) |" in text
    assert "- GPU: no driver" in text
    json.dumps(_found())


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="draws the picture")
    import cv2

    plot.draw(_found(), tmp_path / "x.png")
    image = cv2.imread(str(tmp_path / "x.png"))
    assert image is not None
    assert image.shape[1] > 1000
    green = (abs(image.astype(int) - (0x37, 0x78, 0x1B)).sum(2) < 12).sum()
    assert green > 50  # fcnopt's row


def test_unknown_contenders_are_refused(tmp_path: Path) -> None:
    given = (tmp_path, None, tmp_path, "camvid", tmp_path, tmp_path, tmp_path)
    with pytest.raises(UsageError, match=r"unknown contenders pytorch.*\n.*choose from torch, torch-compile"):
        peers.Options(*given, only=("pytorch",))
    with pytest.raises(UsageError, match="at least one"):
        peers.Options(*given, max_frames=-1)
    shown = peers.Options(Path("/a/clip.mp4"), Path("/b/annot"), *given[2:], only=("ort",), max_frames=3).command()
    assert shown == "python benchmarks/peers.py clip.mp4 --labels annot --only ort --max-frames 3"


def test_a_small_race_from_checkpoint_to_page(street: Path, tmp_path: Path) -> None:
    import torch

    from tests.models.networks import tiny

    network = tiny(batch_norm=True, widths=(16, 16, 24, 24, 32), fc_widths=(32, 32))
    torch.save(network.state_dict(), tmp_path / "tiny.pth")
    classes = tmp_path / "classes.json"
    classes.write_text('{"names": ["a", "b", "c", "d", "e"]}')
    options = peers.Options(
        street / "clip.mp4",
        None,
        tmp_path / "tiny.pth",
        str(classes),
        street / "images",
        tmp_path / "envs",
        tmp_path / "work",
        only=("ort", "openvino-fp32", "fcnopt-openvino-stream", "torch-cuda"),
        size=(64, 96),
        calibration_frames=3,
        max_frames=5,
        round_frames=4,
    )
    found = peers.run(options, _silent)
    rows = {row["name"]: row for row in found["rows"]}
    assert list(rows) == ["torch", "ort", "openvino-fp32", "torch-cuda", "fcnopt-openvino-stream"]
    assert rows["torch"]["equal_labels"] == 100
    for name in ("ort", "openvino-fp32"):
        assert rows[name]["equal_labels"] > 99.5
        assert len(rows[name]["rounds_fps"]) == 2
    assert rows["fcnopt-openvino-stream"]["equal_labels"] > 50  # random weights leave the logits close together
    assert rows["fcnopt-openvino-stream"]["build_s"] > 0
    assert "skipped" in rows["torch-cuda"] or torch.cuda.is_available()
    assert "accuracy by PyTorch's labels" in page.as_markdown(found)
