"""Random tokens are the same each time, differ between frames and seeds, and favour no place."""

import torch

from mmllm import registry
from mmllm.tokens import VisualTokens


def kept(seed, frames=64, keep=8):
    tokens = VisualTokens(features=torch.zeros(1, frames, 64, 1), grid=(8, 8))
    return registry.build("reducer", f"random:keep={keep},seed={seed}")(tokens).index[0]


def test_reproducible():
    assert torch.equal(kept(3), kept(3))
    assert kept(0, frames=2).tolist() == kept(0, frames=64)[:2].tolist()


def test_seeds_and_frames_differ():
    assert not torch.equal(kept(0), kept(1))
    assert len({tuple(row) for row in kept(0).tolist()}) == 64


def test_no_place_is_favoured():
    counts = kept(0, frames=4000, keep=16).flatten().bincount(minlength=64)
    assert (counts.float() / 1000 - 1).abs().max() < 0.15
