"""FLASH: the originals' numbers, what its layer sees, and what it guesses."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from nearness import assert_near
from safetensors.torch import load_file

from mmllm import registry
from mmllm.decoding.flash_draft import compressed, rearranged
from mmllm.decoding.trained_draft import TargetRows
from mmllm.tokens import IGNORED

GOLDEN = load_file(Path(__file__).parents[1] / "data" / "decoding-flash.safetensors")


def sized(width, heads, groups):
    text = SimpleNamespace(hidden_size=width, num_attention_heads=heads, num_key_value_heads=groups)
    return SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: text))


def built(model, **settings):
    torch.manual_seed(3)
    return registry.build("draft", {"name": "flash", **settings}, model=model)


@pytest.fixture(scope="module")
def released():
    heads, groups, ahead = GOLDEN["heads"].tolist()
    weights = {name[8:]: value for name, value in GOLDEN.items() if name.startswith("weights.")}
    settings = {"heads": heads, "groups": groups, "ahead": ahead, "queries": len(GOLDEN["query"]), "released": True}
    draft = built(sized(GOLDEN["x"].shape[-1], heads, groups), **settings)
    del weights["rotary_emb.inv_freq"]
    assert draft.load_state_dict(weights, strict=False).unexpected_keys == []
    draft.query.data = GOLDEN["query"]
    return draft


def guessed(draft, states):
    """The guesses behind every position of inputs that see each other causally."""
    count = states.shape[1]
    positions = torch.arange(count).expand(len(states), -1)
    keys, values = draft.keys_and_values(states, positions)
    return draft.guesses(
        states, positions, keys, values, torch.ones(count, count).tril().bool().expand(len(states), -1, -1)
    )


@torch.no_grad()
def test_the_released_layer(released):
    guesses = guessed(released, GOLDEN["x"])
    assert torch.allclose(guesses, GOLDEN["y"], atol=2e-6)
    assert torch.allclose(rearranged(guesses), GOLDEN["rearranged"], atol=2e-6)
    assert torch.allclose(released.fused(GOLDEN["embeds"], GOLDEN["x"]), GOLDEN["fused"], atol=2e-6)
    assert torch.allclose(compressed(released.query, GOLDEN["visual"]), GOLDEN["compressed"], atol=2e-6)


@torch.no_grad()
def test_usual_grouped_heads_read_one_group_each_and_the_release_reads_all():
    states = GOLDEN["x"]
    grouped, whole = built(sized(32, 4, 2), ahead=2), built(sized(32, 4, 4), ahead=2)
    state = grouped.state_dict()
    for name in ("k_proj.weight", "k_proj.bias", "v_proj.weight", "v_proj.bias"):
        state[name] = state[name].unflatten(0, (2, 8)).repeat_interleave(2, 0).flatten(0, 1)
    whole.load_state_dict(state)
    assert_near(guessed(grouped, states), guessed(whole, states))
    groups = {released: built(sized(32, 4, 2), ahead=2, released=released) for released in (False, True)}
    assert not torch.allclose(guessed(groups[True], states), guessed(groups[False], states), atol=1e-2)


@torch.no_grad()
def test_what_is_compressed_is_seen_as_a_few_vectors_in_its_place():
    draft = built(sized(32, 4, 2), queries=3)
    embeddings, hidden = torch.randn(2, 1, 9, 32)
    visual = torch.tensor([[0, 0, 1, 1, 1, 1, 0, 0, 0]]).bool()
    inputs = draft.inputs(embeddings, hidden, visual, torch.ones_like(visual))
    assert inputs.positions[0].tolist()[:3] == [2, 3, 4]
    assert inputs.positions[0, 3:][~visual[0]].tolist() == [0, 1, 5, 6, 7]
    assert inputs.valid[0].tolist() == [True] * 3 + (~visual[0]).tolist()
    assert torch.equal(inputs.states[0, 3:5], hidden[0, :2])
    assert_near(inputs.states[0, 9], draft.fused(embeddings[0, 6], hidden[0, 5]))
    assert_near(inputs.states[:, :3], compressed(draft.query, hidden[:, 2:6]))


@torch.no_grad()
def test_padding_changes_nothing_and_rows_without_a_video_have_no_vectors_in_its_place():
    draft = built(sized(32, 4, 2), queries=3)
    embeddings, hidden = torch.randn(2, 1, 6, 32)
    none = torch.zeros(1, 6, dtype=torch.bool)
    plain = draft.inputs(embeddings, hidden, none, ~none)
    assert not plain.valid[0, :3].any()
    assert plain.positions[0, 3:].tolist() == [0, 1, 2, 3, 4, 5]
    junk = torch.randn(1, 2, 32)
    padded = draft.inputs(
        torch.cat([junk, embeddings], 1), torch.cat([junk, hidden], 1), torch.zeros(1, 8).bool(),
        torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1]]).bool(),
    )  # fmt: skip
    assert padded.valid[0, 3:5].tolist() == [False, False]
    assert padded.positions[0, 5:].tolist() == plain.positions[0, 3:].tolist()
    assert_near(padded.states[0, 5:], plain.states[0, 3:])


def test_guesses_stand_where_they_are_true():
    guesses = torch.arange(2 * 4 * 3).view(2, 4, 3, 1).float()
    moved = rearranged(guesses).view(2, 3, 4)
    for offset in range(3):
        assert torch.equal(moved[:, offset, offset:], guesses[:, : 4 - offset, offset, 0])
        assert not moved[:, offset, :offset].any()


def rows_of(model, count=2, length=12, answer=6):
    ids = torch.randint(3, 100, (count, length))
    labels = ids.masked_fill(torch.arange(length) < length - answer, IGNORED)
    mask = torch.ones_like(ids)
    return TargetRows(
        model=model, ids=ids, embeddings=model.get_input_embeddings()(ids).detach(), mask=mask, labels=labels,
        visual=(torch.arange(length) < 4).expand(count, -1), positions=mask.cumsum(1) - 1, batch={},
    )  # fmt: skip


def test_a_layer_that_learns_a_text_drafts_it(make_decoder):
    """On one text the loss falls; the chain that it then drafts in this text is right."""
    model = make_decoder(eos_token_id=None).requires_grad_(False)
    prompt = torch.tensor([[5, 9, 11, 30]])
    whole = model.generate(prompt, max_new_tokens=12, do_sample=False)
    labels = whole.clone()
    labels[:, :4] = IGNORED
    mask = torch.ones_like(whole)
    rows = TargetRows(
        model=model, ids=whole, embeddings=model.get_input_embeddings()(whole), mask=mask, labels=labels,
        visual=torch.zeros_like(whole).bool(), positions=mask.cumsum(1) - 1, batch={},
    )  # fmt: skip
    draft = built(model, noise=0.0)
    method = registry.build("decoding", "flash:draft=given", trained=draft)

    def accepted():
        out = model.generate(prompt, max_new_tokens=12, do_sample=False, custom_generate=method)
        assert torch.equal(out, whole)
        return method.last.matched

    before, optimizer = accepted(), torch.optim.Adam(draft.parameters(), lr=3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        loss = draft.loss(rows)
        loss.backward()
        optimizer.step()
    assert accepted() > max(before, 6), before
    assert method.last.emitted_per_round[0] == 4


@torch.no_grad()
@pytest.mark.parametrize("visual", [False, True])
def test_the_layer_drafts_with_what_it_was_trained_on(make_decoder, visual):
    """What it guesses while drafting, round by round, is what it guesses in training for the whole text at once."""
    model, prompt = make_decoder(eos_token_id=None), torch.tensor([[5, 9, 7, 7, 7, 11, 30]])
    model.config.video_token_id = 7 if visual else None
    draft, drafted = built(model, noise=0.0, queries=2), []
    guesses = draft.guesses
    draft.guesses = lambda *arguments: drafted.append(guesses(*arguments)) or drafted[-1]
    method = registry.build("decoding", "flash:draft=given", trained=draft)
    whole = model.generate(prompt, max_new_tokens=10, do_sample=False, custom_generate=method)
    roots = torch.tensor([0, *method.last.emitted_per_round]).cumsum(0)[: len(drafted)] + prompt.shape[1]
    in_rounds = torch.cat(drafted, dim=1)[0]  # rounds k D
    drafted.clear()
    labels, mask = whole.clone(), torch.ones_like(whole)
    labels[:, : prompt.shape[1]] = IGNORED
    seen = (whole == 7) & (torch.arange(whole.shape[1]) < prompt.shape[1]) & visual
    draft.loss(TargetRows(
        model=model, ids=whole, embeddings=model.get_input_embeddings()(whole), mask=mask, labels=labels, visual=seen,
        positions=mask.cumsum(1) - 1, batch={},
    ))  # fmt: skip
    assert len(roots) > 3
    assert_near(drafted[0][0, roots], in_rounds)


def test_the_loss_reads_answers_alone(make_decoder):
    model = make_decoder()
    rows, draft = rows_of(model), built(model, noise=0.0)
    draft.loss(rows).backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in draft.parameters())
    other = rows.labels.clone()
    other[:, :6] = IGNORED
    assert torch.equal(draft.loss(replace(rows, labels=other)), draft.loss(rows))
    other[:, -1] = IGNORED
    assert not torch.equal(draft.loss(replace(rows, labels=other)), draft.loss(rows))


def test_fewer_vectors_are_fewer_positions(make_model, visual_prompt):
    model, counted = make_model(), {}
    for queries in (2, 5):
        method = registry.build("decoding", "flash:draft=given", trained=built(model, queries=queries))
        model.generate(**visual_prompt(6), max_new_tokens=8, do_sample=False, custom_generate=method)
        counted[queries] = method.last.extra["prompt_positions"]
    assert counted[5] - counted[2] == 3


BAD = {
    "flash:ahead=0": "ahead", "flash:queries=0": "queries", "flash:heads=0": "heads", "flash:groups=-1": "groups",
    "flash:noise=-1": "noise", "flash:token_weight=-1": "token_weight",
}  # fmt: skip


@pytest.mark.parametrize("description", BAD)
def test_settings_outside_their_range_are_refused(description):
    with pytest.raises(ValueError, match=BAD[description]):
        registry.config_of("draft", description)


def test_heads_that_do_not_fit_are_refused(make_decoder):
    for settings in ({"heads": 5}, {"heads": 32}, {"heads": 4, "groups": 3}):
        with pytest.raises(ValueError, match="width 32"):
            built(make_decoder(), **settings)
