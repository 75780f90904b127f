"""MInference: the original's columns and diagonals, blocks by brute force."""

from pathlib import Path

import pytest
import torch
from nearness import assert_near
from safetensors.torch import load_file

from mmllm import registry
from mmllm.context.minference import MInferenceConfig
from mmllm.context.minference_patterns import (
    block_index,
    blocks_seen,
    seen_by,
    seen_in_blocks,
    vertical_slash,
    vertical_slash_scores,
)
from mmllm.errors import ConfigError

GOLDEN = load_file(Path(__file__).resolve().parents[1] / "data" / "context-minference-vs.safetensors")
SCALING = 16**-0.5


def part(case, name):
    return GOLDEN[f"{case}_{name}"][None, None]


@pytest.mark.parametrize(("case", "vertical", "slash"), [("a", 40, 120), ("b", 10, 50)])
def test_columns_and_diagonals_are_the_originals(case, vertical, slash):
    query, keys = part(case, "q"), part(case, "k")
    count = query.shape[2]
    valid = torch.ones(1, count, dtype=torch.bool)
    scores = vertical_slash_scores(query, keys, valid, SCALING)
    assert_near(scores[0][0, 0, 30:], GOLDEN[f"{case}_vertical_scores"][30:])
    columns, diagonals = vertical_slash(query, keys, valid, vertical, slash, SCALING)
    assert columns[0, 0].nonzero()[:, 0].tolist() == sorted(GOLDEN[f"{case}_vertical"].tolist())
    if case == "a":
        assert diagonals[0, 0].nonzero()[:, 0].tolist() == sorted(GOLDEN["a_slash"].tolist())
        seen = seen_by(columns, diagonals)
        assert torch.equal(seen[0, 0], GOLDEN["a_mask"])
        out = torch.nn.functional.scaled_dot_product_attention(query, keys, part("a", "v"), attn_mask=seen)
        assert_near(out[0, 0], GOLDEN["a_out"])
    else:
        assert diagonals[0, 0].nonzero()[:, 0].tolist() == list(range(50))  # the nearest of the forced ones


def test_padding_changes_no_pattern():
    query, keys = part("b", "q"), part("b", "k")
    valid = torch.ones(1, 96, dtype=torch.bool)
    pad = torch.nn.functional.pad
    longer = torch.arange(103).unsqueeze(0) >= 7
    alone = seen_by(*vertical_slash(query, keys, valid, 35, 60, SCALING))
    padded = [pad(values, (0, 0, 7, 0), value=5.0) for values in (query, keys)]
    assert torch.equal(seen_by(*vertical_slash(*padded, longer, 35, 60, SCALING))[..., 7:, 7:], alone)
    assert torch.equal(blocks_seen(*padded, longer, 2, 16)[..., 7:, 7:], blocks_seen(query, keys, valid, 2, 16))


@pytest.mark.parametrize("count", [40, 48])
def test_blocks_are_those_of_the_highest_means(count):
    generator = torch.Generator().manual_seed(0)
    query, keys = torch.randn(1, 2, count, 8, generator=generator), torch.randn(1, 2, count, 8, generator=generator)
    index = block_index(query, keys, 2, 8)
    blocks = count // 8 + 1  # the last has nothing but zeros
    assert index.shape == (1, 2, blocks, 2)
    for head in range(2):
        for row in range(1, count // 8):
            asked = query[0, head, row * 8 : row * 8 + 8].mean(0)
            logits = [float(asked @ keys[0, head, at * 8 : at * 8 + 8].mean(0)) for at in range(row + 1)]
            assert index[0, head, row].tolist() == sorted(sorted(range(row + 1), key=lambda at: -logits[at])[:2])
    seen = seen_in_blocks(index, count, 8)
    for row, column in [(20, 20), (20, 21), (39, 0)]:
        listed = column // 8 in index[0, 0, row // 8].tolist()
        assert bool(seen[0, 0, row, column]) == (listed and column <= row)


def test_most_attention_of_the_last_rows_is_in_the_pattern():
    """A head that looks at a few columns and along a few diagonals: with a quarter of the cells."""
    generator = torch.Generator().manual_seed(0)
    count = 400
    query, keys = (torch.randn(1, 1, count, 16, generator=generator) for _ in range(2))
    keys[:, :, ::50] += 6 * query.mean(2, keepdim=True).sign()
    query = query + query.mean(2, keepdim=True).sign()
    valid = torch.ones(1, count, dtype=torch.bool)
    seen = seen_by(*vertical_slash(query, keys, valid, 40, 60, SCALING))[0, 0]
    causal = torch.ones(count, count, dtype=torch.bool).tril()
    weights = (query[0, 0] @ keys[0, 0].T * SCALING).masked_fill(~causal, -torch.inf).softmax(-1)
    late = slice(count // 4, None)
    assert float(seen.sum() / causal.sum()) < 0.45
    assert float((weights * seen)[late].sum() / weights[late].sum()) > 0.9


def test_everything_is_seen_with_all_columns_or_all_diagonals():
    query, keys = part("b", "q"), part("b", "k")
    valid = torch.ones(1, 96, dtype=torch.bool)
    causal = torch.ones(96, 96, dtype=torch.bool).tril()
    for sizes in ((96, 1), (1, 96)):
        assert torch.equal(seen_by(*vertical_slash(query, keys, valid, *sizes, SCALING))[0, 0], causal)


@pytest.mark.parametrize("field", ["vertical", "slash", "blocks", "block"])
def test_bad_settings(field):
    with pytest.raises(ConfigError, match=f"MInferenceConfig.{field} = 0"):
        MInferenceConfig(**{field: 0})
    with pytest.raises(ConfigError, match="pattern"):
        registry.config_of("context", "minference:pattern=dense")
