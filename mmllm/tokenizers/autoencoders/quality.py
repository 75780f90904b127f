"""How near a reconstruction is to its picture: PSNR counts pixels, SSIM compares structure.

B images, C channels, Y X rows and columns
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmllm.errors import InputError

_WINDOW, _SPREAD = 11, 1.5
"""Side of the Gaussian window of SSIM in pixels, and its standard deviation, as published."""


def psnr(images: Tensor, originals: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, float32, B, of images (B C Y X) from -1 to 1; what lies outside is clamped."""
    error = (images.float().clamp(-1, 1) - originals.float()).square().flatten(1).mean(-1)
    return 10 * torch.log10(4 / error.clamp(min=1e-12))


def ssim(images: Tensor, originals: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004), 1 for equal images: float32, B, of images (B C Y X) from -1 to 1.

    Raises:
        InputError: for images smaller than the window of 11 pixels.
    """
    if min(images.shape[-2:]) < _WINDOW:
        raise InputError(f"SSIM needs images of at least {_WINDOW} pixels a side, not {tuple(images.shape[-2:])}")
    x, y = (image.float().clamp(-1, 1) / 2 + 0.5 for image in (images, originals))
    mean_x, mean_y = _blurred(x), _blurred(y)
    variance_x, variance_y = _blurred(x * x) - mean_x**2, _blurred(y * y) - mean_y**2
    covariance = _blurred(x * y) - mean_x * mean_y
    luminance, contrast = 0.01**2, 0.03**2
    similarity = (2 * mean_x * mean_y + luminance) * (2 * covariance + contrast)
    similarity = similarity / ((mean_x**2 + mean_y**2 + luminance) * (variance_x + variance_y + contrast))
    return similarity.flatten(1).mean(-1)


def _blurred(images: Tensor) -> Tensor:
    """Means in the Gaussian window, without the border where it does not fit."""
    place = torch.arange(_WINDOW, device=images.device) - _WINDOW // 2
    line = torch.exp(-(place**2) / (2 * _SPREAD**2))
    line = (line / line.sum()).expand(images.shape[1], 1, 1, -1)
    across = nn.functional.conv2d(images, line, groups=images.shape[1])
    return nn.functional.conv2d(across, line.transpose(-1, -2), groups=images.shape[1])
