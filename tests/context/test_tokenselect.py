"""TokenSelect: the original's indices, lists that are used again, and what must not change."""

from pathlib import Path

import pytest
import torch
from policy_runs import answer, built, llm, prompt
from safetensors.torch import load_file

from mmllm.context.choosing import best_of_rows
from mmllm.context.tokenselect import TokenSelectConfig, token_scores
from mmllm.errors import ConfigError, InputError

GOLDEN = load_file(Path(__file__).resolve().parents[1] / "data" / "context-tokenselect.safetensors")
SINKS, LOCAL, TOP_K = 2, 5, 6


@pytest.mark.parametrize("pool", [0, 3])
@pytest.mark.parametrize("one", [False, True])
def test_indices_are_the_originals(pool, one):
    keys = GOLDEN["keys"].transpose(0, 1).unsqueeze(0)  # B G K D
    query = (GOLDEN["query"][:1] if one else GOLDEN["query"]).mean(0).view(1, 4, 8)
    count = keys.shape[2]
    place = torch.arange(count).unsqueeze(0)
    middle = (place >= SINKS) & (place < count - LOCAL)
    chosen = best_of_rows(token_scores(query, keys, middle, pool=pool), middle, torch.tensor([TOP_K]))
    expected = GOLDEN[f"group_pool{pool}{'_one' if one else ''}"]
    assert (chosen | ~middle)[0].nonzero()[:, 0].tolist() == expected.tolist()


def test_of_scores_that_pooling_makes_equal_the_highest_key_comes_first():
    keys = torch.zeros(1, 1, 9, 8)
    keys[0, 0, [3, 6], 0] = torch.tensor([2.0, 1.0])
    everything = torch.ones(1, 9, dtype=torch.bool)
    scores = token_scores(torch.ones(1, 1, 8), keys, everything, pool=3)
    chosen = [
        best_of_rows(scores, everything, torch.tensor([count]))[0].nonzero()[:, 0].tolist() for count in (1, 2, 4)
    ]
    assert chosen == [[3], [2, 3], [2, 3, 4, 6]]  # then the earlier position


def test_padding_changes_no_score():
    generator = torch.Generator().manual_seed(0)
    keys, query = torch.randn(1, 2, 12, 8, generator=generator), torch.randn(1, 4, 8, generator=generator)
    alone = token_scores(query, keys, torch.arange(12).unsqueeze(0) >= 3, pool=3)
    padded = torch.cat([torch.randn(1, 2, 4, 8, generator=generator), keys], 2)
    assert torch.equal(token_scores(query, padded, torch.arange(16).unsqueeze(0) >= 7, pool=3)[:, 4:], alone)


def test_scaled_scores_are_attention():
    generator = torch.Generator().manual_seed(0)
    keys, query = torch.randn(1, 2, 12, 8, generator=generator), torch.randn(1, 4, 8, generator=generator)
    everything = torch.ones(1, 12, dtype=torch.bool)
    weights = (query.unsqueeze(2) @ keys.repeat_interleave(2, 1).mT * 8**-0.5).softmax(-1)
    scores = token_scores(query, keys, everything, scaling=8**-0.5)
    torch.testing.assert_close(scores.float(), weights.sum((1, 2)))


def test_a_list_is_used_again_while_the_query_points_the_same_way():
    refreshes = {}
    for threshold in (1.1, -1.0):
        current = prompt(built(f"tokenselect:sinks=2,local=3,top_k=6,threshold={threshold}"), rows=1)
        answer(llm(), current, steps=8)
        refreshes[threshold] = current.counts.refreshes
    assert refreshes == {1.1: 8 * 5, -1.0: 5}  # in each of five layers, at every step or once


@pytest.mark.parametrize(
    ("field", "value"), [("sinks", -1), ("local", 0), ("top_k", 0), ("pool", 2), ("pool", -1), ("threshold", -2.0)]
)
def test_bad_settings(field, value):
    with pytest.raises(ConfigError, match=rf"TokenSelectConfig.{field} = {value}"):
        TokenSelectConfig(**{field: value})


def test_scores_that_are_no_numbers_are_refused():
    keys, everything = torch.zeros(1, 2, 4, 8), torch.ones(1, 4, dtype=torch.bool)
    keys[0, 0, 1] = torch.nan
    scores = token_scores(torch.ones(1, 4, 8), keys, everything)
    with pytest.raises(InputError, match="not a number"):
        best_of_rows(scores, everything, torch.tensor([2]))
