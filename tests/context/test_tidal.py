"""TidalDecode: what a layer ranks, and what the layers behind it read."""

import pytest
import torch

from mmllm.context.tidal import Tidal, TidalConfig, seen_at, top_seen
from mmllm.errors import ConfigError


def test_each_query_of_each_head_sees_its_highest_logits():
    generator = torch.Generator().manual_seed(0)
    query, keys = torch.randn(2, 4, 3, 8, generator=generator), torch.randn(2, 2, 20, 8, generator=generator)
    logits = query @ keys.repeat_interleave(2, 1).mT
    expected = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, logits.topk(5).indices, True)
    assert torch.equal(top_seen(query, keys, 5), expected)
    assert top_seen(query, keys, 20).all()
    among = torch.arange(20) >= 4
    seen = top_seen(query, keys, 5, among)
    assert not seen[..., :4].any()
    assert torch.equal(seen[..., 4:], top_seen(query, keys[:, :, 4:], 5))


def test_positions_are_found_again_where_others_are_gone():
    position, wanted = torch.tensor([[[0, 1, 2, 3, 4]]]), torch.tensor([[[1, 3, 4]]])
    seen = torch.tensor([[[True, False, True, True, False]] * 2])
    assert seen_at(seen, position, wanted).tolist() == [[[False, True, False]] * 2]


@pytest.mark.parametrize(
    ("layers", "fields", "ranking"),
    [(32, {}, (2, 9)), (32, {"correction": 13}, (2, 13)), (4, {}, (2,)), (4, {"start": 0}, (0,)), (16, {}, (2, 4))],
)
def test_the_layers_that_rank(layers, fields, ranking):
    assert Tidal(TidalConfig(**fields)).ranking_layers(layers) == ranking


def test_bad_settings():
    with pytest.raises(ConfigError, match="top_k = 0"):
        TidalConfig(top_k=0)
    with pytest.raises(ConfigError, match="correction = 2: must be behind start"):
        TidalConfig(correction=2)
    with pytest.raises(ConfigError, match="at least 4 layers, not 3"):
        Tidal(TidalConfig()).check(3)
    with pytest.raises(ConfigError, match=r"correction = 9: must be below the LLM's 6 layers"):
        Tidal(TidalConfig(correction=9)).check(6)
