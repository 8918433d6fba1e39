"""Networks for `other_models.py`: encoders that were trained elsewhere, scores still to be fitted."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from fit_scores import Labelled, Tail, moments, to_input
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn

from fcnopt import ExportOptions
from fcnopt.errors import BackendError
from fcnopt.models.checkpoint import load
from fcnopt.models.fcn import FCN
from fcnopt.spec import ClassSpec

CLASSES = ClassSpec.named("camvid")
_FRAMES_TO_SCALE_BY = 4
# VGG16's convolutions as torchvision numbers them, ReLU and pools in between.
_VGG16 = {
    f"conv{block}_{layer}": f"features.{place}"
    for (block, layer), place in zip(
        [(block, layer) for block, count in enumerate((2, 2, 3, 3, 3), 1) for layer in range(1, count + 1)],
        (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
        strict=True,
    )
}
CAFFE_8S = Tail((("upscore2", "score_pool4", 5), ("upscore_pool4", "score_pool3", 9)), "upscore8", 31)
"""Of torchfcn's FCN8s."""
SAME_32S = Tail((), "upscore", 0)
"""Of fcnopt's FCN-32s with padding `same`."""


def vgg16_fcn8s(encoder: Path, classes: int, frames: Sequence[NDArray[np.uint8]], seed: int = 0) -> nn.Module:
    """FCN8s of torchfcn (padding 100) with a trained encoder and random fc6 and fc7; its scores are zero.

    Random layers are scaled on frames so that each channel has mean 0 and deviation 1 before its ReLU (Mishkin, Matas,
    "All you need is a good init", ICLR 2016): half of each is active, as in a trained network.

    Args:
        encoder: safetensors of VGG16's 13 convolutions, in torchvision's names.
        classes: Channels of every score.
        frames: To scale by, uint8 [H, W, 3] BGR each.
        seed: Of the random layers.
    """
    offer_torchfcn()
    models = importlib.import_module("torchfcn.models")
    net: nn.Module = models.FCN8s(n_class=classes)
    net.eval().requires_grad_(False)
    weights = load_file(encoder)
    for name, place in _VGG16.items():
        layer = net.get_submodule(name)
        layer.load_state_dict({key: weights[f"{place}.{key}"].float() for key in ("weight", "bias")})
    generator = torch.Generator().manual_seed(seed)
    for name in ("fc6", "fc7"):
        conv = net.get_submodule(name)
        assert isinstance(conv, nn.Conv2d)  # noqa: S101 - torchfcn's are
        conv.weight.normal_(generator=generator)
        outputs: list[Tensor] = []
        with conv.register_forward_hook(lambda _layer, _inputs, output, kept=outputs: kept.append(output.clone())):
            for frame in frames[:_FRAMES_TO_SCALE_BY]:
                net(to_input(frame))
        mean, deviation = moments(outputs)
        conv.weight /= deviation.view(-1, 1, 1, 1)
        conv.bias = nn.Parameter(-mean / deviation, requires_grad=False)
    return net


def fcn32s_of(checkpoint: Path) -> FCN:
    """An FCN-32s with the encoder, fc6 and fc7 of a trained FCN-8s, and one bilinear deconvolution by 32."""
    trained = load(checkpoint)
    arch = trained.architecture
    assert arch is not None  # noqa: S101 - a checkpoint always tells it
    net = FCN(replace(arch, finest_stride=32, biases=None)).eval()
    own = net.state_dict()
    shared = {name: value for name, value in trained.module.state_dict().items() if name in own}
    net.load_state_dict(shared, strict=False)  # the deconvolution is this network's own
    return net.requires_grad_(False)


def offer_torchfcn() -> None:
    """Make torchfcn's networks importable without what it needs for training.

    They need torch alone, but the package imports its trainer, and their files what downloads their weights; empty
    modules stand in for what is not installed, until the networks are imported.

    Raises:
        BackendError: torchfcn is not installed.
    """
    if "torchfcn.models" in sys.modules:
        return
    found = importlib.util.find_spec("torchfcn")
    if found is None or found.submodule_search_locations is None:
        raise BackendError("torchfcn is not installed", fix="pip install --no-deps torchfcn")
    package = ModuleType("torchfcn")
    package.__path__ = list(found.submodule_search_locations)
    sys.modules["torchfcn"] = package
    missing = [name for name in ("fcn", "torchvision") if importlib.util.find_spec(name) is None]
    sys.modules.update({name: ModuleType(name) for name in missing})
    try:
        importlib.import_module("torchfcn.models")
    finally:
        for name in missing:
            del sys.modules[name]  # others ask whether these are there, torch's exporter among them


@dataclass(frozen=True)
class Network:
    """A network to fit and to quantize.

    Attributes:
        title: For the table.
        weights: File that its trained layers come from, under the data's folder.
        make: Makes it from that file and the labelled frames, scores not fitted yet.
        tail: How its scores become logits.
        options: For the export of its checkpoint.
        frames: Most frames of camvid/train that its scores are fitted on.
    """

    title: str
    weights: str
    make: Callable[[Path, Sequence[Labelled]], nn.Module]
    tail: Tail
    options: ExportOptions
    frames: int


def _fcn8s(weights: Path, labelled: Sequence[Labelled]) -> nn.Module:
    return vgg16_fcn8s(weights, len(CLASSES), [frame for frame, _ in labelled])


def _fcn32s(weights: Path, _labelled: Sequence[Labelled]) -> nn.Module:
    return fcn32s_of(weights)


NETWORKS: Mapping[str, Network] = {
    "torchfcn-fcn8s": Network(
        "torchfcn's FCN8s, padding 100, no batch norm",
        "models/vgg16_imagenet_features.safetensors",
        _fcn8s,
        CAFFE_8S,
        ExportOptions(module="torchfcn.models:FCN8s", normalize="imagenet", size=(360, 480)),
        92,
    ),
    "fcn32s": Network(
        "FCN-32s, batch norm", "models/fcn8s_vgg16bn_camvid.pth", _fcn32s, SAME_32S, ExportOptions(size=(360, 480)), 92
    ),
}
