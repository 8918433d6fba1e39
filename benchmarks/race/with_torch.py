"""PyTorch as its own tutorials run a network: eager, compiled, in half precision on a GPU, or by Torch-TensorRT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fcnopt.models import checkpoint
from race.scripts import Script, Task, parser_of
from race.wire import serve


class TorchScript(Script):
    """A module between torch's own operations.

    Args:
        task: What to run on.
        module: The network.
        device: "cpu" or "cuda".
        half: Run in FP16, channels last.
    """

    def __init__(self, task: Task, module: nn.Module, device: str, half: bool) -> None:
        super().__init__(task)
        self._module, self._device = module, torch.device(device)
        self._dtype = torch.float16 if half else torch.float32
        self._format = torch.channels_last if half else torch.contiguous_format
        self._center = torch.tensor(task.mean, device=device).view(1, 3, 1, 1)
        self._spread = torch.tensor(task.std, device=device).view(1, 3, 1, 1)

    def prepare(self, image: NDArray[np.uint8]) -> torch.Tensor:
        """Normalize on the device."""
        x = torch.from_numpy(image).to(self._device).permute(2, 0, 1)[None].float()
        x = (x * self.task.scale - self._center) / self._spread
        return x.to(self._dtype).contiguous(memory_format=self._format)

    def infer(self, x: torch.Tensor) -> torch.Tensor:
        """Run the module, to its end."""
        with torch.inference_mode():
            logits: torch.Tensor = self._module(x)
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        return logits

    def finish(self, logits: torch.Tensor) -> NDArray[np.uint8]:
        """The most likely class, found on the device."""
        labels: NDArray[np.uint8] = logits.argmax(1)[0].to(torch.uint8).cpu().numpy()
        return labels


def open_torch(options: Any) -> TorchScript:
    """Load the network and compile it as asked."""
    task = Task.read(options.task)
    module: nn.Module = checkpoint.load(options.checkpoint).module.eval().to(options.device)
    if options.half:
        module = module.half().to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in the stubs
    if options.compile == "torch_tensorrt":
        import torch_tensorrt

        x = torch.zeros(1, 3, *task.size, device="cuda", dtype=torch.half if options.half else torch.float)
        types = {torch.half} if options.half else {torch.float}
        module = torch_tensorrt.compile(module, ir="dynamo", inputs=[x], enabled_precisions=types)
    elif options.compile is not None:
        module = torch.compile(module, mode=options.compile)  # type: ignore[assignment]  # a callable of the same kind
    return TorchScript(task, module, options.device, options.half)


def main() -> None:
    """Parse and serve."""
    parser = parser_of(__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--half", action="store_true", help="FP16, channels last")
    parser.add_argument("--compile", choices=("default", "max-autotune", "torch_tensorrt"))
    options = parser.parse_args()
    serve(lambda: open_torch(options))


if __name__ == "__main__":
    main()
