"""SparseVLM against its rule worked out by hand, layer by layer, with transformers' own modules."""

import pytest
import torch
from nearness import assert_near
from small_llm import AFTER, BEFORE, LENGTH, VISUAL, small_llm, small_pass, small_rows
from transformers import DynamicCache
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from mmllm import registry
from mmllm.errors import ConfigError, InputError
from mmllm.llm.harness import install
from mmllm.pruning.sparsevlm import SparseVlmConfig, SparseVlmReducer

LAYERS, COUNTS = (0, 2), (12, 6)


@pytest.fixture
def llm():
    return small_llm()


@pytest.fixture
def embeds():
    return small_rows()


def stage(**fields):
    return SparseVlmReducer(SparseVlmConfig(**{"layers": LAYERS, "counts": COUNTS, **fields}))


def means_by_hand(states, clusters):
    """The first members and the means of density peak clusters, with loops."""
    count, width = states.shape
    distance = [[float((a - b).norm()) / width**0.5 for b in states] for a in states]
    density = [-sum(d * d for d in sorted(row)[:clusters]) / clusters for row in distance]  # its logarithm
    largest = max(map(max, distance))
    peak = [
        min([distance[i][j] for j in range(count) if density[j] > density[i]], default=largest) for i in range(count)
    ]
    score = torch.tensor(density).exp() * torch.tensor(peak)
    centers = sorted(range(count), key=lambda i: -float(score[i]))[:clusters]
    owner = [centers.index(i) if i in centers else min(range(clusters), key=lambda c: distance[centers[c]][i])
             for i in range(count)]  # fmt: skip
    means = [torch.stack([states[i] for i in range(count) if owner[i] == c]).mean(0) for c in range(clusters)]
    return [owner.index(c) for c in range(clusters)], means


@torch.no_grad()
def by_hand(llm, row, *, restart, clusters):
    """Logits of the last position of one row, and how many positions each layer reads.

    Args:
        row: 1 P D.
        restart: whether means are appended and positions start again.
        clusters: means for each merged token.
    """
    decoder, here = llm.model, torch.arange(LENGTH)
    visual = (here >= BEFORE) & (here < BEFORE + VISUAL)
    words = row[0, BEFORE + VISUAL :]
    likeness = (row[0, visual] @ words.T).softmax(1).mean(0)
    rating = torch.arange(LENGTH)[BEFORE + VISUAL :][likeness > likeness.mean()]
    assert 0 < len(rating) < AFTER
    hidden, position, read = row, torch.arange(LENGTH), []
    for number, layer in enumerate(decoder.layers):
        rotary = decoder.rotary_emb(hidden, position_ids=position[None])
        normed, attention = layer.input_layernorm(hidden), layer.self_attn
        shape = (*normed.shape[:2], -1, attention.head_dim)
        query, key = (project(normed).view(shape).transpose(1, 2) for project in (attention.q_proj, attention.k_proj))
        query, key = apply_rotary_pos_emb(query, key, *rotary)
        logits = query @ key.repeat_interleave(2, 1).mT * attention.scaling
        logits = logits + torch.full(logits.shape[-2:], -torch.inf).triu(1)
        score = logits.softmax(-1).mean(1)[0][torch.isin(here, rating)].mean(0)
        hidden = layer(hidden, attention_mask=None, position_embeddings=rotary, position_ids=position[None])
        read.append(len(here))
        if number not in LAYERS:
            continue
        seen = visual.nonzero()[:, 0]
        stays = seen[score[seen].topk(COUNTS[LAYERS.index(number)]).indices].sort().values
        dropped = seen[~torch.isin(seen, stays)]
        best = dropped[score[dropped].topk(int(len(dropped) * 0.3) + 1).indices]
        first, means = means_by_hand(hidden[0, best], int(len(best) * clusters) + 1)
        at = best[first]
        hidden = hidden.clone()
        hidden[0, at] = torch.stack(means)
        if restart:  # text, what stays, the means, text
            begin, last = int(seen[0]), int(seen[-1])
            order = torch.cat([torch.arange(begin), stays, at.sort().values, torch.arange(last + 1, len(here))])
        else:
            order = torch.cat([(~visual).nonzero()[:, 0], stays, at]).sort().values
        hidden, here, visual = hidden[:, order], here[order], visual[order]
        position = torch.arange(len(here)) if restart else here
    return llm.lm_head(decoder.norm(hidden))[0, -1], read


@pytest.mark.parametrize("clusters", [0.1, 0.5])
@pytest.mark.parametrize("positions", ["restart", "keep"])
def test_two_steps_by_hand(llm, embeds, positions, clusters):
    expected = [by_hand(llm, row[None], restart=positions == "restart", clusters=clusters) for row in embeds]
    install(llm.model)
    current, cache = small_pass(stage(positions=positions, clusters=clusters)), DynamicCache(config=llm.config)
    with torch.no_grad():
        logits = llm(inputs_embeds=embeds, llm_pass=current, past_key_values=cache).logits
    assert_near(logits[:, -1], torch.stack([last for last, _ in expected]))
    read = expected[0][1]
    assert [layer.keys.shape[2] for layer in cache.layers] == read
    text, means = LENGTH - VISUAL, 1 if clusters == 0.1 else 3
    assert read[:3] == [LENGTH, text + 12 + means, text + 12 + means]
    assert read[3] == read[4] == text + 6 + (1 if clusters == 0.1 else 2)


@pytest.mark.parametrize("positions", ["restart", "keep"])
def test_padding_changes_nothing(llm, embeds, positions):
    install(llm.model)
    part = stage(positions=positions)
    with torch.no_grad():
        expected = llm(inputs_embeds=embeds[:1], llm_pass=small_pass(part, rows=1)).logits[0, -1]
    mask = torch.ones(1, LENGTH + 5, dtype=torch.long)
    mask[:, :5] = 0
    given = {"attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
    padded = torch.cat([torch.randn(1, 5, 32), embeds[:1]], 1)
    with torch.no_grad():
        current = small_pass(part, valid=mask.bool())
        logits = llm(inputs_embeds=padded, llm_pass=current, **given).logits[0, -1]
    assert_near(logits, expected)


def test_what_is_merged_is_read_behind_its_own_picture(llm, embeds):
    """With text between two pictures, a mean stays in the picture of its centre."""
    install(llm.model)
    current = small_pass(stage(layers=(0,), counts=(4,), clusters=0.5), rows=2)
    between = BEFORE + VISUAL // 2
    current.visual = current.visual.clone()
    current.visual[:, between] = False
    with torch.no_grad():
        llm(inputs_embeds=embeds, llm_pass=current)
    position = current.kept[1].position
    assert (position.diff(dim=-1) < 0).any()  # means are out of order
    for row in position.tolist():
        at = row.index(between)
        assert all(BEFORE <= place < between for place in row[BEFORE:at])
        assert all(between < place < BEFORE + VISUAL for place in row[at + 1 : -AFTER])


def test_the_whole_budget_changes_nothing(llm, embeds):
    plain = llm(inputs_embeds=embeds).logits
    install(llm.model)
    with torch.no_grad():
        logits = llm(inputs_embeds=embeds, llm_pass=small_pass(stage(counts=(), ratios=(1.0, 1.0)))).logits
    assert_near(logits, plain)


def test_nothing_is_merged_if_nothing_is_recycled(llm, embeds):
    install(llm.model)
    current = small_pass(stage(recycled=0.0))
    with torch.no_grad():
        llm(inputs_embeds=embeds, llm_pass=current)
    assert current.kept[3].valid.sum(-1).tolist() == [LENGTH - VISUAL + 6] * 2


def test_published_numbers():
    part = SparseVlmReducer(SparseVlmConfig())
    assert [part.config.count(step, 576) for step in range(3)] == [300, 200, 110]
    few = SparseVlmConfig(counts=(66, 30, 17))
    assert [few.count(step, 576) for step in range(3)] == [66, 30, 17]
    assert few.count(0, 20) == 20
    assert part.before_layers == (3, 7, 16)


def test_what_it_went_by_is_shown(llm, embeds):
    install(llm.model)
    part = stage()
    current = small_pass(part)
    assert part.explain_pass(current) is None
    with torch.no_grad():
        llm(inputs_embeds=embeds, llm_pass=current)
    assert torch.equal(part.explain_pass(current).values.isfinite(), current.visual)


def test_bad_input(llm, embeds):
    for wrong in (
        {"layers": ()}, {"layers": (-1, 1)}, {"layers": (3, 1)}, {"counts": (5,)}, {"counts": (3, 4)},
        {"counts": (3, 0)}, {"recycled": 1.5}, {"clusters": 0.0},
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            stage(**wrong)
    with pytest.raises(ConfigError, match="ratios"):
        stage(counts=(), ratios=(0.5,))
    with pytest.raises(ConfigError, match=r"before layer 16, which must be below the LLM's 16 layers"):
        registry.build("reducer", "sparsevlm").check(16)
    install(llm.model)
    current = small_pass(stage())
    current.question = torch.zeros_like(current.question)
    with pytest.raises(InputError, match="a row has none"), torch.no_grad():
        llm(inputs_embeds=embeds, llm_pass=current)
    embeds[0, 5] = float("nan")
    with pytest.raises(InputError, match="is not finite"), torch.no_grad():
        llm(inputs_embeds=embeds, llm_pass=small_pass(stage()))
