"""A discriminator in the manner of StyleGAN2: residual blocks that halve the picture, blurred before they do.

With its defaults it has 24.0 million weights at 256 pixels.

B images, S side in pixels, C channels, Y X rows and columns
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn

_SMALLEST = 4
"""The picture is halved down to this side."""
_SLOPE = 0.2


class Discriminator(nn.Module):
    """Scores of pictures, high for real ones.

    Args:
        image_size: S.
        width: channels at full size. They double with each halving.
        most_width: the most channels.
    """

    def __init__(self, image_size: int, *, width: int, most_width: int) -> None:
        super().__init__()
        side, widths = image_size, [min(width, most_width)]
        while side % 2 == 0 and side > _SMALLEST:
            side, widths = side // 2, [*widths, min(2 * widths[-1], most_width)]
        self.from_pixels = nn.Conv2d(3, widths[0], 1)
        self.blocks = nn.ModuleList(HalvingBlock(*pair) for pair in itertools.pairwise(widths))
        self.last = nn.Conv2d(widths[-1] + 1, widths[-1], 3, padding=1)
        self.hidden = nn.Linear(widths[-1] * side**2, widths[-1])
        self.score = nn.Linear(widths[-1], 1)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight, a=_SLOPE)
            if isinstance(layer, nn.Conv2d | nn.Linear) and layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Scores, float32 B, of images (B 3 S S) from -1 to 1. Gradients of gradients need the full precision."""
        with torch.autocast(images.device.type, enabled=False):
            hidden = _bent(self.from_pixels(images.float()))
            for block in self.blocks:
                hidden = block(hidden)
            hidden = _bent(self.last(with_spread(hidden)))
            return self.score(_bent(self.hidden(hidden.flatten(1)))).squeeze(-1)


class HalvingBlock(nn.Module):
    """Two convolutions beside a linear shortcut; B C Y X to B D Y/2 X/2."""

    def __init__(self, width: int, out_width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, out_width, 3, stride=2)
        self.shortcut = nn.Conv2d(width, out_width, 1, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """B C Y X -> B D Y/2 X/2."""
        bent = _bent(self.second(blurred(_bent(self.first(hidden)), padding=2)))
        return (bent + self.shortcut(blurred(hidden, padding=1, stride=2))) / math.sqrt(2)


def blurred(images: Tensor, *, padding: int, stride: int = 1) -> Tensor:
    """Images B C Y X under a window of the weights 1 3 3 1 in each direction: nothing finer is left to be aliased."""
    line = torch.tensor([1.0, 3.0, 3.0, 1.0], device=images.device, dtype=images.dtype) / 8
    window = torch.outer(line, line).expand(images.shape[1], 1, -1, -1)
    return nn.functional.conv2d(images, window, stride=stride, padding=padding, groups=images.shape[1])


def with_spread(hidden: Tensor) -> Tensor:
    """B C Y X and one more channel: how much the images of the batch differ. Pictures that are all alike stand out."""
    spread = (hidden.var(0, correction=0) + 1e-8).sqrt().mean()
    return torch.cat([hidden, spread.expand(len(hidden), 1, *hidden.shape[2:])], dim=1)


def _bent(hidden: Tensor) -> Tensor:
    return nn.functional.leaky_relu(hidden, _SLOPE)
