"""H2O: kept keys, scores and outputs of the authors' code; the rule of their masks, by hand."""

from pathlib import Path

import pytest
import torch
from nearness import assert_near
from replay import replayed
from safetensors.torch import load_file

from mmllm import registry
from mmllm.context.scored import newest, seen_next
from mmllm.errors import ConfigError

GOLDEN = load_file(Path(__file__).resolve().parents[1] / "data" / "context-h2o.safetensors")


def h2o(**fields):
    return registry.build("context", {"name": "h2o", "protect": ("none",), **fields})


def test_kept_keys_scores_and_outputs_are_the_originals():
    steps = replayed(h2o(heavy=3, recent=4), GOLDEN["q"], GOLDEN["k"], GOLDEN["v"], prompt=14)
    out = torch.cat([step.out for step in steps], dim=2)
    torch.testing.assert_close(out, GOLDEN["out"], atol=1e-5, rtol=0)
    for number, step in enumerate(steps):
        assert torch.equal(step.keys, GOLDEN[f"kept_keys_{number}"])
        torch.testing.assert_close(step.by_key["score"][0], GOLDEN[f"score_{number}"], atol=1e-5, rtol=0)


def by_hand(query, key, value, prompt, heavy, recent, through_a_view):
    """The masks of the released simulation, with its lists of slots: what each token sees, and the outputs.

    With `through_a_view`, the line on scores also writes into the mask, as it does in the release.
    """
    heads, length, width = query.shape[1:]
    outs, masks, scores, visible = [], [], None, None
    for start, stop in [(0, prompt), *((at, at + 1) for at in range(prompt, length))]:
        logits = query[0, :, start:stop] @ key[0, :, :stop].mT / width**0.5
        causal = torch.ones(stop - start, stop, dtype=torch.bool).tril(start)
        hidden = ~causal if visible is None else ~visible.unsqueeze(1)
        weights = logits.masked_fill(hidden, torch.finfo(torch.float32).min).softmax(-1)
        outs.append(weights @ value[0, :, :stop])
        total = weights.sum(1)
        if scores is not None:
            total[:, :-1] += scores
        visible = torch.ones(heads, stop + 1, dtype=torch.bool)
        if stop > heavy + recent:
            for head in range(heads):
                visible[head, : stop + 1 - recent] = False
                best = sorted(range(stop - recent), key=lambda slot, head=head: -float(total[head, slot]))[:heavy]
                visible[head, best] = True
        stays = visible[:, :-1] if through_a_view else visible[:, :-1].clone()
        stays[:, -recent:] = True  # a recent count of 0 sets all
        scores = total * stays
        masks.append(visible[:, :-1])
    return torch.cat(outs, 1), masks, scores


@pytest.mark.parametrize("rule", ["mask", "mask-as-run"])
@pytest.mark.parametrize(
    ("heavy", "recent", "counts"),
    [(4, 3, (4, 3)), (0.29, 0.2, (4, 3)), (0.25, 0.0, (4, 0)), (0.25, 0.05, (4, 0)), (0.05, 0.2, (0, 3))],
)
def test_masks_follow_the_released_simulation(rule, heavy, recent, counts):
    drawn = torch.Generator().manual_seed(4)
    query, key, value = (torch.randn(1, 3, 26, 8, generator=drawn) for _ in range(3))
    out, masks, scores = by_hand(query, key, value, 16, *counts, through_a_view="run" in rule)
    steps = replayed(h2o(heavy=heavy, recent=recent, rule=rule), query, key, value, prompt=16)
    assert_near(torch.cat([step.out for step in steps], dim=2)[0], out)
    for step, mask in zip(steps, masks, strict=True):
        assert torch.equal(step.by_key["visible"][0].bool(), mask)
    assert_near(steps[-1].by_key["score"][0], scores)
    assert steps[-1].keys.shape[2] == 26  # nothing leaves the cache


def test_the_key_between_heavy_and_recent_sits_out():
    score = torch.tensor([[[5.0, 4.0, 3.0, 2.0, 9.0, 1.0, 1.0]]])
    free, two, one = torch.ones(1, 1, 7, dtype=torch.bool), torch.tensor([2]), torch.tensor([1])
    assert seen_next(score, free, one, two)[0, 0].tolist() == [False, False, False, False, True, False, True]
    zero = torch.tensor([0])
    assert seen_next(score, free, one, zero).all()  # as Keyformer's release
    assert seen_next(score, free, one, zero, none_is_all=False)[0, 0].tolist() == [False] * 4 + [True] + [False] * 2
    assert newest(free, zero).all()
    assert newest(free, two)[0, 0].tolist() == [False] * 5 + [True] * 2


def test_grouped_heads_add_up_their_queries():
    """Two equal query heads of a key head choose what one of them alone chooses."""
    drawn = torch.Generator().manual_seed(5)
    query, key, value = (torch.randn(1, 2, 20, 8, generator=drawn) for _ in range(3))
    alone = replayed(h2o(heavy=3, recent=3), query, key, value, prompt=14)
    twice = replayed(h2o(heavy=3, recent=3), query.repeat_interleave(2, 1), key, value, prompt=14)
    for one, two in zip(alone, twice, strict=True):
        assert torch.equal(one.position, two.position)
        assert_near(two.by_key["score"], 2 * one.by_key["score"])


WRONG = [-1, -0.5, 1.5, 3.2, float("nan"), float("inf")]


@pytest.mark.parametrize(
    ("field", "value"), [("heavy", 0), *((name, bad) for name in ("heavy", "recent") for bad in WRONG)]
)
def test_a_budget_that_is_no_share_and_no_count(field, value):
    with pytest.raises(ConfigError, match=f"{field} = .*: must be a (share|finite)"):
        h2o(**{field: value})


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        ({"heavy": 0.25, "recent": 0}, 4),
        ({"heavy": 0.25, "recent": 0.05}, 4),
        ({"heavy": 0.05, "recent": 0.25}, 4),
        ({"heavy": 0.05, "recent": 0.05}, 1),  # never none at all
    ],
)
def test_shares_are_the_whole_numbers_below_them(fields, kept):
    drawn = torch.Generator().manual_seed(4)
    query, key, value = (torch.randn(1, 3, 20, 8, generator=drawn) for _ in range(3))
    policy = h2o(**fields)
    steps = replayed(policy, query, key, value, prompt=16)
    assert {step.keys.shape[2] for step in steps} == {kept} == {policy.budget_of(16)}


def test_an_unknown_field():
    with pytest.raises(ConfigError, match="h2o has no field 'heavi'; did you mean 'heavy'"):
        registry.config_of("context", "h2o:heavi=0.1")
    with pytest.raises(ConfigError, match="every = 0: must be at least 1"):
        h2o(every=0)
    with pytest.raises(ConfigError, match=r"protect = 'when': must be none, or of system, time"):
        registry.config_of("context", "h2o:protect=when")
