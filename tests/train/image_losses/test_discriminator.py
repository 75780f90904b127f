"""The discriminator: its published size, its halvings, and that it tells pictures apart."""

import pytest
import torch

from mmllm.train.image_losses.discriminator import Discriminator, blurred, with_spread


def test_its_size_is_that_of_the_paper():
    with torch.device("meta"):
        made = Discriminator(256, width=64, most_width=512)
    count = sum(weight.numel() for weight in made.parameters())
    assert abs(count / 24e6 - 1) < 0.01


@pytest.mark.parametrize(("side", "halvings"), [(32, 3), (48, 4), (36, 2), (7, 0), (4, 0)])
def test_any_picture_gives_one_score(side, halvings):
    made = Discriminator(side, width=4, most_width=8)
    assert len(made.blocks) == halvings
    scores = made(torch.rand(3, 3, side, side) * 2 - 1)
    assert scores.shape == (3,)
    assert scores.isfinite().all()


def test_the_blur_keeps_what_is_even_and_removes_what_is_finest():
    even = torch.full((1, 2, 12, 12), 3.0)
    inside = slice(2, -2)
    torch.testing.assert_close(blurred(even, padding=2)[..., inside, inside], torch.full((1, 2, 9, 9), 3.0))
    finest = torch.ones(1, 1, 12, 12)
    finest[..., ::2] = -1
    assert blurred(finest, padding=1, stride=2)[..., 1:-1, 1:-1].abs().max() < 1e-6


def test_a_batch_of_equal_pictures_stands_out():
    picture = torch.rand(1, 2, 4, 4)
    equal, different = picture.expand(3, -1, -1, -1), torch.rand(3, 2, 4, 4)
    assert with_spread(equal).shape == (3, 3, 4, 4)
    assert with_spread(equal)[:, 2].max() < 1e-3 < with_spread(different)[:, 2].min()


def test_it_learns_to_tell_pictures_apart():
    torch.manual_seed(0)
    made = Discriminator(16, width=8, most_width=16)
    optimizer = torch.optim.Adam(made.parameters(), lr=2e-3)
    stripes = (torch.arange(16) % 2 * 2.0 - 1).expand(4, 3, 16, 16)
    for _ in range(20):
        optimizer.zero_grad()
        noise = torch.rand(4, 3, 16, 16) * 2 - 1
        (made(noise) - made(stripes)).mean().backward()
        optimizer.step()
    assert made(stripes).min() > made(torch.rand(4, 3, 16, 16) * 2 - 1).max()
