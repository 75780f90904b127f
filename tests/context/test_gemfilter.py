"""GemFilter: the original's scores and positions."""

from pathlib import Path

import pytest
import torch
from nearness import assert_near
from policy_runs import FAMILIES, answer, built, embeddings, llm, prompt
from safetensors.torch import load_file
from transformers import DynamicCache

from mmllm.context.choosing import best_of_rows
from mmllm.context.gemfilter import GemFilter, GemFilterConfig, of_kept_frames, pooled_scores
from mmllm.errors import ConfigError
from mmllm.llm.attention import Probe

GOLDEN = load_file(Path(__file__).resolve().parents[1] / "data" / "context-gemfilter.safetensors")


@pytest.mark.parametrize("count", [5, 12, 50])
def test_scores_and_positions_are_the_originals(count):
    everywhere = torch.ones(1, 50, dtype=torch.bool)
    scores = pooled_scores(GOLDEN["q"][:, :, -1], GOLDEN["k"], everywhere)
    assert_near(scores[0], GOLDEN["pooled"])
    chosen = best_of_rows(scores, everywhere, torch.tensor([count]))
    assert chosen[0].nonzero()[:, 0].tolist() == GOLDEN[f"indices_{count}"].tolist()


def test_padding_changes_no_score():
    alone = pooled_scores(GOLDEN["q"][:, :, -1], GOLDEN["k"], torch.ones(1, 50, dtype=torch.bool))
    padded = torch.cat([torch.randn(1, 2, 6, 8), GOLDEN["k"]], dim=2)
    assert_near(pooled_scores(GOLDEN["q"][:, :, -1], padded, torch.arange(56).unsqueeze(0) >= 6)[:, 6:], alone)


def test_times_belong_to_the_next_frame():
    visual = torch.tensor([[0, 0, 1, 1, 0, 1, 1, 0]], dtype=torch.bool)
    frame = torch.tensor([[9, 9, 0, 0, 9, 1, 1, 9]])
    kept = torch.tensor([[0, 0, 0, 0, 0, 0, 1, 0]], dtype=torch.bool)
    assert of_kept_frames(kept, visual, frame).int().tolist() == [[0, 0, 0, 0, 1, 1, 1, 0]]


def test_bad_settings():
    with pytest.raises(ConfigError, match="top_k = 0"):
        GemFilterConfig(top_k=0)
    with pytest.raises(ConfigError, match="layer = -1"):
        GemFilterConfig(layer=-1)
    with pytest.raises(ConfigError, match="layer = 5: must be below the LLM's 4 layers"):
        GemFilter(GemFilterConfig(layer=5)).check(4)
    assert GemFilter(GemFilterConfig()).filter_layer(32) == 12


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("positions", ["restart", "keep"])
def test_the_answer_is_that_to_the_kept_positions_alone(family, positions):
    """What is read, from scratch in the plain LLM: positions from 0 on, or those of the whole prompt."""
    model = llm(family)
    current = prompt(built(f"gemfilter:top_k=9,layer=2,text=false,positions={positions}", family), rows=1)
    ids, logits, cache = answer(model, current)
    kept = cache.layers[0].position[0, 0, :9]
    embeds = embeddings(current)[:, kept]
    place = torch.arange(9) if positions == "restart" else kept
    following = 9 if positions == "restart" else 32
    plain = DynamicCache(config=model.config)
    expected = []
    with torch.no_grad():
        out = model(inputs_embeds=embeds, position_ids=place[None], past_key_values=plain)
        for step in range(8):
            expected.append(out.logits[:, -1])
            token = expected[-1].argmax(-1, keepdim=True)
            assert int(token) == int(ids[0, step])
            out = model(token, position_ids=torch.tensor([[following + step]]), past_key_values=plain)
    assert_near(logits[:-1], torch.stack(expected), terms=1 << 14)
    with torch.no_grad():  # the layer in which positions are ranked, run by hand
        states = model.model(inputs_embeds=embeddings(current), output_hidden_states=True).hidden_states[2]
        attention = model.model.layers[2]
        normed = attention.input_layernorm(states)
        rotated = model.model.rotary_emb(states, torch.arange(32)[None])
        probe = Probe()
        attention.self_attn(hidden_states=normed, position_embeddings=rotated, attention_mask=None, probe=probe)
    scores = pooled_scores(probe.query[:, :, -1], probe.key, torch.ones(1, 32, dtype=torch.bool))
    assert kept.tolist() == sorted([*scores[0, :-1].topk(8).indices.tolist(), 31])
