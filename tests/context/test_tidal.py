"""TidalDecode: what a layer ranks, and what the layers behind it read."""

from types import SimpleNamespace

import pytest
import torch
from policy_runs import slots_seen

from mmllm.context.tidal import Tidal, TidalConfig, seen_at, top_seen
from mmllm.errors import ConfigError
from mmllm.llm.values import AttentionView


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


def released(query, keys, top_k, start, correction):
    """The masks of the released layers, bool, L H K: a layer ranks all keys, or reads what was marked last."""
    masks, marked = [], None
    for layer, (own, stored) in enumerate(zip(query, keys, strict=True)):
        weights = own @ stored.repeat_interleave(2, 1).mT / 8**0.5
        if layer in (start, correction):
            best = weights.topk(min(top_k, weights.shape[-1])).indices
            marked = torch.zeros_like(weights).scatter_(-1, best, 1.0)
        dense = layer < start or layer in (start, correction)
        masks.append(torch.ones_like(weights) if dense else marked)
    return torch.stack(masks)[:, 0, :, 0].bool()


def at_layer(layer, query, keys, position, notes):
    """What a token's attention in a layer of seven shows: keys at positions (int64, K), and notes of the pass."""
    position = position.expand(1, 1, -1)
    return AttentionView(
        layer=layer, layers=7, phase="token", query=query, keys=keys, values=keys, position=position,
        current=SimpleNamespace(notes_of=lambda stage: notes.setdefault(stage, {}), counts=None),
        query_position=position[:, 0, -1:], valid=torch.ones_like(position, dtype=torch.bool), scaling=1.0, state={},
    )  # fmt: skip


@pytest.mark.parametrize(("top_k", "start", "correction"), [(4, 2, 5), (6, 0, 3), (1, 1, 3), (20, 2, 4)])
def test_layers_read_what_the_released_ones_read(top_k, start, correction):
    """The new key too is read only where it ranks high."""
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(7, 1, 4, 1, 8, generator=generator)
    keys = torch.randn(7, 1, 2, 20, 8, generator=generator)
    policy, notes = Tidal(TidalConfig(top_k=top_k, start=start, correction=correction)), {}
    expected, without_new = released(query, keys, top_k, start, correction), 0
    for layer, (own, stored) in enumerate(zip(query, keys, strict=True)):
        chosen = policy.select(at_layer(layer, own, stored, torch.arange(20), notes))
        seen = torch.ones(1, 4, 20, dtype=torch.bool) if chosen is None else slots_seen(chosen, 20)
        assert torch.equal(seen[0], expected[layer])
        without_new += int((~seen[..., -1]).sum())
    assert without_new or top_k == 20


def test_a_head_whose_keys_are_all_gone_reads_the_new_one():
    query, keys = torch.ones(1, 4, 1, 8), torch.zeros(1, 2, 6, 8)
    keys[:, :, 1] = 1.0
    policy, notes = Tidal(TidalConfig(top_k=1, start=0)), {}
    policy.select(at_layer(0, query, keys, torch.arange(6), notes))
    left = torch.tensor([0, 2, 3, 4, 5])  # a stage has removed the key that ranks highest
    assert slots_seen(policy.select(at_layer(1, query, keys[:, :, left], left, notes)), 5).tolist() == [
        [[False] * 4 + [True]] * 4
    ]


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
