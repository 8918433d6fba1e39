from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fcnopt.errors import CheckpointError, MediaError, UsageError
from fcnopt.evaluate.budget import Budget
from fcnopt.exporter import ExportOptions, export
from fcnopt.graph import io
from fcnopt.graph.passes import optimize
from fcnopt.models.checkpoint import load
from fcnopt.origin import Origin
from fcnopt.slimming.options import RecoveryOptions, SlimOptions
from fcnopt.slimming.result import SlimResult
from fcnopt.slimming.slimmer import slim
from tests.models.networks import tiny

pytest.importorskip("torch_pruning")

# The table of a GPU: nothing is timed, so that every run gives the same network.
OPTIONS = SlimOptions(
    speedup=1.25,
    multiple=8,
    target="tensorrt-rtx:sm86",
    statistics_frames=4,
    holdout=0.25,
    recovery=RecoveryOptions(steps=6, batch=2, crop=(32, 64), device="cpu"),
)


def run(drive: Path, folder: Path, **others: Any) -> SlimResult:
    arguments: dict[str, Any] = {"labels": drive / "labels", "classes": "synth", "options": OPTIONS, **others}
    return slim(drive / "net.pth", drive / "images", folder / "slim.pth", **arguments)


@pytest.fixture(scope="module")
def slimmed(drive: Path, tmp_path_factory: pytest.TempPathFactory) -> SlimResult:
    return run(drive, tmp_path_factory.mktemp("slimmed"))


def test_the_result_is_a_narrower_checkpoint(slimmed: SlimResult) -> None:
    loaded = load(slimmed.path)
    assert loaded.description == slimmed.architecture == "FCN-8s VGG16 BN slimmed, 9 classes, padding same"
    assert loaded.architecture is not None
    assert loaded.architecture.conv_widths == {
        name: new for name, (_, new) in slimmed.widths.items() if name.startswith("conv")
    }
    assert slimmed.parameters[1] < slimmed.parameters[0]
    assert slimmed.parameters[1] == sum(p.numel() for p in loaded.module.parameters())
    assert slimmed.speedup >= 1.25
    assert not slimmed.measured
    assert slimmed.recovered.steps == 6


def test_the_checkpoint_says_what_it_came_from(slimmed: SlimResult, drive: Path) -> None:
    import hashlib

    origin = load(slimmed.path).origin
    assert origin is not None
    assert origin.sha256 == hashlib.sha256((drive / "net.pth").read_bytes()).hexdigest()
    assert (origin.checkpoint, origin.padding, origin.at_once) == ("net.pth", "same", False)
    assert origin.accuracy["miou_drop"] == slimmed.after.verdict.drop
    assert origin.accuracy["truth"] == "labels"
    assert origin.accuracy["frames"] == 4
    assert origin.accuracy["budget"]["max_miou_drop"] == 0.5


def test_the_drop_is_against_the_original_on_frames_held_out(slimmed: SlimResult, drive: Path) -> None:
    from fcnopt.evaluate.scores import Scorer
    from fcnopt.media.clips import open_clip
    from fcnopt.slimming.frames import read_frames
    from fcnopt.slimming.teacher import predict
    from fcnopt.spec import NORMALIZATIONS, ClassSpec, FrameSpec, ModelSpec

    spec = ModelSpec(FrameSpec(64, 96), ClassSpec.named("synth"))
    frames = read_frames(open_clip(drive / "images", drive / "labels"), spec, limit=1000, holdout=0.25)
    assert frames.labels is not None
    miou = []
    for path in (drive / "net.pth", slimmed.path):
        scorer = Scorer(spec.classes)
        labels = predict(load(path).module, frames, frames.held, NORMALIZATIONS["imagenet"])  # type: ignore[arg-type]
        for place, found in zip(frames.held, labels, strict=True):
            scorer.add(found, found, frames.labels[place])
        miou.append(scorer.truth.miou)
    assert slimmed.after.verdict.drop == pytest.approx(miou[0] - miou[1], abs=1e-9)


def test_it_exports_as_any_other(slimmed: SlimResult, tmp_path: Path) -> None:
    options = ExportOptions(size=(64, 96), outputs=("labels", "logits"))
    result = export(slimmed.path, tmp_path / "slim.onnx", classes="synth", options=options)
    assert result.verification.max_relative_error < result.verification.tolerance
    assert result.architecture == slimmed.architecture
    assert "slimmed from net.pth" in result.notes
    model = io.load(result.path)
    optimized, _ = optimize(model)
    assert Origin.find(model.metadata_props, result.path) == load(slimmed.path).origin
    assert Origin.find(optimized.metadata_props, result.path) == load(slimmed.path).origin


def test_a_network_without_batch_norm_keeps_its_padding(drive: Path, tmp_path: Path) -> None:
    torch.save(
        tiny(padding="caffe", widths=(8, 16, 16, 24, 24), fc_widths=(32, 32), classes=9).state_dict(),
        tmp_path / "net.pth",
    )
    options = replace(OPTIONS, padding="caffe", at_once=True, speedup=1.15, recovery=replace(OPTIONS.recovery, steps=1))
    result = slim(tmp_path / "net.pth", drive / "images", tmp_path / "slim.pth", classes="synth", options=options)
    loaded = load(result.path)  # nobody has to say it again
    assert loaded.description == "FCN-8s at once VGG16 slimmed, 9 classes, padding caffe"
    assert result.claim.truth == "reference"  # without label maps
    assert result.after.reference_miou == 100.0


def test_a_killed_run_goes_on_and_gives_the_same(slimmed: SlimResult, drive: Path, tmp_path: Path) -> None:
    def kill(step: str, done: float) -> None:
        if step == "recover" and done >= 0.9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(drive, tmp_path, progress=kill)
    assert not (tmp_path / "slim.pth").exists()
    assert (tmp_path / ".slim.slimming").is_dir()
    asked: list[str] = []
    result = run(drive, tmp_path, progress=lambda step, _done: asked.append(step))
    assert "measure channels" not in asked
    assert "time the network" not in asked
    assert [path.name for path in tmp_path.iterdir()] == ["slim.pth"]
    for name, tensor in load(slimmed.path).module.state_dict().items():
        assert torch.equal(load(result.path).module.state_dict()[name], tensor), name


def test_a_run_killed_while_channels_are_measured_goes_on(
    slimmed: SlimResult, drive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fcnopt.slimming.statistics._KEEP_S", 0.0)

    def kill(step: str, done: float) -> None:
        if step == "measure channels" and done == 0.75:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(drive, tmp_path, progress=kill)
    measured: list[float] = []
    steps: list[str] = []

    def watch(step: str, done: float) -> None:
        steps.append(step)
        measured.extend([done] if step == "measure channels" else [])

    result = run(drive, tmp_path, progress=watch)
    assert measured == [0.0, 0.75, 1.0], "the two frames measured before are not measured again"
    assert list(dict.fromkeys(steps)) == [
        "load the network",
        "read frames",
        "ask the original",
        "judge the original",
        "measure channels",
        "order channels",
        "time the network",
        "settle the narrow network",
        "judge before recovery",
        "recover",
        "judge",
    ]
    for name, tensor in load(slimmed.path).module.state_dict().items():
        assert torch.equal(load(result.path).module.state_dict()[name], tensor), name


def test_nothing_that_was_learned_of_frames_now_held_out_is_used_again(drive: Path, tmp_path: Path) -> None:
    half = replace(OPTIONS, holdout=0.5)
    asked: list[str] = []
    run(drive, tmp_path / "one", work=tmp_path / "work")
    again = run(
        drive, tmp_path / "one", work=tmp_path / "work", options=half, progress=lambda step, _done: asked.append(step)
    )
    assert {"measure channels", "time the network"} <= set(asked)
    fresh = run(drive, tmp_path / "other", options=half)
    for name, tensor in load(fresh.path).module.state_dict().items():
        assert torch.equal(load(again.path).module.state_dict()[name], tensor), name


def test_what_is_ahead_is_said_once_and_only_where_nothing_is_wrong(drive: Path, tmp_path: Path) -> None:
    said: list[str] = []
    with pytest.raises(UsageError, match="11 class names"):
        run(drive, tmp_path, classes="camvid", say=said.append)
    assert said == []
    one = replace(OPTIONS, recovery=replace(OPTIONS.recovery, steps=2))
    run(drive, tmp_path, options=one, say=said.append)
    assert said == [
        f"intermediate results are kept in {tmp_path}/.slim.slimming/, from where a stopped run goes on; before the "
        "recovery of 2 steps the network answers 18 frames and its channels are measured"
    ]


def test_a_budget_out_of_reach_is_missed_and_said(drive: Path, tmp_path: Path) -> None:
    tight = replace(OPTIONS, budget=Budget(0.0), recovery=replace(OPTIONS.recovery, steps=1))
    result = run(drive, tmp_path, options=tight)
    assert not result.kept
    assert result.path.is_file()
    text = result.describe()
    assert "mIoU drop" in text
    assert "4 frames held out, against label maps" in text
    assert "1.2" in text
    assert "(estimated)" in text
    assert all(reason in text for reason in result.after.verdict.reasons)
    assert "fix: train for more --minutes, or on a GPU; ask for less --speedup" in text


def test_a_recovery_that_does_harm_is_left_out(drive: Path, tmp_path: Path) -> None:
    wild = replace(OPTIONS, recovery=replace(OPTIONS.recovery, steps=6, rate=5.0))
    result = run(drive, tmp_path, options=wild)
    assert result.after is result.before
    assert "recovery made it worse and was left out" in result.describe()
    assert load(result.path).module.get_submodule("fc6").weight.abs().max() < 5  # type: ignore[operator,union-attr]


def test_a_slimmed_network_is_not_slimmed_again(slimmed: SlimResult, drive: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"was slimmed already, from net\.pth"):
        slim(slimmed.path, drive / "images", tmp_path / "again.pth", options=OPTIONS)


def test_mistakes_are_named_before_any_work(drive: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="would replace the network itself"):
        slim(drive / "net.pth", drive / "images", drive / "net.pth")
    with pytest.raises(UsageError, match=r"a checkpoint's name ends in \.pth"):
        slim(drive / "net.pth", drive / "images", tmp_path / "slim.onnx")
    with pytest.raises(UsageError, match="9 classes apart, but 11 class names were given"):
        run(drive, tmp_path, classes="camvid")
    with pytest.raises(CheckpointError, match="no such file"):
        slim(drive / "missing.pth", drive / "images", tmp_path / "slim.pth")
    with pytest.raises(MediaError, match="no such file or folder"):
        slim(drive / "net.pth", drive / "nothing", tmp_path / "slim.pth", classes="synth")
    torch.save(tiny().state_dict(), tmp_path / "bare.pth")
    with pytest.raises(UsageError, match="padding"):
        slim(tmp_path / "bare.pth", drive / "images", tmp_path / "slim.pth")


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ({"speedup": 1.0}, "speedup is 1, expected more than 1"),
        ({"speedup": float("nan")}, "speedup is nan"),
        ({"holdout": 0.0}, "holdout is 0"),
        ({"multiple": 0}, "multiple is 0"),
        ({"statistics_frames": 0}, "statistics_frames is below 1"),
        ({"size": (16, 400)}, "is not .height, width. of 32 or more"),
        ({"normalize": "odd"}, "is not a normalization"),
    ],
)
def test_bad_choices_are_named(choice: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        SlimOptions(**choice)


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ({"minutes": 0.0}, "minutes is 0"),
        ({"steps": 0}, "is below 1"),
        ({"batch": 0}, "is below 1"),
        ({"crop": (16, 64)}, "crop .* of 32 or more"),
        ({"rate": -1.0}, "rate is -1"),
        ({"label_weight": -0.1}, "label_weight is -0.1"),
        ({"device": "tpu"}, "device 'tpu' is unknown"),
    ],
)
def test_bad_recoveries_are_named(choice: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        RecoveryOptions(**choice)


def test_an_origin_that_was_tampered_with_is_refused(slimmed: SlimResult, tmp_path: Path) -> None:
    content = torch.load(slimmed.path, weights_only=True)
    for bad in ('{"checkpoint": "x", "sha256": "short", "padding": "same"}', "[]", "{", 5, '{"sha256": 1}'):
        torch.save({**content, "fcnopt.origin": bad}, tmp_path / "bad.pth")
        with pytest.raises(CheckpointError, match="what it says of its original is damaged"):
            load(tmp_path / "bad.pth")


def test_the_command_does_the_same_and_exits_by_the_budget(drive: Path, tmp_path: Path) -> None:
    from click.testing import CliRunner

    from fcnopt.cli import main

    network = tiny(batch_norm=True, widths=(64, 32, 32, 32, 32), fc_widths=(32, 32), classes=9)
    torch.save(network.state_dict(), tmp_path / "net.pth")
    words = ["slim", str(tmp_path / "net.pth"), "--frames", str(drive / "images"), "--classes", "synth"]
    words += ["--target", "tensorrt-rtx:sm86", "--speedup", "1.05", "--minutes", "0.001", "--device", "cpu"]
    missed = CliRunner().invoke(main, [*words, "-o", str(tmp_path / "a.pth"), "--max-miou-drop", "0"])
    assert missed.exit_code == 1
    assert f"intermediate results are kept in {tmp_path}/.a.slimming/" in missed.output
    assert "recovery of 0.001 minutes" in missed.output
    assert "is over the 0 allowed" in missed.output
    assert f"next: fcnopt export {tmp_path / 'a.pth'}" in missed.output
    kept = CliRunner().invoke(main, [*words, "-o", str(tmp_path / "b.pth"), "--max-miou-drop", "100"])
    assert kept.exit_code == 0
    assert "keeps the 100 allowed" in kept.output
    wrong = CliRunner().invoke(main, [*words, "-o", str(tmp_path / "c.pth"), "--speedup", "0.5"])
    assert wrong.exit_code == 2
    assert "speedup is 0.5, expected more than 1" in wrong.output


def test_an_interrupted_command_says_that_it_goes_on(
    drive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from click.testing import CliRunner

    from fcnopt.cli import main

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fcnopt.slimming.slimmer.slim", interrupted)
    words = ["slim", str(drive / "net.pth"), "--frames", str(drive / "images"), "-o", str(tmp_path / "a.pth")]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 130
    assert result.output == "interrupted; the same command goes on from where it was\n"
