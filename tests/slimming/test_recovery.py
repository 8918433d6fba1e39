from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fcnopt.errors import FcnoptError, MediaError
from fcnopt.media.clips import open_clip
from fcnopt.models.checkpoint import load
from fcnopt.models.fcn import FCN
from fcnopt.slimming.augment import crop_size, draw
from fcnopt.slimming.frames import Frames, known_labels, read_frames, split
from fcnopt.slimming.options import RecoveryOptions
from fcnopt.slimming.recovery import Recovery, distillation_loss, pick_device, renormalize
from fcnopt.slimming.state import Work, key_of
from fcnopt.slimming.surgery import narrowed
from fcnopt.slimming.teacher import Teacher, ask, predict
from fcnopt.spec import NORMALIZATIONS, ClassSpec, FrameSpec, ModelSpec

CPU = torch.device("cpu")
SPEC = ModelSpec(FrameSpec(64, 96), ClassSpec.named("synth"))
NORM = NORMALIZATIONS["imagenet"]
OPTIONS = RecoveryOptions(steps=8, batch=2, crop=(32, 64), rate=2e-3)


def silent(_done: float) -> None:
    pass


@pytest.fixture(scope="module")
def frames(drive: Path) -> Frames:
    return read_frames(open_clip(drive / "images", drive / "labels"), SPEC, limit=100, holdout=0.25)


@pytest.fixture(scope="module")
def original(drive: Path) -> FCN:
    network = load(drive / "net.pth").module
    assert isinstance(network, FCN)
    return network


@pytest.fixture(scope="module")
def teacher(original: FCN, frames: Frames, tmp_path_factory: pytest.TempPathFactory) -> Teacher:
    return ask(original, frames, NORM, Work(tmp_path_factory.mktemp("teacher")), "key", silent)


@pytest.fixture
def narrow(original: FCN) -> FCN:
    pytest.importorskip("torch_pruning")
    return narrowed(original, {"conv1_2": np.arange(8), "conv4_1": np.arange(16), "fc6": np.arange(16)})


def test_frames_are_read_and_parted_in_stretches(frames: Frames) -> None:
    assert frames.images.shape == (18, 64, 96, 3)
    assert frames.labels is not None
    assert frames.labels.shape == (18, 64, 96)
    assert not set(frames.train) & set(frames.held)
    assert sorted([*frames.train, *frames.held]) == list(range(18))
    train, held = split(400, 0.125)
    assert len(held) == 48
    assert int((np.diff(held) > 1).sum()) == 7
    assert len(train) == 352


def test_other_frames_have_another_hash_and_too_few_are_refused(drive: Path, frames: Frames) -> None:
    fewer = read_frames(open_clip(drive / "images", drive / "labels"), SPEC, limit=17, holdout=0.25)
    bare = read_frames(open_clip(drive / "images"), SPEC, limit=100, holdout=0.25)
    assert len({frames.sha256, fewer.sha256, bare.sha256}) == 3
    assert bare.labels is None
    with pytest.raises(MediaError, match="15 frames, slimming needs 16 or more"):
        read_frames(open_clip(drive / "images"), SPEC, limit=15, holdout=0.25)


def test_labels_that_are_no_class_are_unknown() -> None:
    truth = known_labels(np.array([[0, 8, 9, 255]], np.uint8), ClassSpec.named("synth"))
    assert truth.tolist() == [[0, 8, -1, -1]]


def test_the_teacher_answers_as_the_original(original: FCN, teacher: Teacher, frames: Frames) -> None:
    labels = predict(original, frames, [5], NORM)[0]
    found = teacher.logits(5)
    assert found.shape == (1, 9, 64, 96)
    assert float((found[0].argmax(0).numpy() == labels).mean()) > 0.97  # bfloat16 where the machine has it
    assert (teacher.class_weights > 0).all()


def test_a_stopped_teacher_goes_on(
    original: FCN, teacher: Teacher, frames: Frames, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fcnopt.slimming.teacher._SAVE_EVERY", 4)
    work = Work(tmp_path)

    def stop(done: float) -> None:
        if done > 0.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ask(original, frames, NORM, work, "key", stop)
    assert len(work.load("teacher", "key")) == 8
    seen: list[float] = []
    again = ask(original, frames, NORM, work, "key", seen.append)
    assert len(seen) == 10
    assert torch.equal(again.scores, teacher.scores)


def test_a_batch_hangs_on_its_step_alone(frames: Frames, teacher: Teacher) -> None:
    first, second, again = (draw(frames, teacher, SPEC, OPTIONS, step) for step in (3, 4, 3))
    assert first.pixels.shape == (2, 3, 32, 64)
    assert first.logits.shape == (2, 9, 32, 64)
    assert first.labels is not None
    assert first.labels.shape == (2, 32, 64)
    assert torch.equal(first.pixels, again.pixels)
    assert torch.equal(first.logits, again.logits)
    assert not torch.equal(first.pixels, second.pixels)


def test_crops_follow_the_frame() -> None:
    assert crop_size(360, 480, RecoveryOptions()) == (256, 320)
    assert crop_size(40, 40, RecoveryOptions()) == (32, 32)
    assert crop_size(100, 200, RecoveryOptions(crop=(128, 128))) == (100, 128)


def test_what_is_cut_from_the_answer_belongs_to_what_is_cut_from_the_frame(frames: Frames) -> None:
    class Mirror(Teacher):
        """Answers with the frame's own brightness as its only score."""

        def __init__(self) -> None:
            pass

        def logits(self, place: int) -> torch.Tensor:
            grey = torch.from_numpy(frames.images[place].astype(np.float32).mean(axis=2))
            return grey[None, None].repeat(1, 2, 1, 1)

    for step in range(4):
        sample = draw(frames, Mirror(), SPEC, OPTIONS, step)
        for pixels, logits in zip(sample.pixels, sample.logits, strict=True):
            pair = torch.stack([pixels.mean(0).flatten(), logits[0].flatten()])
            assert float(torch.corrcoef(pair)[0, 1]) > 0.97


def test_the_loss_vanishes_for_equal_answers_and_weighs_classes() -> None:
    wanted = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    assert distillation_loss(wanted + 2.0, wanted, torch.ones(3)).item() == pytest.approx(0, abs=1e-6)
    far = distillation_loss(-wanted, wanted, torch.ones(3)).item()
    assert far > 0.5
    assert distillation_loss(-wanted, wanted, torch.full((3,), 2.0)).item() == pytest.approx(2 * far)


@pytest.mark.parametrize("label_weight", [0.0, 0.25])
def test_distillation_lowers_the_loss(
    narrow: FCN, frames: Frames, teacher: Teacher, tmp_path: Path, label_weight: float
) -> None:
    options = replace(OPTIONS, steps=30, label_weight=label_weight)
    found = Recovery(narrow, teacher, frames, SPEC, options, CPU).run(Work(tmp_path), "key", silent)
    assert found.steps == 30
    assert np.mean(found.losses[-5:]) < 0.8 * np.mean(found.losses[:5])
    assert not narrow.training
    assert not any(parameter.requires_grad for parameter in narrow.parameters())


def test_a_killed_recovery_goes_on_as_if_it_had_not_been(
    narrow: FCN, frames: Frames, teacher: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = copy.deepcopy(narrow)
    whole = Recovery(narrow, teacher, frames, SPEC, OPTIONS, CPU)
    done = whole.run(Work(tmp_path / "whole"), "key", silent)

    monkeypatch.setattr("fcnopt.slimming.recovery._SAVE_S", -1.0)  # after every step

    def kill(done: float) -> None:
        if done >= 0.5:
            raise KeyboardInterrupt

    work = Work(tmp_path / "parts")
    with pytest.raises(KeyboardInterrupt):
        Recovery(copy.deepcopy(start), teacher, frames, SPEC, OPTIONS, CPU).run(work, "key", kill)
    resumed = Recovery(copy.deepcopy(start), teacher, frames, SPEC, OPTIONS, CPU)
    steps: list[float] = []
    found = resumed.run(work, "key", steps.append)
    assert len(steps) == 5  # of 8: three were kept
    assert found.losses == done.losses
    for name, tensor in whole.network.state_dict().items():
        assert torch.equal(resumed.network.state_dict()[name], tensor), name


def test_a_recovery_by_time_ends(narrow: FCN, frames: Frames, teacher: Teacher, tmp_path: Path) -> None:
    options = replace(OPTIONS, steps=None, minutes=1e-4)
    found = Recovery(narrow, teacher, frames, SPEC, options, CPU).run(Work(tmp_path), "key", silent)
    assert found.steps >= 1
    assert found.seconds >= 0.006


def test_batch_norm_is_measured_anew(narrow: FCN, frames: Frames, teacher: Teacher) -> None:
    before = narrow.get_submodule("bn5_1").running_mean.clone()  # type: ignore[operator,union-attr]
    renormalize(narrow, teacher, frames, SPEC, OPTIONS)
    norm = narrow.get_submodule("bn5_1")
    assert isinstance(norm, torch.nn.BatchNorm2d)
    assert not torch.equal(before, norm.running_mean)  # type: ignore[arg-type]
    assert norm.momentum == 0.1
    assert not norm.training


def test_state_of_another_request_is_not_taken_and_damage_is_named(tmp_path: Path) -> None:
    work = Work(tmp_path)
    work.save("plan", key_of("a", 1), {"x": torch.ones(2)})
    assert torch.equal(work.load("plan", key_of("a", 1))["x"], torch.ones(2))
    assert work.load("plan", key_of("a", 2)) is None
    assert work.load("other", "key") is None
    assert [path.name for path in tmp_path.iterdir()] == ["plan.pt"]
    (tmp_path / "plan.pt").write_bytes(b"half of it")
    with pytest.raises(FcnoptError, match="is damaged") as error:
        work.load("plan", key_of("a", 1))
    assert f"remove {tmp_path}" in error.value.fix


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FcnoptError, match="cannot be written"):
        Work(tmp_path / "file" / "work")


def test_the_device_is_what_was_asked_for() -> None:
    assert pick_device(RecoveryOptions(device="cpu")) == CPU
    assert pick_device(RecoveryOptions()).type == ("cuda" if torch.cuda.is_available() else "cpu")
