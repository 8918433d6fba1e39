from __future__ import annotations

import collections
import pickle
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fcnopt.errors import CheckpointError
from fcnopt.models.files import read_state_dict

WEIGHTS = {"conv.weight": torch.arange(6.0).reshape(2, 3), "conv.bias": torch.tensor([0.5, -2.0])}


def saved(content: Any, folder: Path, **options: Any) -> Path:
    path = folder / "net.pth"
    torch.save(content, path, **options)
    return path


def assert_weights(path: Path) -> tuple[str, ...]:
    state = read_state_dict(path)
    assert set(state.tensors) == set(WEIGHTS)
    for name, tensor in WEIGHTS.items():
        assert state.tensors[name].dtype == torch.float32
        assert torch.equal(state.tensors[name], tensor)
    return state.notes


@pytest.mark.parametrize("place", [("state_dict",), ("model_state_dict",), ("model",), ("checkpoint", "state_dict")])
@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_orig_mod.module."])
def test_wrappers_and_prefixes_are_taken_off(tmp_path: Path, place: tuple[str, ...], prefix: str) -> None:
    content: Any = {prefix + name: tensor for name, tensor in WEIGHTS.items()}
    for name in reversed(place):
        content = {"epoch": 3, name: content, "optim_state_dict": {"state": {0: {"step": torch.ones(1)}}}}
    notes = assert_weights(saved(content, tmp_path))
    assert f"weights read from {'.'.join(place)!r}" in notes
    assert f"prefix {prefix!r} taken off the keys" in notes


def test_a_prefix_that_only_some_keys_have_stays(tmp_path: Path) -> None:
    path = saved({"module.a": torch.ones(1), "b": torch.ones(1)}, tmp_path)
    assert set(read_state_dict(path).tensors) == {"module.a", "b"}


def test_a_prefix_of_the_modules_own_names_stays(tmp_path: Path) -> None:
    path = saved({f"module.net.{name}": tensor for name, tensor in WEIGHTS.items()}, tmp_path)
    expected = {"net.conv.weight", "net.conv.bias"}
    assert set(read_state_dict(path, expected=expected).tensors) == expected
    assert set(read_state_dict(path).tensors) == set(WEIGHTS)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    notes = assert_weights(saved({name: tensor.to(dtype) for name, tensor in WEIGHTS.items()}, tmp_path))
    assert notes == (f"weights are {str(dtype)[6:]} in the file, exported as float32",)


def test_integers_stay_integers(tmp_path: Path) -> None:
    path = saved({**WEIGHTS, "bn.num_batches_tracked": torch.tensor(7)}, tmp_path)
    assert read_state_dict(path).tensors["bn.num_batches_tracked"].dtype == torch.int64


def test_the_old_file_format_and_ordered_dicts_are_read(tmp_path: Path) -> None:
    content = collections.OrderedDict(WEIGHTS)
    assert assert_weights(saved(content, tmp_path, _use_new_zipfile_serialization=False)) == ()


@pytest.mark.parametrize("name", ["net.safetensors", "net.pth"])
def test_safetensors_are_read_whatever_their_name(tmp_path: Path, name: str) -> None:
    save_file({key: tensor.half() for key, tensor in WEIGHTS.items()}, tmp_path / name)
    assert_weights(tmp_path / name)


def test_a_trainers_numpy_score_does_not_stand_in_the_way(tmp_path: Path) -> None:
    path = saved({"best_mean_iu": np.float64(0.65), "epoch": np.int64(3), "model_state_dict": WEIGHTS}, tmp_path)
    with pytest.raises(pickle.UnpicklingError, match="numpy"):
        torch.load(path, weights_only=True)
    assert_weights(path)


class Harmful:
    """Unpickling it would call a function."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("harm done",))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_needs_more_than_weights_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], zipped: bool
) -> None:
    path = saved({"state_dict": WEIGHTS, "extra": Harmful()}, tmp_path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"would run print, which is more than weights") as error:
        read_state_dict(path)
    assert "torch.save(model.state_dict()" in error.value.fix
    assert capsys.readouterr().out == ""


def test_a_whole_pickled_module_is_refused_by_its_class(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"torch\.nn\.modules\.linear\.Linear"):
        read_state_dict(saved(torch.nn.Linear(2, 2), tmp_path))


def test_a_torchscript_program_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch would have torch.export used; old files stay
        torch.jit.save(torch.jit.trace(torch.nn.ReLU(), torch.ones(1)), path)
    with pytest.raises(CheckpointError, match="TorchScript"):
        read_state_dict(path)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.97])
def test_a_truncated_file_is_refused(tmp_path: Path, zipped: bool, share: float) -> None:
    path = saved(
        {f"w{i}": torch.full((9,), float(i)) for i in range(40)}, tmp_path, _use_new_zipfile_serialization=zipped
    )
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(CheckpointError, match="truncated"):
        read_state_dict(path)


def test_truncated_safetensors_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    save_file(WEIGHTS, path)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match="not a complete safetensors file"):
        read_state_dict(path)


@pytest.mark.parametrize("content", [b"# A readme\n", b"\x89PNG\r\n\x1a\n" + b"\0" * 40, b"\0" * 64, b"PK\x03\x04junk"])
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "net.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"net\.pth: .*not a checkpoint"):
        read_state_dict(path)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "net.pth").touch()
    with pytest.raises(CheckpointError, match="the file is empty"):
        read_state_dict(tmp_path / "net.pth")


def test_a_missing_file_is_named_with_its_near_neighbours(tmp_path: Path) -> None:
    saved(WEIGHTS, tmp_path)
    with pytest.raises(CheckpointError, match=r"nett\.pth: no such file; did you mean net\.pth\?"):
        read_state_dict(tmp_path / "nett.pth")


def test_a_missing_folder_is_no_traceback(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        read_state_dict(tmp_path / "nowhere" / "net.pth")


def test_a_folder_and_an_onnx_file_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is a folder"):
        read_state_dict(tmp_path)
    (tmp_path / "net.onnx").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="ONNX file already"):
        read_state_dict(tmp_path / "net.onnx")


@pytest.mark.parametrize(
    ("content", "found"),
    [({}, "an empty dict"), ({"epoch": 3, "lr": 0.1}, "keys 'epoch', 'lr'"), ([1, 2], "a list"), (3.0, "a float")],
)
def test_a_file_without_weights_is_refused(tmp_path: Path, content: Any, found: str) -> None:
    with pytest.raises(CheckpointError, match=f"holds no weights.*{found}"):
        read_state_dict(saved(content, tmp_path))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_named(tmp_path: Path, value: float) -> None:
    bad = WEIGHTS["conv.weight"].clone()
    bad[1, 2] = value
    with pytest.raises(CheckpointError, match=r"conv\.weight has 1 of 6 values NaN or Inf"):
        read_state_dict(saved({**WEIGHTS, "conv.weight": bad}, tmp_path))


def test_a_weight_beyond_float32_is_infinite(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="NaN or Inf"):
        read_state_dict(saved({"w": torch.tensor([1e300], dtype=torch.float64)}, tmp_path))


def test_a_state_dict_that_holds_itself_is_refused(tmp_path: Path) -> None:
    content: dict[str, Any] = {}
    content["state_dict"] = content
    with pytest.raises(CheckpointError, match="holds no weights: expected a state dict under 'state_dict"):
        read_state_dict(saved(content, tmp_path))


@pytest.mark.filterwarnings("ignore")  # torch calls these kinds of tensors a prototype
@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: torch.eye(3).to_sparse(), "is sparse or nested"),
        (lambda: torch.eye(3).to_sparse_csr(), "is sparse or nested"),
        (lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "is sparse or nested"),
        (lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8), "is quantized"),
        (lambda: torch.empty(5, device="meta"), "is without values"),
    ],
)
def test_tensors_that_are_no_plain_weights_are_refused_by_name(tmp_path: Path, make: Any, what: str) -> None:
    with pytest.raises(CheckpointError, match=rf"conv\.weight {what}, expected a plain tensor"):
        read_state_dict(saved({"conv.weight": make()}, tmp_path))


def test_a_view_that_repeats_a_number_a_trillion_times_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"at w its tensors have over 4 times"):
        read_state_dict(saved({"w": torch.zeros(1).expand(10**12)}, tmp_path))


def test_weights_that_are_shared_are_read_under_each_name(tmp_path: Path) -> None:
    shared = torch.randn(100, 100)
    found = read_state_dict(saved({"a": shared, "b": shared, "c": shared.T}, tmp_path)).tensors
    torch.testing.assert_close(found["c"], found["a"].T)


def test_an_archive_that_spans_several_disks_is_refused(tmp_path: Path) -> None:
    """Python's own look whether it is an archive raises on it (found by atheris)."""
    path = tmp_path / "parts.pth"
    locator = b"PK\x06\x07" + struct.pack("<LQL", 0, 0, 2)
    path.write_bytes(bytes(64) + locator + b"PK\x05\x06" + bytes(18))
    with pytest.raises(
        CheckpointError, match=r"parts\.pth: cannot be read, it is truncated or not a checkpoint: zipfiles"
    ):
        read_state_dict(path)


def test_a_compressed_archive_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved({"w": torch.zeros(1 << 20)}, tmp_path)
    bomb = tmp_path / "bomb.pth"
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    monkeypatch.setattr(torch, "load", None)
    with pytest.raises(CheckpointError, match=r"is compressed, expected an archive as torch.save writes it"):
        read_state_dict(bomb)
