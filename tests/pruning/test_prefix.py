"""The prefix reducer keeps the first of ordered tokens and refuses patches."""

import pytest
import torch

from mmllm import registry
from mmllm.errors import ConfigError, InputError
from mmllm.pruning.needs import require_fit
from mmllm.tokens import VisualTokens


@pytest.mark.parametrize("budget", ["keep=4", "ratio=0.25", "total=8"])
def test_the_first_tokens_remain(budget):
    features = torch.randn(1, 2, 16, 3)
    kept = registry.build("reducer", f"prefix:{budget}")(VisualTokens(features=features, grid=None))
    assert torch.equal(kept.features, features[:, :, :4])
    assert kept.index[0, 0].tolist() == [0, 1, 2, 3]


def test_a_smaller_budget_keeps_a_part_of_a_larger_one_and_padding_stays_padding():
    mask = torch.tensor([[True] * 16, [False] * 16]).view(1, 2, 16)
    tokens = VisualTokens(features=torch.randn(1, 2, 16, 3), grid=None, mask=mask)
    kept = registry.build("reducer", "prefix:keep=4")(tokens)
    assert kept.mask.any(-1).tolist() == [[True, False]]


def test_patches_are_refused():
    tokens = VisualTokens(features=torch.randn(1, 1, 16, 3), grid=(4, 4))
    with pytest.raises(InputError, match="upper rows"):
        registry.build("reducer", "prefix:keep=4")(tokens)


def test_a_model_of_patches_refuses_it_when_it_is_built():
    encoder = registry.build("encoder", "tiny")
    with pytest.raises(ConfigError, match="'prefix' needs ordered 1D tokens, and encoder 'tiny' gives patches"):
        require_fit(registry.build("reducer", "prefix:keep=4"), encoder)
