"""A look at a layer that has not run: what it sees, what it computes, and what the layer need not compute again."""

import threading
from collections import defaultdict

import pytest
import torch
from nearness import assert_near
from small_llm import LENGTH, VISUAL, small_pass, small_rows

from mmllm.interfaces import LlmReducer
from mmllm.llm.ahead import Look
from mmllm.llm.attention import Probe, receive
from mmllm.llm.harness import install
from mmllm.llm.values import PruneDecision

KEPT = 10
"""Visual tokens that go on into the layer."""
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")


class Looking(LlmReducer):
    """Looks at layer 2 from the last position, and keeps the best visual tokens, with their states times a factor."""

    def __init__(self, factor=1.0):
        super().__init__()
        self.factor, self.seen, self.hidden = factor, None, None

    def prune(self, view):
        if view.layer != 2:
            return None
        rows = torch.zeros(view.hidden.shape[:2])
        rows[:, -1] = 1.0
        self.hidden, self.seen = view.hidden, view.attention_ahead(rows)
        visual = view.before.of(view.current.visual)
        best = self.seen.masked_fill(~visual, -1).topk(KEPT, dim=-1).indices
        keep = (~visual).scatter(1, best, True)
        return PruneDecision(keep=keep, hidden=None if self.factor == 1 else view.hidden * self.factor)


@torch.no_grad()
def read(llm, stage):
    """Logits of two rows, 2 LENGTH V."""
    return llm(inputs_embeds=small_rows(), llm_pass=small_pass(stage)).logits


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "phi3", "gemma"])
def test_it_sees_what_the_whole_layer_would(make_llm, family):
    llm, stage = make_llm(family), Looking()
    install(llm.model)
    read(llm, stage)
    layer, probe = llm.model.layers[2], Probe()
    rotated = llm.model.rotary_emb(stage.hidden, torch.arange(LENGTH)[None])
    inputs = {"position_embeddings": rotated, "attention_mask": None}
    with torch.no_grad():
        layer.self_attn(hidden_states=layer.input_layernorm(stage.hidden), probe=probe, **inputs)
    last = torch.eye(LENGTH)[-1:].expand(2, -1)
    assert_near(stage.seen, receive(probe.query, probe.key, None, {"": last}, layer.self_attn.scaling)[""])


def test_only_keys_are_projected_and_only_once(make_llm):
    llm, rows = make_llm(), defaultdict(list)
    install(llm.model)
    for name in PROJECTIONS:
        projection = getattr(llm.model.layers[2].self_attn, name)
        projection.register_forward_hook(lambda _module, args, _out, name=name: rows[name].append(args[0].shape[1]))
    read(llm, Looking())
    left = LENGTH - VISUAL + KEPT
    # first the look, then the layer; a projection whose output is there gets one row
    assert rows == {"q_proj": [1, left], "k_proj": [LENGTH, 1], "v_proj": [left], "o_proj": [left]}


@pytest.mark.parametrize("factor", [1.0, 0.5])
@pytest.mark.parametrize("family", ["llama", "phi3", "gemma"])
def test_the_layer_reads_the_keys_that_it_would_project_itself(make_llm, monkeypatch, family, factor):
    llm = make_llm(family)
    install(llm.model)
    logits = read(llm, Looking(factor))
    monkeypatch.setattr(Look, "hand_on", lambda look: None)
    assert_near(logits, read(llm, Looking(factor)))


def test_with_gradients_the_layer_projects_its_keys(make_llm):
    llm = make_llm()
    install(llm.model)
    llm(inputs_embeds=small_rows(), llm_pass=small_pass(Looking())).logits[:, -1].sum().backward()
    weight = llm.model.layers[2].self_attn.k_proj.weight
    assert bool((weight.grad != 0).any())


def test_a_layer_that_fails_leaves_nothing_to_the_next_pass(make_llm):
    llm = make_llm()
    expected = llm(inputs_embeds=small_rows()).logits.detach()
    install(llm.model)
    norm, calls = llm.model.layers[2].input_layernorm, []

    def fail(_module, _args):
        calls.append(1)
        if len(calls) == 2:  # the first is the look
            raise RuntimeError("out of memory")

    handle = norm.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        read(llm, Looking())
    handle.remove()
    with torch.no_grad():
        assert torch.equal(llm(inputs_embeds=small_rows()).logits, expected)


def test_another_thread_projects_its_own_keys(make_llm):
    llm = make_llm()
    install(llm.model)
    attention, states = llm.model.layers[2].self_attn, torch.randn(1, 4, 32)
    with torch.no_grad():
        expected = attention.k_proj(states)
        look, other = Look(attention), []
        look.keys = torch.randn_like(expected)
        look.hand_on()
        thread = threading.Thread(target=lambda: other.append(attention.k_proj(states)))
        thread.start()
        thread.join()
        assert torch.equal(other[0], expected)
        assert torch.equal(attention.k_proj(states), look.keys)
        assert torch.equal(attention.k_proj(states), expected)  # they are taken once
