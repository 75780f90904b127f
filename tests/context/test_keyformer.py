"""Keyformer: scores with noise by hand, the masks of the release, and noise that no shape changes."""

import pytest
import torch
from nearness import assert_near
from policy_runs import answer, built, embeddings, llm, prompt
from replay import replayed

from mmllm import registry
from mmllm.context.keyformer import Keyformer, KeyformerConfig
from mmllm.errors import ConfigError
from mmllm.llm.attention import additive, receive

PROMPT, LENGTH, HEADS = 16, 24, 3


def drawn(seed=4):
    generator = torch.Generator().manual_seed(seed)
    tensors = [torch.randn(1, HEADS, LENGTH, 8, generator=generator) for _ in range(3)]
    noise = -torch.empty(1, HEADS, LENGTH, LENGTH).exponential_(generator=generator).log()
    return *tensors, noise


def with_noise(noise, **fields):
    """A policy that gets noise B H L L, by query and key position."""

    def of_rows(view, rows):
        query = view.query_position[0][rows]
        return noise[:, torch.arange(HEADS)[:, None, None], query[:, None], view.position[0].unsqueeze(1)]

    return Keyformer(KeyformerConfig(protect=("none",), **fields), noise=of_rows)


def released(query, key, value, noise, budget=60, recent=30, tau_init=1.0, tau_delta=0.01):
    """The loop of the GPT-J release: outputs, and after each pass the mask and the scores of the slots."""
    outs, masks, scores, mask, total = [], [], [], None, None
    required = int(PROMPT * budget / 100)
    newest = int(required * recent / 100)
    heavy = required - newest
    lowest = torch.finfo(torch.float32).min
    for step, (start, stop) in enumerate([(0, PROMPT), *((at, at + 1) for at in range(PROMPT, LENGTH))]):
        logits = query[0, :, start:stop] @ key[0, :, :stop].mT / 8**0.5
        hidden = ~torch.ones(stop - start, stop, dtype=torch.bool).tril(start)
        logits = logits.masked_fill(hidden if mask is None else ~mask.unsqueeze(1), lowest)
        outs.append(logits.softmax(-1) @ value[0, :, :stop])
        noisy = ((logits + noise[0, :, start:stop, :stop]) / (tau_init + step * tau_delta)).softmax(-1)
        now = noisy.sum(1)
        if total is not None:
            now[:, :-1] += total
        new = torch.ones(HEADS, stop + 1, dtype=torch.bool)
        if stop > required:
            new[:, :-newest] = False
            for head in range(HEADS):
                new[head, now[head, :-newest].topk(heavy).indices] = True
        if mask is not None:
            new[:, :-1] &= mask
        mask, total = new, now * new[:, :-1]
        masks.append(mask[:, :-1])
        scores.append(total)
    return torch.cat(outs, 1), masks, scores


def test_the_release_loses_what_it_has_hidden():
    query, key, value, noise = drawn()
    out, masks, scores = released(query, key, value, noise)
    steps = replayed(with_noise(noise, rule="released"), query, key, value, PROMPT)
    assert_near(torch.cat([step.out for step in steps], dim=2)[0], out)
    for step, mask, score in zip(steps, masks, scores, strict=True):
        assert torch.equal(step.by_key["visible"][0].bool(), mask)
        assert_near(step.by_key["score"][0], score)
    first = {tuple(row.nonzero().flatten().tolist()) for row in masks[0][:, : PROMPT - 2]}
    last = {tuple(row.nonzero().flatten().tolist()) for row in masks[-1][:, : LENGTH - 2]}
    assert first == last  # no token of the answer ever becomes a key token


def test_the_rule_of_the_paper_is_heavy_and_recent_by_noisy_scores():
    query, key, value, noise = drawn()
    query[:, :, PROMPT:] = 20 * key[:, :, PROMPT : PROMPT + 1]  # what follows looks at the first token of the answer
    steps = replayed(with_noise(noise, budget=8, recent=0.25), query, key, value, PROMPT)
    logits = (query[0, :, :PROMPT] @ key[0, :, :PROMPT].mT / 8**0.5).masked_fill(
        ~torch.ones(PROMPT, PROMPT, dtype=torch.bool).tril(), torch.finfo(torch.float32).min
    )
    total = (logits + noise[0, :, :PROMPT, :PROMPT]).softmax(-1).sum(1)
    for head in range(HEADS):
        best = total[head, : PROMPT - 2].topk(6).indices.sort().values.tolist()
        assert steps[0].position[0, head].tolist() == [*best, PROMPT - 2, PROMPT - 1]
    assert all(step.keys.shape[2] == 8 for step in steps)
    assert all(PROMPT in row.tolist() for row in steps[-1].position[0])  # a token of the answer is a key token


def test_a_seed_gives_the_same_keys_and_another_seed_others():
    query, key, value, _ = drawn()

    def positions(seed):
        policy = registry.build("context", f"keyformer:budget=6,seed={seed},protect=none")
        return [step.position.tolist() for step in replayed(policy, query, key, value, PROMPT)]

    assert positions(3) == positions(3)
    assert positions(3) != positions(4)


def test_temperature_grows_with_each_pass():
    """Hot scores are flat: with a huge temperature the noise and the logits decide nothing."""
    query, key, value, noise = drawn()
    steps = replayed(with_noise(noise, budget=500, tau_delta=1e6), query, key, value, PROMPT)
    added = steps[1].by_key["score"][0] - torch.nn.functional.pad(steps[0].by_key["score"][0], (0, 1))
    torch.testing.assert_close(added, torch.full_like(added, 1 / (PROMPT + 1)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("rule", ["paper", "released"])
@pytest.mark.parametrize("tau", [0.5, 1e-30, 1e30])
def test_no_temperature_shows_padding(tau, rule):
    """A row of padding sees no key: its scores are numbers, and the other rows are as they are alone."""
    policy = built(f"keyformer:tau_init={tau},tau_delta=0,budget=0.4,rule={rule},protect=none")
    both = prompt(policy, rows=2, pad=(0, 7))
    embeds = embeddings(both)
    ids, logits, _ = answer(llm(), both, steps=3, embeds=embeds)
    own, own_logits, _ = answer(llm(), prompt(policy, rows=1), steps=3, embeds=embeds[1:, 7:])
    assert torch.equal(own, ids[1:])
    assert_near(own_logits, logits[:, 1:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tau", [1e-3, 0.5, 1e6])
def test_a_temperature_shows_no_hidden_key_in_any_dtype(dtype, tau):
    query, key = drawn()[0][:, :, :4], drawn()[1][:, :, :4]
    visible = torch.ones(4, 4, dtype=torch.bool).tril() & (torch.arange(4) >= 1)  # the first row sees nothing
    rows = {"all": torch.tensor([[0.0, 1.0, 1.0, 1.0]])}

    def received(mask):
        return receive(query, key, mask, rows, 8**-0.5, shaped=lambda logits, _: logits / tau)["all"]

    expected = received(visible[None, None])
    assert expected[0, 0] == 0
    assert expected.isfinite().all()
    assert torch.equal(received(additive(visible[None, None], dtype)), expected)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ("budget=0", "budget = 0.0: must be a share"),
        ("budget=1.5", "budget = 1.5: must be a share"),
        ("recent=1.2", "recent = 1.2: must be a share from 0 to 1"),
        ("tau_init=0", "tau_init = 0.0: must be above 0"),
        ("tau_delta=-1", "tau_delta = -1.0: must be 0 or more"),
        ("seed=-1", "seed = -1: must be a whole number"),
        ("rule=both", "rule = 'both': must be one of 'paper', 'released'"),
    ],
)
def test_bad_settings(fields, message):
    with pytest.raises(ConfigError, match=message):
        registry.build("context", f"keyformer:{fields}")
