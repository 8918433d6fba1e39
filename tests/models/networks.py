"""Small FCNs with random weights, for the tests of more than one module."""

from __future__ import annotations

from typing import Any

import torch

from fcnopt.models.fcn import FCN, Architecture


def tiny(stride: Any = 8, *, batch_norm: bool = False, padding: Any = "same", classes: int = 5, **others: Any) -> FCN:
    """An FCN of a few thousand weights, each of them random: batch norm's statistics and the upsampling too."""
    sizes = {"widths": (4, 6, 8, 10, 12), "fc_widths": (14, 16), **others}
    network = FCN(Architecture(stride, classes, batch_norm=batch_norm, padding=padding, **sizes))
    generator = torch.Generator().manual_seed(0)
    for name, tensor in network.state_dict().items():
        if not tensor.is_floating_point():
            continue
        noise = torch.randn(tensor.shape, generator=generator)
        if name.endswith("running_var"):
            tensor.copy_(noise.abs() + 0.5)
        elif name.startswith("upscore"):
            tensor.add_(0.05 * noise)
        elif tensor.dim() == 4:
            tensor.copy_(noise * (2 / tensor[0].numel()) ** 0.5)
        else:
            tensor.copy_(1 + 0.2 * noise if name.startswith("bn") and name.endswith("weight") else 0.2 * noise)
    return network.eval()
