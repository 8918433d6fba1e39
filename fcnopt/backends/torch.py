"""The reference: a PyTorch module, run eagerly in FP32.

What exported graphs do inside (colour order, normalization, argmax) is done here with torch operations, so that an
engine's labels can be compared with those of the network as it was trained.
"""

from __future__ import annotations

import time
from typing import Any, Literal

import torch
from torch import nn

from fcnopt.backends.base import Outputs, Runner, elapsed_ms
from fcnopt.backends.frames import as_numpy
from fcnopt.errors import BackendError
from fcnopt.spec import ModelSpec


class TorchRunner(Runner):
    """Runs an `nn.Module` eagerly.

    Args:
        module: float [N, 3, H, W], normalized, in the spec's normalization colour order -> logits [N, C, H, W]. It
            is set to evaluation mode and moved to `device`.
        spec: What the module takes and gives.
        device: "cpu" or "cuda".
        channels_last: Keep activations NHWC in memory.
        half: Run in FP16 (weights and activations); the labels' reference is without.

    Raises:
        BackendError: CUDA is asked for where torch has none.
    """

    def __init__(
        self,
        module: nn.Module,
        spec: ModelSpec,
        device: Literal["cpu", "cuda"] = "cpu",
        channels_last: bool = False,
        half: bool = False,
    ) -> None:
        if device == "cuda" and not torch.cuda.is_available():
            built = f"was built for CUDA {torch.version.cuda}" if torch.version.cuda else "is a CPU build"
            raise BackendError(
                f"torch: CUDA was asked for, but this torch {torch.__version__} {built} and sees no GPU",
                fix='run with device="cpu", or install torch for CUDA and the NVIDIA driver',
            )
        self.name = "torch " + ("fp16" if half else "fp32") + (" cuda" if device == "cuda" else "")
        self.spec = spec
        self._device = torch.device(device)
        self._dtype = torch.float16 if half else torch.float32
        self._format = torch.channels_last if channels_last else torch.contiguous_format
        # torch's stubs lack the overload of `to` that takes all three by keyword
        self._module: nn.Module = module.eval().to(self._device, self._dtype).to(memory_format=self._format)  # type: ignore[call-overload]
        norm = spec.frame.normalization
        self._flip = spec.frame.color != norm.color
        self._scale = norm.scale
        self._mean = torch.tensor(norm.mean, device=self._device).view(1, 3, 1, 1)
        self._std = torch.tensor(norm.std, device=self._device).view(1, 3, 1, 1)

    def infer(self, frames: Any) -> Outputs:
        """Run checked frames; on CUDA, GPU tensors and arrays are taken without a copy."""
        start = time.perf_counter()
        try:
            with torch.inference_mode():
                logits = self._module(self.normalize(frames)).float()
                labels = logits.argmax(1).to(torch.uint8).cpu().numpy()
                confidence = self._confidence(logits) if "confidence" in self.spec.outputs else None
                scores = logits.contiguous().cpu().numpy() if "logits" in self.spec.outputs else None
        except RuntimeError as error:
            raise BackendError(
                f"{self.name}: the network failed on frames {list(frames.shape)}: {error}",
                fix="check that the network takes this size; with CUDA out of memory, use a smaller batch",
            ) from error
        return Outputs(labels, confidence, scores, elapsed_ms(start))

    def normalize(self, frames: Any) -> torch.Tensor:
        """Frames uint8 [N, H, W, 3] as the network wants them: [N, 3, H, W], on the runner's device."""
        if self._device.type == "cuda":
            pixels = torch.as_tensor(frames, device=self._device)
        else:
            # A copy, because torch warns about arrays that it must not write to, as decoders give them.
            pixels = torch.from_numpy(as_numpy(frames, self.name).copy())
        x = pixels.permute(0, 3, 1, 2).to(torch.float32)
        x = x.flip(1) if self._flip else x
        x = (x * self._scale - self._mean) / self._std
        return x.to(self._dtype).contiguous(memory_format=self._format)

    @staticmethod
    def _confidence(logits: torch.Tensor) -> Any:
        return logits.softmax(1).amax(1).cpu().numpy()

    def close(self) -> None:
        """Free the module."""
        self._module = nn.Identity()
