"""FCN-32s, FCN-16s and FCN-8s over a VGG encoder, in the naming of wkentaro/pytorch-fcn, with batch norm optional.

Two conventions of padding share the same keys and shapes:

- `same`: every layer keeps its size (fc6 has padding 3, a deconvolution of stride s has padding s/2), the sum at a
  skip and the result are cropped at the top left, since ceil-mode pools can only make them larger.
- `caffe`: the original's. conv1_1 pads 100 pixels, fc6 and the deconvolutions pad none, and what that adds at the
  top left is cropped off: the skips at offsets 5 (pool4) and 9 (pool3), the result at 31, 27 or 19 for stride 8,
  16 or 32.

Source: Long, Shelhamer, Darrell, "Fully Convolutional Networks for Semantic Segmentation", CVPR 2015.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from fcnopt.errors import UsageError
from fcnopt.models.encoders import BLOCKS, VGGEncoder

Padding = Literal["same", "caffe"]
FinestStride = Literal[8, 16, 32]

SCORES: dict[int, tuple[str, ...]] = {
    32: ("score_fr",),
    16: ("score_fr", "score_pool4"),
    8: ("score_fr", "score_pool4", "score_pool3"),
}
# name -> stride, in the order in which they run; each kernel is twice its stride
UPSCORES: dict[int, dict[str, int]] = {
    32: {"upscore": 32},
    16: {"upscore2": 2, "upscore16": 16},
    8: {"upscore2": 2, "upscore_pool4": 2, "upscore8": 8},
}
AT_ONCE_SCALES = (0.01, 0.0001)
"""`skip_scales` of an FCN-8s trained "at once", as in wkentaro's FCN8sAtOnce."""

_CAFFE_INPUT_PADDING = 100
_CAFFE_SKIP_OFFSETS = (5, 9)
_CAFFE_RESULT_OFFSET = {32: 19, 16: 27, 8: 31}


@dataclass(frozen=True)
class Architecture:
    """Everything that tells one FCN from another.

    Attributes:
        finest_stride: 32, 16 or 8: the finest scale that is scored, as in FCN-8s.
        classes: Channels of every score.
        widths: Output channels of the five encoder blocks; or, where a block's convolutions differ, of every
            convolution.
        fc_widths: Output channels of fc6 and fc7.
        layers: Convolutions in each encoder block; (2, 2, 3, 3, 3) is VGG16.
        batch_norm: Whether each encoder convolution has a batch norm.
        fc_batch_norm: The same for fc6 and fc7; None means as `batch_norm`.
        padding: The convention of padding, see the module.
        biases: Names of the convolutions that have a bias; None means the scores, and every convolution that no
            batch norm follows.
        skip_scales: Factors on pool4 and pool3 before they are scored; see `AT_ONCE_SCALES`.
        fc6_rank: Channels between the two convolutions that stand for a low-rank fc6: 7x7 to `fc6_rank` channels
            (`fc6_basis`), then 1x1 (`fc6`); None for one convolution.
    """

    finest_stride: FinestStride
    classes: int
    widths: tuple[int, ...] = (64, 128, 256, 512, 512)
    fc_widths: tuple[int, int] = (4096, 4096)
    layers: tuple[int, ...] = (2, 2, 3, 3, 3)
    batch_norm: bool = False
    fc_batch_norm: bool | None = None
    padding: Padding = "same"
    biases: frozenset[str] | None = None
    skip_scales: tuple[float, float] = (1.0, 1.0)
    fc6_rank: int | None = None

    def __post_init__(self) -> None:
        if self.finest_stride not in get_args(FinestStride):
            raise UsageError(f"architecture: finest stride {self.finest_stride!r}", fix="use 8, 16 or 32")
        if self.padding not in get_args(Padding):
            raise UsageError(f"architecture: padding {self.padding!r} is unknown", fix="use same or caffe")
        fits = len(self.widths) in (BLOCKS, sum(self.layers))
        if not fits or len(self.layers) != BLOCKS or len(self.fc_widths) != 2:
            raise UsageError(
                f"architecture: {len(self.widths)} widths, {len(self.layers)} layer counts, "
                f"{len(self.fc_widths)} fc widths",
                fix=f"give {BLOCKS} widths (or one a convolution), {BLOCKS} layer counts and 2 fc widths",
            )
        ranks = () if self.fc6_rank is None else (self.fc6_rank,)
        if min(self.classes, *self.widths, *self.layers, *self.fc_widths, *ranks) < 1:
            raise UsageError("architecture: a width, layer count or class count is below 1", fix="use positive numbers")

    @property
    def conv_widths(self) -> dict[str, int]:
        """Output channels of every encoder convolution, by name, in order."""
        names = [f"conv{block}_{layer}" for block, n in enumerate(self.layers, 1) for layer in range(1, n + 1)]
        if len(self.widths) == len(names):
            return dict(zip(names, self.widths, strict=True))
        return {name: self.widths[int(name[4]) - 1] for name in names}

    @property
    def pool_widths(self) -> tuple[int, ...]:
        """Channels of the five pools."""
        widths = self.conv_widths
        return tuple(widths[f"conv{block}_{count}"] for block, count in enumerate(self.layers, 1))

    @property
    def normalizes_fc(self) -> bool:
        """Whether fc6 and fc7 have a batch norm."""
        return self.batch_norm if self.fc_batch_norm is None else self.fc_batch_norm

    def has_bias(self, layer: str) -> bool:
        """Whether the convolution called `layer` has a bias."""
        if layer == "fc6_basis":  # fc6 has it
            return False
        if self.biases is not None:
            return layer in self.biases
        if layer.startswith(("score", "upscore")):
            return layer.startswith("score")
        return not (self.normalizes_fc if layer.startswith("fc") else self.batch_norm)

    def __str__(self) -> str:
        convs = sum(self.layers)
        norm = " BN" if self.batch_norm else ""
        slimmed = " slimmed" if len(self.widths) != BLOCKS or self.fc6_rank is not None else ""
        at_once = " at once" if self.skip_scales == AT_ONCE_SCALES else ""
        # VGG16's name counts its 13 convolutions and 3 fully connected layers
        return (
            f"FCN-{self.finest_stride}s{at_once} VGG{convs + 3}{norm}{slimmed}, {self.classes} classes, "
            f"padding {self.padding}"
        )


class FCN(VGGEncoder):
    """An FCN built from its architecture: float [N, 3, H, W] in, logits float [N, classes, H, W] out.

    Deconvolutions start as bilinear interpolation, all other layers as torch initializes them.

    Args:
        architecture: What to build.
        dropout: Share of the channels of fc6 and fc7 that are dropped in training.
    """

    def __init__(self, architecture: Architecture, *, dropout: float = 0.5) -> None:
        arch = architecture
        super().__init__(
            tuple(arch.conv_widths.values()),
            arch.layers,
            batch_norm=arch.batch_norm,
            has_bias=arch.has_bias,
            input_padding=_CAFFE_INPUT_PADDING if arch.padding == "caffe" else 1,
        )
        self.architecture = arch
        _, _, pool3, pool4, pool5 = arch.pool_widths
        if arch.fc6_rank is not None:
            padding = 3 if arch.padding == "same" else 0
            self.add_module("fc6_basis", nn.Conv2d(pool5, arch.fc6_rank, 7, padding=padding, bias=False))
            self._add_fc("6", arch.fc6_rank, arch.fc_widths[0], kernel=1, dropout=dropout)
        else:
            self._add_fc("6", pool5, arch.fc_widths[0], kernel=7, dropout=dropout)
        self._add_fc("7", arch.fc_widths[0], arch.fc_widths[1], kernel=1, dropout=dropout)
        inputs = {"score_fr": arch.fc_widths[1], "score_pool4": pool4, "score_pool3": pool3}
        for name in SCORES[arch.finest_stride]:
            self.add_module(name, nn.Conv2d(inputs[name], arch.classes, 1, bias=arch.has_bias(name)))
        for name, stride in UPSCORES[arch.finest_stride].items():
            padding = stride // 2 if arch.padding == "same" else 0
            deconv = nn.ConvTranspose2d(
                arch.classes, arch.classes, 2 * stride, stride=stride, padding=padding, bias=arch.has_bias(name)
            )
            _set_bilinear(deconv)
            self.add_module(name, deconv)

    def _add_fc(self, at: str, inputs: int, outputs: int, *, kernel: int, dropout: float) -> None:
        arch = self.architecture
        padding = kernel // 2 if arch.padding == "same" else 0
        self.add_module(f"fc{at}", nn.Conv2d(inputs, outputs, kernel, padding=padding, bias=arch.has_bias(f"fc{at}")))
        if arch.normalizes_fc:
            self.add_module(f"bn{at}", nn.BatchNorm2d(outputs))
        self.add_module(f"relu{at}", nn.ReLU())
        self.add_module(f"drop{at}", nn.Dropout2d(dropout))

    def forward(self, x: Tensor) -> Tensor:
        """Logits float [N, classes, H, W] for normalized pixels float [N, 3, H, W]."""
        return self.enlarge(self.scores(x), like=x)

    def scores(self, x: Tensor) -> Tensor:
        """The sum of all scores, float [N, classes, h, w] at the finest stride, for pixels float [N, 3, H, W]."""
        arch = self.architecture
        _, _, pool3, pool4, h = self.pools(x)
        if arch.fc6_rank is not None:
            h = self.layer("fc6_basis", h)
        for at in "67":
            h = self.layer(f"fc{at}", h)
            if arch.normalizes_fc:
                h = self.layer(f"bn{at}", h)
            h = self.layer(f"drop{at}", self.layer(f"relu{at}", h))
        h = self.layer("score_fr", h)
        *skip_upscores, _ = UPSCORES[arch.finest_stride]
        skips = zip(
            skip_upscores, ("score_pool4", "score_pool3"), (pool4, pool3), arch.skip_scales, _CAFFE_SKIP_OFFSETS,
            strict=False,  # a coarser network has fewer skips
        )  # fmt: skip
        for upscore, score, pool, scale, offset in skips:
            skip = self.layer(score, pool if scale == 1.0 else pool * scale)
            h = self._join(self.layer(upscore, h), skip, offset)
        return h

    def enlarge(self, scores: Tensor, *, like: Tensor) -> Tensor:
        """Logits [N, classes, H, W] from `scores`, of the height and width of `like`, whose values do not matter."""
        arch = self.architecture
        *_, last = UPSCORES[arch.finest_stride]
        offset = _CAFFE_RESULT_OFFSET[arch.finest_stride] if arch.padding == "caffe" else 0
        return _crop(self.layer(last, scores), like=like, offset=offset)

    def _join(self, coarse: Tensor, skip: Tensor, offset: int) -> Tensor:
        """Add a skip: `caffe` crops the skip at `offset`, `same` crops the upsampled scores."""
        if self.architecture.padding == "caffe":
            return coarse + _crop(skip, like=coarse, offset=offset)
        return _crop(coarse, like=skip, offset=0) + skip


def _crop(x: Tensor, *, like: Tensor, offset: int) -> Tensor:
    """The part of `x` [N, C, H, W] that starts at (`offset`, `offset`) and has the height and width of `like`."""
    height, width = like.shape[2], like.shape[3]
    return x[:, :, offset : offset + height, offset : offset + width]


def _set_bilinear(deconv: nn.ConvTranspose2d) -> None:
    """Make a deconvolution interpolate each channel bilinearly; its kernel is twice its stride."""
    size = deconv.kernel_size[0]
    stride = size // 2
    ramp = 1 - (torch.arange(size, dtype=torch.float32) - (stride - 0.5)).abs() / stride
    channels = torch.eye(deconv.in_channels)
    with torch.no_grad():
        # (in, out, kH, kW): the same kernel on the diagonal, nothing across classes
        deconv.weight.copy_(channels[:, :, None, None] * torch.outer(ramp, ramp))
