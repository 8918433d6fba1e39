"""Networks with a trained encoder whose class scores are fitted here, in minutes, on labelled frames.

Only the 1x1 score convolutions learn; encoder, fc6, fc7 and the bilinear upsampling stay. So every frame goes through
the network once, what the scores read is kept, and the fit (cross-entropy at full resolution, Adam) runs on that. The
scores' inputs differ in magnitude by orders; they are brought to mean 0 and deviation 1 a channel for the fit, and the
fitted weights take that up exactly: w (x - m) / s + b = (w / s) x + (b - w m / s).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fcnopt.media import open_clip
from fcnopt.spec import NORMALIZATIONS

_LEAST_DEVIATION = 1e-3  # of a channel, as a share of the mean one: what hardly varies is not blown up

Labelled = tuple[NDArray[np.uint8], NDArray[np.uint8]]
Features = dict[str, Tensor]
Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Tail:
    """How a network's scores become logits, coarse to fine.

    Attributes:
        skips: (deconvolution of what is there, score convolution of the skip, where its crop begins) of each skip.
        last: The last deconvolution.
        offset: Where the result's crop begins.
    """

    skips: tuple[tuple[str, str, int], ...]
    last: str
    offset: int

    @property
    def scores(self) -> tuple[str, ...]:
        """Names of the score convolutions."""
        return ("score_fr", *(score for _, score, _ in self.skips))

    def logits(self, net: nn.Module, features: Features, size: tuple[int, int]) -> Tensor:
        """Logits [1, classes, H, W] for what the score convolutions read."""
        h = net.get_submodule("score_fr")(features["score_fr"])
        for upscore, score, offset in self.skips:
            h = net.get_submodule(upscore)(h)
            skip = net.get_submodule(score)(features[score])
            h = h + skip[:, :, offset : offset + h.shape[2], offset : offset + h.shape[3]]
        whole: Tensor = net.get_submodule(self.last)(h)
        return whole[:, :, self.offset : self.offset + size[0], self.offset : self.offset + size[1]]


@dataclass(frozen=True)
class Fit:
    """How scores are fitted.

    Attributes:
        epochs: Rounds over the frames, one frame a step.
        rate: Largest learning rate; a cosine from there to zero.
        decay: Weight decay.
        seed: Of the frames' order.
    """

    epochs: int = 12
    rate: float = 3e-3
    decay: float = 1e-2
    seed: int = 0


def to_input(frame: NDArray[np.uint8]) -> Tensor:
    """A BGR frame [H, W, 3] as the network's normalized input [1, 3, H, W]."""
    norm = NORMALIZATIONS["imagenet"]
    rgb = torch.from_numpy(np.ascontiguousarray(frame[..., ::-1])).permute(2, 0, 1)[None].float()
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (norm.mean, norm.std))
    return (rgb * norm.scale - mean) / std


def features_of(net: nn.Module, tail: Tail, frame: NDArray[np.uint8]) -> Features:
    """What each score convolution reads for a frame."""
    found: Features = {}
    with ExitStack() as hooks:
        for name in tail.scores:

            def keep(_layer: nn.Module, inputs: Any, name: str = name) -> None:
                found[name] = inputs[0].clone()

            hooks.enter_context(net.get_submodule(name).register_forward_pre_hook(keep))
        with torch.inference_mode():
            net(to_input(frame))
    return {name: value.clone() for name, value in found.items()}


def spaced(camvid: Path, limit: int) -> list[Labelled]:
    """At most `limit` labelled frames of camvid/train, evenly spaced."""
    found = [(f.image, f.labels) for f in open_clip(camvid / "train", camvid / "trainannot") if f.labels is not None]
    count = min(limit, len(found))
    return [found[place * len(found) // count] for place in range(count)]


def fit_scores(
    net: nn.Module, tail: Tail, labelled: Sequence[Labelled], ignore: int, fit: Fit, report: Progress
) -> None:
    """Fit the score convolutions of `net`, in place.

    Args:
        net: In evaluation mode; all else of it stays.
        tail: Of the network.
        labelled: Frames uint8 [H, W, 3] BGR with label maps uint8 [H, W].
        ignore: Label that does not count.
        fit: How.
        report: Called with the step and the fraction done.
    """
    kept: list[tuple[Features, Tensor]] = []
    for count, (frame, labels) in enumerate(labelled, 1):
        halves = {name: value.half() for name, value in features_of(net, tail, frame).items()}
        kept.append((halves, torch.from_numpy(labels.astype(np.int64))[None]))
        report("run the encoder", count / len(labelled))
    scaling = {name: moments([features[name] for features, _ in kept]) for name in tail.scores}
    scores = [net.get_submodule(name).requires_grad_(True) for name in tail.scores]
    for score in scores:
        for parameter in score.parameters():
            nn.init.zeros_(parameter)
    optimizer = torch.optim.AdamW([p for s in scores for p in s.parameters()], fit.rate, weight_decay=fit.decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, fit.epochs * len(kept))
    weights = _class_weights(torch.cat([labels.flatten() for _, labels in kept]), net.get_submodule("score_fr"), ignore)
    loss_of = nn.CrossEntropyLoss(weights, ignore_index=ignore)
    for step, place in enumerate(_order(len(kept), fit), 1):
        features, labels = kept[place]
        scaled = {name: _scaled(value.float(), *scaling[name]) for name, value in features.items()}
        loss: Tensor = loss_of(tail.logits(net, scaled, (labels.shape[1], labels.shape[2])), labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch does not annotate it
        optimizer.step()
        schedule.step()
        report("fit scores", step / (fit.epochs * len(kept)))
    with torch.no_grad():
        for name, score in zip(tail.scores, scores, strict=True):
            _take_up(score, *scaling[name])
            score.requires_grad_(False)


def _order(count: int, fit: Fit) -> Iterator[int]:
    rng = np.random.default_rng(fit.seed)
    for _ in range(fit.epochs):
        yield from rng.permutation(count).tolist()


def moments(values: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each channel over tensors [N, C, H, W]; one at a time is in memory in double precision."""
    count, total, squares = 0, torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for value in values:
        flat = value.transpose(0, 1).flatten(1).double()
        count += flat.shape[1]
        total = total + flat.sum(1)
        squares = squares + flat.square().sum(1)
    mean = total / count
    deviation = (squares / count - mean.square()).clamp(min=0).sqrt()
    return mean.float(), deviation.clamp(min=_LEAST_DEVIATION * float(deviation.mean())).float()


def _scaled(values: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    return (values - mean.view(-1, 1, 1)) / deviation.view(-1, 1, 1)


def _take_up(score: nn.Module, mean: Tensor, deviation: Tensor) -> None:
    """Make a 1x1 convolution that was fitted to scaled inputs take them as they are."""
    assert isinstance(score, nn.Conv2d)  # noqa: S101 - scores are
    assert score.bias is not None  # noqa: S101 - with a bias
    score.weight /= deviation.view(1, -1, 1, 1)
    score.bias -= score.weight[:, :, 0, 0] @ mean


def _class_weights(labels: Tensor, score: nn.Module, ignore: int) -> Tensor:
    """One over the root of each class's frequency, 1 on average over pixels: rare classes count more."""
    assert isinstance(score, nn.Conv2d)  # noqa: S101 - scores are
    counts = torch.bincount(labels[labels != ignore], minlength=score.out_channels).float()
    weights = counts.clamp(min=1).rsqrt()
    return weights * counts.sum() / (weights * counts).sum()
