r"""What every channel is worth, measured on frames.

The loss is the divergence of the network's answer from the original's. At the original its gradient vanishes; what
tells channels apart is its curvature, which is the Fisher information: with labels y drawn from the network's own
softmax, pixel by pixel, and g the gradient of -log p(y) at an activation,

    G_c = 1/pixels * sum over positions of E[g_c^2]

(Theis et al., "Faster gaze prediction with dense networks and Fisher pruning", 2018, with labels drawn in place of
given ones). Pixels draw independently, so that the gradient of a frame's sum squares to the sum of squares: one
backward pass a frame measures every channel of every layer.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fcnopt.models.fcn import FCN, Architecture
from fcnopt.slimming.elimination import Moments

FC6_OUT = "fc6/out"
"""The key of fc6's result before bias and normalization, beside the keys of `tensors_of`."""

_KEEP_S = 20.0  # sums of a VGG16 take 400 MB: writing them after every frame would cost more than it saves


def tensors_of(architecture: Architecture) -> dict[str, str]:
    """The module whose result is what others read of each prunable convolution: its pool or its ReLU, by name."""
    last = {f"conv{block}_{count}": f"pool{block}" for block, count in enumerate(architecture.layers, 1)}
    convs = {name: last.get(name, f"relu{name.removeprefix('conv')}") for name in architecture.conv_widths}
    return {**convs, "fc6": "relu6", "fc7": "relu7"}


def measure(
    network: FCN,
    batches: Iterable[Tensor],
    class_weights: Tensor,
    *,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
    kept: Mapping[str, Any] | None = None,
    keep: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Moments]:
    """Measure moments and curvatures.

    A measurement that was stopped and goes on from what it kept gives the same, bit by bit: its sums are exact, and
    labels are drawn on from where it was.

    Args:
        network: The original, in evaluation mode, its weights frozen.
        batches: Normalized pixels float [N, 3, H, W], on the network's device.
        class_weights: Weight of a pixel in the loss by its label, [classes].
        seed: Of the labels drawn.
        progress: Called with the number of frames done.
        kept: What `keep` was given last by a measurement with the same arguments; None starts anew.
        keep: Called now and then with sums so far, as tensors and numbers in dicts.

    Returns:
        By convolution, and `FC6_OUT`.
    """
    collector = _Collector(network)
    generator = torch.Generator(class_weights.device).manual_seed(seed)
    done = 0
    if kept is not None:
        done = int(kept["batches"])
        generator.set_state(kept["generator"])
        collector.restore(kept["sums"])
    saved = time.monotonic()
    with collector:
        for count, pixels in enumerate(itertools.islice(batches, done, None), done + 1):
            logits = network(pixels.requires_grad_(True)).float()
            _drawn_loss(logits, class_weights, generator).backward()  # type: ignore[no-untyped-call]  # torch's own
            collector.add(frames=len(pixels), pixels=logits[0, 0].numel())
            if progress is not None:
                progress(collector.frames)
            if keep is not None and time.monotonic() - saved >= _KEEP_S:
                keep({"batches": count, "generator": generator.get_state(), "sums": collector.sums()})
                saved = time.monotonic()
    return collector.result()


def _drawn_loss(logits: Tensor, class_weights: Tensor, generator: torch.Generator) -> Tensor:
    """Sum over pixels of -log p(y), y drawn from p; weighted so that squared gradients have the pixel's weight."""
    scores = logits.detach()
    # Gumbel's trick: the largest of scores + noise is a draw from their softmax
    uniform = torch.rand(scores.shape, generator=generator, device=scores.device).clamp_(1e-9, 1 - 1e-7)
    drawn = (scores - (-uniform.log()).log()).argmax(1)
    weights = class_weights[scores.argmax(1)].sqrt()
    return (weights * torch.nn.functional.cross_entropy(logits, drawn, reduction="none")).sum()


class _Collector:
    """Sums moments and squared gradients while hooked to a network."""

    def __init__(self, network: FCN) -> None:
        self._sources = {name: network.get_submodule(at) for name, at in tensors_of(network.architecture).items()}
        self._sources[FC6_OUT] = network.get_submodule("fc6")
        bias = network.get_submodule("fc6").bias
        self._fc6_bias = bias.detach() if isinstance(bias, Tensor) else None
        self._second: dict[str, Tensor] = {}
        self._squares: dict[str, Tensor] = {}
        self._positions: dict[str, int] = {}
        self._curvature: dict[str, Tensor] = {}
        self.frames = 0

    def __enter__(self) -> _Collector:
        self._hooks = [
            module.register_forward_hook(partial(self._seen, name)) for name, module in self._sources.items()
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _seen(self, name: str, _module: torch.nn.Module, _inputs: object, output: Tensor) -> None:
        output.register_hook(partial(self._graded, name))  # type: ignore[no-untyped-call]  # torch's own
        x = output.detach().float()
        if name == FC6_OUT and self._fc6_bias is not None:
            x = x - self._fc6_bias[:, None, None]
        x = x.transpose(0, 1).flatten(1)  # [C, N * positions]
        self._second[name] = self._second.get(name, 0.0) + (x @ x.T).double().cpu()
        self._positions[name] = self._positions.get(name, 0) + x.shape[1]

    def _graded(self, name: str, gradient: Tensor) -> None:
        self._squares[name] = gradient.detach().float().square().sum(dim=(0, 2, 3)).double().cpu()

    def add(self, *, frames: int, pixels: int) -> None:
        """Count what the last pass left."""
        self.frames += frames
        for name, squares in self._squares.items():
            self._curvature[name] = self._curvature.get(name, 0.0) + squares / pixels

    def sums(self) -> dict[str, Any]:
        """What `restore` goes on from."""
        return {
            "frames": self.frames,
            "second": self._second,
            "positions": self._positions,
            "curvature": self._curvature,
        }

    def restore(self, sums: Mapping[str, Any]) -> None:
        """Go on from what `sums` gave."""
        self.frames = int(sums["frames"])
        self._second, self._positions = dict(sums["second"]), dict(sums["positions"])
        self._curvature = dict(sums["curvature"])

    def result(self) -> dict[str, Moments]:
        return {
            name: Moments(
                np.asarray(self._second[name] / self._positions[name]),
                np.asarray(self._curvature[name] / self.frames),
            )
            for name in self._sources
        }
