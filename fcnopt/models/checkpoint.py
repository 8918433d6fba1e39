"""Trained networks from checkpoints: the architecture is read from the names and shapes of the weights."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from fcnopt.errors import CheckpointError, UsageError
from fcnopt.models.encoders import BLOCKS
from fcnopt.models.fcn import AT_ONCE_SCALES, FCN, SCORES, UPSCORES, Architecture, FinestStride, Padding
from fcnopt.models.files import StateDict, read_state_dict
from fcnopt.origin import Origin

_STANDARD = Architecture(8, 21)
_SHOWN = 4
_NAMING_FIX = (
    "rename the keys as in wkentaro/pytorch-fcn (conv1_1 ... fc7, score_fr, upscore8; bn1_1 ... for batch norm), "
    "or export your own class with --module package.module:Class"
)


@dataclass(frozen=True)
class Loaded:
    """A trained network, ready to run.

    Attributes:
        module: In evaluation mode, float32, on the CPU: float [N, 3, H, W] to logits float [N, C, H, W].
        description: For people: "FCN-8s VGG16 BN, 11 classes, padding same".
        architecture: None where the module is the user's own class.
        notes: What was concluded or converted, one line each.
        origin: Of a slimmed network, what it was made from.
    """

    module: nn.Module
    description: str
    architecture: Architecture | None
    notes: tuple[str, ...] = ()
    origin: Origin | None = None


def load(path: str | Path, *, padding: Padding | None = None, at_once: bool = False) -> Loaded:
    """Load an FCN-32s, 16s or 8s.

    Args:
        path: `.pth` or safetensors, in the naming of wkentaro/pytorch-fcn.
        padding: The convention of padding. It does not show in the file: needed unless the network has batch norm,
            which implies `same`, or was slimmed, and then the file says it.
        at_once: The network was trained "at once" (FCN8sAtOnce), with pool4 and pool3 scaled; this does not show
            in the file either.

    Raises:
        CheckpointError: The file cannot be read, or is not such a network; names the key and the nearest one.
        UsageError: The padding is needed and was not given.
    """
    path = Path(path)
    state = read_state_dict(path)
    _refuse_other_networks(state.tensors, path)
    architecture = read_architecture(state.tensors, path)
    notes = list(state.notes)
    if state.origin is not None:
        padding, at_once = padding or state.origin.padding, at_once or state.origin.at_once
    if padding is None:
        padding = _implied_padding(architecture, path)
        notes.append("padding same, since the network has batch norm")
    architecture = replace(architecture, padding=padding)
    if at_once:
        if architecture.finest_stride != 8:
            raise UsageError(f"{path}: at once was asked for a {architecture}", fix="use it for an FCN-8s only")
        architecture = replace(architecture, skip_scales=AT_ONCE_SCALES)
    module = _build(architecture, state, path)
    return Loaded(module, str(architecture), architecture, tuple(notes), state.origin)


def read_architecture(tensors: Mapping[str, Tensor], path: Path) -> Architecture:
    """Read what the names and shapes of an FCN's weights tell; the padding, which they do not, is left at `same`.

    Layers that are missing count as in VGG16: comparing keys afterwards names them.
    """
    layers = tuple(_last_layer(tensors, block) for block in range(1, BLOCKS + 1))
    width_of = replace(_STANDARD, layers=layers).conv_widths
    width_of |= {"fc6": _STANDARD.fc_widths[0], "fc7": _STANDARD.fc_widths[1]}
    width_of |= {name: len(tensors[f"{name}.weight"]) for name in width_of if _dims(tensors, name)}
    stride = _finest_stride(tensors)
    biases = frozenset(k.removesuffix(".bias") for k in tensors if k.endswith(".bias") and not k.startswith("bn"))
    return Architecture(
        finest_stride=stride,
        classes=_classes(tensors, stride, path),
        widths=_widths(width_of, layers),
        fc_widths=(width_of["fc6"], width_of["fc7"]),
        layers=layers,
        batch_norm=any(re.match(r"bn\d+_\d+\.", key) for key in tensors),
        fc_batch_norm=any(re.match(r"bn[67]\.", key) for key in tensors),
        biases=biases,
        fc6_rank=len(tensors["fc6_basis.weight"]) if _dims(tensors, "fc6_basis") else None,
    )


def _widths(width_of: Mapping[str, int], layers: tuple[int, ...]) -> tuple[int, ...]:
    """One width a block, or one a convolution where those of a block differ."""
    blocks = [[width_of[f"conv{block}_{at}"] for at in range(1, count + 1)] for block, count in enumerate(layers, 1)]
    if all(len(set(block)) == 1 for block in blocks):
        return tuple(block[0] for block in blocks)
    return tuple(width for block in blocks for width in block)


def check_keys(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], what: str, path: Path, *, fix: str) -> None:
    """Compare the names and shapes of a module's weights with a checkpoint's.

    Raises:
        CheckpointError: They differ; names the first few that do, each with the nearest of the other side.
    """
    missing = [key for key in expected if key not in found]
    unexpected = [key for key in found if key not in expected]
    if missing or unexpected:
        lines = [_nearest("missing", key, unexpected or found) for key in missing[:_SHOWN]]
        lines += [_nearest("unexpected", key, missing or expected) for key in unexpected[:_SHOWN]]
        raise CheckpointError(
            f"{path}: {len(missing)} keys missing and {len(unexpected)} unexpected for {what}: " + "; ".join(lines),
            fix=fix,
        )
    for key, tensor in expected.items():
        if tensor.shape != found[key].shape:
            raise CheckpointError(
                f"{path}: {key} has shape {list(found[key].shape)}, expected {list(tensor.shape)} for {what}", fix=fix
            )


def _nearest(kind: str, key: str, others: object) -> str:
    near = difflib.get_close_matches(key, list(others), n=1)  # type: ignore[call-overload]  # any iterable of names
    return f"{kind} {key}" + (f" (nearest: {near[0]})" if near else "")


def _build(architecture: Architecture, state: StateDict, path: Path) -> FCN:
    with torch.device("meta"):  # no memory and no time for initial values that are replaced at once
        module = FCN(architecture)
    expected = module.state_dict()
    # counts training steps, unused afterwards; torch before 0.4.1 did not save it
    counters = {k: torch.zeros((), dtype=torch.int64) for k in expected if k.endswith("num_batches_tracked")}
    tensors = counters | state.tensors
    check_keys(expected, tensors, str(architecture), path, fix=_NAMING_FIX)
    module.load_state_dict(tensors, strict=True, assign=True)
    return module.eval().requires_grad_(False)


def _implied_padding(architecture: Architecture, path: Path) -> Padding:
    if architecture.batch_norm:
        return "same"
    name = f"FCN-{architecture.finest_stride}s without batch norm"
    raise UsageError(
        f"{path}: {name}: its padding does not show in the file, since keys and shapes are the same for padding same "
        "(convolutions keep the size) and caffe (100 pixels around the input, cropped off at the end)",
        fix="give --padding caffe for weights from Caffe or wkentaro/pytorch-fcn, else --padding same",
    )


def _dims(tensors: Mapping[str, Tensor], name: str) -> int:
    weight = tensors.get(f"{name}.weight")
    return 0 if weight is None else weight.dim()


def _last_layer(tensors: Mapping[str, Tensor], block: int) -> int:
    found = [re.match(rf"conv{block}_(\d+)\.weight$", key) for key in tensors]
    return max((int(match[1]) for match in found if match), default=_STANDARD.layers[block - 1])


def _finest_stride(tensors: Mapping[str, Tensor]) -> FinestStride:
    """By the last deconvolution, else by the finest score."""
    strides: tuple[FinestStride, ...] = (8, 16, 32)
    for names in ({s: list(UPSCORES[s])[-1] for s in strides}, {s: SCORES[s][-1] for s in strides}):
        for stride in strides:
            if f"{names[stride]}.weight" in tensors:
                return stride
    return 8


def _classes(tensors: Mapping[str, Tensor], stride: int, path: Path) -> int:
    names = [name for name in (*SCORES[stride], *UPSCORES[stride]) if _dims(tensors, name)]
    # a deconvolution's weight is (in, out, kH, kW), a convolution's (out, in, kH, kW); in = out = classes here
    counts = {name: len(tensors[f"{name}.weight"]) for name in names}
    if len(set(counts.values())) > 1:
        found = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise CheckpointError(
            f"{path}: the score layers disagree on the number of classes: {found}",
            fix="give a checkpoint whose score and upscore layers were trained for the same classes",
        )
    return next(iter(counts.values()))


def _refuse_other_networks(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Say what a checkpoint is where it is not an FCN at all, instead of listing a hundred missing keys."""
    if any(key.startswith(("score_", "upscore")) for key in tensors):
        return
    encoder = [k for k in tensors if re.match(r"(features\.\d+|conv[1-5]_\d+)\.weight$", k) and tensors[k].dim() == 4]
    if encoder and not any(key.startswith("backbone.") for key in tensors):
        raise CheckpointError(
            f"{path}: this is an encoder only: {len(encoder)} convolutions ({encoder[0]} ...), no score layers",
            fix="give the checkpoint of a segmentation network that was trained with this encoder",
        )
    shown = ", ".join(list(tensors)[:_SHOWN])
    raise CheckpointError(
        f"{path}: not an FCN in a known naming: no score_fr among its {len(tensors)} tensors ({shown}, ...)",
        fix=_NAMING_FIX,
    )
