"""PSNR and SSIM against values known without them."""

import pytest
import torch

from mmllm.errors import InputError
from mmllm.tokenizers.autoencoders.quality import psnr, ssim


def test_psnr_of_a_known_error():
    images = torch.zeros(2, 3, 16, 16)
    moved = images + torch.tensor([0.2, 0.02]).view(2, 1, 1, 1)
    torch.testing.assert_close(psnr(moved, images), torch.tensor([20.0, 40.0]))
    assert psnr(images + 5, torch.ones_like(images)).min() > 100  # what lies outside is clamped


def test_ssim_is_one_for_equal_images_and_follows_its_formula_where_nothing_varies():
    images = torch.rand(2, 3, 24, 24) * 2 - 1
    torch.testing.assert_close(ssim(images, images), torch.ones(2))
    dark, light = torch.full((1, 3, 16, 16), -0.5), torch.full((1, 3, 16, 16), 0.5)
    x, y = 0.25, 0.75
    expected = (2 * x * y + 1e-4) / (x * x + y * y + 1e-4)
    torch.testing.assert_close(ssim(light, dark), torch.tensor([expected]), rtol=1e-3, atol=0)
    assert ssim(images, images.flip(-1)).max() < 0.2


def test_small_images_are_refused():
    with pytest.raises(InputError, match="11 pixels"):
        ssim(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8))
