"""HAMburger's cuts, merged embeddings and micro decoder: the released numbers, and each row against one alone."""

from pathlib import Path

import pytest
import torch
from nearness import assert_near
from safetensors.torch import load_file
from transformers import LlamaConfig

from mmllm.decoding.hamburger_modules import CompositionalEmbedder, MicroDecoder, group_positions
from mmllm.decoding.segments import SEGMENTERS, decreasing_v2, entropy_at

GOLDEN = load_file(Path(__file__).parents[1] / "data" / "decoding-hamburger.safetensors")


@pytest.mark.parametrize("name", SEGMENTERS)
@pytest.mark.parametrize("case", range(4))
def test_groups_are_the_released_ones(case, name):
    assert SEGMENTERS[name](GOLDEN[f"entropy{case}"].tolist()) == GOLDEN[f"steps{case}.{name}"].tolist()


def test_limits_are_the_released_ones():
    expected = GOLDEN["thresholds.small_group_and_sliding"].tolist()
    assert [entropy_at(0.95), entropy_at(0.7)] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("name", SEGMENTERS)
def test_groups_cover_the_text(name):
    generator = torch.Generator().manual_seed(1)
    for count in (0, 1, 2, 30):
        values = (torch.rand(count, generator=generator) ** 3).tolist()
        sizes = SEGMENTERS[name](values)
        assert sum(sizes) == count
        assert all(1 <= size <= 4 for size in sizes)


def test_small_entropies_join_and_large_ones_begin_a_group():
    assert decreasing_v2([1.0, 0.29, 0.04, 0.0, 0.0, 0.31]) == [4, 1, 1]
    assert decreasing_v2([0.01, 0.01]) == [2]


def test_merged_embeddings_and_positions_are_the_released_ones():
    weights = {name.removeprefix("compose.weights."): value for name, value in GOLDEN.items() if "weights" in name}
    words = weights.pop("embedding.weight")
    embedder = CompositionalEmbedder(64)
    embedder.load_state_dict(weights)
    ids, rows, places = GOLDEN["compose.ids"], [], []
    for start, length, prompt, sizes in ((0, 11, 5, [1, 3, 2]), (11, 9, 4, [4, 1])):
        text = words[ids[start : start + length]]
        groups = torch.zeros(len(sizes), 4, 64)
        for number, part in enumerate(text[prompt:].split(sizes)):
            groups[number, : len(part)] = part
            groups[number, len(part) :] = 99.0  # is not read
        rows += [text[:prompt], embedder(groups, torch.tensor(sizes))]
        places += [*range(prompt), *group_positions(prompt, sizes)]
    assert_near(torch.cat(rows).detach(), GOLDEN["compose.embeds"])
    assert places == GOLDEN["compose.position_ids"].tolist()
    assert group_positions(5, [1, 3, 2], released=True) == [6, 9, 11]


def test_one_token_keeps_its_embedding():
    tokens = torch.randn(3, 4, 64)
    assert torch.equal(CompositionalEmbedder(64)(tokens, torch.ones(3, dtype=torch.long)), tokens[:, 0])


def test_each_token_of_a_step_sees_the_features_and_the_tokens_before_it():
    config = LlamaConfig(hidden_size=32, intermediate_size=48, num_attention_heads=4, num_key_value_heads=2, head_dim=8)
    config._attn_implementation = "eager"
    micro = MicroDecoder(config, layers=2)
    features, tokens = torch.randn(2, 3, 32), torch.randn(2, 3, 32)
    outputs, stops = micro(features, tokens)
    assert outputs.shape == (2, 4, 32)
    assert torch.equal(outputs[:, 0], features[:, -1])
    for made in range(4):
        alone, stop = micro(features, tokens[:, :made])
        assert_near(outputs[:, made].detach(), alone[:, -1].detach())
        assert_near(stops[:, made].detach(), stop[:, -1].detach())


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ValueError, match="must divide the width 96"):
        CompositionalEmbedder(96)
