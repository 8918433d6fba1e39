"""The VGG encoder: five blocks of 3x3 convolutions, each followed by a 2x2 max-pool.

Layers are attributes of the module itself (`conv1_1`, `bn1_1`, `relu1_1`, `pool1`, ...), so that a network derived
from the encoder has the flat state-dict keys that trained FCN checkpoints use.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from torch import Tensor, nn

BLOCKS = 5


class VGGEncoder(nn.Module):
    """The convolutional part of VGG, with or without batch norm.

    Args:
        widths: Output channels of every convolution, in order.
        layers: Convolutions in each block; (2, 2, 3, 3, 3) is VGG16.
        batch_norm: Whether a batch norm follows each convolution.
        has_bias: Tells of a layer, by name, whether its convolution has a bias.
        input_padding: Padding of `conv1_1` in pixels, 1 to keep the size; all others have 1.
    """

    def __init__(
        self,
        widths: tuple[int, ...],
        layers: tuple[int, ...],
        *,
        batch_norm: bool,
        has_bias: Callable[[str], bool],
        input_padding: int = 1,
    ) -> None:
        super().__init__()
        self._layers = layers
        self._batch_norm = batch_norm
        channels = 3
        remaining = iter(widths)
        for block, count in enumerate(layers, 1):
            for layer in range(1, count + 1):
                at, width = f"{block}_{layer}", next(remaining)
                padding = input_padding if at == "1_1" else 1
                conv = nn.Conv2d(channels, width, 3, padding=padding, bias=has_bias(f"conv{at}"))
                self.add_module(f"conv{at}", conv)
                if batch_norm:
                    self.add_module(f"bn{at}", nn.BatchNorm2d(width))
                self.add_module(f"relu{at}", nn.ReLU())
                channels = width
            # ceil_mode: the last row and column of an odd size are pooled, not dropped
            self.add_module(f"pool{block}", nn.MaxPool2d(2, stride=2, ceil_mode=True))

    def layer(self, name: str, x: Tensor) -> Tensor:
        """Run the submodule called `name` on `x`."""
        return cast(Tensor, self.get_submodule(name)(x))

    def pools(self, x: Tensor) -> tuple[Tensor, ...]:
        """The outputs of the five pools, of stride 2, 4, 8, 16 and 32, for `x` float [N, 3, H, W]."""
        outputs = []
        for block, count in enumerate(self._layers, 1):
            for layer in range(1, count + 1):
                at = f"{block}_{layer}"
                x = self.layer(f"conv{at}", x)
                if self._batch_norm:
                    x = self.layer(f"bn{at}", x)
                x = self.layer(f"relu{at}", x)
            x = self.layer(f"pool{block}", x)
            outputs.append(x)
        return tuple(outputs)
