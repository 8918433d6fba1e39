"""Recovery: the narrow network learns to answer as the original does.

Distillation after Hinton et al., "Distilling the Knowledge in a Neural Network", 2015.
The loss of a crop is the divergence of the original's softmax from the network's, each pixel weighted by its class's
rarity, and where there are label maps a share of cross-entropy with them. AdamW, its rate rising over the first
twentieth and falling as a cosine to zero; over the last fifth batch norm keeps its statistics, so that the weights
settle on those they will run with.

What a step does hangs on seed and step alone, and the state is saved every minute: a run that was killed goes on as if
it had not been. With a time in place of a number of steps, the time used so far is part of the state.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fcnopt.models.fcn import FCN
from fcnopt.slimming.augment import Sample, draw
from fcnopt.slimming.frames import Frames
from fcnopt.slimming.options import RecoveryOptions
from fcnopt.slimming.state import Work
from fcnopt.slimming.teacher import Teacher, fast
from fcnopt.spec import ModelSpec

_WARMUP, _SETTLE = 0.05, 0.8
_DECAY = 1e-4
# A network that was trained already is lost, not recovered, by rates that training from scratch begins with.
_RATE, _RATE_WITHOUT_NORM = 3e-4, 5e-5
_CLIP = 5.0
_SAVE_S = 60.0
_LOG = 50  # points of the loss curve


@dataclass(frozen=True)
class Recovered:
    """What a recovery did.

    Attributes:
        steps: Of the optimizer.
        seconds: Over all runs.
        losses: Mean loss over equal stretches of the schedule, in order.
    """

    steps: int
    seconds: float
    losses: tuple[float, ...]


class Recovery:
    """One training, in a state that can be saved.

    Args:
        network: The narrow network; trained in place.
        teacher: The original's answers.
        frames: To learn from.
        spec: Of the network.
        options: How.
        device: Where.
    """

    def __init__(
        self,
        network: FCN,
        teacher: Teacher,
        frames: Frames,
        spec: ModelSpec,
        options: RecoveryOptions,
        device: torch.device,
    ) -> None:
        self.network = network.to(device).requires_grad_(True)
        for parameter in network.parameters():
            if parameter.ndim == 4:  # the layout that CPU and GPU kernels for bfloat16 take
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        self._teacher, self._frames, self._spec, self._options, self._device = teacher, frames, spec, options, device
        self._weights = teacher.class_weights.to(device)
        self._rate = options.rate or (_RATE if network.architecture.batch_norm else _RATE_WITHOUT_NORM)
        decayed = [p for p in network.parameters() if p.ndim > 1]
        rest = [p for p in network.parameters() if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": _DECAY}, {"params": rest, "weight_decay": 0.0}]
        self._optimizer = torch.optim.AdamW(groups, lr=self._rate)
        self.step, self.seconds = 0, 0.0
        self._sums, self._counts = torch.zeros(_LOG, dtype=torch.float64), torch.zeros(_LOG, dtype=torch.float64)

    @property
    def done(self) -> float:
        """How much of the schedule is behind, 0..1."""
        if self._options.steps is not None:
            return min(1.0, self.step / self._options.steps)
        return min(1.0, self.seconds / (60 * self._options.minutes))

    def run(self, work: Work, key: str, progress: Callable[[float], None]) -> Recovered:
        """Train to the end, from the state kept in `work` if there is one of this key."""
        kept = work.load("recovery", key)
        if kept is not None:
            self._restore(kept)
        saved = time.monotonic()
        while self.done < 1.0:
            started = time.monotonic()
            self.advance()
            self.seconds += time.monotonic() - started
            progress(self.done)
            if time.monotonic() - saved > _SAVE_S or self.done >= 1.0:
                work.save("recovery", key, self._state())
                saved = time.monotonic()
        self.network.eval().requires_grad_(False)
        used = self._counts > 0
        return Recovered(self.step, self.seconds, tuple((self._sums[used] / self._counts[used]).tolist()))

    def advance(self) -> float:
        """One step; returns its loss."""
        done = self.done
        self._set_mode(settle=done >= _SETTLE)
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate * (done / _WARMUP if done < _WARMUP else 0.5 * (1 + math.cos(math.pi * done)))
        sample = draw(self._frames, self._teacher, self._spec, self._options, self.step)
        with fast(self._device):
            logits = self.network(sample.pixels.to(self._device))
        loss = self._loss(logits.float(), sample)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch does not annotate it
        nn.utils.clip_grad_norm_(self.network.parameters(), _CLIP)
        self._optimizer.step()
        value = loss.item()
        place = min(_LOG - 1, int(done * _LOG))
        self._sums[place] += value
        self._counts[place] += 1
        self.step += 1
        return value

    def _loss(self, logits: Tensor, sample: Sample) -> Tensor:
        wanted = sample.logits.to(self._device)
        loss = distillation_loss(logits, wanted, self._weights)
        if sample.labels is not None and self._options.label_weight:
            truth = sample.labels.to(self._device)
            known = (truth >= 0).sum().clamp_min(1)
            entropy = F.cross_entropy(logits, truth, self._weights, ignore_index=-1, reduction="sum") / known
            loss = loss + self._options.label_weight * entropy
        return loss

    def _set_mode(self, *, settle: bool) -> None:
        """Training mode, with no dropout (a narrow network has nothing to spare), and batch norm still at the end."""
        self.network.train()
        for module in self.network.modules():
            if isinstance(module, nn.Dropout2d) or (settle and isinstance(module, nn.BatchNorm2d)):
                module.eval()

    def _state(self) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "sums": self._sums,
            "counts": self._counts,
        }

    def _restore(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = int(state["step"]), float(state["seconds"])
        self._sums, self._counts = state["sums"], state["counts"]


def distillation_loss(logits: Tensor, wanted: Tensor, class_weights: Tensor) -> Tensor:
    """Mean over pixels of the weighted KL(softmax(wanted) || softmax(logits)), both [N, C, H, W], in nats."""
    log_wanted = F.log_softmax(wanted, 1)
    divergence = (log_wanted.exp() * (log_wanted - F.log_softmax(logits, 1))).sum(1)
    return (class_weights[wanted.argmax(1)] * divergence).mean()


def pick_device(options: RecoveryOptions) -> torch.device:
    """Where to train."""
    if options.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(options.device)


def renormalize(network: FCN, teacher: Teacher, frames: Frames, spec: ModelSpec, options: RecoveryOptions) -> None:
    """Measure batch norm's statistics anew: those of the original are not those of the network cut from it."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    device = next(network.parameters()).device
    for module in norms:
        module.reset_running_stats()
        module.momentum = None  # a plain mean over the batches
        module.train()
    with torch.no_grad(), fast(device):
        for step in range(max(4, math.ceil(32 / options.batch))):
            network(draw(frames, teacher, spec, options, step).pixels.to(device))
    for module in norms:
        module.momentum = 0.1
        module.eval()
