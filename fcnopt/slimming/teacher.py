"""What the original answers on every frame, computed once: its scores at the finest stride, before they are enlarged.

These are a hundredth of the logits; a step that needs logits enlarges them with the original's own last deconvolution.
Crops, flips and scales are cut from the answer to the whole, clean frame: what a narrow network should say of a piece
is what the original says of it in context.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fcnopt.backends.machine import describe_machine
from fcnopt.models.fcn import FCN
from fcnopt.slimming.frames import Frames, normalized
from fcnopt.slimming.state import Work
from fcnopt.spec import Normalization

_SAVE_EVERY = 64  # frames
_MOST_WEIGHT = 5.0


class Teacher:
    """The original's answers.

    Attributes:
        scores: float16 [F, classes, h, w].
        class_weights: Weight of a pixel by its label, [classes]: classes count alike in mIoU, however few their
            pixels, so that pixels count by one over the root of their class's share; 1 on average.
    """

    def __init__(self, network: FCN, scores: Tensor, class_weights: Tensor, size: tuple[int, int]) -> None:
        self._network, self.scores, self.class_weights, self._size = network, scores, class_weights, size

    def logits(self, place: int) -> Tensor:
        """Of one frame, float [1, classes, H, W], on the network's device."""
        device = next(self._network.parameters()).device
        with torch.no_grad():
            scores = self.scores[place : place + 1].to(device).float()
            return self._network.enlarge(scores, like=torch.empty(1, 1, *self._size, device="meta"))


def ask(
    network: FCN, frames: Frames, norm: Normalization, work: Work, key: str, progress: Callable[[float], None]
) -> Teacher:
    """Run the original on every frame, going on where an earlier run stopped.

    Args:
        network: The original, on its device.
        frames: To run on.
        norm: How they are normalized.
        work: Where scores are kept.
        key: Of what they depend on: weights, frames, normalization.
        progress: Called with the fraction done.
    """
    kept = work.load("teacher", key)
    parts: list[Tensor] = [] if kept is None else [kept]
    done = sum(map(len, parts))
    device = next(network.parameters()).device
    for place in range(done, len(frames.images)):
        with torch.inference_mode(), fast(device):
            parts.append(network.scores(normalized(frames.images[place : place + 1], norm).to(device)).half().cpu())
        if (place + 1) % _SAVE_EVERY == 0 or place + 1 == len(frames.images):
            parts = [torch.cat(parts).clone()]
            work.save("teacher", key, parts[0])
        progress((place + 1) / len(frames.images))
    size = (frames.images.shape[1], frames.images.shape[2])
    scores = torch.cat(parts)
    return Teacher(network, scores, _weights(scores[torch.from_numpy(frames.train)]), size)


def _weights(scores: Tensor) -> Tensor:
    shares = torch.bincount(scores.argmax(1).flatten(), minlength=scores.shape[1]).double()
    shares = (shares / shares.sum()).clamp_min(1e-6)
    weights = shares.rsqrt()
    weights = (weights / (weights * shares).sum()).clamp_max(_MOST_WEIGHT)
    return weights.float()


def predict(network: FCN, frames: Frames, places: Iterable[int], norm: Normalization) -> list[NDArray[np.uint8]]:
    """A network's labels in FP32, uint8 [H, W] a frame."""
    device = next(network.parameters()).device
    found = []
    with torch.inference_mode():
        for place in places:
            logits = network(normalized(frames.images[place : place + 1], norm).to(device))
            found.append(logits[0].argmax(0).to(torch.uint8).cpu().numpy())
    return found


def fast(device: torch.device) -> AbstractContextManager[object]:
    """bfloat16 where the device multiplies it faster than float32."""
    if device.type == "cuda":
        return torch.autocast("cuda", torch.bfloat16, enabled=torch.cuda.is_bf16_supported())
    return torch.autocast("cpu", torch.bfloat16) if "bf16" in describe_machine()["isa"] else nullcontext()
